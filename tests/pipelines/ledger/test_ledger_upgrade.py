"""Ledgers written by every released schema come up to this program's with all that they hold.

`released/REVISION.json` has every row of a ledger that a program of that revision wrote. 0001: two runs of the micro
recipe up to `curate`, and one with another threshold. 0004: the random datasets, checkpoints and products of the impact
tests, with a digest of the impact of every clip, as that program told it, in `0004-impact.txt`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import digest_json
from pipelines.impact import impact
from pipelines.ledger import Ledger
from pipelines.ledger.database import Database
from pipelines.ledger.migrate import SCRIPTS, revision
from pipelines.ledger.schema import HEAD_REVISION
from pipelines.membership import ClipSelector

RELEASED = sorted((Path(__file__).parent / "released").glob("*.json"))
REPLACED = {"artifact_stem"}  # tables that a later revision keeps in another form
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(params=RELEASED, ids=lambda path: path.stem)
def released(request: pytest.FixtureRequest) -> tuple[str, Rows]:
    return request.param.stem, json.loads(request.param.read_text())


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def old_url(released: tuple[str, Rows], empty_url: str) -> str:
    """A database as that revision left it."""
    _upgraded(empty_url, *released)
    return empty_url


def _upgraded(url: str, to: str, rows: Rows) -> None:
    """An empty database brought to a revision, with these rows."""
    database = Database(url)
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with database.connection() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, to)
        _insert(connection, rows)
        assert revision(connection) == to
    database.close()


def _insert(connection: Connection, rows: Rows) -> None:
    """Parents before children; the raw values are text, which both databases read as their own types."""
    connection.execute(text("DELETE FROM chain_head"))
    for table in inspect(connection).get_sorted_table_and_fkc_names():
        for row in rows.get(table[0] or "", []):
            names = ", ".join(row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(
                text(f"INSERT INTO {table[0]} ({names}) VALUES ({values})"), _typed(connection, table, row)
            )


def _typed(connection: Connection, table: Any, row: dict[str, Any]) -> dict[str, Any]:
    """SQLite has no booleans of its own, JSON no bytes."""
    types = {c["name"]: str(c["type"]) for c in inspect(connection).get_columns(table[0])}
    plain = {name: bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for name, value in row.items()}
    return {name: bool(value) if types[name] == "BOOLEAN" else value for name, value in plain.items()}


def _all_rows(url: str, tables: Rows) -> dict[str, list[tuple[Any, ...]]]:
    database = Database(url)
    with database.connection() as connection:
        found = {
            name: sorted(map(tuple, connection.execute(text(f"SELECT {', '.join(rows[0])} FROM {name}"))), key=str)
            for name, rows in tables.items()
            if rows and name not in REPLACED
        }
    database.close()
    return found


def test_every_row_survives_and_the_chain_holds(released: tuple[str, Rows], old_url: str) -> None:
    before = _all_rows(old_url, released[1])
    with Ledger.open(old_url) as ledger:
        report = ledger.verify_chain()
    assert (report.problems, report.stale) == ((), ())
    assert report.events == len(released[1]["event"])
    assert _all_rows(old_url, released[1]) == before
    database = Database(old_url)
    with database.connection() as connection:
        assert revision(connection) == HEAD_REVISION
    database.close()


def test_what_it_holds_is_answered_and_goes_on(released: tuple[str, Rows], old_url: str) -> None:
    with Ledger.open(old_url) as ledger:
        runs = ledger.pipeline_runs()
        assert len(runs) == len(released[1]["pipeline_run"])
        clips = [row.artifact_id for row in ledger.artifacts(kind=ArtifactKind.CLIPS)]
        made_from = {artifact.kind for artifact in ledger.lineage_up(clips[0]).artifacts.values()}
        assert made_from == {ArtifactKind.CLIPS, ArtifactKind.SOURCE}
        ledger.begin_pipeline_run("micro", {"name": "micro"})
        ledger.move_channel("staging", clips[0], expected=None, moved_by="somebody", reason="first")
        assert ledger.verify_chain().ok


def test_impact_is_what_the_program_before_told(empty_url: str) -> None:
    folder = RELEASED[0].parent
    _upgraded(empty_url, "0004", json.loads((folder / "0004.json").read_text()))
    with Ledger.open(empty_url) as ledger:
        for line in (folder / "0004-impact.txt").read_text().splitlines():
            clip, told = line.split()
            found = impact(ledger, ClipSelector(clips=(clip,))).to_json()
            checkpoints = sorted(found["checkpoints"], key=lambda row: row["artifact_id"])
            products = sorted(found["products"], key=lambda row: (row["kind"], row["artifact_id"]))
            assert digest_json([checkpoints, products, found["channels"]]) == told
        assert not ledger.verify_chain().problems
