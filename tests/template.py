"""template.yaml in the form that tests use: resources by type, and what each function is permitted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samcli.yamlhelper import yaml_parse

from domains import DOMAINS

ROOT = Path(__file__).parents[1]
TEMPLATE: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text(encoding="utf-8"))
PARAMETERS: dict[str, Any] = TEMPLATE["Parameters"]
RESOURCES: dict[str, Any] = TEMPLATE["Resources"]
GLOBALS: dict[str, Any] = TEMPLATE["Globals"]["Function"]


def of_type(kind: str) -> dict[str, dict[str, Any]]:
    """Returns the properties of a type's resources, by logical id."""
    return {name: resource.get("Properties", {}) for name, resource in RESOURCES.items() if resource["Type"] == kind}


FUNCTIONS = of_type("AWS::Serverless::Function")
QUEUES = of_type("AWS::SQS::Queue")
FOLDERS = {name: properties["CodeUri"].removeprefix("functions/") for name, properties in FUNCTIONS.items()}
CONSUMERS = {consumer.name: consumer for domain in DOMAINS for consumer in domain.consumers}


def declared(function: str) -> dict[str, Any]:
    """Returns a function's environment variables."""
    return {**GLOBALS["Environment"]["Variables"], **FUNCTIONS[function]["Environment"]["Variables"]}


def timeout(function: str) -> int:
    """Returns a function's timeout, in seconds."""
    seconds: int = FUNCTIONS[function].get("Timeout", GLOBALS["Timeout"])
    return seconds


@dataclass(frozen=True)
class Grant:
    """One action on one resource.

    ``only_if`` names the template's condition that it depends on; IAM's own is ``condition``.
    """

    action: str
    resource: str
    """A logical id (of a parameter or a resource), or the text itself."""
    only_if: str | None = None
    condition: bool = False


def id_of(value: Any) -> str:
    """Returns the logical id that a Ref or an Arn's GetAtt means; a text stands for itself."""
    match value:
        case str():
            return value
        case {"Ref": str(name)} | {"Fn::GetAtt": [str(name), "Arn"]} | {"Fn::Sub": str(name)}:
            return name
        case _:
            raise AssertionError(f"not foreseen in a policy: {value}")


def role_of(function: str) -> str:
    """Returns the logical id of a function's role."""
    return id_of(FUNCTIONS[function]["Role"])


def grants(function: str) -> list[Grant]:
    """Returns everything that a function's role permits, wherever the template says so."""
    found: list[Grant] = []
    for name, properties in of_type("AWS::IAM::Policy").items():
        if role_of(function) in [id_of(role) for role in properties["Roles"]]:
            found += _grants(properties["PolicyDocument"], RESOURCES[name].get("Condition"))
    role = RESOURCES[role_of(function)]["Properties"]
    for policy in role["Policies"]:
        found += _grants(policy["PolicyDocument"], None)
    for arn in role.get("ManagedPolicyArns", []):
        managed, only_if = _conditional(arn)
        found += _grants(RESOURCES[id_of(managed)]["Properties"]["PolicyDocument"], only_if)
    return found


def _conditional(value: Any) -> tuple[Any, str | None]:
    match value:
        case {"Fn::If": [str(condition), then, {"Ref": "AWS::NoValue"}]}:
            return then, condition
        case _:
            return value, None


def _grants(document: Mapping[str, Any], only_if: str | None) -> Iterator[Grant]:
    for item in document["Statement"]:
        statement, own_condition = _conditional(item)
        assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}, statement
        assert statement["Effect"] == "Allow", statement
        for action in _listed(statement["Action"]):
            for resource in _listed(statement["Resource"]):
                yield Grant(action, id_of(resource), own_condition or only_if, "Condition" in statement)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
