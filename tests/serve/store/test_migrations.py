"""Opening a database migrates it to the schema of the code, or rejects it."""

import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from tandem.serve.finetuning.store import tables as finetuning_tables  # noqa: F401 - registers them
from tandem.serve.modelarts.store import tables as modelarts_tables  # noqa: F401 - registers them
from tandem.serve.store import migrations
from tandem.serve.store.migrations import SchemaError
from tandem.serve.store.store import Store
from tandem.serve.store.tables.training import Table

pytestmark = pytest.mark.parametrize("new_url", ["sqlite", "postgresql"], indirect=True)

ADDED = {
    "versions": (
        *("retired_at", "files_removed_at", "optimizer_expired_at", "optimizer_removed_at", "optimizer_kind"),
        *("origin", "import_key", "kept_at"),
    ),
    "jobs": ("api_key_id", "kind", "start_step", "request_id", "traceparent"),
    "models": ("lora", "initial_digest", "origin"),
    "user_job_versions": ("config_name",),
}
INDEXES = ("versions_import_key", "models_initial_digest")
NEW_TABLES = (
    *("alert_deliveries", "alerts", "service_leases"),
    *("trajectories", "trajectory_groups", "trajectory_sources"),
    "datasets",
    *("job_attempts", "job_phases", "usage", "usage_prices", "usage_sources", "sampling_spans"),
    *("fine_tuning_checkpoints", "fine_tuning_events", "fine_tuning_jobs", "uploaded_files"),
    *("wandb_files", "wandb_artifacts", "wandb_metadata", "url_secrets"),
    *("tinker_samplers", "tinker_checkpoints", "tinker_calls", "tinker_runs", "tinker_sessions"),
)
BACK_TO_FIRST = [
    *(f"DROP TABLE {table}" for table in NEW_TABLES),
    *(f"DROP INDEX {index}" for index in INDEXES),
    *(f"ALTER TABLE {table} DROP COLUMN {column}" for table, columns in ADDED.items() for column in columns),
]


@pytest.fixture
def database(new_url):
    Store(new_url).close()
    engine = create_engine(new_url)
    yield engine
    engine.dispose()


@pytest.fixture
def run_sql(database):
    def run(*statements):
        with database.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    return run


def differences(engine):
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), Table.metadata)
    # Report a missing table by name: its columns have defaults that print differently each time.
    return sorted(f"{what[0]} {what[1].name}" if what[0] == "add_table" else str(what) for what in found)


def test_the_migrations_make_the_tables_of_the_code(database):
    assert differences(database) == [], "a change of tables.py needs a migration"


def test_migrations_are_numbered_in_order(database):
    config = Config()
    config.set_main_option("script_location", "tandem.serve.store:migrations")
    numbers = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions("base", "head")][::-1]
    digits = [f"{number:04}" for number in range(1, len(numbers) + 1)]
    assert [number.partition("_")[0] for number in numbers] == digits, "releases compare revisions"
    assert numbers[-1] == migrations.HEAD
    with database.connect() as connection:
        assert migrations.revision(connection) == migrations.HEAD


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE alembic_version SET version_num = '9999_later'",
        "UPDATE alembic_version SET version_num = '0002'",
        "DROP TABLE alembic_version",
    ],
    ids=["later", "before the first release", "before migrations"],
)
def test_a_database_with_another_schema_is_refused_and_not_touched(database, run_sql, new_url, change):
    run_sql(change, "ALTER TABLE jobs ADD COLUMN other TEXT")
    before = differences(database)
    with pytest.raises(SchemaError, match="store_url"):
        Store(new_url)
    assert differences(database) == before


def test_a_database_of_the_last_development_version_is_adopted(database, run_sql, new_url):
    store = Store(new_url)
    store.claims.put_initial_version("base", "d" * 64)
    store.close()
    run_sql(*BACK_TO_FIRST, "UPDATE alembic_version SET version_num = '0003'")
    for _ in range(2):
        Store(new_url).close()
    with database.connect() as connection:
        assert migrations.revision(connection) == migrations.HEAD
        assert connection.exec_driver_sql("SELECT digest FROM initial_versions").scalar() == "d" * 64
    assert differences(database) == []


def test_a_database_of_the_first_release_keeps_its_versions(database, run_sql, new_url):
    values = "'m', 'team', 'p', 'agent', 'base', '2026-01-01 00:00:00', 2, '1970-01-01 00:00:00'"
    run_sql(
        *BACK_TO_FIRST,
        f"UPDATE alembic_version SET version_num = '{migrations.FIRST}'",
        "INSERT INTO models (id, entity, project, name, base_model, created_at, next_step, last_claimed_at) "
        f"VALUES ({values})",
        "INSERT INTO versions (model_id, step, digest, metrics, created_at) "
        "VALUES ('m', 1, 'd', '{}', '2026-01-01 00:00:00')",
    )
    store = Store(new_url)
    [version] = store.versions.page("m", "team", 10)
    assert (version.digest, version.retired_at, version.optimizer_expired_at) == ("d", None, None)
    assert version.optimizer_kind == "rl"
    assert store.versions.resolve("team", "p", "agent", 1).digest == "d"
    store.close()
    assert differences(database) == []


def test_a_migration_that_fails_leaves_the_database_as_it_was(database, run_sql, new_url):
    tables = [table.name for table in reversed(Table.metadata.sorted_tables) if table.name != "training_configs"]
    run_sql("DROP TABLE alembic_version", *(f"DROP TABLE {table}" for table in tables))
    with pytest.raises(Exception, match="training_configs"):
        Store(new_url)
    assert inspect(database).get_table_names() == ["training_configs"]


def test_opening_a_current_database_needs_no_alembic(database, new_url):
    code = """if True:
        import sys
        from tandem.serve.store.store import Store
        Store(sys.argv[1])
        assert "alembic" not in sys.modules
    """
    opened = subprocess.run([sys.executable, "-c", code, new_url], capture_output=True, text=True, timeout=300)
    assert opened.returncode == 0, opened.stderr
