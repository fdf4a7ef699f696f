"""The ledger of record: what ran, from what, to what, and how it ended (DESIGN section 3)."""

from __future__ import annotations

import os
import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from m4v.core.errors import InfrastructureError, InputError
from m4v.core.storage import storage_faults
from pipelines.ledger.attempts import AttemptOps
from pipelines.ledger.claims import ClaimOps
from pipelines.ledger.clip_check import ClipCheckOps
from pipelines.ledger.clip_index import ClipIndexOps
from pipelines.ledger.clip_queries import ClipQueryOps
from pipelines.ledger.counts import CountOps
from pipelines.ledger.database import Database
from pipelines.ledger.drains import DrainOps
from pipelines.ledger.exposures import ExposureOps
from pipelines.ledger.history import HistoryOps
from pipelines.ledger.ids import new_id
from pipelines.ledger.lineage import LineageOps
from pipelines.ledger.listings import ListingOps
from pipelines.ledger.locations import LocationOps
from pipelines.ledger.migrate import migrate
from pipelines.ledger.neighbours import NeighbourOps
from pipelines.ledger.pipeline_runs import PipelineOps
from pipelines.ledger.promotions import PromotionOps
from pipelines.ledger.queries import QueryOps
from pipelines.ledger.reach import ReachOps
from pipelines.ledger.registry import RegistryOps
from pipelines.ledger.retention import RetentionOps
from pipelines.ledger.runs import RunOps
from pipelines.ledger.sample_ranks import RankOps
from pipelines.ledger.takedowns import TakedownOps
from pipelines.ledger.verifications import VerificationOps


class Ledger(
    ClaimOps,
    AttemptOps,
    RunOps,
    PipelineOps,
    QueryOps,
    ListingOps,
    NeighbourOps,
    CountOps,
    LineageOps,
    ExposureOps,
    RankOps,
    ReachOps,
    HistoryOps,
    RegistryOps,
    DrainOps,
    TakedownOps,
    PromotionOps,
    RetentionOps,
    LocationOps,
    VerificationOps,
    ClipIndexOps,
    ClipQueryOps,
    ClipCheckOps,
):
    """Open with `Ledger.open(url)`. Every verb is one transaction; threads may share a ledger.

    Database faults raise InfrastructureError.
    """

    def __init__(self, database: Database) -> None:
        self._db = database

    @classmethod
    def open(cls, url: str) -> Ledger:
        """Open `PATH`, `sqlite:///PATH` or `postgresql://…`, creating and migrating the schema as needed.

        Safe to call from many processes at once. Raises ConfigError for a wrong URL or a newer schema.
        """
        database = Database(url)
        try:
            migrate(database)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def snapshot(self) -> AbstractContextManager[None]:
        """While it is open this thread's questions share one transaction and see one state of the ledger: many of them
        cost far less so. What is written meanwhile is not seen, by this thread either."""
        return self._db.snapshot()

    @property
    def url(self) -> str:
        """Where it is, without a password."""
        return self._db.name

    def backup(self, path: Path) -> Path:
        """Copy a SQLite ledger while it is in use; the copy is checked, then renamed into place."""
        if not self._db.is_sqlite:
            raise InputError("backup copies SQLite ledgers only", value=self.url, next_step="pg_dump --format=custom")
        temporary = path.with_name(f".{path.name}.{new_id()}.tmp")
        with storage_faults(str(path)), self._db.faults():
            path.parent.mkdir(parents=True, exist_ok=True)
            source, copy = sqlite3.connect(str(self._db.url.database)), sqlite3.connect(temporary)
            try:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # one file, no -wal beside it
                checked = copy.execute("PRAGMA integrity_check").fetchone()[0]
            finally:
                source.close()
                copy.close()
            if checked != "ok":
                temporary.unlink()
                raise InfrastructureError(
                    f"backup is damaged: {checked}", where=self.url, next_step="m4v ledger verify"
                )
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        return path

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
