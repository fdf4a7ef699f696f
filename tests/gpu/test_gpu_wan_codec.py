"""Wan's VAE as a codec on a GPU: the latents of the CPU but for rounding, prefixes too, in float32 and bfloat16.

`float32` is the type of what is kept between layers; cuDNN rounds the factors of its convolutions to tf32 (2^-11)
unless a program forbids it. At the end of the encoder that is about the rounding of the bfloat16 numbers that datasets
store (2^-9), so the codec leaves it on; without it they agree as float32 does: nothing else hides in the tolerance.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "m4v"))

from tiny_wan_vae import write_tiny_wan_vae

from m4v.codec import open_codec
from m4v.codec.config import WanVaeConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize(
    ("dtype", "tf32", "tolerance"), [("float32", False, 1e-4), ("float32", True, 1e-2), ("bfloat16", True, 5e-2)]
)
def test_latents_and_frames_are_those_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, tf32: bool, tolerance: float
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    folder = {"wan": write_tiny_wan_vae(tmp_path / "vae")}
    on_cpu = open_codec(WanVaeConfig(weights="wan"), folder)
    on_gpu = open_codec(WanVaeConfig.model_validate({"weights": "wan", "dtype": dtype}), folder, "cuda")
    frames = np.random.default_rng(0).integers(0, 256, (13, 64, 96, 3), dtype=np.uint8)
    expected, found = on_cpu.encode(frames), on_gpu.encode(frames)
    print(f"{dtype}, tf32 {tf32}: {np.abs(found - expected).max() / np.abs(expected).max():.2e}")
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
    assert np.allclose(on_gpu.encode(frames[:5]), found[:, :2], atol=tolerance * np.abs(expected).max())
    difference = on_gpu.decode(expected).astype(int) - on_cpu.decode(expected).astype(int)
    assert np.abs(difference).mean() < 2
    assert on_gpu.digest != on_cpu.digest, "another device rounds in its own way"
