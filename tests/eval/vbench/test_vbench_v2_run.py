"""The stage as VBench-2.0 on a real child process: results of its own, and a failure that upstream hides is one."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from fake_interpreter import fake_environment
from vbench_samples import sample_artifact, vbench_context

from eval.records import SCORES, ScoreSet
from eval.stages.vbench import run
from eval.vbench.child import V2_WORKER, run_worker
from eval.vbench.prompt_suite import SuitePrompt
from eval.vbench.v2_prompts import prompts_of, rules
from eval.vbench.weights import catalogue
from m4v.core.artifacts import Artifact
from m4v.core.errors import InputError
from m4v.core.stage import StageContext

DIVERSITY, JUDGED, INSTANCE = "diversity", "composition", "instance_preservation"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Three videos of each of two prompts of diversity."""
    chosen = [SuitePrompt(p.number, p.prompt, p.dimensions) for p in prompts_of(DIVERSITY)[:2]]
    return sample_artifact(tmp_path_factory.mktemp("v2") / "samples", chosen, samples=3)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Something at the weight file's place."""
    vgg = tmp_path / "torch" / catalogue().files["vgg19"].below
    vgg.parent.mkdir(parents=True)
    vgg.write_text("weights")
    return {"vbench2_cache_dir": str(tmp_path / "cache"), "torch_home": str(tmp_path / "torch"),
            "hf_home": str(tmp_path / "hf")}  # fmt: skip


def evaluated(
    root: Path, samples: Artifact, places: dict[str, str], word: str = "", **config: Any
) -> tuple[StageContext, ScoreSet]:
    root.mkdir(exist_ok=True)
    python = fake_environment(root / "env", "vbench2", **({DIVERSITY: word} if word else {}))
    options = {"partial": True, "published_weights": False, "failures": "record", "suite": "vbench2", **config}
    context = vbench_context(root, samples, {**places, "vbench2_python": str(python)}, **options)
    run(context)
    return context, ScoreSet.model_validate_json((context.output("scores") / SCORES).read_bytes())


def test_a_prompt_s_videos_have_one_diversity_and_the_result_an_identity_of_its_own(
    tmp_path: Path, samples: Artifact, places: dict[str, str]
) -> None:
    _, found = evaluated(tmp_path / "run", samples, places, dimensions=(DIVERSITY,))
    metric = found.metrics["vbench2.diversity"]
    assert (metric.mean, metric.count) == (pytest.approx(0.75), 2), "the fake's prompts are worth 1/2 and 2/2"
    assert [n for n, value in enumerate(metric.values) if value is not None] == [0, 3], "with the first video of each"
    suite = found.identity.suite
    assert suite is not None
    assert (suite.name, suite.mode, suite.partial) == ("vbench2", "standard", True)
    assert suite.version.startswith("checkout, code ")
    assert set(suite.environments) == {"worker", "v2_worker", "vbench2"}
    assert set(suite.weights) == {"vgg19"}
    assert found.figures is not None
    assert set(found.figures.figures) == {"vbench2.total", *(f"vbench2.{g}" for g in rules().groups)}
    assert set(found.figures.figures.values()) == {None}, "of one dimension there is no total"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("drop", "VBench-2.0 gave 0 of 1 judgements of videos/"),
        ("void", "lies in 0 to 1, VBench-2.0 gave -1.0"),
        ("zero", "the score is 0.0"),
        ("wrong", "VBench-2.0's own score is 0.5, and 0.75 is what"),
        ("percent", "lies in 0 to 1, VBench-2.0 gave 50.0"),
    ],
)
def test_an_answer_that_is_none_costs_the_dimension(
    tmp_path: Path, samples: Artifact, places: dict[str, str], word: str, reason: str
) -> None:
    _, found = evaluated(tmp_path / "run", samples, places, word, dimensions=(DIVERSITY,))
    assert found.figures is not None
    assert reason.rstrip() in found.figures.failed["vbench2.diversity"].replace("0.750000", "0.75")


def test_what_is_missing_is_refused_before_any_video_is_read(
    tmp_path: Path, samples: Artifact, places: dict[str, str]
) -> None:
    with pytest.raises(InputError, match=r"VBench-2\.0 cannot measure 1 of 2.*\(composition\): llava_video is not"):
        evaluated(tmp_path / "a", samples, places, dimensions=(DIVERSITY, JUDGED))
    judge = Path(places["vbench2_cache_dir"]) / "lmms-lab" / "LLaVA-Video-7B-Qwen2" / "config.json"
    tower = Path(places["hf_home"]) / "hub" / "models--google--siglip-so400m-patch14-384" / "refs" / "main"
    for file in (judge, tower):
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    with pytest.raises(InputError, match=r"2\.0 cannot measure 1 of 2.*composition: runs on a GPU alone \(--device"):
        evaluated(tmp_path / "b", samples, places, dimensions=(DIVERSITY, JUDGED))


