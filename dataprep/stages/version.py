"""Stage `version`: datasets merged, subset, or without some clips, sharing the shards that did not change.

Layout of the artifact: that of `encode`, and after a removal `removed.parquet`.
"""

from __future__ import annotations

import shutil

import numpy as np
from numpy.typing import NDArray

from dataprep.encode.dataset import DATASET, write_facts
from dataprep.quarantine import QUARANTINE
from dataprep.shards import SHARDS
from dataprep.versions import facts as version_facts
from dataprep.versions.config import Merge, Remove, Subset, VersionConfig
from dataprep.versions.parents import Mask, Parent, check_encoders, samples_of, without_repeats
from dataprep.versions.select import remove, subset
from dataprep.versions.twice import overlaps, repeated_clips
from dataprep.versions.write import Plan, plan, write_shards
from m4v.core.errors import InputError
from m4v.core.stage import StageContext

OUTPUT = "dataset"
Operation = Merge | Subset | Remove


def run(context: StageContext) -> None:
    """Raises InputError for datasets or names that do not fit, and when no sample would be left."""
    config = context.config(VersionConfig)
    operation = config.operation
    parents = [Parent.read(artifact) for artifact in context.input_list("dataset")]
    _check_number(config, len(parents))
    check_encoders(parents)
    reasons = remove(parents[0].batches, operation) if isinstance(operation, Remove) else None
    masks = _masks(operation, parents, reasons)
    kept = samples_of(parents, masks)
    # A sample that a merge finds twice is not left out: it is there once.
    gone = 0 if isinstance(operation, Merge) else sum(p.rows for p in parents) - len(kept)
    if not len(kept):
        raise InputError("no sample would be left", value=config.operation.kind, next_step="check the operation")
    version_facts.check_mixture(config.mixture, kept)
    out = context.output(OUTPUT)
    shutil.rmtree(out / SHARDS, ignore_errors=True)  # of an attempt that was killed here
    planned = plan(parents, kept)
    written = _write(context, config, parents, planned)
    version_facts.share_null_text(context, parents)
    version_facts.bring_reconstructions(context, out, parents, masks)
    quarantined = version_facts.bring_quarantine(out / QUARANTINE, parents, config)
    if reasons is not None:
        version_facts.write_removed(out / version_facts.REMOVED, parents[0], reasons)
    counted = version_facts.dataset_facts(parents, kept, len(planned.shared) + len(written), quarantined)
    version = _version(config, parents, masks, gone, len(planned.shared), len(written))
    write_facts(out / DATASET, {**counted, "version": version})
    told = {k: counted[k] for k in ("samples", "videos", "images", "captions", "tokens", "shards")}
    context.summary(OUTPUT, {**told, "operation": config.operation.kind, "parents": version["parents"]})


def _check_number(config: VersionConfig, parents: int) -> None:
    takes_one = version_facts.is_selection(config)
    if (parents != 1) if takes_one else (parents < 2):
        wanted = "one dataset" if takes_one else "two or more datasets"
        raise InputError(f"{config.operation.kind} takes {wanted}", value=parents, where="inputs dataset.N")


def _masks(operation: Operation, parents: list[Parent], reasons: NDArray[np.int8] | None) -> list[Mask]:
    """Which rows of each dataset stay."""
    if reasons is not None:
        return [reasons == 0]
    return [subset(parents[0].batches, operation)] if isinstance(operation, Subset) else without_repeats(parents)


def _write(context: StageContext, config: VersionConfig, parents: list[Parent], planned: Plan) -> list[str]:
    for shard in planned.shared:
        context.share(
            OUTPUT, f"{SHARDS}/{shard.name}", parents[shard.parent].artifact, f"{SHARDS}/{shard.source}"
        )  # fmt: skip

    def tick(done: int) -> None:
        context.progress.update(done, len(planned.moved), "samples written")
        context.check_drain()

    out = context.output(OUTPUT)
    written = write_shards(out, parents, planned, config.shards, tick)
    context.metrics(
        {
            "shards_shared": len(planned.shared), "shards_written": len(written),
            "samples_moved": len(planned.moved), "samples_untouched": len(planned.untouched),
            "bytes_shared": sum(s.size_bytes for s in planned.shared),
            "bytes_written": sum((out / SHARDS / name).stat().st_size for name in written),
        }
    )  # fmt: skip
    return written


def _version(
    config: VersionConfig, parents: list[Parent], masks: list[Mask], gone: int, shared: int, written: int
) -> dict[str, object]:
    """What `dataset.json` says of how this dataset came to be; only a merge can bring clips together that overlap."""
    twice: dict[str, object] = {}
    if isinstance(config.operation, Merge):
        twice["overlaps"] = overlaps(parents, masks).warn("pairs of clips overlap in time")
        twice["repeated_clips"] = repeated_clips(parents, masks).warn("clips are encoded at several sizes")
    return {
        "operation": version_facts.operation_facts(config),
        "parents": [parent.artifact.id for parent in parents],
        "mixture": [entry.canonical() for entry in config.mixture],
        "samples_left_out": gone,
        "shards_shared": shared,
        "shards_written": written,
        **twice,
    }
