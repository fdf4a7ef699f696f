"""The stage on a real child process that misbehaves in every way that VBench was seen to."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_interpreter import fake_environment
from pydantic import ValidationError
from vbench_samples import prompts_for, sample_artifact, vbench_context

from eval.records import SCORES, ScoreSet
from eval.stages.vbench import run
from eval.vbench.child import WORKER
from eval.vbench.config import VBenchConfig
from eval.vbench.weights import MARK, catalogue
from m4v.core.artifacts import Artifact
from m4v.core.errors import DataIntegrityError, Drained, InfrastructureError, InputError

FLICKER, SMOOTH, STYLE = "temporal_flickering", "motion_smoothness", "temporal_style"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    prompts = prompts_for(FLICKER, "object_class", STYLE, SMOOTH)
    return sample_artifact(tmp_path_factory.mktemp("vbench") / "samples", prompts, samples=2, frames=3)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Something at every weight file's place."""
    folder = tmp_path / "cache"
    for row in catalogue().files.values():
        if row.variable == "VBENCH_CACHE_DIR" and not row.is_folder:
            (folder / row.below).parent.mkdir(parents=True, exist_ok=True)
            (folder / row.below).write_text(row.url)
    (folder / "bert-base-uncased").mkdir()
    (folder / "bert-base-uncased" / "vocab.txt").write_text("word")
    return folder


def evaluated(
    tmp_path: Path, samples: Artifact, cache: Path, python: Path, attempt: str = "1", **config: Any
) -> ScoreSet:
    locations = {"core_python": str(python), "legacy_python": str(python), "cache_dir": str(cache)}
    options = {"partial": True, "published_weights": False, "failures": "record", **config}
    context = vbench_context(tmp_path, samples, locations, attempt, **options)
    run(context)
    return ScoreSet.model_validate_json((context.output("scores") / SCORES).read_bytes())


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("hang", "timeout: took longer than the limit of 0.8 s"),
        ("kill", "killed: was ended by SIGKILL, as the kernel does when memory runs out"),
        ("exit", "crashed: ended with code 7: the library gave up"),
        ("nan", "failed: VBench gave nan, which is no number [number]"),
        ("drop", "VBench gave 1 of 2 videos; the first without a value is videos/"),
        ("zero", "the score is 0.0, as of a detector that fails without a word"),
        ("last frame", "VBench's own score is 1.0, and 0.750000 is what its list of videos gives"),
        ("strange", "VBench gave a value of a video that it was not given: elsewhere.mp4"),
        ("download", "failed: VBench would fetch a file that is not there: wget http"),
        ("memory", "failed: MemoryError: no room [memory]"),
    ],
)
def test_a_dimension_that_fails_costs_itself_alone(
    tmp_path: Path, samples: Artifact, cache: Path, word: str, reason: str
) -> None:
    python = fake_environment(tmp_path / "env", **{SMOOTH: word})
    limit = 60.0
    if word == "hang":  # what is measured is kept, so that the short limit is for the other alone
        evaluated(tmp_path, samples, cache, python, "0", dimensions=(FLICKER,))
        limit = 0.8
    found = evaluated(tmp_path, samples, cache, python, dimensions=(FLICKER, SMOOTH), limit_s=limit)
    assert found.metrics[f"vbench.{FLICKER}"].mean == 0.75
    assert found.metrics[f"vbench.{SMOOTH}"].mean is None
    assert found.figures is not None
    assert found.figures.failed[f"vbench.{SMOOTH}"].startswith(reason)
    assert found.figures.figures["vbench.total"] is None


def test_a_detector_that_fails_without_a_word_is_caught(tmp_path: Path, samples: Artifact, cache: Path) -> None:
    def failure(name: str, detector: str) -> str:
        python = fake_environment(tmp_path / name, "legacy", detector=detector)
        found = evaluated(tmp_path / name, samples, cache, python, dimensions=("object_class",))
        assert found.figures is not None
        return found.figures.failed.get("vbench.object_class", "")

    assert "does not work on a known picture: RuntimeError: no nms" in failure("all", "raise RuntimeError('no nms')")
    later = failure("later", "\n        if isinstance(image, int) and image: raise RuntimeError('no nms')")
    assert "the detector failed on 2 of 3 frames: RuntimeError: no nms" in later
    assert failure("sound", "pass") == ""


