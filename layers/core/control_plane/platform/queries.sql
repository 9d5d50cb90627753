-- name: session
-- This session's settings, null if the server has none of that name, and the schemas of its search_path.
SELECT name, CASE name WHEN 'current_schema' THEN pg_catalog.current_schema() ELSE pg_catalog.current_setting(name, true) END
FROM pg_catalog.unnest(ARRAY[
    'datestyle', 'timezone', 'client_encoding', 'server_encoding', 'intervalstyle', 'extra_float_digits',
    'standard_conforming_strings', 'array_nulls', 'current_schema', 'default_transaction_isolation',
    'transaction_read_only', 'statement_timeout', 'lock_timeout', 'transaction_timeout',
    'idle_in_transaction_session_timeout', 'synchronous_commit', 'session_replication_role', 'exit_on_error',
    'restrict_nonsystem_relation_kind', 'control_plane.retention', 'control_plane.session'
]) AS setting (name)

-- name: mend_session
-- Sets these settings for as long as the session lasts.
SELECT name, set_config(name, value, false)
FROM unnest(%(names)s::text[], %(values)s::text[]) AS setting (name, value)

-- name: session_role
-- Who this session is, and whether it may do all that a role of the control plane may; null where there is no such role.
SELECT current_user::text, (SELECT pg_has_role(oid, 'usage') FROM pg_roles WHERE rolname = %(role)s)

-- name: breakers
-- The breakers of these names, or all where names is null; one that never failed and was never held has no row.
SELECT
    name,
    state,
    consecutive_failures,
    opened_at,
    extract(epoch FROM retry_at - now())::double precision AS retry_in_seconds,
    held_by,
    held_reason,
    last_error,
    guarded_at > now() - interval '15 minutes' AS is_guarded
FROM circuit_breakers
WHERE %(names)s::text[] IS NULL OR name = ANY (%(names)s::text[])
ORDER BY name

-- name: guard_breakers
-- The breakers of these names, with the columns of the query breakers; each is stamped as in use, at most once a
-- minute.
WITH stamped AS (
    UPDATE circuit_breakers
    SET guarded_at = now()
    WHERE name = ANY (%(names)s::text[]) AND guarded_at < now() - interval '1 minute'
)
SELECT
    name,
    state,
    consecutive_failures,
    opened_at,
    extract(epoch FROM retry_at - now())::double precision AS retry_in_seconds,
    held_by,
    held_reason,
    last_error,
    true AS is_guarded
FROM circuit_breakers
WHERE name = ANY (%(names)s::text[])

-- name: probe_breaker
-- Returns a row to the one caller that may probe now. A caller that waited for the row's lock finds retry_at moved on,
-- and updates nothing. If the prober does not report back, a probe is due again a cool-down later.
UPDATE circuit_breakers
SET state = 'half_open', retry_at = now() + make_interval(secs => %(cool_down_seconds)s)
WHERE name = %(name)s AND state <> 'closed' AND held_by IS NULL AND retry_at <= now()
RETURNING name

-- name: give_back_probe
-- Makes a probe due again that was won and not made. A person's hold stays.
UPDATE circuit_breakers
SET retry_at = now()
WHERE name = %(name)s AND state = 'half_open' AND held_by IS NULL

-- name: close_breaker
-- Closes a breaker and forgets its failures. This has no effect on a breaker that a person holds, that has no failures,
-- or that opened after the successful work had begun.
UPDATE circuit_breakers
SET state = 'closed', consecutive_failures = 0, opened_at = NULL, retry_at = NULL, last_error = NULL
WHERE name = %(name)s
    AND held_by IS NULL
    AND (
        state = 'closed' AND consecutive_failures > 0
        OR opened_at <= now() - make_interval(secs => %(began_seconds_ago)s)
    )

-- name: count_failure
-- Counts a failure and returns the breaker after it: open at the threshold, or at once after a failed probe. A breaker
-- that is open already keeps its retry_at, so that failures of sends that began before do not delay the probe.
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
    held_reason,
    last_error,
    true AS is_guarded

-- name: hold_breaker
-- Opens a breaker until a person lets it go; one that was open already stays open since then. Returns no row where somebody
-- else holds it.
INSERT INTO circuit_breakers AS breaker (name, state, opened_at, held_by, held_reason)
VALUES (%(name)s, 'open', now(), %(held_by)s, %(held_reason)s)
ON CONFLICT (name) DO UPDATE
SET state = 'open',
    opened_at = coalesce(breaker.opened_at, now()),
    retry_at = NULL,
    held_by = excluded.held_by,
    held_reason = excluded.held_reason
WHERE breaker.held_by IS NULL OR breaker.held_by = excluded.held_by OR %(force)s
RETURNING name

-- name: resume_breaker
-- Ends a hold, and the cool-down of a breaker that is not held: its probe is due at once.
UPDATE circuit_breakers
SET state = 'half_open', retry_at = now(), held_by = NULL, held_reason = NULL
WHERE name = %(name)s AND (held_by IS NOT NULL OR state = 'open')
RETURNING name

-- name: forget_breaker
-- Deletes a breaker, whatever state it is in.
DELETE FROM circuit_breakers
WHERE name = %(name)s
RETURNING name

-- name: oldest_pending_age
-- The age in seconds of the oldest pending delivery of the live flow, 0 if there is none. Deliveries are promised roughly
-- in the order of their messages' ids, so the lowest ids include the oldest. What an operation has promised is left out:
-- it may be paced over hours.
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(promised_at)), 0)::double precision
FROM (
    SELECT promised_at
    FROM pending_deliveries
    WHERE operation_id IS NULL
    ORDER BY outbox_id
    LIMIT 1000
) AS lowest

-- name: limit_statements
-- Makes Postgres cancel further statements of this transaction after so many milliseconds.
SELECT set_config('statement_timeout', %(milliseconds)s, true)

-- name: count_pending
-- How many deliveries are pending.
SELECT count(*)
FROM pending_deliveries

-- name: count_open_dead_letters
-- How many dead letters are open, of every kind, counted up to a limit.
SELECT count(*)
FROM (SELECT FROM dead_letters WHERE resolution IS NULL LIMIT %(most)s) AS letter

-- name: delete_expired
-- Deletes a batch of the oldest rows of one kind that are older than an instant, or than so many days, with all that belongs
-- to them. Returns how many.
SELECT delete_expired(
    %(what)s,
    coalesce(%(before)s::timestamptz, now() - make_interval(days => %(days)s::integer)),
    %(batch_size)s::integer,
    %(operation_id)s::uuid
)

-- name: retention_waits_for
-- The operation for whose end the scheduled retention of events and their processing waits; null for none.
SELECT retention_waits_for()

-- name: count_expiring
-- Counts the next rows of one kind that are older than an instant, so many at most, after a place. Returns how many, the place
-- of the last one, the age of the first one and a sample.
SELECT counted, last_at, last_id, first_at, sample
FROM count_expiring(%(what)s, %(before)s::timestamptz, %(after_at)s::timestamptz, %(after_id)s, %(most)s::integer)

-- name: days_ago
-- The instant that is so many days ago, by the shared clock.
SELECT now() - make_interval(days => %(days)s::integer)

-- name: use_schemas
-- Sets where statements look for their tables, until the transaction ends.
SELECT set_config('search_path', %(schemas)s, true)
