-- name: breakers
-- The breakers of these names, or all where names is null; one that never failed and was never held has no row.
SELECT
    name,
    state,
    consecutive_failures,
    opened_at,
    extract(epoch FROM retry_at - now())::double precision AS retry_in_seconds,
    held_by,
    last_error
FROM circuit_breakers
WHERE %(names)s::text[] IS NULL OR name = ANY (%(names)s::text[])
ORDER BY name

-- name: probe_breaker
-- Returns a row to the one caller that may probe now. Whoever waited for its lock finds retry_at moved on, and nothing
-- to update; it comes due again a cool-down later, should the prober not report back.
UPDATE circuit_breakers
SET state = 'half_open', retry_at = now() + make_interval(secs => %(cool_down_seconds)s)
WHERE name = %(name)s AND state <> 'closed' AND held_by IS NULL AND retry_at <= now()
RETURNING name

-- name: give_back_probe
-- Makes a probe that was won and not made due again; a person's hold stands.
UPDATE circuit_breakers
SET retry_at = now()
WHERE name = %(name)s AND state = 'half_open' AND held_by IS NULL

-- name: close_breaker
-- Closes a breaker and forgets its failures; without effect on one that a person holds or that has none.
UPDATE circuit_breakers
SET state = 'closed', consecutive_failures = 0, opened_at = NULL, retry_at = NULL, last_error = NULL
WHERE name = %(name)s AND held_by IS NULL AND (state <> 'closed' OR consecutive_failures > 0)

-- name: count_failure
-- Counts a failure and returns the breaker after it: open at the threshold, or at once where it was a probe that failed.
-- One that is open already keeps its retry_at, lest sends that were out when it opened put the probe off.
INSERT INTO circuit_breakers AS breaker (name, state, consecutive_failures, opened_at, retry_at, last_error)
SELECT
    %(name)s,
    CASE WHEN opens THEN 'open' ELSE 'closed' END,
    1,
    CASE WHEN opens THEN now() END,
    CASE WHEN opens THEN now() + make_interval(secs => %(cool_down_seconds)s) END,
    %(error)s
FROM (SELECT %(failure_threshold)s <= 1 AS opens) AS first_failure
ON CONFLICT (name) DO UPDATE
SET (state, consecutive_failures, opened_at, retry_at, last_error) = (
    SELECT
        CASE WHEN opens THEN 'open' ELSE breaker.state END,
        breaker.consecutive_failures + 1,
        CASE WHEN opens THEN coalesce(breaker.opened_at, now()) ELSE breaker.opened_at END,
        CASE WHEN opens THEN now() + make_interval(secs => %(cool_down_seconds)s) ELSE breaker.retry_at END,
        excluded.last_error
    FROM (
        SELECT
            breaker.state = 'half_open'
            OR breaker.state = 'closed' AND breaker.consecutive_failures + 1 >= %(failure_threshold)s AS opens
    ) AS this_failure
)
RETURNING
    name,
    state,
    consecutive_failures,
    opened_at,
    extract(epoch FROM retry_at - now())::double precision AS retry_in_seconds,
    held_by,
    last_error

-- name: hold_breaker
-- Opens a breaker until a person lets it go; one that was open already stays open since then.
INSERT INTO circuit_breakers AS breaker (name, state, opened_at, held_by)
VALUES (%(name)s, 'open', now(), %(held_by)s)
ON CONFLICT (name) DO UPDATE
SET state = 'open', opened_at = coalesce(breaker.opened_at, now()), retry_at = NULL, held_by = excluded.held_by

-- name: resume_breaker
-- Lets go of a breaker that is held, and cuts short the cool-down of one that is not: its probe is due at once.
UPDATE circuit_breakers
SET state = 'half_open', retry_at = now(), held_by = NULL
WHERE name = %(name)s AND (held_by IS NOT NULL OR state = 'open')
RETURNING name