def test_a_failure_stops_the_stage_and_the_next_attempt_goes_on(tmp_path: Path, samples: Artifact, cache: Path) -> None:
    python = fake_environment(tmp_path / "env", **{SMOOTH: "exit"})
    options: dict[str, Any] = {"dimensions": (FLICKER, SMOOTH), "failures": "stop"}
    with pytest.raises(InfrastructureError, match=r"1 of 2 dimensions failed: motion_smoothness: crashed"):
        evaluated(tmp_path, samples, cache, python, **options)
    words = tmp_path / "env" / "packages" / "vbench" / "behaviour.json"
    words.write_text(json.dumps({FLICKER: "exit"}))  # measured already, so nobody asks again
    found = evaluated(tmp_path, samples, cache, python, "2", **options)
    assert [found.metrics[f"vbench.{d}"].count for d in (FLICKER, SMOOTH)] == [2, 2]
    assert found.identity.suite is not None
    assert found.identity.suite.partial
    assert set(found.identity.suite.weights) == {"amt"}
    assert set(found.identity.suite.environments) == {"core", "worker"}


def test_what_is_missing_is_refused_by_name_before_any_video_is_read(
    tmp_path: Path, samples: Artifact, cache: Path
) -> None:
    python = fake_environment(tmp_path / "env")
    (cache / "amt_model" / "amt-s.pth").unlink()
    with pytest.raises(InputError, match=r"1 of 2 .*\(motion_smoothness\): amt is not there \(.*amt-s\.pth\)"):
        evaluated(tmp_path, samples, cache, python, dimensions=(FLICKER, SMOOTH))
    with pytest.raises(DataIntegrityError, match=r"videos of temporal_flickering are missing"):
        evaluated(tmp_path, samples, cache, python, dimensions=(FLICKER,), partial=False)
    legacy = {"legacy_python": str(tmp_path / "none"), "core_python": str(python), "cache_dir": str(cache)}
    context = vbench_context(
        tmp_path, samples, legacy, "3", dimensions="available", partial=True, published_weights=False,
        failures="record",
    )  # fmt: skip
    run(context)
    found = ScoreSet.model_validate_json((context.output("scores") / SCORES).read_bytes())
    assert found.figures is not None
    assert "is yes or no, VBench gave 0.5" in found.figures.failed["vbench.dynamic_degree"]
    reason = f"legacy environment is not there ({tmp_path / 'none'})"
    assert found.figures.failed["vbench.human_action"] == reason
    assert "amt is not there" in found.figures.failed[f"vbench.{SMOOTH}"]
    assert found.metrics[f"vbench.{STYLE}"].mean == 0.75


def test_a_corrupt_video_is_named_before_anything_is_measured(tmp_path: Path, cache: Path) -> None:
    mine = sample_artifact(tmp_path / "samples", prompts_for(FLICKER), samples=1, frames=3)
    video = next((tmp_path / "samples" / "videos").iterdir())
    video.write_bytes(video.read_bytes()[:-200] + bytes(200))
    with pytest.raises(DataIntegrityError, match=f"video differs.*{video.name}"):
        evaluated(tmp_path, mine, cache, fake_environment(tmp_path / "env"), dimensions=(FLICKER,))


