-- name: pieces_of_file
-- How many pieces of a file are there, how many observations they hold, and the hashes of the pieces in order.
SELECT
    count(*),
    coalesce(sum(observations), 0)::bigint,
    coalesce(string_agg(sha256, '' ORDER BY number), '')
FROM backfill_pieces
WHERE file_sha256 = %(file_sha256)s

-- name: keep_piece
-- Keeps one piece of a file; returns whether it is new.
SELECT keep_backfill_piece(%(file_sha256)s, %(number)s, %(sha256)s, %(observations)s, %(body)s)

-- name: forget_pieces
-- Forgets a file's pieces.
SELECT forget_backfill_pieces(%(file_sha256)s)

-- name: present
-- The database's clock, by which a paced operation goes.
SELECT clock_timestamp()
