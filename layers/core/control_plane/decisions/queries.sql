-- name: insert_decision_events
-- Events of deciding, their messages, and one pending delivery per message and subscription.
SELECT topic, unsubscribed
FROM insert_decision_events(%(events)s::json)
