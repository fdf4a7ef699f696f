"""Sampling on a GPU: recorded forwards and decoding beside denoising give the bits of one kernel after the other."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from m4v.codec.causal_vae import open_causal_vae
from m4v.codec.config import CausalVaeConfig
from m4v.config import ModelConfig, SamplerConfig, ScheduleConfig
from m4v.flow.graphs import CudaCapture, GraphedModel
from m4v.flow.sampler import stream
from m4v.flow.schedule import PyramidSchedule
from m4v.kernels import use_kernels
from m4v.kernels.selection import TRITON, version_of
from m4v.launches import Launches
from m4v.launching import Launching
from m4v.model import M4VTransformer, build_model
from m4v.model.layout import forget_layouts
from m4v.vae.config import VaeConfig
from m4v.vae.initialise import build_vae
from m4v.vae.weights import save_vae

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = torch.device("cuda", 0)
STEPS = SamplerConfig(
    steps_first=(4, 4, 4), steps_later=(4, 4, 4), guidance_first=3.0, guidance_later=2.0, self_guidance=0.5,
    self_guidance_from=3,
)  # fmt: skip
SIZES = {"double_blocks": 1, "single_blocks": 2, "text_dim": 8, "pooled_dim": 6, "text_slots": 16}
FRAMES, HEIGHT, WIDTH = 4, 16, 24  # latents
TRITON_THERE = version_of(TRITON) is not None


def features(seed: int, dtype: torch.dtype) -> SimpleNamespace:
    draw = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        embedding=torch.randn(1, 16, 8, generator=draw).to(DEVICE, dtype), mask=(torch.arange(16)[None] < 9).to(DEVICE),
        pooled=torch.randn(1, 6, generator=draw).to(DEVICE, dtype),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> M4VTransformer:
    found = build_model(ModelConfig.model_validate(SIZES | {"width": 192, "heads": 3}), seed=0)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return found.cast(torch.bfloat16).to(DEVICE).eval()


def latents(model: object) -> Iterator[Tensor]:
    schedule, text = PyramidSchedule(ScheduleConfig()), (features(1, torch.bfloat16), features(2, torch.bfloat16))
    for frame in stream(model, schedule, STEPS, *text, (FRAMES, HEIGHT, WIDTH), [5]):  # type: ignore[arg-type]
        forget_layouts()
        yield frame


@pytest.mark.parametrize(
    "choice",
    [
        {"scan": "torch", "attention": "dense", "glue": "torch"}, {"attention": "flex"},
        {"scan": "triton", "attention": "dense", "glue": "triton"}, {"scan": "triton", "attention": "frames"}, {},
    ],
    ids=["plain torch", "flex", "triton", "frames", "auto"],
)  # fmt: skip
def test_graphs_give_the_same_bits(model: M4VTransformer, choice: dict[str, str]) -> None:
    if not TRITON_THERE and set(choice.values()) & {"triton", "flex", "frames"}:
        pytest.skip("Triton is not installed")
    with use_kernels(**choice):  # type: ignore[arg-type]
        plain = torch.cat(list(latents(model)), dim=2)
        assert torch.equal(torch.cat(list(latents(model)), dim=2), plain), "not even the forwards repeat"
        graphed = GraphedModel(model, CudaCapture(DEVICE))
        for _ in range(2):  # the second video frees and makes graphs in a pool that is in use
            assert torch.equal(torch.cat(list(latents(graphed)), dim=2), plain)
    assert graphed.refused is None
    assert graphed.captured == 2 * (3 * FRAMES + 2)
    assert graphed.replayed == 2 * (4 * 3 * FRAMES + 2 * 4) - graphed.plain


def test_memory_of_graphs_does_not_grow(model: M4VTransformer) -> None:
    graphed = GraphedModel(model, CudaCapture(DEVICE))
    held = []
    for _ in range(4):
        list(latents(graphed))
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_reserved(DEVICE))
    assert held[3] <= held[1] * 1.1


def test_decoding_beside_gives_the_same_bits(model: M4VTransformer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Graphs are recorded while the VAE runs on another stream from another thread."""
    folder = tmp_path_factory.mktemp("vae")
    narrow = {"block_out_channels": (32, 32, 64, 64), "norm_num_groups": 8}
    sizes = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in narrow.items()}
    save_vae(folder, build_vae(VaeConfig.model_validate(sizes)))
    codec = open_causal_vae(CausalVaeConfig(weights="vae", dtype="bfloat16"), {"vae": folder}, "cuda")

    def made(source: object):  # type: ignore[no-untyped-def]
        for frame in latents(source):
            yield frame[0].float().cpu().numpy()

    plain = list(codec.decode_stream(made(model)))
    launching = Launching(model, DEVICE, Launches(graphs=True, overlap=True))
    assert [launching.overlaps(8 * HEIGHT * 8 * WIDTH) for _ in range(2)] == [False, True], "not the first of a size"
    for _ in range(3):
        beside = list(launching.beside(made(launching.model), codec.decode_stream))
        assert len(beside) == len(plain)
        assert all(np.array_equal(u, v) for u, v in zip(beside, plain, strict=True))
    assert int(launching.report()["forwards_replayed"]) > 0
    assert "graphs_refused" not in launching.report()


def test_what_cannot_be_recorded_runs(model: M4VTransformer, caplog: pytest.LogCaptureFixture) -> None:
    """A wait for the device within a forward: the stream and the memory are as before."""

    def waits(columns: object, timesteps: Tensor, *rest: object) -> list[Tensor]:
        if float(timesteps.sum()) < 0:
            raise ValueError
        return model(columns, timesteps, *rest)  # type: ignore[arg-type]

    graphed = GraphedModel(waits, CudaCapture(DEVICE))  # type: ignore[arg-type]
    found = torch.cat(list(latents(graphed)), dim=2)
    assert graphed.refused is not None
    assert graphed.captured == 0
    assert "recording one failed" in caplog.text
    assert torch.equal(found, torch.cat(list(latents(model)), dim=2))
