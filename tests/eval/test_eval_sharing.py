"""Generation at VBench's sizes: ranks share the videos, prompts have numbers and counts of their own, links have the
names that VBench wants."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "m4v"))

from eval_checkpoint import SAMPLER, tiny_checkpoint
from eval_support import publish, stage_request

from eval.config import EvaluateConfig, GenerateConfig
from eval.records import SAMPLES, SCORES, SampleSet, ScoreSet, read_record
from eval.stages import evaluate, generate
from eval.stages.sharing import own_share, sampling_devices
from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest
from m4v.core.config import parse
from m4v.core.errors import DataIntegrityError
from m4v.core.stage import Resources, StageContext

PROMPTS = [
    {"text": "a red circle moves up, and much more is said of it", "scored_as": "a red circle", "number": 7},
    {"text": "a blue square", "number": 3, "samples": 2},
]


def config(**values: object) -> GenerateConfig:
    base = {"prompts": PROMPTS, "frames": 1, "height": 64, "width": 64, "sampler": SAMPLER}
    return parse(GenerateConfig, {**base, **values}, "recipe")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


def context(
    root: Path, checkpoint: Artifact, settings: GenerateConfig, rank: int = 0, ranks: int = 1, **resources: Any
) -> StageContext:
    request = stage_request(
        root, "generate", settings, {"checkpoint": checkpoint}, "samples", ArtifactKind.SAMPLES,
        resources=Resources(ranks=ranks, threads=1, workers=1).model_copy(update=resources),
    )  # fmt: skip
    Path(request.work_dir).mkdir(parents=True, exist_ok=True)
    return StageContext(request, rank, ranks)


def test_ranks_share_the_videos_and_change_no_byte(checkpoint: Artifact, tmp_path: Path) -> None:
    alone = context(tmp_path / "alone", checkpoint, config())
    generate.run(alone)
    second = context(tmp_path / "shared", checkpoint, config(), rank=1, ranks=2)
    generate.run(second)
    assert second.collected_metrics()["videos_made"] == 1
    assert not any(second.output("samples").iterdir()), "the first rank publishes"
    first = context(tmp_path / "shared", checkpoint, config(), rank=0, ranks=2)
    generate.run(first)
    assert first.collected_metrics()["videos_made"] == 2
    ids = {build_manifest(c.output("samples"), ArtifactKind.SAMPLES, {}).artifact_id for c in (alone, first)}
    assert len(ids) == 1

    record = SampleSet.model_validate_json((first.output("samples") / SAMPLES).read_bytes())
    assert [(v.file, v.seed) for v in record.videos] == [
        ("videos/0003-0000.mp4", 300_000), ("videos/0003-0001.mp4", 300_001), ("videos/0007-0000.mp4", 700_000),
    ]  # fmt: skip
    assert record.counts == {3: 2, 7: 1}
    assert [v.scored_prompt for v in record.videos] == ["a blue square", "a blue square", "a red circle"]

    samples = publish(first.output("samples"), ArtifactKind.SAMPLES)
    scoring = StageContext(
        stage_request(tmp_path, "evaluate", EvaluateConfig(metrics=("local.saturation",)), {"samples": samples},
                      "scores", ArtifactKind.SCORES))  # fmt: skip
    evaluate.run(scoring)
    scores = read_record(ScoreSet, publish(scoring.output("scores"), ArtifactKind.SCORES), SCORES)
    assert [v.prompt for v in scores.per_video] == [v.scored_prompt for v in record.videos]
    (samples.storage.local_root / "videos/0003-0001.mp4").unlink()
    short = record.model_copy(update={"videos": record.videos[::2]})
    with pytest.raises(DataIntegrityError, match="2 videos, 3 are expected"):
        evaluate.check_complete(short, samples)


def test_a_rank_s_share_does_not_depend_on_what_is_finished(checkpoint: Artifact, tmp_path: Path) -> None:
    shares = [own_share(range(11), context(tmp_path, checkpoint, config(), rank, 3)) for rank in range(3)]
    assert sorted(job for share in shares for job in share) == list(range(11))
    assert max(map(len, shares)) - min(map(len, shares)) == 1


def test_each_process_has_a_device(checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(**values: Any) -> list[str]:
        return sampling_devices(context(tmp_path, checkpoint, config(), **values))

    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert devices(workers=3) == ["cpu"] * 3
    assert devices(device="cuda") == ["cuda"]
    assert devices(device="cuda", workers=3) == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices(device="cuda", workers=16) == [f"cuda:{n}" for n in range(4)]
    assert devices(device="cuda", workers=16, ranks=8, rank=5) == ["cuda:3"]
