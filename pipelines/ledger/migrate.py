"""Brings a database to this program's schema when a ledger is opened.

Migrations ship inside the package; concurrent openers wait for each other (SQLite: the write lock;
PostgreSQL: an advisory lock), and a database of a newer program is refused.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from m4v.core.errors import ConfigError
from pipelines.ledger.database import Database
from pipelines.ledger.schema import HEAD_REVISION

SCRIPTS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x4D3456  # "M4V"


def migrate(database: Database) -> None:
    """Upgrade to HEAD_REVISION; a no-op (without importing Alembic) when it is there already."""
    with database.read() as session:
        if revision(session.connection()) == HEAD_REVISION:
            return
    with database.connection() as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        if revision(connection) != HEAD_REVISION:
            _upgrade(connection, database.name)


def revision(connection: Connection) -> str | None:
    """The schema revision in the database, None in an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _upgrade(connection: Connection, where: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = revision(connection)
    if current is not None and current not in known:
        raise ConfigError(
            "ledger was written by a newer version of this program",
            value=current,
            where=where,
            next_step="upgrade m4v-pipeline",
        )
    command.upgrade(config, HEAD_REVISION)
