"""Opening, migrating, backing up; faults of the database."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from ledger_scenario import Scenario, artifact, start_child, wait_child
from sqlalchemy import create_engine

from m4v.core.errors import ConfigError, InfrastructureError, InputError
from pipelines.ledger import Ledger
from pipelines.ledger.database import parse_url
from pipelines.ledger.migrate import SCRIPTS
from pipelines.ledger.schema import HEAD_REVISION, Base


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/deep/er/ledger.sqlite"
    return str(request.getfixturevalue("postgres_url"))


def test_migrations_build_the_tables_that_the_code_uses(empty_url: str) -> None:
    Ledger.open(empty_url).close()
    engine = create_engine(parse_url(empty_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert context.get_current_revision() == HEAD_REVISION
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_the_head_revision_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD_REVISION]


def test_many_processes_may_open_a_new_ledger_at_once(empty_url: str, tmp_path: Path) -> None:
    start = tmp_path / "start"

    def open_it() -> None:
        while not start.exists():
            time.sleep(0.001)
        with Ledger.open(empty_url) as ledger:
            ledger.begin_pipeline_run("demo", {})

    pids = [start_child(open_it) for _ in range(5)]
    start.touch()
    assert [wait_child(p) for p in pids] == [0] * 5
    with Ledger.open(empty_url) as ledger:
        report = ledger.verify_chain()
    assert (report.ok, report.events) == (True, 5)


def test_a_newer_schema_is_refused(scenario: Scenario) -> None:
    scenario.ledger.close()
    scenario.sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match=r"newer version of this program: '9999'"):
        Ledger.open(scenario.url)


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="use PATH, sqlite:///PATH or postgresql://"):
        Ledger.open(url)


def test_a_password_is_never_shown() -> None:
    with pytest.raises(InfrastructureError) as failed:
        Ledger.open("postgresql://ada:sesame@127.0.0.1:1/ledger")
    assert "sesame" not in str(failed.value)
    assert "postgresql+psycopg://ada:***@127.0.0.1:1/ledger" in str(failed.value)
    with pytest.raises(ConfigError) as refused:
        Ledger.open("mysql://ada:sesame@host/db")
    assert "sesame" not in str(refused.value)


def test_a_file_that_is_no_database_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(InfrastructureError, match="file is not a database"):
        Ledger.open(str(path))


def test_a_directory_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InfrastructureError, match="storage failed: FileExistsError"):
        Ledger.open(str(tmp_path / "file" / "ledger.sqlite"))


def test_a_server_that_restarts_is_found_again(postgres_url: str) -> None:
    with Ledger.open(postgres_url) as ledger, Ledger.open(postgres_url) as other:
        ledger.begin_pipeline_run("demo", {})
        with other._db.connection() as connection:  # what a restart does to the others' connections
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        ledger.begin_pipeline_run("demo", {})
        assert len(ledger.pipeline_runs()) == 2


def test_a_locked_database_is_waited_for(tmp_path: Path) -> None:
    with Ledger.open(str(tmp_path / "ledger.sqlite")) as ledger:

        def hold() -> None:
            with Ledger.open(str(tmp_path / "ledger.sqlite")) as mine, mine._db.write():
                (tmp_path / "held").touch()
                time.sleep(0.3)
                (tmp_path / "let go").touch()

        pid = start_child(hold)
        while not (tmp_path / "held").exists():
            time.sleep(0.005)
        ledger.begin_pipeline_run("demo", {})
        assert (tmp_path / "let go").exists()
        assert wait_child(pid) == 0


def test_sqlite_is_kept_safe(tmp_path: Path) -> None:
    with Ledger.open(str(tmp_path / "ledger.sqlite")) as ledger, ledger._db.read() as session:
        pragma = {
            name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    assert pragma == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2, "busy_timeout": 30_000}


def test_a_ledger_may_be_used_after_a_fork(scenario: Scenario, ledger: Ledger) -> None:
    ledger.begin_pipeline_run("parent", {})
    assert wait_child(start_child(lambda: ledger.begin_pipeline_run("child", {}))) == 0
    ledger.begin_pipeline_run("parent", {})
    assert [r.recipe for r in ledger.pipeline_runs()] == ["parent", "child", "parent"]
    assert ledger.verify_chain().ok


def test_a_backup_is_taken_while_the_ledger_is_in_use(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger.sqlite")
    with Ledger.open(url) as ledger:
        Scenario(ledger, url).run("key", {"dataset": artifact("d")})
        with ledger._db.write():
            copy = ledger.backup(tmp_path / "backups" / "monday.sqlite")
        Scenario(ledger, url).run("key2", {"dataset": artifact("e")})
        head = ledger.verify_chain().head
    assert [p.name for p in copy.parent.iterdir()] == ["monday.sqlite"]
    with Ledger.open(str(copy)) as restored:
        assert restored.verify_chain().ok
        assert restored.find_run("key") is not None
        assert restored.find_run("key2") is None
        assert restored.verify_chain().head != head


def test_postgres_is_backed_up_by_its_own_tool(postgres_url: str, tmp_path: Path) -> None:
    with Ledger.open(postgres_url) as ledger, pytest.raises(InputError, match="Next: pg_dump"):
        ledger.backup(tmp_path / "copy")
