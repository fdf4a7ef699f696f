"""Stage `generate`: a video depends on its prompt and seed alone; kills and workers change no byte."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "m4v"))

from eval_checkpoint import SAMPLER, tiny_checkpoint
from eval_support import publish, stage_context, stage_request
from tiny_vae import write_tiny_vae

from eval.config import EvaluateConfig, GenerateConfig
from eval.prompts import video_seed
from eval.records import SAMPLES, SCORES, SampleSet, ScoreSet, read_record
from eval.stages import evaluate, generate
from m4v.codec import open_codec
from m4v.codec.config import CausalVaeConfig
from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest
from m4v.core.config import parse
from m4v.core.errors import DataIntegrityError, Drained
from m4v.core.stage import Resources
from m4v.sampling import CheckpointSampler
from m4v.video_io import encode_mp4, read_mp4

PROMPTS = ["a red circle moves up on a white background", "a blue square stays still on a black background"]


def config(**values: object) -> GenerateConfig:
    base = {
        "prompts": PROMPTS, "samples_per_prompt": 2, "frames": 9, "height": 64, "width": 64, "fps": 8,
        "sampler": SAMPLER,
    }  # fmt: skip
    return parse(GenerateConfig, {**base, **values}, "recipe")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


def generated(root: Path, checkpoint: Artifact, settings: GenerateConfig, attempt: str = "1", workers: int = 1) -> Path:
    resources = Resources(ranks=1, threads=1, workers=workers)
    context = stage_context(
        root, "generate", settings, {"checkpoint": checkpoint}, "samples", ArtifactKind.SAMPLES,
        attempt=attempt, resources=resources,
    )  # fmt: skip
    generate.run(context)
    return context.output("samples")


def artifact_id(directory: Path) -> str:
    return build_manifest(directory, ArtifactKind.SAMPLES, {}).artifact_id


@pytest.fixture(scope="module")
def reference(checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated(tmp_path_factory.mktemp("reference"), checkpoint, config(keep_latents=True))


def test_layout_and_provenance(reference: Path, checkpoint: Artifact) -> None:
    record = SampleSet.model_validate_json((reference / SAMPLES).read_bytes())
    assert [v.file for v in record.videos] == [f"videos/{i:04d}-{j:04d}.mp4" for i in (0, 1) for j in (0, 1)]
    assert [v.seed for v in record.videos] == [0, 1, 100_000, 100_001]
    assert record.checkpoint == checkpoint.id
    assert record.codec == {"kind": "dct", **record.codec}
    for video in record.videos:
        frames, fps = read_mp4(reference / video.file)
        assert frames.shape == (9, 64, 64, 3)
        assert fps == 8
        assert video.latent is not None
        assert np.load(reference / video.latent).shape == (16, 2, 8, 8)
    files = [p for p in reference.rglob("*") if p.is_file()]
    assert not any(str(reference).encode() in p.read_bytes() for p in files)


def test_every_video_is_its_own(reference: Path) -> None:
    latents = [np.load(p) for p in sorted((reference / "latents").iterdir())]
    assert len(latents) == 4
    for i in range(4):
        for j in range(i):
            assert np.abs(latents[i] - latents[j]).max() > 0.1


def test_a_video_does_not_depend_on_its_neighbours(reference: Path, checkpoint: Artifact, tmp_path: Path) -> None:
    """The second prompt's second sample alone, by the seed rule, against the one made fourth in the set."""
    settings = config(prompts=[PROMPTS[1]], samples_per_prompt=1, base_seed=video_seed(0, 1, 1))
    alone = generated(tmp_path, checkpoint, settings)
    assert (alone / "videos/0000-0000.mp4").read_bytes() == (reference / "videos/0001-0001.mp4").read_bytes()


def test_prompt_and_negative_prompt_reach_the_model(checkpoint: Artifact) -> None:
    def latent(prompt: str, **sampler: object) -> np.ndarray:
        options = {"frames": 9, "height": 64, "width": 64, "sampler": config(sampler={**SAMPLER, **sampler}).sampler}
        return CheckpointSampler.open(checkpoint).generate(prompt, seed=5, **options).latent

    base = latent(PROMPTS[0])
    assert np.array_equal(base, latent(PROMPTS[0]))
    assert not np.allclose(base, latent(PROMPTS[1]))
    assert not np.allclose(base, latent(PROMPTS[0], negative_prompt="blurry"))
    assert np.array_equal(latent(PROMPTS[0] + "!"), latent(PROMPTS[0], prompt_suffix="!"))


