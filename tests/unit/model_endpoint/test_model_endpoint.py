"""The endpoint as unmodified clients see it: boto3's Converse, and OpenAI's own library."""

import json
import math
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import openai
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError, ResponseStreamingError
from openai.types.chat import ChatCompletion

from model_endpoint import Behaviour, ModelEndpoint, serve
from model_endpoint.behaviour import KINDS, UNCHARGED
from model_endpoint.values import fitting

SCHEMA = {
    "type": "object",
    "properties": {
        "cause": {"enum": ["split", "crash"]},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "why": {"type": "string", "maxLength": 200},
    },
    "required": ["cause", "confidence", "why"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def running() -> Iterator[ModelEndpoint]:
    with serve() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(running: ModelEndpoint) -> ModelEndpoint:
    running.reset()
    return running


def converse(endpoint: ModelEndpoint, **options: Any) -> Any:
    client = boto3.client(
        "bedrock-runtime",
        endpoint_url=endpoint.url,
        config=Config(retries={"total_max_attempts": 1}, read_timeout=options.pop("read_timeout", 5)),
    )
    tool: Any = {"toolSpec": {"name": "cause", "inputSchema": {"json": SCHEMA}}}
    try:
        return client.converse(
            modelId="eu.anthropic.some-model-v1:0",
            messages=[{"role": "user", "content": [{"text": "Why did it fall?"}]}],
            inferenceConfig={"maxTokens": 200},
            toolConfig={"tools": [tool], "toolChoice": {"tool": {"name": "cause"}}},
            **options,
        )
    finally:
        client.close()


def chat(endpoint: ModelEndpoint, **options: Any) -> ChatCompletion:
    shape: Any = {"type": "json_schema", "json_schema": {"name": "cause", "strict": True, "schema": SCHEMA}}
    with openai.OpenAI(
        base_url=endpoint.chat_url, api_key="sk-test", max_retries=0, timeout=options.pop("timeout", 5)
    ) as client:
        answer: ChatCompletion = client.chat.completions.create(
            model="some-model",
            messages=[{"role": "user", "content": "Why did it fall?"}],
            max_tokens=200,
            **({"response_format": shape} | options),
        )
    return answer


def text_of(answer: ChatCompletion) -> str:
    text = answer.choices[0].message.content
    assert text is not None
    return text


def test_boto3_gets_a_tools_input_in_the_schema(endpoint: ModelEndpoint) -> None:
    answer = converse(endpoint)
    block = answer["output"]["message"]["content"][0]["toolUse"]
    assert (answer["stopReason"], block["name"]) == ("tool_use", "cause")
    jsonschema.validate(block["input"], SCHEMA)
    [request] = endpoint.requests()
    assert answer["usage"]["inputTokens"] == request.input_tokens
    assert answer["usage"]["outputTokens"] == request.output_tokens
    assert (request.protocol, request.model) == ("converse", "eu.anthropic.some-model-v1:0")


def test_openais_client_gets_json_in_the_schema(endpoint: ModelEndpoint) -> None:
    answer = chat(endpoint)
    jsonschema.validate(json.loads(text_of(answer)), SCHEMA)
    [request] = endpoint.requests()
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (request.input_tokens, request.output_tokens)
    assert answer.choices[0].finish_reason == "stop"


def test_openais_client_gets_a_forced_tools_arguments(endpoint: ModelEndpoint) -> None:
    answer = chat(
        endpoint,
        response_format=openai.omit,
        tools=[{"type": "function", "function": {"name": "cause", "parameters": SCHEMA}}],
        tool_choice={"type": "function", "function": {"name": "cause"}},
    )
    calls: Any = answer.choices[0].message.tool_calls
    assert calls[0].function.name == "cause"
    jsonschema.validate(json.loads(calls[0].function.arguments), SCHEMA)


@pytest.mark.parametrize(
    ("kind", "status"), [("throttled", 429), ("error", 500), ("unavailable", 503), ("denied", 403)]
)
def test_both_clients_read_an_errors_status(endpoint: ModelEndpoint, kind: str, status: int) -> None:
    endpoint.behave(kind)
    with pytest.raises(ClientError) as refused:
        converse(endpoint)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert refused.value.response["Error"]["Code"].endswith("Exception")
    with pytest.raises(openai.APIStatusError) as status_error:
        chat(endpoint)
    assert status_error.value.status_code == status


@pytest.mark.parametrize("kind", ["hang", "drip"])
def test_both_clients_wait_in_vain(endpoint: ModelEndpoint, kind: str) -> None:
    endpoint.behave(kind, drip_ms=1000)
    with pytest.raises((ReadTimeoutError, ResponseStreamingError)):
        converse(endpoint, read_timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        chat(endpoint, timeout=0.3)


@pytest.mark.parametrize("kind", ["cut_off", "close"])
def test_openais_client_loses_the_connection(endpoint: ModelEndpoint, kind: str) -> None:
    endpoint.behave(kind)
    with pytest.raises(openai.APIConnectionError):
        chat(endpoint)


def test_boto3_loses_the_connection(endpoint: ModelEndpoint) -> None:
    endpoint.behave("close")
    with pytest.raises(ConnectionClosedError):
        converse(endpoint)


def test_boto3_takes_half_an_answer_for_an_empty_one(endpoint: ModelEndpoint) -> None:
    """Which is why our client has a transport of its own, and asks for a usage."""
    endpoint.behave("cut_off")
    assert converse(endpoint).keys() == {"ResponseMetadata"}


def test_a_lie_fits_the_schema_and_says_the_contrary(endpoint: ModelEndpoint) -> None:
    right = json.loads(text_of(chat(endpoint)))
    endpoint.behave("lie")
    lie = json.loads(text_of(chat(endpoint)))
    jsonschema.validate(lie, SCHEMA)
    assert (right["cause"], lie["cause"], lie["confidence"]) == ("split", "crash", 1)


@pytest.mark.parametrize("kind", ["wrong_schema", "extra_field", "prose", "nan", "infinity", "deep", "out_of_tokens"])
def test_a_spoilt_answer_does_not_fit(endpoint: ModelEndpoint, kind: str) -> None:
    endpoint.behave(kind)
    text = text_of(chat(endpoint))
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        fits(text)


def fits(text: str) -> None:
    value = json.loads(text)
    jsonschema.validate(value, SCHEMA)
    if not math.isfinite(value["confidence"]):
        raise ValueError("which jsonschema takes")


def test_a_key_is_given_twice(endpoint: ModelEndpoint) -> None:
    endpoint.behave("duplicate_keys")
    assert text_of(chat(endpoint)).count('"cause"') == 2


def test_an_injection_is_repeated(endpoint: ModelEndpoint) -> None:
    endpoint.behave("injection")
    assert json.loads(text_of(chat(endpoint)))["why"] == "Why did it fall?"
    assert converse(endpoint)["output"]["message"]["content"][0]["toolUse"]["input"]["why"] == "Why did it fall?"


def test_usage_may_be_missing(endpoint: ModelEndpoint) -> None:
    endpoint.behave("no_usage")
    assert chat(endpoint).usage is None
    assert "usage" not in converse(endpoint)


def test_a_huge_answer_has_ten_megabytes(endpoint: ModelEndpoint) -> None:
    endpoint.behave("huge")
    request = urllib.request.Request(
        f"{endpoint.chat_url}/chat/completions", json.dumps({"model": "m", "messages": []}).encode()
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert len(answer.read()) > 10_000_000


def test_requests_are_answered_in_turn(endpoint: ModelEndpoint) -> None:
    endpoint.behave_in_turn("throttled", {"kind": "right", "answer": {"cause": "told"}})
    with pytest.raises(openai.RateLimitError):
        chat(endpoint)
    assert json.loads(text_of(chat(endpoint))) == {"cause": "told"}
    jsonschema.validate(json.loads(text_of(chat(endpoint))), SCHEMA)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_ledger_charges_what_was_generated(endpoint: ModelEndpoint, kind: str) -> None:
    endpoint.behave(kind, drip_ms=1000)
    body = {"model": "m", "messages": [], "max_tokens": 100, "response_format": {"json_schema": {"schema": SCHEMA}}}
    request = urllib.request.Request(f"{endpoint.chat_url}/chat/completions", json.dumps(body).encode())
    try:
        urllib.request.urlopen(request, timeout=0.2).close()
    except (OSError, ValueError):
        """The ledger is what counts."""
    [entry] = endpoint.requests()
    assert (entry.cost_micros == 0) == (kind in UNCHARGED)
    assert entry.request_bytes == len(json.dumps(body))
    assert endpoint.spent_micros() == entry.cost_micros


def test_the_ledger_holds_no_key(endpoint: ModelEndpoint) -> None:
    chat(endpoint)
    [entry] = endpoint.requests()
    assert entry.key_sha256 is not None
    assert "sk-test" not in repr(entry)


def test_a_web_page_is_refused(endpoint: ModelEndpoint) -> None:
    request = urllib.request.Request(f"{endpoint.url}/ledger", headers={"Origin": "http://evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=5)
    assert refused.value.code == 403
    refused.value.close()


def test_an_unknown_behaviour_is_refused(endpoint: ModelEndpoint) -> None:
    with pytest.raises(ValueError, match="no behaviour"):
        endpoint.behave("nice")
    with pytest.raises(TypeError):
        Behaviour.parse({"sort": "right"})


def test_the_process_ends_with_its_block() -> None:
    with serve() as endpoint:
        process = psutil.Process(endpoint.pid)
        endpoint.behave("hang")
    assert not process.is_running()


def test_it_runs_by_hand_until_a_signal(tmp_path: Path) -> None:
    scripts = Path(__file__).parents[3] / "scripts"
    port_file = tmp_path / "port"
    with subprocess.Popen(
        [sys.executable, "-m", "model_endpoint", "--port-file", str(port_file)], env={"PYTHONPATH": str(scripts)}
    ) as process:
        while not port_file.exists():
            assert process.poll() is None
        endpoint = ModelEndpoint(int(port_file.read_text(encoding="utf-8")), process.pid)
        assert endpoint.requests() == []
        process.terminate()
        assert process.wait(10) == 0


def test_values_fit_schemas_of_many_shapes() -> None:
    schema = {
        "$defs": {"Leaf": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}}},
        "type": "object",
        "properties": {
            "leaves": {"type": "array", "items": {"$ref": "#/$defs/Leaf"}, "minItems": 2},
            "either": {"anyOf": [{"type": "string", "minLength": 40}, {"type": "null"}]},
            "flag": {"type": "boolean"},
            "fixed": {"const": "x"},
            "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
        },
    }
    for last in (False, True):
        jsonschema.validate(fitting(schema, last=last), schema)
