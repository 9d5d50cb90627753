"""Lists all resources on a local cloud, of the kinds that the template makes."""

from collections.abc import Callable
from typing import Any

type Resources = dict[str, frozenset[str]]
type Client = Callable[[str], Any]


LAYERS = ("core", "market-data")


def resources(client: Client, *stacks: str) -> Resources:
    """Returns the resources by kind: their names, or whatever tells them apart; for layers, the stacks' own."""
    functions = _pages(client("lambda"), "list_functions", "Functions")
    roles = _pages(client("iam"), "list_roles", "Roles")
    found = {
        "stack": [
            stack["StackName"]
            for stack in _pages(client("cloudformation"), "list_stacks", "StackSummaries")
            if stack["StackStatus"] != "DELETE_COMPLETE"
        ],
        "function": [function["FunctionName"] for function in functions],
        "layer version": [
            version["LayerVersionArn"]
            # list_layers cannot be used: see Differences.forgets_layers.
            for layer in (f"{stack}-{name}" for stack in stacks for name in LAYERS)
            for version in _pages(client("lambda"), "list_layer_versions", "LayerVersions", LayerName=layer)
        ],
        "event source mapping": [
            mapping["UUID"] for mapping in _pages(client("lambda"), "list_event_source_mappings", "EventSourceMappings")
        ],
        "queue": client("sqs").list_queues(MaxResults=1000).get("QueueUrls", []),
        "rule": [rule["Name"] for rule in client("events").list_rules()["Rules"]],
        "role": [role["RoleName"] for role in roles],
        "policy": [policy["Arn"] for policy in _pages(client("iam"), "list_policies", "Policies", Scope="Local")],
        "log group": [group["logGroupName"] for group in _pages(client("logs"), "describe_log_groups", "logGroups")],
        "alarm": [alarm["AlarmName"] for alarm in _pages(client("cloudwatch"), "describe_alarms", "MetricAlarms")],
        "dashboard": [entry["DashboardName"] for entry in client("cloudwatch").list_dashboards()["DashboardEntries"]],
        "REST API": [api["id"] for api in _pages(client("apigateway"), "get_rest_apis", "items")],
        "secret": [secret["Name"] for secret in _pages(client("secretsmanager"), "list_secrets", "SecretList")],
        "topic": [topic["TopicArn"] for topic in _pages(client("sns"), "list_topics", "Topics")],
        "bucket": [bucket["Name"] for bucket in client("s3").list_buckets()["Buckets"]],
    }
    return {kind: frozenset(names) for kind, names in found.items()}


def beyond(now: Resources, before: Resources) -> dict[str, list[str]]:
    """Returns what is there now and was not before; only the kinds that have something new."""
    return {kind: sorted(names - before[kind]) for kind, names in now.items() if names - before[kind]}


def _pages(client: Any, operation: str, items: str, **arguments: Any) -> list[dict[str, Any]]:
    return [item for page in client.get_paginator(operation).paginate(**arguments) for item in page.get(items, [])]
