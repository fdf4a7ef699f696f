"""Looks nodes up in ledger and store: the key record of a node, and whether its key is a cache hit.

Shared by plan and execution, so that what a plan says is what a run does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from m4v.core.artifacts import ArtifactKind, verify
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.core.storage import Storage
from pipelines.keys import CODE_ROOT, KeyRecord, SeenCode, changes, key_record, probe_value, summarise
from pipelines.launchers import Launcher
from pipelines.ledger import ArtifactDeleted, Ledger, RunRow
from pipelines.spec import StageNode
from pipelines.takedown.blocklist import BlockLists

PINNED = "artifact:"


@dataclass(frozen=True)
class Output:
    """A published output of a node."""

    artifact_id: str
    uri: str
    kind: ArtifactKind
    size_bytes: int

    def to_json(self) -> dict[str, object]:
        return {"artifact_id": self.artifact_id, "uri": self.uri, "kind": str(self.kind), "size_bytes": self.size_bytes}


@dataclass(frozen=True)
class Hit:
    """A run of the very key whose outputs are in the store and verify."""

    run: RunRow
    outputs: Mapping[str, Output]
    reason: str


@dataclass(frozen=True)
class Miss:
    """No usable run of the key; `reason` says why in words, `run` is the one whose outputs are gone."""

    reason: str | None = None
    run: RunRow | None = None


class Lookup:
    """`deep` also reads and hashes every byte of a hit's outputs; their sizes are checked always. `admits`: withdrawn
    artifacts that may be used all the same, by a takedown's own work."""

    def __init__(
        self,
        ledger: Ledger,
        launcher: Launcher,
        *,
        deep: bool = False,
        code_root: Path = CODE_ROOT,
        admits: Collection[str] = (),
    ) -> None:
        self.ledger, self.launcher = ledger, launcher
        self._deep, self._code_root, self._admits = deep, code_root, admits
        self._blocked = BlockLists(ledger)

    def record(self, node: StageNode, inputs: Mapping[str, str], seen: SeenCode | None = None) -> KeyRecord:
        """Key record of `node` on inputs (name -> artifact id), its probe evaluated now; of a node that is pinned to
        an artifact, the record of the run that made it. `seen` keeps the source files' digests from one call to the
        next, as suits a plan of many nodes of one stage; without it they are read anew.

        Raises InputError or ConfigError for an artifact that is unknown, gone, or not of such a node.
        """
        pinned = pinned_artifact(node)
        if pinned is not None:
            return self._record_of(node, pinned)
        target = self.launcher.target(node.resources)
        probe = self._blocked.probe() if node.spec.takedowns else probe_value(node)
        return key_record(node, inputs, target, probe, self._code_root, seen)

    def block_list(self, node: StageNode, record: KeyRecord) -> bytes | None:
        """The block list that `record` of a node was made with; None for a node or a time without one."""
        return self._blocked.content(record.probe) if node.spec.takedowns else None

    def _record_of(self, node: StageNode, artifact_id: str) -> KeyRecord:
        kind = next(iter(node.spec.outputs.values()))
        row = self.ledger.artifact(artifact_id, kind)
        runs = [run for run in self.ledger.producers(row.artifact_id) if run.stage == node.spec.name]
        # The name is what a recipe calls it; all else says what it is.
        wanted = {**node.config.canonical(), "name": None}
        for run in reversed(runs):
            if {**run.config, "name": None} == wanted:
                found = self.find(run.stage_key)
                if isinstance(found, Hit):
                    return known_record(run)
                raise InputError(f"the artifact cannot be used: {found.reason}", value=artifact_id, where=node.id)
        made = runs[-1].config if runs else {}
        raise ConfigError(
            "the artifact is of another entry than the recipe's", value=made.get("entry"), where=node.id,
            next_step=f"name an import of {wanted.get('entry')}: m4v artifacts list --kind {kind}",
        )  # fmt: skip

    def find(self, stage_key: str) -> Hit | Miss:
        run = self.ledger.find_run(stage_key)
        if run is None:
            return Miss()
        outputs = {}
        for port in run.outputs:
            withdrawn = self.ledger.withdrawal(port.artifact_id, port.kind)
            if withdrawn is not None and port.artifact_id not in self._admits:
                case = withdrawn.takedown_id
                what = f"output {port.name} of run {run.run_id} was withdrawn by takedown {case}"
                return Miss(f"{what}; m4v takedown show {case} names what stands in its place", run)
            try:
                row = self.ledger.artifact(port.artifact_id, port.kind)
                if row.deletion is not None:
                    raise ArtifactDeleted(row.artifact_id, row.kind, row.deleted_at)
                verify(Storage(row.uri), port.artifact_id, deep=self._deep)
            except (DataIntegrityError, InputError) as error:
                return Miss(f"output {port.name} of run {run.run_id} is gone or damaged: {error.what}", run)
            outputs[port.name] = Output(row.artifact_id, row.uri, row.kind, row.size_bytes)
        checked = "every byte" if self._deep else "sizes"
        made = run.committed_at.strftime("%Y-%m-%d %H:%M UTC")
        return Hit(run, outputs, f"same key as run {run.run_id} of {made}; outputs verified ({checked})")

    def why(self, recipe: str, node: StageNode, record: KeyRecord, miss: Miss) -> str:
        """Why a node runs, in words: its outputs are gone, what changed since its latest run, or first run."""
        if miss.reason is not None:
            return miss.reason
        latest = self.ledger.latest_run(recipe, node.id)
        if latest is None:
            return f"first run of {node.id} in {recipe}"
        return summarise(changes(known_record(latest), record)) or f"key differs from run {latest.run_id}"


def pinned_artifact(node: StageNode) -> str | None:
    """Id of the artifact that a location `artifact:ID` takes in place of running the node; None without one."""
    given = [place.removeprefix(PINNED) for place in node.locations.values() if place.startswith(PINNED)]
    return given[0] if given else None


def known_record(run: RunRow) -> KeyRecord:
    """The key record that a run was committed with."""
    return KeyRecord.model_validate(run.key_record)
