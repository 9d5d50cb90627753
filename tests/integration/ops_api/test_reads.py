"""The lists: their filters, their pages, and what a wrong query or cursor is answered."""

import json
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterator
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import Connection, errors
from tests.conftest import TestDatabase
from tests.integration import detection, seeds
from tests.integration.ops_api.client import Answer, Client

from control_plane.api import pages
from control_plane.model.lifecycle import Accepted, Failed
from control_plane.platform.breakers import hold
from control_plane.platform.database import connect

LISTS = [
    "/events", "/anomalies", "/decisions", "/approvals", "/switches", "/subscriptions", "/breakers", "/dead-letters",
    "/operations", "/tokens", "/audit",
]  # fmt: skip


def all_pages(api: Client, path: str, **query: str) -> Iterator[Answer]:
    after: str | None = None
    while True:
        answer = api.ask("GET", path, query=query | ({} if after is None else {"after": after}))
        assert answer.status == 200, answer.body
        yield answer
        after = answer.body["next"]
        if after is None:
            return


def of(api: Client, path: str, field: str, **query: str) -> list[Any]:
    return [item[field] for answer in all_pages(api, path, **query) for item in answer.body["items"]]


@pytest.mark.parametrize("path", LISTS)
def test_an_empty_list_is_one_page(api: Client, path: str) -> None:
    answer = api.ask("GET", path)
    assert (answer.status, answer.body["next"]) == (200, None)
    assert (answer.body["items"] == []) == (path != "/subscriptions")


def test_events_are_paged_newest_first(api: Client, app: Connection[Any]) -> None:
    ids = [str(event_id) for event_id in seeds.store(app, seeds.ticks(7))]
    for limit in (1, 3, 7, 8):
        assert of(api, "/events", "event_id", limit=str(limit)) == ids[::-1]
    assert [len(answer.body["items"]) for answer in all_pages(api, "/events", limit="3")] == [3, 3, 1]


def test_what_is_stored_meanwhile_moves_no_page(api: Client, app: Connection[Any]) -> None:
    first = [str(event_id) for event_id in seeds.store(app, seeds.ticks(4))]
    pages_of_events = all_pages(api, "/events", limit="2")
    seen = [item["event_id"] for item in next(pages_of_events).body["items"]]
    seeds.store(app, [seeds.tick(100 + number) for number in range(3)])
    seen += [item["event_id"] for answer in pages_of_events for item in answer.body["items"]]
    assert seen == first[::-1]


def test_events_are_filtered(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(3))
    row = owner.execute("SELECT event_type, source, entity_id, trace_id::text FROM events LIMIT 1").fetchone()
    assert row is not None
    event_type, source, entity_id, trace_id = row
    for fitting in (
        {"event_type": event_type},
        {"entity_id": entity_id},
        {"trace_id": trace_id},
        {"event_type": event_type, "source": source},
        {"since": "2001-01-01T00:00:00Z"},
        {"since": "2001-01-01T00:00:00+02:00", "until": "2999-01-01T00:00:00Z"},
    ):
        assert len(of(api, "/events", "seq", **fitting)) == 3, fitting
    for other in (
        {"event_type": "NOTHING_SEEN"},
        {"entity_id": "'; DROP TABLE events; --"},
        {"entity_id": "<script>"},
        {"trace_id": str(uuid4())},
        {"event_type": event_type, "source": "nobody"},
        {"until": "2001-01-01T00:00:00Z"},
    ):
        assert of(api, "/events", "seq", **other) == [], other


def test_events_are_found_by_the_beginning_of_their_ids(api: Client, app: Connection[Any]) -> None:
    ids = sorted(str(event_id) for event_id in seeds.store(app, seeds.ticks(40)))
    begun = max({one[0] for one in ids}, key=lambda digit: sum(one[0] == digit for one in ids))
    wanted = [one for one in ids if one[0] == begun]
    assert len(wanted) > 1
    for limit in ("1", "2", "200"):
        assert of(api, "/events", "event_id", id_prefix=begun, limit=limit) == wanted
    assert of(api, "/events", "event_id", id_prefix=wanted[0][:12].upper()) == wanted[:1]
    assert of(api, "/events", "event_id", id_prefix=wanted[0]) == wanted[:1]
    assert of(api, "/decisions", "decision_id", id_prefix=begun) == []


