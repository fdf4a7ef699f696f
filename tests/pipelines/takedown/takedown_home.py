"""A home to take clips down in, and a process that does it and can be killed at any call:
`python takedown_home.py HOME TERM "MODULE:CLASS.METHOD before|after N"`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.shard_index import INDEX, MEMBERS, member, read_member
from pipelines.access import Actor, Role
from pipelines.keys import CODE_ROOT
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger
from pipelines.membership import parse_selector
from pipelines.session import Session, open_session
from pipelines.store import ArtifactStore
from pipelines.takedown.apply import Applied, TakedownRun
from pipelines.takedown.policy import Delete, Policy
from pipelines.workspace import Workspace

SHARD_SAMPLES = 3
SETTINGS = ["--set", f"encode.shards.samples={SHARD_SAMPLES}"]
ADA = Actor("ada", Role.ADMIN)


@dataclass
class TakedownHome:
    """An opened home; `dataset` and `clips` are those that the recipe made."""

    workspace: Workspace
    ledger: Ledger
    launcher: LocalLauncher

    @classmethod
    @contextmanager
    def open(cls, home: Path, *, moved: bool = True) -> Iterator[TakedownHome]:
        workspace = Workspace.open(home)
        with Ledger.open(workspace.ledger_url) as ledger:
            for record in ArtifactStore(workspace.store_uri).list() if moved else ():
                ledger.import_artifact(record)  # a copied home lies elsewhere
            yield cls(workspace, ledger, LocalLauncher(str(CODE_ROOT / "constraints.txt")))

    def only(self, kind: str) -> str:
        withdrawn = {w.artifact_id for w in self.ledger.withdrawals()}
        (found,) = [a.artifact_id for a in self.ledger.artifacts(kind=kind) if a.artifact_id not in withdrawn]
        return found

    def artifact(self, artifact_id: str, kind: str) -> Artifact:
        row = self.ledger.artifact(artifact_id, kind)
        return Artifact(row.uri, artifact_id, ArtifactKind(kind), self.workspace.home / "cache")

    def rows(self, dataset: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pq.read_table(self.artifact(dataset, "dataset").path(INDEX)).to_pylist()
        return rows

    def samples(self, dataset: str) -> dict[str, dict[str, bytes]]:
        """Every member of every sample, read from its shard."""
        artifact = self.artifact(dataset, "dataset")
        shards = artifact.storage.local_root / "shards"
        return {
            row["sample_id"]: {name: read_member(shards, member(row, name)) for name in MEMBERS}
            for row in self.rows(dataset)
        }

    def shards(self, dataset: str) -> dict[str, Path]:
        root = self.artifact(dataset, "dataset").storage.local_root / "shards"
        return {path.name: path for path in sorted(root.iterdir())}

    def apply(self, *terms: str, delete: Delete = Delete.NOW, actor: Actor = ADA, **options: Any) -> Applied:
        policy = Policy(delete=delete, grace_days=options.pop("grace_days", 30.0))
        run = TakedownRun(self.ledger, self.workspace, self.launcher, actor, **options)
        return run.apply(parse_selector(terms), "the owner asked", policy)

    def session(self) -> Session:
        return open_session("micro", SETTINGS[1::2], str(self.workspace.home))

    def session_of(self, recipe: str) -> Session:
        return open_session(recipe, (), str(self.workspace.home))


def main(home: str, term: str, place: str) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "faults"))
    from bench import die_at

    die_at(place)
    with TakedownHome.open(Path(home)) as opened:
        opened.apply(term)


if __name__ == "__main__":
    main(*sys.argv[1:])
