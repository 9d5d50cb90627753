from __future__ import annotations

import os

from local_cloud.environ import isolated, without_proxy


def test_nothing_of_the_users_aws_account_is_kept() -> None:
    cleaned = isolated({"AWS_PROFILE": "work", "AWS_SESSION_TOKEN": "secret", "AWS_ENDPOINT_URL_SQS": "https://real"})
    assert "AWS_PROFILE" not in cleaned
    assert "AWS_SESSION_TOKEN" not in cleaned
    assert "AWS_ENDPOINT_URL_SQS" not in cleaned
    assert cleaned["AWS_ACCESS_KEY_ID"] == "test"
    assert cleaned["AWS_CONFIG_FILE"] == os.devnull
    assert cleaned["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull


def test_other_databases_and_other_pythons_are_not_kept() -> None:
    foreign = {"PGPASSWORD": "x", "PGPORT": "1", "PYTHONPATH": "/x", "VIRTUAL_ENV": "/x", "CONDA_PREFIX": "/x"}
    assert not foreign.keys() & isolated(foreign).keys()


def test_the_rest_is_kept() -> None:
    assert (
        isolated({"PATH": "/bin", "UV_CACHE_DIR": "/cache"}).items()
        >= {"PATH": "/bin", "UV_CACHE_DIR": "/cache"}.items()
    )


def test_no_proxy_stands_between_this_machine_and_itself() -> None:
    cleaned = isolated({"HTTP_PROXY": "http://proxy:3128", "no_proxy": "intranet"})
    assert cleaned["HTTP_PROXY"] == "http://proxy:3128"
    assert cleaned["no_proxy"] == "intranet,127.0.0.1,localhost"
    assert cleaned["NO_PROXY"] == "127.0.0.1,localhost"


def test_no_proxy_stands_before_a_cloud_at_a_private_address() -> None:
    environ = {"NO_PROXY": "intranet,localhost"}
    assert without_proxy(environ, "http://10.0.0.7:4566") == {
        "NO_PROXY": "intranet,localhost,127.0.0.1,10.0.0.7",
        "no_proxy": "127.0.0.1,localhost,10.0.0.7",
    }
