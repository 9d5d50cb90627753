"""Each function may do only what it needs, and the queues accept only what is sent over TLS."""

import json
import re
from typing import Any

import pytest
from tests.template import FUNCTIONS, QUEUES, RESOURCES, ROOT, TEMPLATE, Grant, grants, id_of, of_type, role_of

ON_EVERY_RESOURCE = {
    # Amazon EC2 has no narrower resource for an interface that does not exist yet, or for a Describe.
    "ec2:CreateNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:DeleteNetworkInterface",
    "ec2:AssignPrivateIpAddresses",
    "ec2:UnassignPrivateIpAddresses",
}
"""The only actions that may be granted on ``*``, in a VPC alone, and never to a function's own code."""

POLICIES = {
    **of_type("AWS::IAM::Role"),
    **of_type("AWS::IAM::Policy"),
    **of_type("AWS::IAM::ManagedPolicy"),
    **of_type("AWS::IAM::RolePolicy"),
}


def own(function: str, action: str) -> set[str]:
    return {grant.resource for grant in grants(function) if grant.action == action}


# Roles


def test_each_function_has_its_own_role_unextended_by_sam() -> None:
    assert [properties.keys() & {"Policies", "PermissionsBoundary"} for properties in FUNCTIONS.values()] == [
        set() for _ in FUNCTIONS
    ]
    roles = [role_of(function) for function in FUNCTIONS]
    assert sorted(roles) == sorted(set(roles)) == sorted(of_type("AWS::IAM::Role"))
    # SAM makes a role with AWS's managed policies for any function without a role.
    assert {kind for kind in (resource["Type"] for resource in RESOURCES.values()) if "Serverless" in kind} <= {
        "AWS::Serverless::Function",
        "AWS::Serverless::LayerVersion",
        "AWS::Serverless::Api",
    }