def test_an_event_in_the_list_says_where_it_stands(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
    def state_of(event_id: UUID) -> str | None:
        [listed] = api.ask("GET", "/events", query={"id_prefix": str(event_id)}).body["items"]
        states = dict(zip(of(api, "/events", "event_id"), of(api, "/events", "state"), strict=True))
        assert states[str(event_id)] == listed["state"]
        found: str | None = listed["state"]
        return found

    delivered, half, processed = seeds.store(app, [seeds.tick(minute) for minute in range(3)])
    owner.execute(
        "INSERT INTO pending_deliveries (outbox_id, subscription) SELECT id, 'other' FROM outbox WHERE event_id = %s",
        [half],
    )
    seeds.settle(app, seeds.claim(app, subscriptions=["signal_lab", "other"]), Accepted("m"))
    for event_id in (half, processed):
        app.execute("INSERT INTO processed_events (consumer, event_id) VALUES ('signal_lab', %s)", [event_id])
    assert [state_of(one) for one in (delivered, half, processed)] == ["delivered", "delivered", "processed"]
    [dead] = seeds.store(app, [seeds.tick(3)])
    seeds.give_up(app)
    assert state_of(dead) == "dead_lettered"
    owner.execute("UPDATE dead_letters SET resolution = 'discarded', resolved_at = now(), resolved_by = 'kim'")
    assert state_of(dead) == "discarded"
    [retried] = seeds.store(app, [seeds.tick(4)])
    seeds.settle(app, seeds.claim(app), Failed("no luck"))
    [pending] = seeds.store(app, [seeds.tick(5)])
    assert (state_of(retried), state_of(pending)) == ("retrying", "pending")
    owner.execute(
        "INSERT INTO dead_letters (kind, subscription, delivery_attempts, reason, queue, message_id, body, outbox_id)"
        " SELECT 'consumer', 'signal_lab', 5, 'no', 'q-dlq', 'm', 'x', id FROM outbox WHERE event_id = %s",
        [processed],
    )
    assert state_of(processed) == "dead_lettered", "its consumer gave up on it"
    unpublished = seeds.store_body(app, {}, subscriptions=())
    assert state_of(unpublished) is None


@pytest.mark.parametrize("path", ["/events", "/decisions"])
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"id_prefix": "x"}, "id_prefix"),
        ({"id_prefix": "%"}, "id_prefix"),
        ({"id_prefix": ""}, "id_prefix"),
        ({"id_prefix": "--"}, "1 to 32 digits"),
        ({"id_prefix": "0" * 33}, "1 to 32 digits"),
        ({"id_prefix": "0" * 37}, "id_prefix"),
        ({"id_prefix": "0", "entity_id": "AAPL"}, "beside no other filter"),
        ({"id_prefix": "0", "after": "WzFd"}, "after"),
        ({"id_prefix": "0", "after": "WyJ4Il0"}, "after"),
    ],
)
def test_a_wrong_beginning_of_an_id_is_named(api: Client, path: str, query: dict[str, str], said: str) -> None:
    assert said in api.ask("GET", path, query=query).detail(400)


def test_anomalies_are_paged_newest_first(api: Client, app: Connection[Any]) -> None:
    detection.deliver(
        app,
        *detection.quiet(60),
        detection.split(2, minute=60),
        detection.bar(50.0, 60),
        detection.bar(50.0, 61, low=30.0),
        detection.bar(20.0, 62),
    )
    [whole] = all_pages(api, "/anomalies")
    assert [one["state"] for one in whole.body["items"]] == ["detected", "detected", "explained"]
    assert [one for page in all_pages(api, "/anomalies", limit="1") for one in page.body["items"]] == whole.body[
        "items"
    ]
    assert len(of(api, "/anomalies", "kind", entity_id="AAPL")) == 3
    assert of(api, "/anomalies", "kind", entity_id="MSFT") == []


def test_anomalies_of_one_instant_are_paged(api: Client, owner: Connection[Any]) -> None:
    for entity, minute, kind in [(e, m, k) for e in ("A", "B", "C") for m in (0, 1) for k in ("range", "return")]:
        owner.execute(
            "INSERT INTO detector_findings (source, entity_id, series, occurred_at, kind, state, score, threshold,"
            " event_id, revision, details) VALUES ('s', %s, '1m', '2026-01-05Z'::timestamptz"
            " + make_interval(mins => %s), %s, 'detected', 9, 6, gen_random_uuid(), 0, '{}')",
            [entity, minute, kind],
        )
    wanted = [(entity, kind) for entity in "ABC" for kind in ("range", "return")] * 2
    for limit in ("1", "2", "5", "200"):
        found = [one for page in all_pages(api, "/anomalies", limit=limit) for one in page.body["items"]]
        assert [(one["entity_id"], one["kind"]) for one in found] == wanted
        assert [one["occurred_at"][14:16] for one in found] == ["01"] * 6 + ["00"] * 6


