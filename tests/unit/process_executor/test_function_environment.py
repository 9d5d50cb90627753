"""Which variables of LocalStack's long list a function gets to see."""

from process_executor.process import function_environment

LISTED: dict[str, object] = {
    "AWS_REGION": "eu-west-1",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": 128,
    "AWS_ACCESS_KEY_ID": "ASIA",
    "AWS_ENDPOINT_URL": "http://localstack:4566",
    "AWS_EXECUTION_ENV": "AWS_Lambda_rapid",
    "LOCALSTACK_HOSTNAME": "localhost",
    "LOCALSTACK_RUNTIME_ID": "abc",
    "EDGE_PORT": "4566",
}


def seen(**declared: object) -> dict[str, str]:
    """Returns what a function sees; in LocalStack's list, too, the function's own variables come last and win."""
    return function_environment(
        LISTED | declared, declared=declared, endpoint_url="http://127.0.0.1:4566", runtime="python3.13"
    )


def test_a_function_sees_only_lambdas_variables_and_the_endpoint() -> None:
    assert seen() == {
        "AWS_REGION": "eu-west-1",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
        "AWS_ACCESS_KEY_ID": "ASIA",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:4566",
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
    }


def test_a_function_sees_its_declared_variables_as_text() -> None:
    assert seen(N=5, EMPTY="", EDGE_PORT="mine").items() >= {"N": "5", "EMPTY": "", "EDGE_PORT": "mine"}.items()


def test_a_declared_endpoint_wins() -> None:
    assert seen(AWS_ENDPOINT_URL="http://other")["AWS_ENDPOINT_URL"] == "http://other"


def test_an_endpoint_declared_empty_is_as_good_as_none() -> None:
    found = seen(AWS_ENDPOINT_URL="", AWS_ENDPOINT_URL_SQS="", AWS_ENDPOINT_URL_S3="http://other")
    assert found["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4566"
    assert "AWS_ENDPOINT_URL_SQS" not in found
    assert found["AWS_ENDPOINT_URL_S3"] == "http://other"
