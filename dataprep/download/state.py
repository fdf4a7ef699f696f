"""What is known of every file of a download, kept on disk: pending, fetched, or failed and why.

A file in its place is the proof that it was fetched; the table saves asking again for what failed for good, and says
where every file came from.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.download.outcome import Fetched, FetchError, WantedFile
from m4v.core.canonical import digest_bytes
from m4v.core.errors import InfrastructureError
from m4v.core.storage import Storage, replacing, storage_faults

FOLDER = ".m4v-download"  # readers of a collection pass over hidden names
FAILURES = "failures.parquet"
_SCHEMA = """CREATE TABLE IF NOT EXISTS item (
  path TEXT PRIMARY KEY, url TEXT NOT NULL, media TEXT NOT NULL, claims TEXT NOT NULL, run INTEGER NOT NULL,
  status TEXT NOT NULL, reason TEXT, detail TEXT, attempts INTEGER NOT NULL DEFAULT 0,
  size_bytes INTEGER, sha256 TEXT, content_type TEXT) WITHOUT ROWID"""
FAILURE_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("url", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("attempts", pa.int32()),
        ("again", pa.bool_()),  # the next download tries it again
    ]
)
_ROWS = 8192


class Failure(NamedTuple):
    """Why a file is not there."""

    reason: str
    detail: str


class DownloadState:
    """The table of one collection; use as a context manager. One download at a time may have it.

    It lies beside the files of a local collection, and below `cache` for a remote one, whose failures are also kept
    in the collection itself. Raises InfrastructureError when another process has it or the disk fails.
    """

    def __init__(self, location: Storage, cache: Path) -> None:
        self.location = location
        name = hashlib.sha256(location.uri.encode()).hexdigest()[:32]
        self.folder = location.local_root / FOLDER if location.is_local else cache / "downloads" / name
        self.parts = self.folder / "parts"

    def __enter__(self) -> DownloadState:
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InfrastructureError(
                "another process is downloading into this collection", where=self.location.uri,
                next_step="wait for it to end, then run again",
            ) from None  # fmt: skip
        except OSError as error:
            raise InfrastructureError(
                f"the collection cannot be written to: {error.strerror}", where=str(self.folder),
                next_step="make its directory writable for the download, or download into another one",
            ) from None  # fmt: skip
        self._database = sqlite3.connect(self.folder / "state.sqlite", isolation_level=None)
        # Exclusive: no shared memory is needed, so that network file systems will do.
        for statement in ("PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL"):
            self._database.execute(statement)
        self._database.execute(_SCHEMA)
        (last,) = self._database.execute("SELECT max(run) FROM item").fetchone()
        self._run = 1 + (last or 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        self._lock.close()

    def want(self, files: Iterable[WantedFile], *, again: bool = False) -> None:
        """Say what is missing now. Of two with one path the first counts. A file that failed for good stays failed
        as long as its URL is the same, except `again`."""
        keeps = "'none'" if again else "'failed'"
        statement = f"""
            INSERT INTO item (path, url, media, claims, run, status) VALUES (?, ?, ?, ?, {self._run}, 'pending')
            ON CONFLICT (path) DO UPDATE SET run = excluded.run, media = excluded.media, claims = excluded.claims,
              status = CASE WHEN status = {keeps} AND url = excluded.url THEN status ELSE 'pending' END,
              attempts = CASE WHEN status = {keeps} AND url = excluded.url THEN attempts ELSE 0 END,
              url = excluded.url
            WHERE run != excluded.run"""
        self._database.execute("BEGIN")
        self._database.executemany(
            statement, ((f.path, f.url, f.media, json.dumps(dict(f.claims), default=str)) for f in files)
        )
        self._database.execute("COMMIT")

    def counts(self) -> dict[str, int]:
        """Of the files wanted in this run: how many are `pending`, `fetched`, `failed` and `unreachable`."""
        rows = self._database.execute("SELECT status, count(*) FROM item WHERE run = ? GROUP BY status", (self._run,))
        return {status: int(number) for status, number in rows}

    def fetched_bytes(self) -> int:
        """Bytes of the files that this and earlier runs brought and that are not wanted anew."""
        statement = "SELECT coalesce(sum(size_bytes), 0) FROM item WHERE status = 'fetched'"
        return int(self._database.execute(statement).fetchone()[0])

    def pending(self) -> Iterator[WantedFile]:
        """Files of this run that nobody has tried yet, by path."""
        last = ""
        while True:
            rows = self._database.execute(
                "SELECT path, url, media, claims FROM item WHERE path > ? AND run = ? AND status = 'pending'"
                " ORDER BY path LIMIT 1024", (last, self._run),
            ).fetchall()  # fmt: skip
            for path, url, media, claims in rows:
                yield WantedFile(path, url, media, json.loads(claims))
            if not rows:
                return
            last = rows[-1][0]

    def fetched(self, path: str, result: Fetched, attempts: int) -> None:
        self._database.execute(
            "UPDATE item SET status = 'fetched', reason = NULL, detail = NULL, attempts = ?, size_bytes = ?,"
            " sha256 = ?, content_type = ? WHERE path = ?",
            (attempts, result.size_bytes, result.sha256, result.content_type, path),
        )

    def failed(self, path: str, error: FetchError, attempts: int) -> None:
        status = "unreachable" if error.retry else "failed"
        self._database.execute(
            "UPDATE item SET status = ?, reason = ?, detail = ?, attempts = ? WHERE path = ?",
            (status, error.reason, error.detail, attempts, path),
        )

    def has_failed(self, file: WantedFile) -> bool:
        """Did this very file fail for good before?"""
        statement = "SELECT 1 FROM item WHERE path = ? AND url = ? AND status = 'failed'"
        return self._database.execute(statement, (file.path, file.url)).fetchone() is not None

    def failure(self, path: str) -> Failure | None:
        """Why a file is not there, None when nobody has tried in vain."""
        row = self._database.execute(
            "SELECT reason, detail FROM item WHERE path = ? AND status IN ('failed', 'unreachable')", (path,)
        ).fetchone()
        return None if row is None else Failure(row[0], row[1] or "")

    @property
    def failures_uri(self) -> str:
        """Where `write_failures` writes."""
        return f"{self.location.uri}/{FOLDER}/{FAILURES}"

    def clear_parts(self) -> None:
        """Delete what killed runs left of files that nobody waits for any more."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def write_failures(self) -> None:
        """Bring `failures.parquet` up to date, sorted by path, here and in a remote collection."""
        target = self.folder / FAILURES
        with storage_faults(str(self.folder)):
            self._write_failures(target)
        if not self.location.is_local:
            self.location.put_file(target, f"{FOLDER}/{FAILURES}")

    def _write_failures(self, target: Path) -> None:
        with replacing(target) as temporary, pq.ParquetWriter(temporary, FAILURE_SCHEMA, compression="zstd") as writer:
            rows = self._database.execute(
                "SELECT path, url, reason, detail, attempts, status = 'unreachable' FROM item"
                " WHERE status IN ('failed', 'unreachable') ORDER BY path"
            )
            while block := rows.fetchmany(_ROWS):
                columns = [list(column) for column in zip(*block, strict=True)]
                columns[-1] = [bool(again) for again in columns[-1]]
                writer.write_table(pa.table(columns, schema=FAILURE_SCHEMA))


def state_digest(location: Storage) -> str | None:
    """Digest of what past downloads into a collection failed at; None when there were none."""
    name = f"{FOLDER}/{FAILURES}"
    return digest_bytes(location.read_bytes(name)) if location.exists(name) else None
