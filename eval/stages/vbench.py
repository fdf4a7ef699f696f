"""Stage `vbench`: samples -> scores, by the real VBench in interpreters of its own. Every video is counted and decoded
first; a finished dimension is kept in the resume state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.records import SAMPLES, SCORES, STAND_IN, SampleSet, read_record, write_record
from eval.stages.evaluate import check_complete, read_clip
from eval.suite_scores import suite_score_set
from eval.suites import DimensionResult, SuiteInputs
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.long_suite import open_suite
from eval.vbench.preflight import Preflight, chosen, preflight
from eval.vbench.prompt_suite import STATIC_DIMENSION
from eval.vbench.suite import OUTCOME, VBenchSuite
from m4v.core.artifacts import Artifact
from m4v.core.errors import InfrastructureError
from m4v.core.items import ItemStore
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic


def run(context: StageContext) -> None:
    config = context.config(VBenchConfig)
    places = Places.of(context.request.locations)
    look = preflight(config, places, hashing=True, device=context.resources.device)
    dimensions = chosen(config, look)
    artifact = context.input("samples")
    samples = read_record(SampleSet, artifact, SAMPLES)
    suite = open_suite(
        places, config, _devices(context), context.resources.threads, lambda: context.drain_requested
    )  # fmt: skip
    inputs = suite.inputs(samples, artifact.id, dimensions, partial=config.partial)
    check_complete(samples, artifact)
    _decode_all(context, artifact, samples)
    results = _measure_all(context, suite, inputs, artifact.folder())
    context.check_drain()
    failures = {r.dimension: r.reason or "" for r in results if r.status == "failed"}
    if failures and config.failures == "stop":
        raise _stopped(failures, len(results))
    _publish(context, suite, samples, inputs, dimensions, [*results, *_refused(look)])


def _publish(
    context: StageContext,
    suite: VBenchSuite,
    samples: SampleSet,
    inputs: SuiteInputs,
    dimensions: Sequence[str],
    results: Sequence[DimensionResult],
) -> None:
    """The record, and its numbers for manifest and ledger, where what stands in says so by name."""
    tooling = suite.tooling(dimensions)
    stand_in = tooling.options.get("stand_in", [])
    assert isinstance(stand_in, list)
    sound = [r for r in results if r.dimension not in stand_in]  # no figure stands on weights that stand in
    scores = suite_score_set(samples, inputs, results, tooling, [suite.aggregate(sound)])
    write_record(context.output("scores") / SCORES, scores)
    measured = {
        r.dimension + (f" ({STAND_IN})" if r.dimension in stand_in else ""): round(r.score, 6)
        for r in results
        if r.score is not None
    }
    failures = sorted(r.dimension for r in results if r.status == "failed")
    still = next((r for r in results if r.dimension == STATIC_DIMENSION and r.status == "measured"), None)
    near_static = {}
    if still is not None and tooling.options["static_filter"]:
        near_static = {"near_static_videos": still.videos, "near_static_of": len(still.rows)}
    context.summary("scores", {"suite": suite.name, "videos": len(scores.per_video), "checkpoint": samples.checkpoint,
                               "partial": inputs.partial, "failed": failures, **near_static, **measured})  # fmt: skip
    context.metrics({**near_static, **measured})


def _devices(context: StageContext) -> tuple[str, ...]:
    """Every GPU that this process may use, or the CPU."""
    device = context.resources.device
    if device != "cuda":
        return (device,)
    import torch

    return tuple(f"cuda:{number}" for number in range(max(1, torch.cuda.device_count())))


def _decode_all(context: StageContext, artifact: Artifact, samples: SampleSet) -> None:
    """VBench leaves out what it cannot read; raises DataIntegrityError for a video that differs or does not decode."""
    seen = ItemStore(context.state.child("decoded"))
    for number, video in enumerate(samples.videos):
        context.progress.update(number, len(samples.videos), "videos", note="decoding")
        seen.get_or_make(video.sha256, lambda v=video: _decoded(artifact, v.file, samples))  # type: ignore[misc]
        context.check_drain()


def _decoded(artifact: Artifact, file: str, samples: SampleSet) -> bytes:
    video = next(v for v in samples.videos if v.file == file)
    return str(len(read_clip(artifact, video).frames)).encode()


def _measure_all(context: StageContext, suite: VBenchSuite, inputs: SuiteInputs, videos: Path) -> list[DimensionResult]:
    """Results in the suite's order; those of an earlier attempt come first out of the resume state."""
    folder, kept = context.scratch / "vbench", ItemStore(context.state.child("dimensions"))
    for dimension in inputs.by_dimension:
        payload = kept.get(dimension)
        if payload is not None:
            (folder / dimension).mkdir(parents=True, exist_ok=True)
            write_atomic(folder / dimension / OUTCOME, payload)
    found: dict[str, DimensionResult] = {}
    context.progress.update(0, len(inputs.by_dimension), "dimensions")
    for result in suite.run(inputs, videos, folder):
        found[result.dimension] = result
        if result.status == "measured":
            kept.put(result.dimension, (folder / result.dimension / OUTCOME).read_bytes())
        context.progress.update(len(found), len(inputs.by_dimension), "dimensions", note=result.dimension)
    return [found[d] for d in inputs.by_dimension if d in found]


def _refused(look: Preflight) -> list[DimensionResult]:
    """Of `dimensions: available`: those that are not, with every reason."""
    return [
        DimensionResult(dimension=d, status="refused", expected=0, reason="; ".join(reasons))
        for d, reasons in look.refused.items()
    ]


def _stopped(failures: dict[str, str], asked: int) -> InfrastructureError:
    listed = "; ".join(f"{dimension}: {reason}" for dimension, reason in failures.items())
    return InfrastructureError(
        f"{len(failures)} of {asked} dimensions failed: {listed}",
        next_step="run the same again: what is measured is kept; or say failures: record",
    )
