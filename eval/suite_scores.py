"""A suite's results as `scores.json`: the same record as of the local metrics, so that gates, pages and the
leaderboard read it as they read those."""

from __future__ import annotations

from collections.abc import Sequence

from eval.records import STAND_IN, Figures, Identity, MetricScore, SampleSet, ScoreSet, SuiteIdentity, VideoScore
from eval.suites import Aggregate, DimensionResult, SuiteInputs, Tooling

DECIMALS = 6
METRIC_VERSION = 1  # of the conversion to rows; the suite's own version stands in the identity


def suite_score_set(
    samples: SampleSet,
    inputs: SuiteInputs,
    results: Sequence[DimensionResult],
    tooling: Tooling,
    aggregates: Sequence[Aggregate],
) -> ScoreSet:
    """Scores of every dimension that was asked for, measured or not, named `vbench.scene` after the suite.

    A dimension that failed stands with no value and its reason in `figures.failed`; it is part of the identity all the
    same, so that a result is not comparable with one that asked for less. What was measured with stand-in weights says
    so in its title and description.
    """
    prefix = f"{tooling.suite}."
    rows = {r.dimension: {row.file: row.value for row in r.rows} for r in results}
    used = {v.file: v.prompt for videos in inputs.by_dimension.values() for v in videos}
    listed = [v for v in samples.videos if v.file in used]
    per_video = tuple(
        VideoScore(
            file=v.file, prompt=used[v.file], prompt_index=v.prompt_index, sample_index=v.sample_index,
            metrics={prefix + name: _rounded(values.get(v.file)) for name, values in rows.items()}, details={},
        )
        for v in listed
    )  # fmt: skip
    identity = _identity(samples, inputs, results, tooling, prefix)
    metrics = {prefix + r.dimension: _metric(r, tooling, prefix, per_video, identity.stand_in) for r in results}
    return ScoreSet(
        identity=identity,
        metrics=metrics,
        per_video=per_video,
        figures=_figures(results, aggregates, prefix),
    )


def _metric(
    result: DimensionResult, tooling: Tooling, prefix: str, videos: Sequence[VideoScore], stand_in: Sequence[str]
) -> MetricScore:
    name = prefix + result.dimension
    mark = name in stand_in
    return MetricScore(
        version=METRIC_VERSION,
        title=result.dimension.replace("_", " ").capitalize() + (" (stand-in weights)" if mark else ""),
        unit="",
        description=f"{tooling.suite} {tooling.version}: {result.dimension}, raw score as a fraction"
        + (f"; {STAND_IN}" if mark else ""),
        higher_is_better=True,
        chance=None,
        mean=_rounded(result.score),
        count=result.videos,
        values=tuple(v.metrics[name] for v in videos),
    )


def _identity(
    samples: SampleSet, inputs: SuiteInputs, results: Sequence[DimensionResult], tooling: Tooling, prefix: str
) -> Identity:
    first = samples.videos[0]
    suite = SuiteIdentity(
        name=tooling.suite, version=tooling.version, mode=inputs.mode, prompt_set=inputs.prompt_set,
        partial=inputs.partial, videos={name: len(videos) for name, videos in inputs.by_dimension.items()},
        environments=tooling.environments, weights=tooling.weights, options=tooling.options,
    )  # fmt: skip
    return Identity(
        checkpoint=samples.checkpoint, ema=samples.ema, sampler=samples.sampler, codec=samples.codec,
        text_encoder=samples.text_encoder, video_codec=samples.video_codec,
        prompt_set=samples.prompt_set, seed_rule=samples.seed_rule, base_seed=samples.base_seed,
        samples_per_prompt=samples.samples_per_prompt, frames=first.frames, fps=first.fps, height=first.height,
        width=first.width, metrics={prefix + r.dimension: METRIC_VERSION for r in results}, metric_config={},
        suite=suite,
    )  # fmt: skip


def _figures(results: Sequence[DimensionResult], aggregates: Sequence[Aggregate], prefix: str) -> Figures:
    figures: dict[str, float | None] = {}
    missing: dict[str, tuple[str, ...]] = {}
    for each in aggregates:
        figures |= {prefix + name: _rounded(value) for name, value in each.figures.items()}
        missing |= {prefix + name: gone for name, gone in each.missing.items()}
    failed = {prefix + r.dimension: r.reason or r.status for r in results if r.score is None}
    return Figures(figures=figures, missing=missing, failed=failed)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)