def test_drained_stage_goes_on_without_repeating(
    reference: Path, checkpoint: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(keep_latents=True)
    made: list[int] = []
    original = CheckpointSampler.stream

    def counting(self: CheckpointSampler, prompt: str, seed: int, *rest, **options):
        made.append(seed)
        return original(self, prompt, seed, *rest, **options)

    monkeypatch.setattr(CheckpointSampler, "stream", counting)
    first = stage_context(tmp_path, "generate", settings, {"checkpoint": checkpoint}, "samples", ArtifactKind.SAMPLES)
    first.request_drain()
    with pytest.raises(Drained):
        generate.run(first)
    assert made == [0]
    output = generated(tmp_path, checkpoint, settings, attempt="2")
    assert made == [0, 1, 100_000, 100_001]
    assert artifact_id(output) == artifact_id(reference)


def test_damaged_finished_video_is_made_again(reference: Path, checkpoint: Artifact, tmp_path: Path) -> None:
    settings = config(keep_latents=True)
    generated(tmp_path, checkpoint, settings)
    victim = next((tmp_path / "state").rglob("0001-0000-video"))
    victim.write_bytes(victim.read_bytes()[:-10])
    assert artifact_id(generated(tmp_path, checkpoint, settings, attempt="2")) == artifact_id(reference)


SCRIPT = """
import sys
from m4v.core.stage import StageContext, StageRequest
from eval.stages.generate import run
if __name__ == "__main__":
    run(StageContext(StageRequest.model_validate_json(open(sys.argv[1], "rb").read())))
"""


def test_killed_stage_process_and_worker_count(reference: Path, checkpoint: Artifact, tmp_path: Path) -> None:
    """SIGKILL of the stage process alone, in the middle of a two-process run: no worker outlives it, and the
    next attempt makes only what is missing, into the same bytes as one process did."""
    settings = config(keep_latents=True)
    request = stage_request(
        tmp_path, "generate", settings, {"checkpoint": checkpoint}, "samples", ArtifactKind.SAMPLES,
        resources=Resources(ranks=1, threads=1, workers=2),
    )  # fmt: skip
    Path(request.work_dir).mkdir(parents=True)
    (tmp_path / "request.json").write_text(request.model_dump_json())
    (tmp_path / "stage.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(tmp_path / "stage.py"), str(tmp_path / "request.json")])
    finished: list[Path] = []
    deadline = time.monotonic() + 300
    while not finished and process.poll() is None and time.monotonic() < deadline:
        finished = [p for p in (tmp_path / "state").rglob("*-video") if not p.name.endswith(".tmp")]
        time.sleep(0.01)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished, "no video was finished before the deadline"
    while any(is_alive(c) for c in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(c) for c in children)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "state").rglob("*-video") if not p.name.endswith(".tmp")}
    output = generated(tmp_path, checkpoint, settings, attempt="2", workers=2)
    assert artifact_id(output) == artifact_id(reference)
    assert all(p.stat().st_mtime_ns == before for p, before in kept.items())


def children_of(pid: int) -> list[int]:
    return [c.pid for c in psutil.Process(pid).children(recursive=True)] if psutil.pid_exists(pid) else []


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_checkpoint_without_a_usable_codec(checkpoint: Artifact, tmp_path: Path) -> None:
    shutil.copytree(checkpoint.storage.local_root, tmp_path / "bad")
    path = tmp_path / "bad/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "codec": {"kind": "unheard-of"}}))
    bad = publish(tmp_path / "bad", ArtifactKind.CHECKPOINT)
    with pytest.raises(DataIntegrityError, match="no usable codec"):
        generated(tmp_path, bad, config())


def test_samples_can_be_evaluated_with_conse(reference: Path, tmp_path: Path) -> None:
    samples = publish(reference, ArtifactKind.SAMPLES)
    context = stage_context(
        tmp_path, "evaluate", EvaluateConfig(conse_frames=2), {"samples": samples}, "scores", ArtifactKind.SCORES
    )
    evaluate.run(context)
    scores = read_record(ScoreSet, publish(context.output("scores"), ArtifactKind.SCORES), SCORES)
    alignment = scores.metrics["conse.alignment"]
    assert alignment.count == 4
    assert alignment.mean is not None
    assert -1 < alignment.mean < 1
    assert scores.identity.sampler == config().sampler.canonical()


def test_imported_weights_reach_codec(checkpoint: Artifact, tmp_path: Path) -> None:
    """A checkpoint with the causal VAE: its weights are the stage's input `weights.wide`."""
    shutil.copytree(checkpoint.storage.local_root, tmp_path / "vae")
    path = tmp_path / "vae/config.json"
    codec = CausalVaeConfig(weights="wide").canonical()
    path.write_text(json.dumps({**json.loads(path.read_text()), "codec": codec}))
    inputs = {
        "checkpoint": publish(tmp_path / "vae", ArtifactKind.CHECKPOINT),
        "weights.wide": publish(write_tiny_vae(tmp_path / "weights"), ArtifactKind.WEIGHTS),
    }
    settings = config(prompts=PROMPTS[:1], samples_per_prompt=1, keep_latents=True)
    context = stage_context(tmp_path, "generate", settings, inputs, "samples", ArtifactKind.SAMPLES)
    generate.run(context)
    output = context.output("samples")
    latent = np.load(output / "latents/0000-0000.npy")
    expected = open_codec(CausalVaeConfig(weights="wide"), {"wide": tmp_path / "weights"}).decode(latent)
    assert (output / "videos/0000-0000.mp4").read_bytes() == encode_mp4(expected, 8)
