"""VBench's whole plan, 4,720 videos, with a tiny model: killed twice and resumed, no video lost, doubled or changed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "m4v"))

from eval_checkpoint import SAMPLER, tiny_checkpoint
from eval_support import publish, stage_context, stage_request

from eval.config import GenerateConfig
from eval.prompts import video_seed
from eval.records import SAMPLES, SampleSet
from eval.stages.evaluate import check_complete
from eval.stages.generate import run
from eval.vbench.constants import DIMENSIONS
from eval.vbench.inputs import suite_inputs
from eval.vbench.layout import lay_out
from m4v.core.artifacts import ArtifactKind
from m4v.core.config import parse
from m4v.core.stage import Resources

VIDEOS = 4720
KILL_AT = (700, 2500)  # videos finished
SIZE = {
    "frames": 1, "height": 64, "width": 64, "fps": 8,
    "sampler": {**SAMPLER, "steps_first": [1, 1, 1], "guidance_first": 0.0},
}  # fmt: skip
SCRIPT = """
import sys
from m4v.core.stage import StageContext, StageRequest
from eval.stages.generate import run
if __name__ == "__main__":
    run(StageContext(StageRequest.model_validate_json(open(sys.argv[1], "rb").read())))
"""


def finished(root: Path) -> dict[str, int]:
    """Modification times of the videos that the resume state holds."""
    found = (p for p in (root / "state").rglob("*-video") if not p.name.endswith(".tmp"))
    return {p.name: p.stat().st_mtime_ns for p in found}


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_the_whole_plan_survives_kills(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    settings = parse(GenerateConfig, {**SIZE, "prompts": "vbench", "samples_per_prompt": 5}, "recipe")
    request = stage_request(
        tmp_path, "generate", settings, {"checkpoint": checkpoint}, "samples", ArtifactKind.SAMPLES,
        resources=Resources(ranks=1, threads=1, workers=2),
    )  # fmt: skip
    work = Path(request.work_dir)
    work.mkdir(parents=True)
    (tmp_path / "request.json").write_text(request.model_dump_json())
    (tmp_path / "stage.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "stage.py"), str(tmp_path / "request.json")]
    kept: dict[str, int] = {}
    for count in KILL_AT:
        process = subprocess.Popen(command)
        while len(finished(tmp_path)) < count:
            assert process.poll() is None, "the stage ended before it was killed"
            time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(2)  # for its workers to notice that they are alone
        now = finished(tmp_path)
        assert kept.items() <= now.items(), "a finished video was made again"
        assert count <= len(now) < VIDEOS
        kept = now
    subprocess.run(command, check=True)
    whole = finished(tmp_path)
    assert kept.items() <= whole.items(), "a finished video was made again"
    assert len(whole) == VIDEOS

    output = work / "staging/samples"
    record = SampleSet.model_validate_json((output / SAMPLES).read_bytes())
    samples = publish(output, ArtifactKind.SAMPLES)
    check_complete(record, samples)
    assert len(list((output / "videos").iterdir())) == len(record.videos) == VIDEOS
    assert all(v.seed == video_seed(0, v.prompt_index, v.sample_index) for v in record.videos)
    assert len({v.seed for v in record.videos}) == VIDEOS

    inputs = suite_inputs(record, samples.id, DIMENSIONS)
    for dimension, videos in inputs.by_dimension.items():
        links = lay_out(videos, output, tmp_path / "links" / dimension)
        assert len(links) == len(videos)

    alone = parse(
        GenerateConfig,
        {**SIZE, "prompts": {"suite": "vbench", "dimensions": ["scene"], "samples": {"scene": 1}}},
        "recipe",
    )
    part = stage_context(
        tmp_path / "part", "generate", alone, {"checkpoint": checkpoint}, "samples", ArtifactKind.SAMPLES
    )
    run(part)
    made = sorted((part.output("samples") / "videos").iterdir())
    assert len(made) == 86
    assert all(path.read_bytes() == (output / "videos" / path.name).read_bytes() for path in made)
