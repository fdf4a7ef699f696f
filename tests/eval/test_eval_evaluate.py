"""Stage `evaluate`: counts first, then scores that follow the prompts; nothing missing goes unseen."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from eval_scenes import true_clips
from eval_support import publish, stage_context

from eval.config import EvaluateConfig
from eval.metrics.clip import Clip, Metric, Reading
from eval.prompts import SEED_RULE, prompt_set_digest, video_name, video_seed
from eval.records import SAMPLES, SCORES, SampleSet, SampleVideo, ScoreSet, read_record, write_record
from eval.stages import evaluate
from eval.vocabulary import parse_facts
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.canonical import digest_file
from m4v.core.errors import DataIntegrityError, Drained
from m4v.video_io import write_mp4

LOCAL = EvaluateConfig(metrics=tuple(m for m in EvaluateConfig().metrics if m.startswith("local.")))
CLIPS = list(true_clips())[:6]


def sample_set(directory: Path, pairs: list[tuple[str, np.ndarray]], checkpoint: str = "c" * 64) -> SampleSet:
    """Fill `directory` as the generate stage does, with given clips instead of a model's."""
    videos = []
    for i, (text, frames) in enumerate(pairs):
        file = video_name(i, 0)
        write_mp4(directory / file, frames, 8)
        videos.append(
            SampleVideo(
                file=file, prompt=text, prompt_index=i, sample_index=0, seed=video_seed(0, i, 0),
                facts=parse_facts(text),
                frames=len(frames), fps=8.0, height=frames.shape[1], width=frames.shape[2],
                sha256=digest_file(directory / file),
            )
        )  # fmt: skip
    record = SampleSet(
        checkpoint=checkpoint, ema=False, sampler={}, codec={"kind": "dct"}, text_encoder={}, crf=12,
        prompt_set=prompt_set_digest([t for t, _ in pairs]), seed_rule=SEED_RULE, base_seed=0,
        prompts=len(pairs), samples_per_prompt=1, videos=tuple(videos),
    )  # fmt: skip
    write_record(directory / SAMPLES, record)
    return record


def evaluated(root: Path, samples: Artifact, config: EvaluateConfig = LOCAL, attempt: str = "1") -> ScoreSet:
    context = stage_context(
        root, "evaluate", config, {"samples": samples}, "scores", ArtifactKind.SCORES, attempt=attempt
    )
    evaluate.run(context)
    return read_record(ScoreSet, publish(context.output("scores"), ArtifactKind.SCORES), SCORES)


def test_true_clips_score_high_and_identity_is_complete(tmp_path: Path) -> None:
    record = sample_set(tmp_path / "samples", CLIPS)
    scores = evaluated(tmp_path, publish(tmp_path / "samples", ArtifactKind.SAMPLES))
    assert scores.metrics["local.colour_follow"].mean > 0.98
    assert scores.metrics["local.motion_follow"].mean > 0.95
    assert len(scores.per_video) == 6
    for name, score in scores.metrics.items():
        known = [v.metrics[name] for v in scores.per_video if v.metrics[name] is not None]
        assert score.mean == pytest.approx(np.mean(known), abs=1e-5)
        assert score.count == len(known)
        assert score.values == tuple(v.metrics[name] for v in scores.per_video)
    identity = scores.identity
    assert (identity.checkpoint, identity.prompt_set) == (record.checkpoint, record.prompt_set)
    assert (identity.frames, identity.fps, identity.height, identity.width) == (17, 8.0, 64, 96)
    assert identity.video_codec == "h264 yuv420p crf 12"
    assert identity.metrics["local.flicker"] == 1


