"""What CloudFormation gets after SAM's own transform, for each architecture, outside and inside a VPC."""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cfnlint.api import lint
from samcli.yamlhelper import yaml_parse

from local_cloud import transform

ROOT = Path(__file__).parents[3]
TEMPLATE: dict[str, Any] = yaml_parse((ROOT / "template.yaml").read_text(encoding="utf-8"))
SECRETS = {
    name: f"arn:aws:secretsmanager:us-east-1:123456789012:secret:{name}-AbCdEf"
    for name in TEMPLATE["Parameters"]
    if name.endswith("SecretArn")
}
VPC = {"SubnetIds": "subnet-0a1b2c3d,subnet-1a2b3c4d", "SecurityGroupIds": "sg-0a1b2c3d"}
STACKS = [{"Architecture": architecture} | network for architecture in ("x86_64", "arm64") for network in ({}, VPC)]


def transformed(given: Mapping[str, str]) -> dict[str, Any]:
    """Returns the template as CloudFormation gets it after SAM; the given parameters become defaults."""
    template = copy.deepcopy(TEMPLATE)
    parameters = SECRETS | dict(given)
    for name, value in parameters.items():
        template["Parameters"][name]["Default"] = value
    return transform.transformed(template, parameters)


@pytest.fixture(scope="module", params=STACKS, ids=lambda given: "-".join(given.values()))
def stack(request: pytest.FixtureRequest) -> tuple[dict[str, str], dict[str, Any]]:
    return request.param, transformed(request.param)


type Stack = tuple[dict[str, str], dict[str, Any]]


def of_type(template: Mapping[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    resources = template["Resources"].items()
    return {name: resource.get("Properties", {}) for name, resource in resources if resource["Type"] == kind}


def test_cfn_lint_finds_nothing_in_what_cloudformation_gets(stack: Stack) -> None:
    found = lint(json.dumps(stack[1]), regions=["us-east-1", "eu-central-1", "ap-southeast-2"])
    assert [f"{match.rule.id} {match.path}: {match.message}" for match in found] == []


def test_cfn_lint_would_find_something() -> None:
    template = transformed({})
    next(iter(of_type(template, "AWS::Lambda::Function").values()))["Runtime"] = "python3.1"
    assert lint(json.dumps(template), regions=["us-east-1"])


def test_functions_and_layers_are_of_one_architecture(stack: Stack) -> None:
    given, template = stack
    for properties in of_type(template, "AWS::Lambda::Function").values():
        assert value(properties["Architectures"], given) == [given["Architecture"]]
    layers = of_type(template, "AWS::Lambda::LayerVersion")
    assert len(layers) == 4
    for properties in layers.values():
        assert value(properties["CompatibleArchitectures"], given) == [given["Architecture"]]


def test_every_function_is_in_the_vpc_or_none(stack: Stack) -> None:
    given, template = stack
    functions = of_type(template, "AWS::Lambda::Function")
    assert functions
    for properties in functions.values():
        condition, inside, outside = properties["VpcConfig"]["Fn::If"]
        assert outside == {"Ref": "AWS::NoValue"}
        assert truth(template["Conditions"][condition], given) == bool("SubnetIds" in given)
        if "SubnetIds" in given:
            assert {name: ",".join(value(ids, given)) for name, ids in inside.items()} == VPC


def test_no_resource_name_prevents_a_second_stack(stack: Stack) -> None:
    names = [
        (resource, key, name)
        for resource, properties in ((name, item.get("Properties", {})) for name, item in stack[1]["Resources"].items())
        for key, name in properties.items()
        # A policy is named within its role, a stage within its API.
        if key in {"Name", "Id"}
        or (key.endswith("Name") and not key.startswith(("Metric", "Function", "Policy", "Stage")))
    ]
    for resource, key, name in names:
        # A name that contains another resource's name is as unique as that one.
        assert references(name), f"{resource}.{key} is {name!r} in every stack"


def test_nothing_outlives_a_deleted_stack(stack: Stack) -> None:
    policies = [
        (name, resource.get(policy, "Delete"))
        for name, resource in stack[1]["Resources"].items()
        for policy in ("DeletionPolicy", "UpdateReplacePolicy")
    ]
    assert [name for name, policy in policies if policy != "Delete"] == []


@pytest.mark.parametrize("given", [{}, VPC])
def test_subnets_and_security_groups_must_be_given_together(given: dict[str, str]) -> None:
    assert all(truth(rule, given) for rule in assertions())


@pytest.mark.parametrize("name", VPC)
def test_subnets_or_security_groups_alone_are_refused(name: str) -> None:
    given = {name: VPC[name]}
    assert not all(truth(rule, given) for rule in assertions())
    # Lambda refuses it, too, where rules are not evaluated: the function is given a VPC that lacks the other.
    assert truth(TEMPLATE["Conditions"]["InVpc"], given)


def assertions() -> Iterator[Any]:
    for rule in TEMPLATE["Rules"].values():
        assert "RuleCondition" not in rule
        for assertion in rule["Assertions"]:
            assert assertion["AssertDescription"]
            yield assertion["Assert"]


def truth(expression: Mapping[str, Any], given: Mapping[str, str]) -> bool:
    """Returns a condition or a rule, as CloudFormation evaluates it."""
    [(name, arguments)] = expression.items()
    match name:
        case "Fn::And":
            return all(truth(item, given) for item in arguments)
        case "Fn::Or":
            return any(truth(item, given) for item in arguments)
        case "Fn::Not":
            return not truth(arguments[0], given)
        case "Fn::Equals":
            return bool(value(arguments[0], given) == value(arguments[1], given))
        case "Fn::EachMemberEquals":
            return all(member == arguments[1] for member in value(arguments[0], given))
    raise AssertionError(f"not foreseen here: {name}")


def value(expression: Any, given: Mapping[str, str]) -> Any:
    """Returns a parameter's value, or what is made of it."""
    match expression:
        case {"Ref": name}:
            parameter = TEMPLATE["Parameters"][name]
            text = given.get(name, parameter.get("Default"))
            return text.split(",") if parameter["Type"] == "CommaDelimitedList" else text
        case {"Fn::Join": [separator, parts]}:
            return separator.join(value(parts, given))
        case [*items]:
            return [value(item, given) for item in items]
        case str():
            return expression
    raise AssertionError(f"not foreseen here: {expression}")


def references(name: object) -> bool:
    match name:
        case {"Ref": resource}:
            return resource not in TEMPLATE["Parameters"]
        case {"Fn::GetAtt": _}:
            return True
        case {"Fn::Sub": str(text) | [str(text), _]}:
            return any(f"${{{resource}}}" in text for resource in [*TEMPLATE["Resources"], "AWS::StackName"])
    return False
