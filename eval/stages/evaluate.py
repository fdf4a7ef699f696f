"""Stage `evaluate`: samples -> scores. Counts and digests first, then every metric on every video."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from pydantic import JsonValue

from eval.config import EvaluateConfig
from eval.metrics.clip import Clip, Metric, Reading
from eval.metrics.registry import metrics_of
from eval.metrics.scored import scorer_metrics
from eval.prompts import video_name
from eval.records import (
    SAMPLES,
    SCORES,
    Identity,
    MetricScore,
    SampleSet,
    SampleVideo,
    ScoreSet,
    VideoScore,
    read_record,
    write_record,
)  # fmt: skip
from m4v.core.artifacts import Artifact
from m4v.core.canonical import canonical_json, digest_file
from m4v.core.errors import DataIntegrityError
from m4v.core.items import ItemStore
from m4v.core.stage import StageContext
from m4v.video_io import read_mp4

DECIMALS = 6  # far below any real difference, above rounding noise between machines

Values = dict[str, float | None]
Details = dict[str, dict[str, float | str | None]]


def run(context: StageContext) -> None:
    config = context.config(EvaluateConfig)
    artifact = context.input("samples")
    samples = read_record(SampleSet, artifact, SAMPLES)
    check_complete(samples, artifact)
    metrics = [*metrics_of(config), *scorer_metrics(config, context.weights_folders(), context.resources.device)]
    finished = ItemStore(context.state.child("readings"))
    per_video: list[VideoScore] = []
    for number, video in enumerate(samples.videos):
        context.progress.update(number, len(samples.videos), "videos")
        payload = finished.get_or_make(video.file.replace("/", "-"), lambda v=video: _measure(artifact, v, metrics))  # type: ignore[misc]
        values, details = cast(tuple[Values, Details], json.loads(payload))
        per_video.append(
            VideoScore(
                file=video.file, prompt=video.scored_prompt, prompt_index=video.prompt_index,
                sample_index=video.sample_index, metrics=values, details=details,
            )
        )  # fmt: skip
        context.check_drain()
    context.progress.update(len(samples.videos), len(samples.videos), "videos")
    scores = ScoreSet(
        identity=identity_of(samples, config, metrics),
        metrics={m.name: summarise(m, [v.metrics[m.name] for v in per_video]) for m in metrics},
        per_video=tuple(per_video),
    )
    write_record(context.output("scores") / SCORES, scores)
    means = {name: score.mean for name, score in scores.metrics.items()}
    context.summary("scores", {"videos": len(per_video), "checkpoint": samples.checkpoint, **means})
    context.metrics(means)


def check_complete(samples: SampleSet, artifact: Artifact) -> None:
    """Every prompt x sample is listed and there, and nothing else is.

    Raises DataIntegrityError with the count and the first difference: a score over what happens to be there
    is the classic way to a wrong number.
    """
    where = f"samples {artifact.id[:12]}"
    expected = {video_name(*job) for job in samples.expected()}
    listed, present = [v.file for v in samples.videos], set(artifact.names("videos/"))
    for name, found in (("samples.json", set(listed)), ("the artifact", present)):
        if found != expected:
            odd = sorted(found ^ expected)
            raise DataIntegrityError(
                f"{name} has {len(found)} videos, {len(expected)} are expected; first difference",
                value=odd[0], where=where, next_step="run the generate stage again",
            )  # fmt: skip
    if len(listed) != len(set(listed)):
        raise DataIntegrityError("a video is listed twice", value=sorted(listed)[0], where=where)


def identity_of(samples: SampleSet, config: EvaluateConfig, metrics: Sequence[Metric]) -> Identity:
    first = samples.videos[0]
    return Identity(
        checkpoint=samples.checkpoint,
        ema=samples.ema,
        sampler=samples.sampler,
        codec=samples.codec,
        text_encoder=samples.text_encoder,
        video_codec=samples.video_codec,
        prompt_set=samples.prompt_set,
        seed_rule=samples.seed_rule,
        base_seed=samples.base_seed,
        samples_per_prompt=samples.samples_per_prompt,
        frames=first.frames,
        fps=first.fps,
        height=first.height,
        width=first.width,
        metrics={m.name: m.version for m in metrics},
        metric_config=cast(
            dict[str, JsonValue],
            {
                "conse_frames": config.conse_frames,
                "conse": config.conse.canonical(),
                **({"scorers": [scorer.canonical() for scorer in config.scorers]} if config.scorers else {}),
            },
        ),
    )


def read_clip(artifact: Artifact, video: SampleVideo) -> Clip:
    """Decode a listed video; raises DataIntegrityError unless digest, frame count, size and rate agree."""
    path = artifact.path(video.file)
    where = f"samples {artifact.id[:12]}/{video.file}"
    if digest_file(path) != video.sha256:
        raise DataIntegrityError("video differs from samples.json", value=video.file, where=where)
    frames, fps = read_mp4(path)
    found, wanted = frames.shape[:3], (video.frames, video.height, video.width)
    if found != wanted or not math.isclose(fps, video.fps, rel_tol=1e-4):
        raise DataIntegrityError(
            f"video is {found} at {fps:g} fps, samples.json says {wanted} at {video.fps:g}", where=where
        )
    return Clip(frames=frames, fps=video.fps, prompt=video.scored_prompt, facts=video.facts)


def _measure(artifact: Artifact, video: SampleVideo, metrics: Sequence[Metric]) -> bytes:
    clip = read_clip(artifact, video)
    readings = {m.name: m.measure(clip) for m in metrics}
    values = {name: _finite(reading.value, name, video.file) for name, reading in readings.items()}
    details = {name: _rounded(reading) for name, reading in readings.items() if reading.details}
    return canonical_json([values, details])


def _finite(value: float | None, metric: str, file: str) -> float | None:
    if value is None:
        return None
    if not math.isfinite(value):
        raise DataIntegrityError(f"{metric} is not a finite number", value=str(value), where=file)
    return round(value, DECIMALS)


def _rounded(reading: Reading) -> Mapping[str, float | str | None]:
    return {
        key: round(value, DECIMALS) if isinstance(value, float) else value
        for key, value in (reading.details or {}).items()
    }


def summarise(metric: Metric, values: Sequence[float | None]) -> MetricScore:
    """Mean over the videos to which the metric applies; None when it applies to none."""
    known = [v for v in values if v is not None]
    return MetricScore(
        version=metric.version,
        title=metric.title,
        unit=metric.unit,
        description=metric.description,
        higher_is_better=metric.higher_is_better,
        chance=metric.chance,
        mean=round(float(np.mean(known)), DECIMALS) if known else None,
        count=len(known),
        values=tuple(values),
    )
