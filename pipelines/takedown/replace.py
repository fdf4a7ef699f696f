"""New versions in the place of withdrawn ones: a dataset whose untouched shards are shared, a clip table whose
previews are; and the proof that nothing but the clips differs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataprep.redact_config import RedactConfig
from dataprep.shards import SHARDS
from dataprep.versions.config import Remove, VersionConfig
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.canonical import canonical_json
from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError, InfrastructureError, M4VError
from m4v.core.shard_index import INDEX, MEMBERS, read_index
from pipelines import stages
from pipelines.dataset_versions import NODE, RUN_NAME, pinned_node, version_nodes
from pipelines.execute import PipelineRun
from pipelines.launchers import Launcher
from pipelines.ledger import Ledger
from pipelines.outcomes import NodeOutcome
from pipelines.spec import StageNode
from pipelines.takedown.affected import artifact_of
from pipelines.workspace import Workspace

PROOF = ("sample_id", "clip_id", *(f"{member}_sha256" for member in MEMBERS))
BATCH = 10_000  # rows as Python objects at a time
_GONE = "gone or damaged"
_NOTHING_LEFT = ("no sample would be left", "no kept clip would be left")


class Replacer:
    """Makes the versions of one case. `takedown_id` is told in quarantine rows of new clip tables."""

    def __init__(self, ledger: Ledger, workspace: Workspace, launcher: Launcher, takedown_id: str) -> None:
        self._ledger, self._workspace, self._launcher = ledger, workspace, launcher
        self._takedown = takedown_id

    def replace(self, artifact_id: str, kind: str, clips: Sequence[str]) -> dict[str, Any]:
        """Make the artifact anew without `clips`; returns the facts of the step. Made before, it is a cache hit.

        `successor` is None, with the reason in `note`, where nothing would be left or the bytes are gone already.
        Raises the stage's error, Drained, or DataIntegrityError when more than the clips would differ.
        """
        row = self._ledger.artifact(artifact_id, kind)
        if row.deletion is not None:
            return {"successor": None, "note": "its bytes were deleted before"}
        try:
            nodes = self._dataset(artifact_id, clips) if kind == ArtifactKind.DATASET else self._clips(row, clips)
        except M4VError as error:
            return {"successor": None, "note": error.what}
        made = self._run(nodes, artifact_id)
        if isinstance(made, str):
            return {"successor": None, "note": made}
        output = made.outputs[str(kind)]
        assert made.run_id is not None
        metrics = self._ledger.run(made.run_id).metrics
        facts = {"successor": output.artifact_id, "run_id": made.run_id, "clips": len(clips), "metrics": metrics}
        if kind == ArtifactKind.DATASET:
            facts |= compare_datasets(
                artifact_of(self._ledger, self._workspace, artifact_id, kind),
                artifact_of(self._ledger, self._workspace, output.artifact_id, kind), clips,
            )  # fmt: skip
        return facts

    def _dataset(self, artifact_id: str, clips: Sequence[str]) -> list[StageNode]:
        operation = Remove(clips=tuple(sorted(clips)), overlapping=True)
        return version_nodes(self._ledger, [artifact_id], VersionConfig(operation=operation))

    def _clips(self, row: Any, clips: Sequence[str]) -> list[StageNode]:
        pinned = pinned_node(self._ledger, row)
        config = RedactConfig(clips=tuple(sorted(clips)), reason=f"takedown {self._takedown}")
        return [pinned, StageNode(NODE, stages.REDACT, config, {"clips": (pinned.id, "clips")})]

    def _run(self, nodes: list[StageNode], artifact_id: str) -> NodeOutcome | str:
        """The outcome of the last node; text when there is nothing to make."""
        config: FrozenModel = nodes[-1].config
        resolved = {"inputs": [node.id for node in nodes[:-1]], "takedown": self._takedown, **config.canonical()}
        run = PipelineRun(
            RUN_NAME, resolved, nodes, self._workspace, ledger=self._ledger, launcher=self._launcher,
            trigger="takedown", admits=frozenset({artifact_id}),
        )  # fmt: skip
        outcome = run.run_all()[nodes[-1].id]
        if outcome.status.has_outputs:
            return outcome
        pinned = run.outcomes[nodes[0].id]
        why = outcome.error or pinned.error or outcome.reason
        if not pinned.status.has_outputs and _GONE in why:
            return why
        if any(text in why for text in _NOTHING_LEFT):
            return _NOTHING_LEFT[0]
        raise InfrastructureError(
            f"a new version could not be made: {why}", value=artifact_id, next_step="the same command goes on here"
        )


def compare_datasets(before: Artifact, after: Artifact, clips: Sequence[str]) -> dict[str, Any]:
    """Hold a new version against the old one: the same samples to the last digest, less those of `clips` (and what
    overlaps them), and every shard that held none of them shared.

    Raises DataIntegrityError when something else differs.
    """
    old, new = (read_index(a.path(INDEX), [*PROOF, "shard"]) for a in (before, after))
    kept = pc.is_in(old["sample_id"], value_set=new["sample_id"])
    gone, stayed = old.filter(pc.invert(kept)), old.filter(kept)
    if pc.any(pc.is_in(new["clip_id"], value_set=pa.array(list(clips), pa.string()))).as_py():
        raise DataIntegrityError("the new version still holds a clip", value=after.id)
    proof = samples_digest(new)
    if samples_digest(stayed) != proof:
        raise DataIntegrityError("samples of the new version differ from the old one's", value=after.id)
    shards = {name: digest for name, digest in _shards(before).items() if name in set(gone["shard"].to_pylist())}
    reused = set(_shards(after).values())
    if again := [name for name, digest in _shards(before).items() if name not in shards and digest not in reused]:
        raise DataIntegrityError("a shard without the clips was rewritten", value=again[0], where=after.id)
    return {
        "samples_removed": len(gone), "samples_kept": len(new), "samples_digest": proof,
        "shards_rewritten": sorted(shards), "shards_shared": len(_shards(before)) - len(shards),
    }  # fmt: skip


def samples_digest(index: pa.Table) -> str:
    """Digest over the sample ids of an index and the digests of their members, whatever shard they lie in."""
    digest, before = hashlib.sha256(), b""
    for batch in index.select(PROOF).sort_by([("sample_id", "ascending")]).to_batches(max_chunksize=BATCH):
        for row in batch.to_pylist():  # as Python objects all rows of a large index would be many times its size
            digest.update(before + canonical_json(row))
            before = b"\n"
    return digest.hexdigest()


def _shards(artifact: Artifact) -> dict[str, str]:
    return {
        f.path.removeprefix(f"{SHARDS}/"): f.sha256 for f in artifact.manifest.files if f.path.startswith(f"{SHARDS}/")
    }