def test_bytes_do_not_depend_on_the_attempt(tmp_path: Path) -> None:
    sample_set(tmp_path / "samples", CLIPS[:2])
    artifact = publish(tmp_path / "samples", ArtifactKind.SAMPLES)
    evaluated(tmp_path / "a", artifact)
    evaluated(tmp_path / "b", artifact)
    paths = [tmp_path / side / "work-1" / "staging" / "scores" / SCORES for side in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_metric_that_applies_to_no_video_has_no_mean(tmp_path: Path) -> None:
    sample_set(tmp_path / "samples", [("a rabbit in a meadow", CLIPS[0][1])])
    scores = evaluated(tmp_path, publish(tmp_path / "samples", ArtifactKind.SAMPLES))
    follow = scores.metrics["local.colour_follow"]
    assert (follow.mean, follow.count, follow.values) == (None, 0, (None,))
    assert scores.metrics["local.flicker"].mean is not None


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_missing_extra_or_unlisted_videos_are_refused(tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(DataIntegrityError, match=message):
            evaluated(tmp_path / f"run-{name}", publish(tmp_path / name, ArtifactKind.SAMPLES))

    for name in ("missing", "extra", "count", "unlisted"):
        sample_set(tmp_path / name, CLIPS[:3])
    (tmp_path / "missing" / video_name(1, 0)).unlink()
    refused("missing", "2 videos, 3 are expected.*0001-0000")
    write_mp4(tmp_path / "extra" / "videos/0009-0000.mp4", CLIPS[0][1], 8)
    refused("extra", "4 videos, 3 are expected.*0009-0000")
    edit(tmp_path / "count" / SAMPLES, prompts=4)
    refused("count", "3 videos, 4 are expected")
    record = json.loads((tmp_path / "unlisted" / SAMPLES).read_text())
    edit(tmp_path / "unlisted" / SAMPLES, videos=record["videos"][:2])
    refused("unlisted", "samples.json has 2 videos")


def test_damaged_or_mislabelled_video_is_refused(tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(DataIntegrityError, match=message):
            evaluated(tmp_path / f"run-{name}", publish(tmp_path / name, ArtifactKind.SAMPLES))

    for name in ("swapped", "corrupt", "rate"):
        sample_set(tmp_path / name, CLIPS[:2])
    swapped = tmp_path / "swapped" / video_name(0, 0)
    swapped.write_bytes((tmp_path / "swapped" / video_name(1, 0)).read_bytes())
    refused("swapped", "differs from samples.json")
    corrupt = tmp_path / "corrupt" / video_name(0, 0)
    corrupt.write_bytes(corrupt.read_bytes()[:300])
    videos = json.loads((tmp_path / "corrupt" / SAMPLES).read_text())["videos"]
    videos[0]["sha256"] = digest_file(corrupt)
    edit(tmp_path / "corrupt" / SAMPLES, videos=videos)
    refused("corrupt", "does not decode|no frames")
    videos = json.loads((tmp_path / "rate" / SAMPLES).read_text())["videos"]
    videos[1]["fps"] = 24.0
    edit(tmp_path / "rate" / SAMPLES, videos=videos)
    refused("rate", "at 8 fps, samples.json says .* at 24")


def test_nan_is_refused_on_the_way_in_and_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_set(tmp_path / "samples", CLIPS[:1])
    (tmp_path / "nan").mkdir()
    (tmp_path / "nan" / SCORES).write_text('{"mean": NaN}')
    with pytest.raises(DataIntegrityError, match="NaN is no number"):
        read_record(ScoreSet, publish(tmp_path / "nan", ArtifactKind.SCORES), SCORES)

    def broken(clip: Clip) -> Reading:
        return Reading(math.nan)

    monkeypatch.setattr(
        evaluate, "metrics_of", lambda config: [Metric("local.flicker", 1, "Flicker", "", True, "", broken)]
    )
    with pytest.raises(DataIntegrityError, match=r"local.flicker is not a finite number"):
        evaluated(tmp_path, publish(tmp_path / "samples", ArtifactKind.SAMPLES))


def test_resumes_without_measuring_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_set(tmp_path / "samples", CLIPS[:3])
    artifact = publish(tmp_path / "samples", ArtifactKind.SAMPLES)
    decoded: list[str] = []
    original = evaluate.read_clip

    def counting(source: Artifact, video: SampleVideo) -> Clip:
        decoded.append(video.file)
        return original(source, video)

    monkeypatch.setattr(evaluate, "read_clip", counting)
    first = stage_context(tmp_path, "evaluate", LOCAL, {"samples": artifact}, "scores", ArtifactKind.SCORES)
    first.request_drain()
    with pytest.raises(Drained):
        evaluate.run(first)
    assert decoded == [video_name(0, 0)]
    scores = evaluated(tmp_path, artifact, attempt="2")
    assert decoded == [video_name(i, 0) for i in range(3)]
    assert len(scores.per_video) == 3
