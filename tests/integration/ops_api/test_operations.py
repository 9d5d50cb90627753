"""Dead letters and operations by the API alone: found, planned, started, done, on record."""

import base64
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from psycopg import Connection
from tests.conftest import TestDatabase
from tests.integration import seeds
from tests.integration.operations.world import KINDS, make_letters, pending_of
from tests.integration.ops_api.client import Client

from control_plane.model.lifecycle import Accepted, MessageFault
from control_plane.operations.engine import run_operations
from control_plane.platform.database import connect
from control_plane.platform.telemetry import Telemetry

WHY = {"reason": "because of a test"}
REDRIVE = {"kind": "redrive", "filter": {"subscription": "signal_lab"}, **WHY}


@pytest.fixture
def work(database: TestDatabase, telemetry: Telemetry) -> Iterator[Callable[[], None]]:
    """Does what OperationsFunction does when it is woken."""
    with connect(database.url("acp_maintain"), application_name="maintain") as connection:

        def run() -> None:
            run_operations(connection, KINDS, telemetry, lambda: 60.0)

        yield run


@pytest.fixture
def woken(commands: Client, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions that were started."""
    started: list[str] = []
    monkeypatch.setattr(commands.function.module, "start", started.append)
    return started


def test_letters_are_found_planned_redriven_and_on_record(
    api: Client, commands: Client, woken: list[str], work: Callable[[], None], owner: Connection[Any]
) -> None:
    make_letters(owner, 3)
    found = api.ask("GET", "/dead-letters", query={"subscription": "signal_lab", "limit": "2"}).body
    assert [letter["reason"] for letter in found["items"]] == ["big", "big"]
    assert found["next"] is not None
    planning = commands.ask("POST", "/operations", REDRIVE)
    assert (planning.status, planning.body["state"]) == (202, "planning")
    one = f"/operations/{planning.body['operation_id']}"
    work()
    planned = api.ask("GET", one).body
    assert (planned["state"], planned["total"], planned["requested_by"]) == ("planned", 3, "token:root")
    started = commands.ask("POST", f"{one}/start", {"plan_hash": planned["plan_hash"], **WHY})
    assert (started.status, started.body["state"]) == (202, "running")
    work()
    done = api.ask("GET", one).body
    assert (done["state"], done["done"], done["skipped"], done["started_by"]) == ("done", 3, 0, "token:root")
    assert woken == ["operations", "operations"]
    assert api.ask("GET", "/dead-letters", query={"subscription": "signal_lab"}).body["items"] == []
    assert pending_of(owner, planning.body["operation_id"]) == 3
    assert (planned["deliveries"], done["deliveries"]) == (None, {"waiting": 3, "delivered": 0, "dead_lettered": 0})
    rows = api.ask("GET", "/audit").body["items"]
    assert [(row["route"], row["after"]["state"]) for row in rows] == [
        ("POST /operations/{operation_id}/start", "running"),
        ("POST /operations", "planning"),
    ]
    assert (rows[0]["before"]["state"], rows[0]["after"]["plan_hash"]) == ("planned", planned["plan_hash"])


def test_what_becomes_of_redriven_messages_is_told(
    api: Client, commands: Client, work: Callable[[], None], owner: Connection[Any], app: Connection[Any]
) -> None:
    vars(commands.function.module)["start"] = str
    make_letters(owner, 4)
    one = f"/operations/{commands.ask('POST', '/operations', REDRIVE).body['operation_id']}"
    work()
    commands.ask("POST", f"{one}/start", {"plan_hash": api.ask("GET", one).body["plan_hash"], **WHY})
    work()
    seeds.settle(app, seeds.claim(app, rows=1), MessageFault("big"))
    seeds.settle(app, seeds.claim(app, rows=2), Accepted("m"))
    assert api.ask("GET", one).body["deliveries"] == {"waiting": 1, "delivered": 2, "dead_lettered": 1}


def test_a_large_filter_is_shown_in_part_and_kept_once(
    api: Client, commands: Client, woken: list[str], owner: Connection[Any]
) -> None:
    ids = list(range(10**12, 10**12 + 3000))
    first = {"count": 3000, "first": ids[:100]}
    body = {"kind": "redrive", "filter": {"ids": ids}, **WHY}
    planning = commands.ask("POST", "/operations", body, key="a-large-one")
    assert planning.status == 202, planning.body
    assert planning.body["filter"]["ids"] == first
    again = commands.ask("POST", "/operations", body, key="a-large-one")
    assert (again.status, again.body["operation_id"]) == (202, planning.body["operation_id"])
    assert owner.execute("SELECT max(octet_length(body::text)) < 1000 FROM idempotency_keys").fetchone() == (True,)
    owner.execute("UPDATE operations SET plan = jsonb_build_object('windows', filter -> 'ids')")
    one = api.ask("GET", f"/operations/{planning.body['operation_id']}").body
    assert (one["filter"]["ids"], one["plan"]["windows"]) == (first, first)
    [listed] = api.ask("GET", "/operations").body["items"]
    assert listed["filter"]["left_out_bytes"] > 4000 < listed["plan"]["left_out_bytes"]
    assert len(str(listed)) < 2000
    assert len(woken) == 2


def test_a_plan_that_is_another_one_is_not_started(
    api: Client, commands: Client, woken: list[str], work: Callable[[], None], owner: Connection[Any]
) -> None:
    make_letters(owner, 3)
    one = f"/operations/{commands.ask('POST', '/operations', REDRIVE).body['operation_id']}"
    early = commands.ask("POST", f"{one}/start", {"plan_hash": "0" * 64, **WHY})
    assert "still being planned" in early.detail(409)
    work()
    other = commands.ask("POST", f"{one}/start", {"plan_hash": "0" * 64, **WHY})
    assert "is another one" in other.detail(409)
    owner.execute("UPDATE operations SET planned_at = now() - interval '61 minutes'")
    plan_hash = api.ask("GET", one).body["plan_hash"]
    assert "older than an hour" in commands.ask("POST", f"{one}/start", {"plan_hash": plan_hash, **WHY}).detail(409)
    assert api.ask("GET", one).body["state"] == "planned"
    assert woken == ["operations"]


def test_an_operation_is_paused_paced_resumed_and_cancelled(
    api: Client, commands: Client, woken: list[str], work: Callable[[], None], owner: Connection[Any]
) -> None:
    make_letters(owner, 3)
    one = f"/operations/{commands.ask('POST', '/operations', REDRIVE).body['operation_id']}"
    work()
    plan_hash = api.ask("GET", one).body["plan_hash"]
    commands.ask("POST", f"{one}/start", {"plan_hash": plan_hash, **WHY})
    assert commands.ask("POST", f"{one}/pause", WHY).body["state"] == "paused"
    assert "must be running" in commands.ask("POST", f"{one}/pause", WHY).detail(409)
    assert commands.ask("PUT", f"{one}/rate", {"rate": 7, **WHY}).body["rate"] == 7
    assert commands.ask("POST", f"{one}/resume", WHY).body["state"] == "running"
    assert commands.ask("POST", f"{one}/cancel", WHY).body["state"] == "cancelled"
    assert api.ask("GET", "/operations", query={"state": "cancelled", "kind": "redrive"}).body["items"][0]["rate"] == 7
    assert woken == ["operations"] * 3


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"kind": "redrive", "filter": {}, **WHY}, 422, "not said what to redrive"),
        ({"kind": "redrive", "filter": {"colour": "red"}, **WHY}, 422, "no field 'colour'"),
        ({"kind": "redrive", "filter": {"event_id": "x"}, **WHY}, 422, "must be a UUID"),
        ({"kind": "shred", "filter": {}, **WHY}, 422, "kind"),
        ({"kind": "redrive", "filter": {"everything": True}, "rate": 0, **WHY}, 422, "rate"),
        ({"kind": "redrive", "filter": {"everything": True}}, 422, "reason"),
        ({"kind": "redrive", "filter": [], **WHY}, 422, "filter"),
    ],
)
def test_what_makes_no_sense_is_refused(
    commands: Client, owner: Connection[Any], body: dict[str, Any], status: int, says: str
) -> None:
    assert says in commands.ask("POST", "/operations", body).detail(status)
    assert owner.execute("SELECT FROM operations").fetchall() == []


@pytest.mark.parametrize(
    ("method", "what"), [("POST", "start"), ("POST", "pause"), ("PUT", "rate"), ("POST", "cancel"), ("POST", "accept")]
)
def test_an_operation_that_is_not_there_is_404(commands: Client, method: str, what: str) -> None:
    body = {**WHY, **({"plan_hash": "0" * 64} if what == "start" else {"rate": 1} if what == "rate" else {})}
    assert "There is no operation" in commands.ask(method, f"/operations/{uuid4()}/{what}", body).detail(404)
    assert "must be a UUID" in commands.ask(method, f"/operations/7/{what}", body).detail(400)


@pytest.mark.parametrize("kind", ["retention", "erasure"])
def test_what_deletes_asks_for_an_admin(commands: Client, kind: str) -> None:
    made = commands.ask("POST", "/tokens", {"name": "kim", "scopes": ["operate"], **WHY}).body["token"]
    refused = commands.ask("POST", "/operations", {"kind": kind, "filter": {}, **WHY}, token=made)
    assert "asks for the scope admin" in refused.detail(403)


def test_a_run_that_cannot_be_started_loses_no_operation(
    commands: Client, owner: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from control_plane.platform.aws import RunNotStarted

    def fail(_name: str) -> None:
        raise RunNotStarted("operations cannot be started: throttled")

    monkeypatch.setattr(commands.function.module, "start", fail)
    assert commands.ask("POST", "/operations", REDRIVE).status == 202
    assert owner.execute("SELECT state FROM operations").fetchall() == [("planning",)]
    assert "cannot be started: throttled" in commands.function.output


def test_what_is_no_rebuild_that_differs_is_not_accepted(commands: Client, woken: list[str]) -> None:
    operation_id = commands.ask("POST", "/operations", REDRIVE).body["operation_id"]
    refused = commands.ask("POST", f"/operations/{operation_id}/accept", WHY)
    assert "is no rebuild that waits for an acceptance" in refused.detail(409)


def test_letters_are_listed_by_their_ids_and_from_one_on(api: Client, owner: Connection[Any]) -> None:
    make_letters(owner, 5)

    def ids(**query: str) -> list[int]:
        return [letter["id"] for letter in api.ask("GET", "/dead-letters", query=query).body["items"]]

    newest = ids()
    assert ids(ids=f"{newest[3]},{newest[1]}") == [newest[1], newest[3]]
    assert ids(below=str(newest[1])) == newest[2:]
    first = api.ask("GET", "/dead-letters", query={"below": str(newest[0]), "limit": "2"}).body
    assert ids(below=str(newest[0]), after=first["next"]) == newest[3:]
    for wrong in ("1,", "x", "1" * 19, ",".join("1" * 101)):
        assert "ids" in api.ask("GET", "/dead-letters", query={"ids": wrong}).detail(400)


def test_a_letters_content_is_shown_as_it_came(api: Client, owner: Connection[Any]) -> None:
    for message_id, body in (("m-1", b'{"not": "an event"}'), ("m-2", b"\xff\x00")):
        owner.execute(
            "INSERT INTO dead_letters (kind, subscription, delivery_attempts, reason, queue, message_id, sent_at, body,"
            " attributes) VALUES ('consumer', 'signal_lab', 5, 'odd', 'q', %s, now(), %s, '{}')",
            [message_id, body],
        )
    odd, readable = api.ask("GET", "/dead-letters", query={"kind": "consumer"}).body["items"]
    shown = api.ask("GET", f"/dead-letters/{readable['id']}").body
    assert (shown["body"], shown["body_base64"], shown["failures"]) == ('{"not": "an event"}', None, [])
    shown = api.ask("GET", f"/dead-letters/{odd['id']}").body
    assert (shown["body"], base64.b64decode(shown["body_base64"])) == (None, b"\xff\x00")
    assert "There is no dead letter" in api.ask("GET", "/dead-letters/999999").detail(404)
    for text in ("x", "-1", "9" * 30, "٣"):
        assert "must be a number" in api.ask("GET", f"/dead-letters/{text}").detail(400)


def test_a_letter_is_discarded_once_with_its_reason(api: Client, commands: Client, owner: Connection[Any]) -> None:
    make_letters(owner, 2)
    [newest, oldest] = api.ask("GET", "/dead-letters").body["items"]
    body = {"ids": [oldest["id"]], "reason": "its event was a test"}
    assert commands.ask("POST", "/dead-letters/discard", body).body["discarded"] == {"signal_lab": 1}
    assert "None of these dead letters is open" in commands.ask("POST", "/dead-letters/discard", body).detail(409)
    assert [letter["id"] for letter in api.ask("GET", "/dead-letters").body["items"]] == [newest["id"]]
    all_of_them = api.ask("GET", "/dead-letters", query={"resolved": "true"}).body["items"]
    assert [(one["resolution"], one["resolved_by"]) for one in all_of_them] == [
        (None, None),
        ("discarded", "token:root"),
    ]