def test_a_drain_ends_the_children(tmp_path: Path, samples: Artifact, cache: Path) -> None:
    python = fake_environment(tmp_path / "env", **{SMOOTH: "hang"})
    locations = {"core_python": str(python), "cache_dir": str(cache)}
    context = vbench_context(
        tmp_path, samples, locations, dimensions=(SMOOTH,), partial=True, published_weights=False
    )  # fmt: skip
    original = context.progress.update

    def update(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        if args[2] == "dimensions":
            context.request_drain()

    context.progress.update = update  # type: ignore[method-assign]
    with pytest.raises(Drained):
        run(context)


def test_a_worker_ends_with_whoever_asked(tmp_path: Path) -> None:
    python = fake_environment(tmp_path / "env", **{SMOOTH: "hang"})
    request = {"task": "evaluate", "dimension": SMOOTH, "device": "cpu", "threads": 1, "entries": [],
               "full_info": str(tmp_path / "info.json"), "picture": ""}  # fmt: skip
    (tmp_path / "request.json").write_text(json.dumps(request))
    words = [str(python), "-I", "-B", "-u", str(WORKER), str(tmp_path / "request.json"), str(tmp_path / "result.json")]
    # The asker starts it in a session of its own, as the stage does, and is gone once it is at work.
    asker = (
        f"import os, subprocess, time; os.environ['VBENCH_CACHE_DIR'] = ''; "
        f"pid = subprocess.Popen({words!r}, start_new_session=True, stdout=-3, stderr=-3).pid\n"
        f"while not os.path.exists({request['full_info']!r}): time.sleep(0.02)\nprint(pid)"
    )
    pid = int(subprocess.run([sys.executable, "-c", asker], capture_output=True, text=True, check=True).stdout)
    assert Path(f"/proc/{pid}").exists()
    for _ in range(2400):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived whoever asked")


def test_the_static_filter_keeps_five_near_static_videos_a_prompt(tmp_path: Path, cache: Path) -> None:
    mine = sample_artifact(tmp_path / "samples", prompts_for(FLICKER), samples=12, frames=3)
    raft = cache / catalogue().files["raft"].below
    python = fake_environment(tmp_path / "env")
    options: dict[str, Any] = {"dimensions": (FLICKER,), "static_filter": True}

    raft.write_text("1 2 3 4 9 10 11")
    found = evaluated(tmp_path / "some", mine, cache, python, **options)
    kept = [v.sample_index for v in found.per_video if v.metrics[f"vbench.{FLICKER}"] is not None]
    assert kept == [1, 2, 3, 10, 11], "in VBench's order, which is that of the names as text: 0, 1, 10, 11, 2, …"
    assert (len(found.per_video), found.metrics[f"vbench.{FLICKER}"].count) == (12, 5)
    assert found.identity.suite is not None
    assert found.identity.suite.options["static_filter"] is True
    assert set(found.identity.suite.weights) == {"raft"}
    assert found.identity.stand_in == (f"vbench.{FLICKER}",), "the filter's weights decide which videos count"
    plain = evaluated(tmp_path / "plain", mine, cache, python, dimensions=(FLICKER,))
    assert plain.metrics[f"vbench.{FLICKER}"].count == 12
    assert plain.identity.suite is not None
    assert plain.identity.suite.options["static_filter"] is False
    assert plain.identity.stand_in == (), "no weights, none that stand in"

    for text, reason in (("none", "none of 12 videos is near-static"), ("nan", "RAFT's flow is no number")):
        raft.write_text(text)
        failed = evaluated(tmp_path / text, mine, cache, python, **options).figures
        assert failed is not None
        assert reason in failed.failed[f"vbench.{FLICKER}"]
    raft.unlink()
    with pytest.raises(InputError, match=r"\(temporal_flickering\): raft is not there"):
        evaluated(tmp_path / "gone", mine, cache, python, **options)


def test_the_static_filter_wants_25_videos_a_prompt_of_the_suite(
    tmp_path: Path, samples: Artifact, cache: Path
) -> None:
    python = fake_environment(tmp_path / "env")
    with pytest.raises(DataIntegrityError, match=r"of 1875 videos of temporal_flickering.*temporal_flickering: 25"):
        evaluated(tmp_path, samples, cache, python, dimensions=(FLICKER,), static_filter=True, partial=False)
    with pytest.raises(ValidationError, match="VBench filters the suite's own prompts"):
        VBenchConfig(dimensions=(FLICKER,), static_filter=True, mode="custom")
    assert VBenchConfig(static_filter=True).key_config()["static_filter"] is True
    assert "static_filter" not in VBenchConfig().key_config()


def test_scores_of_other_weights_are_named_and_no_figure_stands_on_them(
    tmp_path: Path, samples: Artifact, cache: Path
) -> None:
    python = fake_environment(tmp_path / "env")
    locations = {"core_python": str(python), "cache_dir": str(cache)}
    context = vbench_context(
        tmp_path, samples, locations, dimensions=(FLICKER, SMOOTH), partial=True, published_weights=False
    )
    run(context)
    found = ScoreSet.model_validate_json((context.output("scores") / SCORES).read_bytes())
    assert found.identity.stand_in == (f"vbench.{SMOOTH}",)
    assert [found.metrics[f"vbench.{d}"].title for d in (FLICKER, SMOOTH)] == [
        "Temporal flickering", "Motion smoothness (stand-in weights)"
    ]  # fmt: skip
    assert found.figures is not None
    assert SMOOTH in found.figures.missing["vbench.total"]
    assert FLICKER not in found.figures.missing["vbench.total"]
    marked = f"{SMOOTH} (stand-in weights, not a result)"
    assert context.collected_metrics() == {FLICKER: 0.75, marked: 0.75}
    assert SMOOTH not in context.summaries()["scores"]
    (cache / MARK).touch()
    with pytest.raises(InputError, match=r"\(motion_smoothness\): amt lies in a folder of stand-in weights"):
        evaluated(tmp_path / "two", samples, cache, python, dimensions=(FLICKER, SMOOTH), published_weights=True)
