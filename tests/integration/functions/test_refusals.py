"""The settings, databases and events that each function refuses."""

from typing import Any

import pytest
from psycopg import Connection
from tests.conftest import MIGRATIONS, PASSWORD
from tests.integration.functions.invoked import NAMES, NOWHERE, Load, failures, record_of, tick

from control_plane.model.errors import ConfigurationError, DatabaseUnavailable, SchemaVersionMismatch
from control_plane.ops.migrations import MigrationError, migrate, read_migrations
from control_plane.platform.database import connect
from local_cloud.net import free_port


@pytest.mark.parametrize("name", NAMES)
def test_neither_url_nor_secret_is_an_error_that_names_both(load: Load, name: str) -> None:
    load(name).fails(ConfigurationError, "neither DATABASE_URL nor DATABASE_SECRET_ARN is set")
    load(name, DATABASE_URL=" ", DATABASE_SECRET_ARN="").fails(ConfigurationError, "neither DATABASE_URL")


@pytest.mark.parametrize("name", NAMES)
def test_both_url_and_secret_is_an_error_that_names_both(load: Load, name: str) -> None:
    function = load(name, DATABASE_URL=NOWHERE, DATABASE_SECRET_ARN="arn:aws:secretsmanager:x")
    function.fails(ConfigurationError, "both DATABASE_URL and DATABASE_SECRET_ARN are set", "keep one")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "url",
    [
        f"mysql://acp_test:{PASSWORD}@127.0.0.1:3306/database",
        f"http://acp_test:{PASSWORD}@127.0.0.1/database?ssl=1",
        f"postgresql://acp_test:{PASSWORD}%zz@127.0.0.1/database",
        # Without encoding, libpq ends the password at an @ or a /, and takes the rest of it for the host or database.
        f"postgresql://acp_test:x@{PASSWORD}@127.0.0.1/database",
        f"postgresql://acp_test:{PASSWORD}/x@127.0.0.1/database",
        f"postgresql://acp_test:x/{PASSWORD}@127.0.0.1/database",
        PASSWORD,
    ],
)
def test_a_url_that_is_none_is_named_and_not_shown(load: Load, name: str, url: str) -> None:
    load(name, DATABASE_URL=url).fails(ConfigurationError, "DATABASE_URL cannot be read", "postgresql://user:password@")


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_password_is_an_error_that_names_whose(load: Load, database: Any, name: str) -> None:
    function = load(name, DATABASE_URL=database.app_url.replace(PASSWORD, f"not-{PASSWORD}"))
    function.fails(DatabaseUnavailable, "acp_test@127.0.0.1:", "password authentication failed")


@pytest.mark.parametrize("name", NAMES)
def test_a_port_where_nothing_listens_is_named(load: Load, name: str) -> None:
    url = f"postgresql://acp_test:{PASSWORD}@127.0.0.1:{free_port()}/database"
    load(name, DATABASE_URL=url).fails(DatabaseUnavailable, url.partition(f":{PASSWORD}@")[2], "Connection refused")


@pytest.mark.parametrize("host", ["no..where", "n" * 64])
def test_a_host_that_is_no_valid_name_is_named(load: Load, host: str) -> None:
    function = load("signal_lab", DATABASE_URL=f"postgresql://acp_test:{PASSWORD}@{host}/database")
    function.fails(DatabaseUnavailable, f"acp_test@{host}:5432/database")


def test_a_database_that_does_not_exist_is_named(load: Load, database: Any) -> None:
    function = load("signal_lab", DATABASE_URL=database.url("acp_consume").replace(database.name, "nowhere"))
    function.fails(DatabaseUnavailable, '"nowhere" does not exist')


