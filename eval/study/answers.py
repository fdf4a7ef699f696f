"""The answers of a study in one SQLite file: append-only, each on disk before it is acknowledged, counted once."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from eval.study.design import Task, participant_id
from eval.study.records import Answer, Snapshot
from m4v.core.errors import ConfigError, InfrastructureError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS participant (
  number INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, invited_at TEXT NOT NULL, consented_at TEXT, revoked_at TEXT
);
CREATE TABLE IF NOT EXISTS answer (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, participant INTEGER NOT NULL REFERENCES participant, task TEXT NOT NULL,
  prompt INTEGER NOT NULL, shown TEXT NOT NULL, said TEXT NOT NULL, answered_at TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS answer_of ON answer (participant, task, seq);
CREATE TRIGGER IF NOT EXISTS answer_stays BEFORE UPDATE ON answer BEGIN SELECT RAISE(ABORT, 'answers stay'); END;
CREATE TRIGGER IF NOT EXISTS answer_is_kept BEFORE DELETE ON answer BEGIN SELECT RAISE(ABORT, 'answers stay'); END;
"""
_NEWEST = "SELECT MAX(seq) FROM answer GROUP BY participant, task"


@dataclass(frozen=True)
class Participant:
    """Somebody who was invited. `id` is all that the answers know of them."""

    number: int
    consented: bool
    revoked: bool

    @property
    def id(self) -> str:
        return participant_id(self.number)


class AnswerStore:
    """One connection for all threads of a process; several processes may share the file. A changed answer is a new
    row, and the newest row of a (participant, task) is the one that counts."""

    def __init__(self, path: Path, study: str) -> None:
        """Makes the file if there is none; raises ConfigError when it is another study's."""
        self._guard = threading.RLock()
        self.path, self.study = path, study
        with _database_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # a commit returns when its bytes are on disk
            self._db.executescript(_SCHEMA)
            self._own(study)

    def _own(self, study: str) -> None:
        with self._writing():
            row = self._db.execute("SELECT id FROM study").fetchone()
            if row is None:
                self._db.execute("INSERT INTO study VALUES (?)", (study,))
            elif row[0] != study:
                raise ConfigError("these answers are of another study", value=row[0][:12], where=str(self.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._guard:
            self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction; on disk when it ends."""
        with self._guard, _database_faults(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _read(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with self._guard, _database_faults(self.path):
            return self._db.execute(sql, values).fetchall()

    def invite(self, count: int) -> list[tuple[Participant, str]]:
        """New participants with their tokens, which are kept as digests and cannot be told again."""
        made = []
        with self._writing():
            last = self._db.execute("SELECT COALESCE(MAX(number), 0) FROM participant").fetchone()[0]
            for number in range(last + 1, last + count + 1):
                token = secrets.token_urlsafe(18)
                self._db.execute(
                    "INSERT INTO participant (number, token, invited_at) VALUES (?, ?, ?)",
                    (number, _digest(token), _now()),
                )
                made.append((Participant(number, consented=False, revoked=False), token))
        return made

    def revoke(self, participant: str) -> None:
        """Close an invitation; what was answered stays in the file and counts no more. Doing it again changes nothing.

        Raises InputError when nobody has that id.
        """
        with self._writing():
            changed = self._db.execute(
                "UPDATE participant SET revoked_at = COALESCE(revoked_at, ?) WHERE printf('p%03d', number) = ?",
                (_now(), participant),
            )
            if not changed.rowcount:
                raise InputError("the study has no such participant", value=participant)

    def by_token(self, token: str) -> Participant | None:
        rows = self._read(
            "SELECT number, consented_at, revoked_at FROM participant WHERE token = ?", _digest(token)
        )  # fmt: skip
        return _participant(rows[0]) if rows else None

    def participants(self) -> list[Participant]:
        rows = self._read("SELECT number, consented_at, revoked_at FROM participant ORDER BY number")
        return [_participant(row) for row in rows]

    def consent(self, participant: Participant) -> None:
        with self._writing():
            self._db.execute(
                "UPDATE participant SET consented_at = COALESCE(consented_at, ?) WHERE number = ?",
                (_now(), participant.number),
            )

    def record(self, participant: Participant, task: Task, said: Mapping[str, Sequence[int]]) -> None:
        """Keep an answer; it is on disk when this returns. The same answer sent again adds nothing.

        Raises InputError when the invitation has been revoked meanwhile, or nobody consented under it.
        """
        text = json.dumps({k: list(v) for k, v in said.items()}, sort_keys=True)
        with self._writing():
            row = self._db.execute(
                "SELECT number, consented_at, revoked_at FROM participant WHERE number = ?", (participant.number,)
            ).fetchone()
            if row is None or row[1] is None or row[2] is not None:
                raise InputError("this invitation is not open", value=participant.id)
            latest = self._db.execute(
                "SELECT said FROM answer WHERE participant = ? AND task = ? ORDER BY seq DESC LIMIT 1",
                (participant.number, task.id),
            ).fetchone()
            if latest is None or latest[0] != text:
                self._db.execute(
                    "INSERT INTO answer (participant, task, prompt, shown, said, answered_at) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (participant.number, task.id, task.prompt, json.dumps(list(task.shown)), text, _now()),
                )

    def answered(self, participant: Participant) -> dict[str, dict[str, tuple[int, ...]]]:
        """What stands of one participant, by task."""
        rows = self._read(
            f"SELECT task, said FROM answer WHERE participant = ? AND seq IN ({_NEWEST})", participant.number
        )  # fmt: skip
        return {str(task): _said(str(said)) for task, said in rows}

    def snapshot(self) -> Snapshot:
        """All that stands now, in an order that does not depend on when it came."""
        with self._guard:
            people = self.participants()
            rows = self._read(f"SELECT participant, task, prompt, shown, said FROM answer WHERE seq IN ({_NEWEST})")
        answers = [
            Answer(
                participant=participant_id(int(str(number))), task=str(task), prompt=int(str(prompt)),
                shown=tuple(json.loads(str(shown))), said=_said(str(said)),
            )
            for number, task, prompt, shown, said in rows
        ]  # fmt: skip
        return Snapshot(
            study=self.study,
            invited=len(people),
            revoked=tuple(p.id for p in people if p.revoked),
            answers=tuple(sorted(answers, key=lambda a: (a.participant, a.prompt, a.task))),
        )


def _participant(row: tuple[object, ...]) -> Participant:
    return Participant(int(str(row[0])), consented=row[1] is not None, revoked=row[2] is not None)


def _said(text: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(values) for key, values in json.loads(text).items()}


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@contextmanager
def _database_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise InfrastructureError(
            f"the answers cannot be read or kept: {error}", where=str(path), next_step="see to the disk, then try again"
        ) from error