def test_only_lambda_assumes_a_role() -> None:
    for name, role in of_type("AWS::IAM::Role").items():
        [statement] = role["AssumeRolePolicyDocument"]["Statement"]
        assert statement == {
            "Effect": "Allow",
            "Principal": {"Service": "lambda.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }, name


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_may_do_nothing_with_a_wildcard(function: str) -> None:
    for grant in grants(function):
        assert re.fullmatch(r"[a-z0-9]+:[A-Za-z]+", grant.action), grant
        if grant.action == "bedrock:InvokeModel":
            # Which models there are is the account's business; which one is called, ModelId's.
            assert function == "AgentFunction", grant
            assert grant.only_if == "UsesBedrock", grant
            assert ":bedrock:" in grant.resource, grant
        elif "*" in grant.resource:
            assert grant.action in ON_EVERY_RESOURCE, grant
            assert grant.only_if == "InVpc", grant
            assert grant.condition, grant


def test_no_policy_grants_a_wildcard_action_whoever_it_is_for() -> None:
    for name, properties in POLICIES.items():
        text = json.dumps(properties)
        assert not re.search(r'"[\w-]*:?[A-Za-z]*\*"', text.replace('"Resource": "*"', "")), name
        assert "arn:aws:iam::aws:policy" not in text, f"{name}: a managed policy's extent is not ours to know"
        for word in ("NotAction", "NotResource", "NotPrincipal"):
            assert word not in text, name


def test_every_policy_belongs_to_a_function() -> None:
    attached = {id_of(role) for policy in of_type("AWS::IAM::Policy").values() for role in policy["Roles"]}
    assert attached == {role_of(function) for function in FUNCTIONS}


def test_a_functions_code_may_not_touch_network_interfaces() -> None:
    [policy] = of_type("AWS::IAM::ManagedPolicy").values()
    [statement] = policy["PolicyDocument"]["Statement"]
    # Lambda sets this key on every call that comes from a function's code, and on none of its own.
    assert statement["Condition"] == {"Null": {"lambda:SourceFunctionArn": "true"}}
    assert set(statement["Action"]) == ON_EVERY_RESOURCE
    assert RESOURCES["NetworkInterfacesPolicy"]["Condition"] == "InVpc"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_writes_only_to_its_own_log_group(function: str) -> None:
    logs = {(grant.action, grant.resource) for grant in grants(function) if grant.action.startswith("logs:")}
    [group] = {resource for _, resource in logs}
    assert RESOURCES[group]["Properties"]["LogGroupName"] == {"Fn::Sub": f"/aws/lambda/${{{function}}}"}
    assert {action for action, _ in logs} == {"logs:CreateLogStream", "logs:PutLogEvents"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_reads_only_the_secrets_in_its_environment(function: str) -> None:
    variables = FUNCTIONS[function]["Environment"]["Variables"]
    told = {id_of(value) for name, value in variables.items() if name.endswith("_SECRET_ARN")}
    assert own(function, "secretsmanager:GetSecretValue") == told
    conditions = {grant.resource: grant.only_if for grant in grants(function) if grant.action.startswith("secrets")}
    assert {name for name, condition in conditions.items() if condition} <= {"ModelSecretArn", "TracesSecretArn"}
    [key] = [grant for grant in grants(function) if grant.action == "kms:Decrypt"]
    assert key == Grant("kms:Decrypt", "SecretsKeyArn", only_if="HasSecretsKey", condition=True)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_sends_only_to_its_configured_queues(function: str) -> None:
    variables = json.dumps(FUNCTIONS[function]["Environment"]["Variables"])
    told = {queue for queue in QUEUES if f"${{{queue}}}" in variables}
    config = FUNCTIONS[function].get("EventInvokeConfig")
    kept = {id_of(config["DestinationConfig"]["OnFailure"]["Destination"])} if config else set()
    assert own(function, "sqs:SendMessage") == told | kept


@pytest.mark.parametrize("function", FUNCTIONS)
def test_lambda_polls_the_queue_of_a_consumer_and_no_other(function: str) -> None:
    events = FUNCTIONS[function].get("Events", {}).values()
    consumed = {id_of(event["Properties"]["Queue"]) for event in events if event["Type"] == "SQS"}
    for action in ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"):
        assert own(function, action) == consumed


# Queues


def test_every_queue_requires_tls_and_admits_no_other_account() -> None:
    [policy] = of_type("AWS::SQS::QueuePolicy").values()
    assert {id_of(queue) for queue in policy["Queues"]} == QUEUES.keys()
    [statement] = policy["PolicyDocument"]["Statement"]
    assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "sqs:*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def text_of(value: Any) -> str:
    """Returns a Sub's text with its own variables filled in."""
    text, variables = value["Fn::Sub"]
    return re.sub(r"\$\{(Suffix)\}", lambda match: json.dumps(variables[match[1]]), text)


@pytest.mark.parametrize("queue", QUEUES)
def test_a_dead_letter_queue_serves_only_queues_that_name_it(queue: str) -> None:
    sources = {
        f"arn:${{AWS::Partition}}:sqs:${{AWS::Region}}:${{AWS::AccountId}}:{text_of(properties['QueueName'])}"
        for properties in QUEUES.values()
        if "RedrivePolicy" in properties and id_of(properties["RedrivePolicy"]["deadLetterTargetArn"]) == queue
    }
    allowed = QUEUES[queue].get("RedriveAllowPolicy", {})
    if sources:
        assert allowed["redrivePermission"] == "byQueue"
        assert {text_of(arn) for arn in allowed["sourceQueueArns"]} == sources
    elif "RedrivePolicy" not in QUEUES[queue]:
        assert allowed == {"redrivePermission": "denyAll"}


def test_a_queues_name_holds_stack_name_and_logical_id() -> None:
    for properties in QUEUES.values():
        if "QueueName" in properties:
            text, variables = properties["QueueName"]["Fn::Sub"]
            assert re.fullmatch(r"\$\{AWS::StackName\}-[a-z-]+-\$\{Suffix\}", text)
            assert json.dumps(variables["Suffix"]).count("AWS::StackId") == 1


# Concurrency and the environment


@pytest.mark.parametrize("function", FUNCTIONS)
def test_concurrency_is_reserved_on_request(function: str) -> None:
    condition, reserved, otherwise = FUNCTIONS[function]["ReservedConcurrentExecutions"]["Fn::If"]
    assert otherwise == {"Ref": "AWS::NoValue"}
    assert TEMPLATE["Conditions"][condition] == {"Fn::Equals": [{"Ref": "ReserveConcurrency"}, "true"]}
    assert TEMPLATE["Parameters"]["ReserveConcurrency"]["Default"] == "false"
    for event in FUNCTIONS[function].get("Events", {}).values():
        if event["Type"] == "SQS":
            # A poller that invokes more than may run is throttled, and the queue counts that as a receive.
            assert event["Properties"]["ScalingConfig"]["MaximumConcurrency"] <= reserved


def test_a_deployed_functions_environment_holds_secret_arns_only() -> None:
    for name, properties in FUNCTIONS.items():
        for variable, value in properties["Environment"]["Variables"].items():
            if re.search("SECRET|TOKEN(?!S)|PASSWORD|DATABASE", variable):
                assert variable.endswith("_SECRET_ARN"), (name, variable)
                assert id_of(value).endswith("SecretArn"), (name, variable)
    assert "{{resolve:secretsmanager" not in (ROOT / "template.yaml").read_text(encoding="utf-8")


def test_one_function_reserves_what_another_spends() -> None:
    """DecisionFunction and AgentFunction have the same model; its key is AgentFunction's alone."""
    deciding, calling = (
        {name: value for name, value in FUNCTIONS[function]["Environment"]["Variables"].items() if "MODEL_" in name}
        for function in ("DecisionFunction", "AgentFunction")
    )
    assert calling.pop("MODEL_SECRET_ARN") is not None
    assert deciding == calling
    assert {"MODEL_PROVIDER", "MODEL_ID", "MODEL_MAX_TOKENS", "MODEL_OUTPUT", "MODEL_PRICE_MICROS"} <= deciding.keys()


def test_every_check_that_is_skipped_has_its_reason() -> None:
    lines = (ROOT / ".checkov.yaml").read_text(encoding="utf-8").splitlines()
    skipped = lines[lines.index("skip-check:") + 1 :]
    before = ["skip-check:", *skipped]
    checks = [number for number, line in enumerate(skipped) if re.fullmatch(r"  - CKV2?_AWS_\d+", line)]
    assert checks
    assert all(before[number].startswith("  # ") for number in checks)
    assert all(line.startswith("  # ") or number in checks for number, line in enumerate(skipped))