def test_an_artifact_is_read_in_ranges(api: Client, owner: Connection[Any]) -> None:
    content = bytes(range(256)) * 10
    name = sha256(content).hexdigest()
    owner.execute(
        "INSERT INTO artifacts (sha256, kind, bytes) VALUES (%s, 'answer', %s)", [bytes.fromhex(name), content]
    )
    whole = api.ask("GET", f"/artifacts/{name}").body
    assert (whole["kind"], whole["size"], whole["offset"], b64decode(whole["base64"])) == ("answer", 2560, 0, content)
    for offset, length in ((0, 1), (1, 255), (2559, 100), (2560, 1), (999_999_999, 1_048_576)):
        part = api.ask("GET", f"/artifacts/{name}", query={"offset": str(offset), "length": str(length)})
        assert part.status == 200, part.body
        assert b64decode(part.body["base64"]) == content[offset : offset + length]
    for wrong in ({"length": "0"}, {"length": "1048577"}, {"offset": "-1"}, {"offset": "1" * 10}):
        assert next(iter(wrong)) in api.ask("GET", f"/artifacts/{name}", query=wrong).detail(400)
    assert "There is no artifact" in api.ask("GET", f"/artifacts/{'0' * 64}").detail(404)
    assert "64 hexadecimal digits" in api.ask("GET", f"/artifacts/{name[:-1]}").detail(400)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "201"}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"limit": "1_0"}, "limit"),
        ({"limit": "1e1"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"since": "yesterday"}, "since"),
        ({"since": "1700000000"}, "since"),
        ({"since": "2026-01-05T14:33:20"}, "since"),
        ({"trace_id": "x"}, "trace_id"),
        ({"trace_id": "{d0459ed7-a792-5533-b958-aaf36e185583}"}, "trace_id"),
        ({"colour": "red"}, "colour"),
        ({"<script>": "1"}, "<script>"),
        ({"source": "yfinance"}, "add event_type, entity_id or trace_id"),
        ({"entity_id": "a\x00b"}, "entity_id holds a character"),
        ({"entity_id": "\ud800"}, "entity_id holds a character"),
        ({"entity_id": "x" * 100_000}, "2048 is the most"),
        ({"since": "2026-01-05T14:33:20Z", "until": "2026-01-05T14:33:20Z"}, "since is not before until"),
    ],
)
def test_a_wrong_query_is_named(api: Client, query: dict[str, str], said: str) -> None:
    answer = api.ask("GET", "/events", query=query)
    assert said in answer.detail(400)
    assert len(answer.text) < 1000


def test_a_value_given_twice_is_refused(api: Client) -> None:
    event = {"httpMethod": "GET", "path": "/events", "multiValueQueryStringParameters": {"limit": ["1", "2"]}}
    headers = {"Authorization": "Bearer the-token-of-these-tests-is-long-enough"}
    assert "limit 2 times" in api.send(event | {"headers": headers}).detail(400)


def test_a_route_without_a_query_takes_none(api: Client) -> None:
    assert "leave out colour" in api.ask("GET", "/flow", query={"colour": "red"}).detail(400)
    assert api.ask("GET", "/health", query={"cache": "1"}).status in {200, 503}


def encoded(value: Any) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    "after",
    [
        "x",
        "====",
        "ünïcödé",
        "'; DROP TABLE events; --",
        "W10",
        encoded("text"),
        encoded({}),
        encoded(None),
        encoded([None]),
        encoded([True]),
        encoded([1.5]),
        encoded([1 << 70]),
        encoded(["a\x00b"]),
        encoded([[]]),
        encoded([1, 2, 3]),
        encoded(["2026-01-05", "x"]),
        encoded(["2026-01-05T00:00:00", "x"]),
        encoded(["2026-01-05T00:00:00Z", "no id"]),
        urlsafe_b64encode(b"[" * 700).decode(),
        urlsafe_b64encode(b"\xff\xfe").decode(),
        "A" * 1025,
    ],
)
def test_a_wrong_cursor_is_refused(api: Client, path: str, after: str) -> None:
    assert "after" in api.ask("GET", path, query={"after": after}).detail(400)


