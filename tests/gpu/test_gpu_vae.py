"""The causal VAE on a GPU: bfloat16 in channels_last_3d order against float64, whole, chunked and streamed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from m4v.codec.causal_vae import open_causal_vae
from m4v.codec.config import CausalVaeConfig
from m4v.kernels import use_kernels
from m4v.vae.blocks import FrameNorm
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


@pytest.mark.parametrize(
    ("channels", "groups", "size"), [(128, 32, (3, 37, 61)), (512, 32, (1, 9, 13)), (32, 8, (5, 96, 160))]
)
@pytest.mark.parametrize("shifted", [False, True])
def test_norm_kernel_is_that_of_float64(channels: int, groups: int, size: tuple[int, int, int], shifted: bool) -> None:
    from m4v.kernels.frame_norm import norm_silu, residual_sum

    generator = torch.Generator("cuda").manual_seed(2)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float64)

    x = (drawn(2, channels, *size) * 3 + 20).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    weight, bias, offset = drawn(channels).bfloat16(), drawn(channels).bfloat16(), drawn(channels).bfloat16()
    norm = FrameNorm(groups, channels).to("cuda", torch.float64)
    norm.weight.data, norm.bias.data = weight.double(), bias.double()
    before = x.double() + (offset.double()[:, None, None, None] if shifted else 0)
    expected = torch.nn.functional.silu(norm(before)).detach()
    found = norm_silu(x, weight, bias, groups, norm.eps, lead=2, offset=offset if shifted else None)
    assert found.shape[2] == size[0] + 2
    assert distance(found[:, :, 2:], expected) < 4e-3
    again = norm_silu(x, weight, bias, groups, norm.eps, lead=2, offset=offset if shifted else None)
    assert torch.equal(found[:, :, 2:], again[:, :, 2:])
    summed = residual_sum(x, found[:, :, 2:].contiguous(memory_format=torch.channels_last_3d), bias)
    exact = x.double() + found[:, :, 2:].double() + bias.double()[:, None, None, None]
    assert float((summed.double() - exact).norm() / exact.norm()) < 4e-3


@torch.no_grad()
def test_kernels_are_as_near_to_float64_as_plain_torch(folder: Path) -> None:
    exact, half = load_vae(folder, "cuda", torch.float64), load_vae(folder, "cuda", torch.bfloat16)
    video = torch.rand(1, 3, 25, 160, 224, generator=torch.Generator("cuda").manual_seed(3), device="cuda") * 2 - 1
    latents = exact.encode(video).mean
    with use_kernels(scan="torch"):
        plain = distance(half.encode(video).mean, latents)
        plain_frames = distance(half.decode(latents), exact.decode(latents))
    assert distance(half.encode(video).mean, latents) < 1.1 * plain
    assert distance(half.decode(latents), exact.decode(latents)) < 1.1 * plain_frames
    assert torch.equal(half.encode(video, window=8).mean, half.encode(video, window=8).mean)


def test_the_codecs_digest_names_the_norm_kernel(folder: Path) -> None:
    config = CausalVaeConfig(weights="vae", dtype="bfloat16")
    fused = open_causal_vae(config, {"vae": folder}, "cuda").digest
    with use_kernels(scan="torch"):
        assert open_causal_vae(config, {"vae": folder}, "cuda").digest != fused
