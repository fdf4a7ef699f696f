"""The causal VAE on a GPU: bfloat16 in channels_last_3d order against float64, whole, chunked and streamed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from m4v.vae.config import VaeConfig
from m4v.vae.initialise import build_vae
from m4v.vae.weights import load_vae, save_vae

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
NARROW = {"block_out_channels": (32, 32, 64, 64), "norm_num_groups": 8}
CONFIG = VaeConfig.model_validate({f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in NARROW.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae")
    save_vae(path, build_vae(CONFIG))
    return path


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative to the spread of what is expected."""
    return float((found.double() - expected).std() / expected.std())


@torch.no_grad()
def test_half_precision_is_near_float64(folder: Path) -> None:
    exact, half = load_vae(folder, "cuda", torch.float64), load_vae(folder, "cuda", torch.bfloat16)
    generator = torch.Generator("cuda").manual_seed(0)
    video = torch.rand(1, 3, 17, 128, 192, generator=generator, device="cuda") * 2 - 1
    latents = exact.encode(video).mean
    assert distance(half.encode(video, window=8).mean, latents) < 0.1
    assert distance(half.encode(video, window=8, tile=96).mean, exact.encode(video, tile=96).mean) < 0.1
    frames = exact.decode(latents)
    assert distance(half.decode(latents, window=1), frames) < 0.1
    stream = half.decode_stream(latents.split(1, dim=2))
    assert torch.equal(torch.cat(list(stream), dim=2), half.decode(latents, window=1))


def test_gradients_are_near_float64(folder: Path) -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    latents = torch.randn(1, 16, 3, 16, 24, generator=generator, device="cuda").requires_grad_()
    weight = torch.randn(1, 3, 8, 128, 192, generator=generator, device="cuda")
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        vae = load_vae(folder, "cuda", dtype)
        frames = vae.decode_after(latents, 2, window=1, recompute=dtype == torch.bfloat16)
        gradients.append(torch.autograd.grad((frames.double() * weight).sum(), latents)[0][:, :, 2:])
    assert distance(gradients[1], gradients[0].double()) < 0.1
