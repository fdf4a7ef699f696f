"""How a sampler gives its work away: the choice, and decoding beside denoising, which changes no bit."""

import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "eval"))
sys.path.insert(0, str(Path(__file__).parent / "flow"))

from eval_checkpoint import SAMPLER, tiny_checkpoint
from recorded_forwards import record

from m4v.config import SamplerConfig, VideoConfig
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.flow.graphs import GraphedModel
from m4v.launches import Launches, launches
from m4v.launching import DECODE_BYTES, Launching
from m4v.sampling import CheckpointSampler, memory_told
from m4v.video_io import encode_frames

SIZE = VideoConfig(frames=25, height=64, width=64, sampler=SamplerConfig.model_validate(SAMPLER))
CPU = torch.device("cpu")


@pytest.fixture
def sampler(tmp_path: Path) -> CheckpointSampler:
    tiny_checkpoint(tmp_path / "checkpoint")
    return CheckpointSampler.open(tmp_path / "checkpoint")


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launches("cuda") == Launches(graphs=True, overlap=True)
    assert launches("cuda").summary == "graphs on, overlap on"
    assert launches("cpu").summary == "graphs off, overlap off"
    monkeypatch.setenv("M4V_GRAPHS", "on")
    assert not launches("cpu").graphs
    monkeypatch.setenv("M4V_OVERLAP", "off")
    assert launches("cuda") == Launches(graphs=True, overlap=False)
    monkeypatch.setenv("M4V_GRAPHS", "off")
    assert not launches("cuda").graphs
    monkeypatch.setenv("M4V_GRAPHS", "yes")
    with pytest.raises(ConfigError, match=r"no such way to launch: 'yes'.*M4V_GRAPHS.*auto, off, on"):
        launches("cpu")


def test_decoding_beside_gives_the_same_video(sampler: CheckpointSampler) -> None:
    latents: list[tuple[int, np.ndarray, str]] = []
    done: list[tuple[int, int]] = []
    plain = np.concatenate(list(sampler.stream("a red circle", 1, SIZE)))
    sampler._launching = Launching(sampler.model, CPU, Launches(graphs=False, overlap=True))
    found = np.concatenate(
        list(
            sampler.stream(
                "a red circle", 1, SIZE,
                on_latent=lambda index, u: latents.append((index, u, threading.current_thread().name)),
                on_progress=lambda count, total: done.append((count, total)),
            )
        )
    )  # fmt: skip
    assert np.array_equal(found, plain)
    assert [index for index, _, _ in latents] == [0, 1, 2, 3]
    assert {thread for _, _, thread in latents} == {threading.current_thread().name}, "the caller's own thread"
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert np.array_equal(sampler.codec.decode(np.concatenate([u for _, u, _ in latents], axis=1)), plain)
    assert sampler.launched == {"launches": "graphs off, overlap on", "videos_decoded_beside": 1}


def test_recorded_forwards_give_the_same_video(sampler: CheckpointSampler) -> None:
    plain = sampler.generate("a red circle", seed=2, frames=9, height=64, width=64, sampler=SIZE.sampler)  # type: ignore[arg-type]
    both = Launching(sampler.model, CPU, Launches(graphs=False, overlap=True))
    both._graphed = both.model = GraphedModel(sampler.model, record)
    sampler._launching = both
    found = sampler.generate("a red circle", seed=2, frames=9, height=64, width=64, sampler=SIZE.sampler)  # type: ignore[arg-type]
    assert np.array_equal(found.latent, plain.latent)
    assert np.array_equal(found.frames, plain.frames)
    assert sampler.launched["forwards_replayed"] > 0
    assert "graphs_refused" not in sampler.launched


def test_errors_and_early_ends_come_through(sampler: CheckpointSampler) -> None:
    sampler._launching = Launching(sampler.model, CPU, Launches(graphs=False, overlap=True))
    chunks = sampler.stream("a red circle", 1, SIZE)
    assert next(chunks).shape == (1, 64, 64, 3)
    chunks.close()  # type: ignore[attr-defined]
    assert "ahead" not in {thread.name for thread in threading.enumerate()}
    with torch.no_grad():
        sampler.model.proj_out.weight.fill_(float("nan"))
    with pytest.raises(DataIntegrityError, match="not finite"):
        list(sampler.stream("a red circle", 1, SIZE))


def test_a_failing_consumer_leaves_no_thread(sampler: CheckpointSampler) -> None:
    """The error is held, and with it the frames of its traceback."""
    sampler._launching = Launching(sampler.model, CPU, Launches(graphs=False, overlap=True))

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            assert "ahead" in {thread.name for thread in threading.enumerate()}
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left") as held:
        encode_frames(sampler.stream("a red circle", 1, SIZE), Full(), 24, preset="ultrafast")  # writes at once
    assert "ahead" not in {thread.name for thread in threading.enumerate()}
    assert held.tb is not None


def test_out_of_memory_names_the_way_without_overlap() -> None:
    def chunks() -> Iterator[np.ndarray]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        yield

    with pytest.raises(ConfigError, match=r"25 frames.*set M4V_OVERLAP=off, use fewer"):
        list(memory_told(chunks(), "25 frames", overlaps=True))
    with pytest.raises(ConfigError, match="25 frames") as told:
        list(memory_told(chunks(), "25 frames"))
    assert "M4V_OVERLAP" not in str(told.value)


def test_the_first_video_of_a_size_on_a_gpu_is_not_decoded_beside(sampler: CheckpointSampler) -> None:
    class Large(Launching):
        def _free(self) -> int:
            return sys.maxsize

    gpu = Large(sampler.model, torch.device("cuda"), Launches(graphs=False, overlap=True))
    assert [gpu.overlaps(pixels) for pixels in (64, 64, 32, 64, 32)] == [False, True, False, True, True]


def test_without_memory_one_comes_after_the_other(sampler: CheckpointSampler, caplog: pytest.LogCaptureFixture) -> None:
    class Small(Launching):
        def _free(self) -> int:
            return DECODE_BYTES * 64 * 64 - 1

    sampler._launching = Small(sampler.model, CPU, Launches(graphs=False, overlap=True))
    assert sum(len(chunk) for chunk in sampler.stream("a red circle", 1, SIZE)) == 25
    assert sampler.launched["videos_decoded_beside"] == 0
    assert "decoded between denoising, not beside it" in caplog.text