def test_a_page_is_bounded_in_bytes(api: Client, owner: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_BYTES", 1000)
    for number in range(4):
        owner.execute(
            "INSERT INTO operations (operation_id, kind, filter, state, requested_by, reason)"
            " VALUES (gen_random_uuid(), 'redrive', '{}', 'planning', 'kim', %s)",
            [f"{number}" * 400],
        )
    sizes = [len(answer.body["items"]) for answer in all_pages(api, "/operations")]
    assert sizes == [1, 1, 1, 1]
    assert len(set(of(api, "/operations", "operation_id"))) == 4


def test_an_item_that_is_larger_than_a_page_is_shown(
    api: Client, owner: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MOST_BYTES", 10)
    owner.execute(
        "INSERT INTO operations (operation_id, kind, filter, state, requested_by)"
        " VALUES (gen_random_uuid(), 'redrive', '{}', 'planning', 'kim')"
    )
    assert len(api.ask("GET", "/operations").body["items"]) == 1


def test_dead_letters_are_listed_and_filtered(api: Client, app: Connection[Any], owner: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(3))
    for _ in range(3):
        seeds.give_up(app)
    letters = of(api, "/dead-letters", "id", limit="2")
    assert letters == sorted(letters, reverse=True)
    assert len(letters) == 3
    [reason] = set(of(api, "/dead-letters", "reason"))
    assert of(api, "/dead-letters", "id", reason=reason.upper()[:5]) == letters
    assert of(api, "/dead-letters", "id", subscription="nobody") == []
    owner.execute(
        "UPDATE dead_letters SET resolution = 'discarded', resolved_at = now(), resolved_by = 'kim' WHERE id = %s",
        [letters[0]],
    )
    assert of(api, "/dead-letters", "id") == letters[1:]
    assert of(api, "/dead-letters", "id", resolved="true") == letters


def test_the_flow_shows_what_is_open(api: Client, app: Connection[Any]) -> None:
    seeds.store(app, seeds.ticks(2))
    seeds.give_up(app)
    seeds.store(app, [seeds.tick(2)])
    hold(app, "system_events", by="kim")
    flow = api.ask("GET", "/flow").body
    by_name = {one["subscription"]: one for one in flow["subscriptions"]}
    ticks, system = by_name["signal_lab"], by_name["system_events"]
    assert (ticks["pending"], ticks["dead_letters"]) == (1, 2)
    assert ticks["oldest_pending_age_seconds"] >= 0
    assert (system["pending"], system["breaker"], system["held_by"]) == (0, "open", "kim")
    assert [(one["name"], one["state"], one["held_by"]) for one in flow["open_breakers"]] == [
        ("system_events", "open", "kim")
    ]
    assert flow["events"]["ingested_last_minute"] == 3
    assert flow["events"]["newest_ingested_at"].endswith("Z")
    assert of(api, "/breakers", "name") == ["system_events"]


def test_switches_are_paged(api: Client, owner: Connection[Any]) -> None:
    for scope, is_off in (("all", False), ("domain:finance", True), ("agent:a", True), ("playbook:b", False)):
        owner.execute("INSERT INTO switches (scope, is_off, set_by) VALUES (%s, %s, 'kim')", [scope, is_off])
    wanted = ["agent:a", "domain:finance", "all", "playbook:b"]
    for limit in ("1", "2", "50"):
        assert of(api, "/switches", "scope", limit=limit) == wanted


@pytest.mark.parametrize("path", ["/decisions/{}", "/approvals/{}", "/operations/{}", "/events/{}"])
def test_one_that_is_not_there(api: Client, path: str) -> None:
    assert "There is no" in api.ask("GET", path.format(uuid4())).detail(404)
    assert "it must be a UUID" in api.ask("GET", path.format("x")).detail(400)


def test_the_reader_can_write_nothing_but_that_a_token_was_used(database: TestDatabase, owner: Connection[Any]) -> None:
    tables = owner.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    ).fetchall()
    with connect(database.url("acp_reader"), application_name="test") as reader:
        for (table,) in tables:
            for statement in (f"INSERT INTO {table} DEFAULT VALUES", f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(errors.InsufficientPrivilege):
                    reader.execute(statement.encode())
        columns = owner.execute(
            "SELECT table_name, column_name FROM information_schema.column_privileges"
            " WHERE grantee = 'acp_reader' AND privilege_type IN ('INSERT', 'UPDATE', 'REFERENCES')"
        )
        assert columns.fetchall() == []
    functions = owner.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND provolatile = 'v'"
        " AND has_function_privilege('acp_reader', oid, 'EXECUTE')"
    )
    # TraceFunction is a reader, too: it notes how far it is.
    assert {name for (name,) in functions} == {"use_api_token", "begin_traces", "advance_traces"}
