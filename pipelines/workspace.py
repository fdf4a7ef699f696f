"""A workspace: the home directory with its work files, and the places of store and ledger.

`M4V_HOME` (else `./m4v-home`), `M4V_STORE` (else HOME/store) and `M4V_LEDGER` (else SQLite in HOME) name them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from m4v.core.errors import ConfigError
from m4v.core.storage import Storage

HOME_VARIABLE = "M4V_HOME"
DEFAULT_HOME = "m4v-home"


@dataclass(frozen=True)
class Workspace:
    """`home` is local; the store may be `s3://…`, the ledger any database that the ledger knows."""

    home: Path
    store_uri: str
    ledger_url: str

    @classmethod
    def open(cls, home: str | os.PathLike[str] | None = None) -> Workspace:
        """Read the environment; makes the home directory. Raises ConfigError when that cannot be."""
        chosen = Path(home or os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser().resolve()
        try:
            chosen.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"home directory cannot be made: {error.strerror}",
                value=str(chosen),
                next_step="set M4V_HOME or --home to a directory you may write",
            ) from None
        return cls(
            home=chosen,
            store_uri=Storage(os.environ.get("M4V_STORE") or str(chosen / "store")).uri,
            ledger_url=os.environ.get("M4V_LEDGER") or f"sqlite:///{chosen / 'ledger.db'}",
        )

    @property
    def work_root(self) -> Path:
        """Attempt directories: staging, logs, progress. Always local."""
        return self.home / "work"

    @property
    def cache(self) -> Path:
        """Verified copies of what lies in a remote store: `M4V_CACHE`, else below the home. Always local."""
        return Path(os.environ.get("M4V_CACHE") or self.home / "cache")

    @property
    def items_uri(self) -> str:
        """Item store of every stage (DESIGN, Items)."""
        return f"{self.store_uri}/items"

    def state_uri(self, stage_key: str) -> str:
        """Resume state of a stage key; it outlives attempts and goes after publishing."""
        return f"{self.store_uri}/state/{stage_key}"

    def stage_work(self, stage_key: str) -> Path:
        """Directory that holds every attempt of a stage key."""
        return self.work_root / stage_key[:32]

    def attempt_file(self, recorded: str, stage_key: str, attempt_id: str) -> Path:
        """A file of an attempt's directory: where the ledger has it or, in a home that was moved, in its place here."""
        path = Path(recorded)
        here = self.stage_work(stage_key) / attempt_id / path.name
        return here if not path.exists() and here.exists() else path
