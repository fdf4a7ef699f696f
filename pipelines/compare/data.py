"""Clips and samples of two runs against each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError, M4VError
from m4v.core.storage import Storage
from pipelines.compare.model import DataDelta, SampleFile, SamplePair
from pipelines.ledger import ArtifactRow, Ledger
from pipelines.workspace import Workspace

_SAMPLES = "samples.json"
Place = tuple[str | None, ArtifactRow]  # node id, artifact


def data_deltas(
    workspace: Workspace, ledger: Ledger, before: Sequence[Place], after: Sequence[Place]
) -> tuple[DataDelta, ...]:
    """Datasets (or clip tables) of two runs, paired by node, the rest in order."""
    return tuple(_delta(workspace, ledger, node, old, new) for node, old, new in _pairs(before, after))


def _pairs(
    before: Sequence[Place], after: Sequence[Place]
) -> list[tuple[str | None, ArtifactRow | None, ArtifactRow | None]]:
    old, new = list(before), list(after)
    pairs: list[tuple[str | None, ArtifactRow | None, ArtifactRow | None]] = []
    for place in before:
        match = next((other for other in new if other[0] == place[0]), None)
        if match is not None:
            pairs.append((place[0], place[1], match[1]))
            old.remove(place)
            new.remove(match)
    for number in range(max(len(old), len(new))):
        left, right = (side[number] if number < len(side) else None for side in (old, new))
        node = (right or left or (None,))[0]
        pairs.append((node, left[1] if left else None, right[1] if right else None))
    return pairs


def _delta(
    workspace: Workspace, ledger: Ledger, node: str | None, old: ArtifactRow | None, new: ArtifactRow | None
) -> DataDelta:
    kind = str((old or new or _none()).kind)
    ids = (old.artifact_id if old else None, new.artifact_id if new else None)
    if old is None or new is None:
        return DataDelta(kind, node, *ids, note=f"only the {'second' if old is None else 'first'} run has one")
    from pipelines.inspection.targets import find_target  # DuckDB behind it: only a comparison of data needs it
    from pipelines.inspection.version_diff import compare_versions

    try:
        targets = [find_target(workspace, ledger, row.artifact_id, (row.kind,)) for row in (old, new)]
        found = compare_versions(targets[0], targets[1])
    except (M4VError, OSError) as error:
        return DataDelta(kind, node, *ids, note=error.what if isinstance(error, M4VError) else str(error))
    return DataDelta(
        kind, node, *ids,
        before=sum(row.before for row in found.sources), after=sum(row.after for row in found.sources),
        added=found.added_clips, removed=found.removed_clips, common=found.common_clips,
        added_examples=tuple(asdict(clip) for clip in found.added),
        removed_examples=tuple(asdict(clip) for clip in found.removed),
    )  # fmt: skip


def _none() -> ArtifactRow:
    raise AssertionError("a pair has one side at least")


def sample_pairs(before: Sequence[Place], after: Sequence[Place]) -> tuple[SamplePair, ...]:
    """Videos of two runs' sample sets, of the same prompt and seed side by side."""
    pairs = []
    for node, old, new in _pairs(before, after):
        left, right = _videos(old), _videos(new)
        keys = [*left, *(key for key in right if key not in left)]
        pairs += [SamplePair(node, prompt, seed, left.get((prompt, seed)), right.get((prompt, seed)))
                  for prompt, seed in keys]  # fmt: skip
    return tuple(pairs)


def _videos(row: ArtifactRow | None) -> Mapping[tuple[str, int], SampleFile]:
    """Videos of a sample set by prompt and seed; none where its bytes are gone."""
    if row is None:
        return {}
    try:
        record = json.loads(Storage(row.uri).read_bytes(_SAMPLES))
    except (InputError, OSError, ValueError, M4VError):
        return {}
    return {
        (str(v["prompt"]), _seed(v)): SampleFile(row.artifact_id, row.uri, str(v["file"]), str(v["sha256"]))
        for v in record["videos"]
    }


def _seed(video: Mapping[str, object]) -> int:
    """Of an imported video, whose seed is not known, the number of the sample."""
    return int(str(video["seed"] if video["seed"] is not None else video["sample_index"]))


def of_kind(ledger: Ledger, ports: Sequence[tuple[str | None, str, ArtifactKind]], kind: ArtifactKind) -> list[Place]:
    """Artifacts of a kind among (node id, artifact id, kind), each once, in order."""
    found = {artifact_id: node for node, artifact_id, its_kind in ports if its_kind == kind}
    return [(node, ledger.artifact(artifact_id, kind)) for artifact_id, node in found.items()]
