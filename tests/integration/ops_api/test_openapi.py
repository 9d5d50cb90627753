"""The OpenAPI document: every example is sent and answered as documented, and schemathesis finds nothing else."""

import json
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import data as drawn
from schemathesis import GenerationMode
from tests.integration.ops_api.client import TOKEN, Client, Load, asked_by
from tests.integration.ops_api.conftest import with_settings
from tests.integration.ops_api.gateway import Gateway

from control_plane.api.commands import command_routes
from control_plane.api.openapi import describe, document
from control_plane.api.reads import read_routes
from control_plane.api.routes import Route
from control_plane.api.scopes import TOKEN_SCOPES

NEVER: Any = None
ROUTES: list[Route] = [*read_routes(NEVER, NEVER, NEVER, NEVER, NEVER), *command_routes(NEVER, {}, NEVER)]
EXAMPLES = [
    pytest.param(route.name, example, id=f"{route.name} {number}")
    for route in ROUTES
    for number, example in enumerate(route.examples)
]
CASES = 2
"""How many cases of each kind are tried per operation and token; more are a matter of time."""


@pytest.fixture
def both(load: Load, database: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    reads = with_settings(load(DATABASE_URL=database.url("acp_reader")))
    commands = with_settings(load("command_api", DATABASE_URL=database.url("acp_command")))
    monkeypatch.setattr(commands.function.module, "start_run", lambda *_, **__: None)
    retrial = asked_by(reads, database.url("acp_reader"))
    loggers = [one.module.telemetry.logger for one in (reads.function, commands.function, retrial)]
    # Loggers are the process's, so a later test would find these silent.
    levels = [logger.log_level for logger in loggers]
    for logger in loggers:
        logger.setLevel("ERROR")
    yield Gateway(reads, commands)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    retrial.close()


def test_every_route_is_described_with_an_example(api: Client) -> None:
    described = api.ask("GET", "/openapi.json", token=None)
    assert described.status == 200
    assert described.body == json.loads(json.dumps(describe(ROUTES)))
    operations = {f"{method.upper()} {path}" for path, methods in described.body["paths"].items() for method in methods}
    assert operations == {route.name for route in ROUTES}
    assert all(route.examples for route in ROUTES)
    ids = [operation["operationId"] for methods in described.body["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)


def prepared(both: Gateway, name: str) -> None:
    """Makes what an example is about: a token that is revoked, a hold that is resumed."""
    commands = both.routes[-1][1]
    if name == "DELETE /tokens/{name}":
        body = {"name": "kim", "scopes": ["read"], "reason": "why"}
        assert commands.ask("POST", "/tokens", body).status == 201
    if name == "POST /subscriptions/{name}/resume":
        assert commands.ask("POST", "/subscriptions/signal_lab/hold", {"reason": "why"}).status == 200


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_an_example_is_answered_as_documented(both: Gateway, name: str, example: Any) -> None:
    prepared(both, name)
    route, client = next(one for one in both.routes if one[0].name == name)
    path = route.path.format_map(example.parameters)
    query = {key: str(value) for key, value in example.query.items()} or None
    answer = client.ask(route.method, path, example.body, query=query)
    if route.path == "/health":
        assert answer.status in {200, 503}
    else:
        assert answer.status == example.status, answer.body
    whole = document().body
    assert whole is not None
    operation = whole["paths"][route.path][route.method.lower()]
    documented = operation["responses"][str(answer.status)]["content"]
    content = documented[answer.headers["Content-Type"].partition(";")[0]]
    jsonschema.validate(answer.body, content["schema"] | {"components": whole["components"]})


def make_expressible(case: Any) -> None:
    """Takes from a positive case what is wrong by more than the document can say."""
    for name in ("after", "source", "since", "until", "id_prefix"):
        (case.query or {}).pop(name, None)
    if isinstance(case.body, dict):
        case.body.pop("expires_at", None)
        if "filter" in case.body:  # Each kind has fields of its own, in docs/operations.md.
            case.body |= {"kind": "redrive", "filter": {"everything": True}}
        if "policies" in case.body:  # Cedar has a grammar of its own.
            case.body = {"policies": '@id("none") forbid (principal, action, resource);', "domain": "finance"}
        if "observations" in case.body:  # Each domain has fields of its own.
            case.body["observations"] = [{"entity_id": "AAPL"}]
    make_printable(case)
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid.uuid4())


def make_printable(case: Any) -> None:
    for texts in (case.query, case.body):
        for name, text in texts.items() if isinstance(texts, dict) else ():
            if isinstance(text, str):
                texts[name] = printable(text)
    # In a path they are encoded already.
    for name, text in (case.path_parameters or {}).items():
        if isinstance(text, str):
            case.path_parameters[name] = quote(printable(unquote(text)), safe="")


def printable(text: str) -> str:
    return "".join(filter(str.isprintable, text)) or "x"


def token_with(both: Gateway, scope: str | None) -> dict[str, str]:
    if scope is None:
        return {}
    commands = both.routes[-1][1]
    body = {"name": f"with_{scope}", "scopes": [scope], "reason": "why"}
    made = commands.ask("POST", "/tokens", body, token=TOKEN)
    return {"Authorization": f"Bearer {made.body['token']}"}


@pytest.mark.parametrize("scope", [None, *sorted(TOKEN_SCOPES)])
def test_schemathesis_finds_nothing(both: Gateway, scope: str | None) -> None:
    """All of its checks hold, with what the document allows and with what it does not."""
    headers = token_with(both, scope)
    schema = schemathesis.openapi.from_wsgi("/openapi.json", both)
    tried = 0

    @settings(
        max_examples=CASES,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn())
    def check(strategy: Any, data: Any) -> None:
        nonlocal tried
        case = data.draw(strategy)
        if case.meta.generation.mode is GenerationMode.POSITIVE:
            make_expressible(case)
        tried += 1
        case.call_and_validate(headers=headers)

    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]  # one that is none raises
        for mode in GenerationMode:
            try:
                check(operation.as_strategy(generation_mode=mode))
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, operation.label
    assert tried > len(ROUTES)
