"""What chunks, streams and recomputation do to the bytes that are alive at a time."""

import pytest
import torch
from live_memory import LiveMemory
from tiny_vae import THIN, tiny_vae

from m4v.vae.autoencoder import CausalVideoVae
from m4v.vae.config import VaeConfig


@pytest.fixture(scope="module")
def vae():
    return tiny_vae(config=THIN).requires_grad_(False)


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return CausalVideoVae(VaeConfig()).bfloat16().requires_grad_(False)


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tile", [None, 32])
def test_memory_of_a_stream_does_not_grow(vae, tile):
    """Live bytes after each chunk, and the peak, are the same for 4 and for 9 latents."""

    def run(count: int) -> tuple[int, list[int]]:
        latents = (_randn(1, 16, 1, 5, 4) for number in range(count))
        with LiveMemory() as memory:
            after = [memory.now_bytes for _ in vae.decode_stream(latents, tile=tile)]
            return memory.peak_bytes, after

    (peak, after), (long_peak, long_after) = run(4), run(9)
    assert peak > 0
    assert long_peak == peak
    assert max(long_after[1:]) == max(after[1:])


def test_chunks_need_less_memory_than_the_whole(vae):
    latents = _randn(1, 16, 8, 4, 4)

    def peak(**how: int) -> int:
        with LiveMemory() as memory:
            vae.decode(latents, **how)
        return memory.peak_bytes

    assert peak(window=1) < 0.4 * peak()


def test_frozen_weights_and_recomputation_save_memory(vae):
    latents = _randn(1, 16, 3, 4, 4)

    def held(recompute: bool, learns: bool = False) -> int:
        with LiveMemory() as memory:
            frames = vae.requires_grad_(learns).decode_after(latents.requires_grad_(), 2, recompute=recompute)
            assert frames.requires_grad
            return memory.now_bytes

    assert held(True) < 0.6 * held(False) < 0.4 * held(False, learns=True)


@pytest.mark.parametrize(
    ("run", "giga"),
    [
        (lambda vae: vae.encode(_meta(1, 3, 17, 768, 1280), window=8), 13),
        (lambda vae: vae.decode(_meta(1, 16, 4, 96, 160), window=1), 16),
        (lambda vae: list(vae.decode_stream(_meta(1, 16, 5, 96, 160).split(1, dim=2))), 16),
        (lambda vae: vae.decode_after(_meta(1, 16, 4, 96, 160), 3, window=1, recompute=True).sum().backward(), 31),
    ],
    ids=["encode", "decode", "stream", "reward"],
)
def test_memory_at_the_published_size(published, run, giga):
    """What `CausalVaeConfig` says of 768 x 1280 in bfloat16, counted on the meta device."""
    with torch.set_grad_enabled(giga == 31), LiveMemory() as memory:
        run(published)
    assert 0.85 * giga < memory.peak_bytes / 1e9 <= giga


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=torch.is_grad_enabled())
