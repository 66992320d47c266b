"""The schema of a database, however old it is, becomes the one that the code works with."""

import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from tandem.serve.modelarts.store import tables as modelarts_tables  # noqa: F401 - registers them
from tandem.serve.store import migrations
from tandem.serve.store.migrations import NewerStoreError
from tandem.serve.store.store import Store
from tandem.serve.store.tables import Table

pytestmark = pytest.mark.parametrize("new_url", ["sqlite", "postgresql"], indirect=True)
MODEL, JOB = "0b5b1b9e-7c0f-4d0c-9d51-5c2f1d0a9f11", "6f0a4b06-26ca-4d3c-8b8a-7d8c2a5c1b3e"
NOW = "2026-01-01 00:00:00"
ROWS = f"""
INSERT INTO api_keys (id, name, entity, key_sha256, created_at) VALUES ('key', 'laptop', 'team', 'hash', '{NOW}');
INSERT INTO initial_versions (base_model, digest) VALUES ('base', 'zero');
INSERT INTO models (number, id, entity, project, name, base_model, created_at, next_step, last_claimed_at)
    VALUES (1, '{MODEL}', 'team', 'project', 'agent', 'base', '{NOW}', 2, '{NOW}');
INSERT INTO versions (model_id, step, digest, metrics, created_at) VALUES ('{MODEL}', 1, 'd1', '{{}}', '{NOW}');
INSERT INTO jobs (number, id, model_id, state, payload_key, config, body_sha256, attempt, lease_expires_at,
                  cancel_requested, num_events, num_gradient_steps, created_at)
    VALUES (1, '{JOB}', '{MODEL}', 'running', 'payloads/1', '{{}}', 'hash', 1, '{NOW}', false, 1, 0, '{NOW}');
INSERT INTO events (job_id, seq, type, data, created_at) VALUES ('{JOB}', 1, 'training_started', '{{}}', '{NOW}');
"""


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


@pytest.fixture
def old_database(database, run_sql):
    """What the first release made with `create_all`, and used."""
    run_sql(
        "DROP TABLE alembic_version",
        *(
            f"DROP TABLE {table}"
            for table in ("dataset_versions", "user_job_logs", "user_job_versions", "user_jobs", "training_configs")
        ),
        "ALTER TABLE api_keys DROP COLUMN role",
        *(
            f"ALTER TABLE jobs DROP COLUMN {column}"
            for column in ("reference_digest", "reference_lag", "reward_std_dev", "waiting_for", "num_handed_back")
        ),
        *filter(None, map(str.strip, ROWS.split(";"))),
    )
    return database


def differences(engine):
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), Table.metadata)
    # A missing table by its name alone: its columns have defaults that print differently each time.
    return sorted(f"{what[0]} {what[1].name}" if what[0] == "add_table" else str(what) for what in found)


def test_the_migrations_make_the_tables_of_the_code(database):
    assert differences(database) == [], "a change of tables.py needs a migration"


def test_migrations_are_numbered_in_order(database):
    config = Config()
    config.set_main_option("script_location", "tandem.serve.store:migrations")
    numbers = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions("base", "head")][::-1]
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)], "releases compare them"
    assert numbers[-1] == migrations.HEAD
    with database.connect() as connection:
        assert migrations.revision(connection) == migrations.HEAD


def test_a_database_from_before_migrations_is_brought_up_with_its_rows(old_database, new_url):
    assert differences(old_database), "it isn't old"
    store = Store(new_url)
    assert differences(old_database) == []
    assert [(key.name, key.role) for key in store.list_keys()] == [("laptop", "admin")]
    assert store.resolve("team", "project", "agent", None).digest == "d1"
    assert [event.type for event in store.events(JOB, "team", 10)] == ["training_started"]
    claimed = store.claim_next("base", "coordinator", 30)
    assert (claimed.id, claimed.attempt, claimed.num_tries, claimed.version.step) == (JOB, 2, 2, 1)
    store.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(old_database, run_sql, new_url):
    run_sql("ALTER TABLE jobs ADD COLUMN waiting_for INTEGER")
    before = differences(old_database)
    with pytest.raises(Exception, match="waiting_for"):
        Store(new_url)
    assert differences(old_database) == before
    assert not inspect(old_database).has_table("alembic_version")


def test_a_newer_database_is_refused_and_not_touched(database, run_sql, new_url):
    run_sql("UPDATE alembic_version SET version_num = '9999'", "ALTER TABLE jobs ADD COLUMN later TEXT")
    before = differences(database)
    with pytest.raises(NewerStoreError, match=f"to schema 9999, and this release knows {migrations.HEAD} at most"):
        Store(new_url)
    assert differences(database) == before


def test_opening_a_current_database_needs_no_alembic(database, new_url):
    code = """if True:
        import sys
        from tandem.serve.store.store import Store
        Store(sys.argv[1])
        assert "alembic" not in sys.modules
    """
    opened = subprocess.run([sys.executable, "-c", code, new_url], capture_output=True, text=True, timeout=300)
    assert opened.returncode == 0, opened.stderr