@pytest.mark.parametrize("name", ["ingestion", "relay", "signal_lab", "maintenance"])
@pytest.mark.parametrize("version", range(len(read_migrations(MIGRATIONS))))
def test_an_old_schema_is_refused_until_it_is_migrated(
    load: Load, empty_database: Any, name: str, version: int
) -> None:
    migrations = read_migrations(MIGRATIONS)
    with connect(empty_database.owner_url, application_name="test") as owner:
        if version:
            migrate(owner, migrations[:version])
        function = load(name, DATABASE_URL=empty_database.app_url)
        texts = [f"at version {version}", f"needs {len(migrations)}", "scripts/acp db migrate", "MigrationFunction"]
        event = {"Records": [record_of(tick())]} if name == "signal_lab" else {}
        for _ in range(2):
            function.fails(SchemaVersionMismatch, *texts, event=event)
        if name == "signal_lab":
            migrate(owner, migrations)
            assert failures(function(event)) == []


@pytest.mark.parametrize("name", ["ingestion", "relay", "signal_lab", "maintenance"])
def test_a_database_of_the_older_layout_is_refused(
    load: Load, database: Any, owner: Connection[Any], name: str
) -> None:
    owner.execute("UPDATE schema_migrations SET name = 'events_and_outbox'")
    function = load(name, DATABASE_URL=database.app_url)
    event = {"Records": [record_of(tick())]} if name == "signal_lab" else {}
    function.fails(SchemaVersionMismatch, "older layout", "new, empty database", "scripts/acp down", event=event)


def test_migration_refuses_a_database_of_the_older_layout(load: Load, database: Any, owner: Connection[Any]) -> None:
    owner.execute("UPDATE schema_migrations SET name = 'events_and_outbox'")
    load("migration", DATABASE_URL=database.owner_url).fails(MigrationError, "older layout", "scripts/acp down")


@pytest.mark.parametrize("symbols", ["", " , ,"])
def test_no_symbols_are_an_error_that_names_the_variable(load: Load, symbols: str) -> None:
    load("ingestion", DATABASE_URL=NOWHERE, SYMBOLS=symbols).fails(ConfigurationError, "SYMBOLS is empty", "AAPL")


@pytest.mark.parametrize(
    "symbols", ["AAPL", {"AAPL": 1}, [1], [None], [["AAPL"]], 7, [], ["", " "], ["A B"], ["A" * 33]]
)
def test_symbols_of_the_event_that_are_none_are_named(load: Load, symbols: object) -> None:
    function = load("ingestion", DATABASE_URL=NOWHERE)
    function.fails(ConfigurationError, "symbols of the event", event={"symbols": symbols})


@pytest.mark.parametrize("seconds", ["5", "", True, -1, 841, float("nan"), [5], {}])
def test_a_linger_that_is_no_number_of_seconds_is_named(load: Load, seconds: object) -> None:
    function = load("relay", DATABASE_URL=NOWHERE)
    texts = ["linger_seconds of the event", repr(seconds), "from 0 to 840"]
    function.fails(ConfigurationError, *texts, event={"linger_seconds": seconds})


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("SUBSCRIPTION_QUEUE_URLS", "", "must map subscriptions to queue URLs"),
        ("SUBSCRIPTION_QUEUE_URLS", "signal_lab", "must be a JSON object"),
        ("SUBSCRIPTION_QUEUE_URLS", '["signal_lab"]', "must be a JSON object"),
        ("SUBSCRIPTION_QUEUE_URLS", '{"signal_lab": ""}', "must be a JSON object"),
        ("RELAY_LINGER_SECONDS", "soon", "a number from 0 to 840"),
        ("RELAY_CLAIM_SIZE", "1.5", "a whole number"),
        ("MAX_DELIVERY_ATTEMPTS", "0", "from 1 to 100"),
        ("LEASE_SECONDS", "10", "more than the 10 seconds a send may take"),
        ("CLOUD_ENDPOINT_URL", "localhost:4566", "http:// or https://"),
    ],
)
def test_a_wrong_relay_setting_is_named_with_its_remedy(load: Load, variable: str, value: str, remedy: str) -> None:
    load("relay", DATABASE_URL=NOWHERE, **{variable: value}).fails(ConfigurationError, variable, remedy)


def test_every_wrong_setting_is_named_at_once(load: Load) -> None:
    function = load("ingestion", SYMBOLS="A B", MARKET_DATA_URL="yahoo")
    function.fails(ConfigurationError, "SYMBOLS", "MARKET_DATA_URL", "neither DATABASE_URL")