def test_available_on_a_cpu_measures_what_runs_there_and_names_the_rest(
    tmp_path: Path, samples: Artifact, places: dict[str, str]
) -> None:
    _, found = evaluated(tmp_path / "run", samples, places, dimensions="available")
    assert found.metrics["vbench2.diversity"].count == 2
    assert found.figures is not None
    assert "runs on a GPU alone" in str(found.figures.canonical())


def asked(folder: Path, dimension: str, device: str = "cuda", detector: str = "return 'B'", **more: Any) -> Any:
    """Our worker on one prompt of a dimension, its environment a fake one."""
    python = fake_environment(folder / "env", "vbench2", detector=detector)
    video = folder / "a-0.mp4"
    video.write_bytes(b"video")
    published = rules().published_names[dimension]
    request = {
        "task": "evaluate", "dimension": dimension, "published": published, "device": device, "threads": 1,
        "on_a_cpu": dimension in rules().on_a_cpu, "full_info": str(folder / "full_info.json"),
        "entries": [{"prompt_en": "a", "dimension": [published], "video_list": [str(video)]}],
        **more,
    }  # fmt: skip
    variables = {"VBENCH2_CACHE_DIR": str(folder / "cache")}
    return run_worker(python, request, folder / "run", variables, 60, worker=V2_WORKER)


def test_a_judge_that_fails_is_no_perfect_score(tmp_path: Path) -> None:
    """Upstream takes an exception for `no anomaly`, and prints that a download failed."""
    adapter = tmp_path / "cache" / "instance_anomaly_detector" / "model"
    adapter.mkdir(parents=True)
    (adapter / "args.json").write_text('{"model": "Qwen/of-the-hub"}')
    hub = asked(tmp_path, INSTANCE)
    assert (hub.end, hub.answer["error"]["kind"]) == ("failed", "weights"), hub.reason
    assert "'Qwen/of-the-hub', and no folder" in hub.reason
    (adapter / "args.json").write_text(f'{{"model": "{tmp_path}"}}')
    for number, (detector, reason) in enumerate(
        [("raise ValueError('no such file')", "failed on 3 of 3 clips: ValueError: no such file"), ("return 'B'", "")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "cache").symlink_to(tmp_path / "cache")
        ended = asked(folder, INSTANCE, detector=detector)
        assert reason in ended.reason
        assert (ended.end == "answered") == (not reason), ended.reason
        if not reason:
            assert ended.answer["videos"] == [[str(folder / "a-0.mp4"), 1.0]]


def test_nothing_is_fetched_and_a_gpu_s_dimension_says_so(tmp_path: Path) -> None:
    fetched = asked(tmp_path, JUDGED)
    assert fetched.reason == "VBench-2.0 would fetch a file that is not there: a/judge [download]"
    (tmp_path / "cpu").mkdir()
    assert "composition of VBench-2.0 runs on a GPU alone" in asked(tmp_path / "cpu", JUDGED, "cpu").reason


def test_more_memory_than_is_free_is_told_before_the_work(tmp_path: Path) -> None:
    """20 videos of 121 frames: 64, 128, 256 and thrice 512 channels of 512 x 512 and its halves, in fp32."""
    assert 20 * 121 * rules().diversity_frame_bytes / 1e9 == pytest.approx(311, abs=1)
    assert (
        "keeps the features of all videos of a prompt, 1000000 GB"
        in asked(tmp_path, DIVERSITY, memory_bytes=10**15).reason
    )


@pytest.mark.parametrize(
    ("limit", "used"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_a_container_s_limit_counts_beside_the_machine_s_memory(tmp_path: Path, limit: str, used: str) -> None:
    free_memory = runpy.run_path(str(V2_WORKER))["free_memory"]
    assert free_memory(tmp_path) is None
    files = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8 kB\n", f"sys/fs/cgroup/{used}": "1000\n"}
    for name, text in {**files, f"sys/fs/cgroup/{limit}": "max\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == 8192
    (tmp_path / "sys/fs/cgroup" / limit).write_text("3000\n")
    assert free_memory(tmp_path) == 2000
