"""Speed and memory of the causal video VAE at the published size, with random weights, on one GPU.

    python tests/benchmarks/bench_vae.py                         # 384p and 768p: frames/s and peak GB as a table
    python tests/benchmarks/bench_vae.py --device cpu --tiny     # the same code in seconds, to try it out

Both memory orders of the weights are timed. Each row states the peak of one call, weights included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from m4v.vae.autoencoder import CausalVideoVae
from m4v.vae.config import VaeConfig
from m4v.vae.initialise import build_vae

SIZES = {"384p": (384, 640), "768p": (768, 1280)}
LATENTS = 4
NARROW = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4}


def measure(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds of the second call of `work`, and the peak in GB (0 on a CPU)."""
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    return time.perf_counter() - started, peak


def bench(vae: CausalVideoVae, label: str, size: tuple[int, int], device: torch.device) -> None:
    height, width = size
    frames = 8 * (LATENTS - 1) + 1
    video = torch.zeros(1, 3, frames, height, width, dtype=torch.uint8, device=device)
    latents = torch.zeros(1, 16, LATENTS, height // 8, width // 8, device=device)

    def reward() -> None:
        scored = latents.clone().requires_grad_()
        vae.decode_after(scored, LATENTS - 1, window=1, recompute=True).sum().backward()

    def without_gradient(work: Callable[[], object]) -> Callable[[], object]:
        return torch.no_grad()(work)

    rows = {
        "encode, window 8": (without_gradient(lambda: vae.encode(video, window=8)), frames),
        "encode, window 16": (without_gradient(lambda: vae.encode(video, window=16)), frames),
        "decode, window 1": (without_gradient(lambda: vae.decode(latents, window=1)), frames),
        "stream, window 1": (lambda: list(vae.decode_stream(latents.split(1, dim=2))), frames),
        "decode, tiles of 256": (without_gradient(lambda: vae.decode(latents, window=1, tile=256)), frames),
        "reward of the last latent": (reward, 8),
    }
    for name, (work, count) in rows.items():
        seconds, peak = measure(work, device)
        print(f"{label:28} {name:26} {count / seconds:8.1f} frames/s {peak:7.1f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="narrow network, 64 x 96 pixels")
    options = parser.parse_args()
    device = torch.device(options.device)
    narrow = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in NARROW.items()}
    config = VaeConfig.model_validate(narrow) if options.tiny else VaeConfig()
    sizes = {"64 x 96": (64, 96)} if options.tiny else SIZES
    orders = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
    for order, memory_format in orders.items():
        vae = build_vae(config).to(device, torch.bfloat16).requires_grad_(False).eval()
        vae.to(memory_format=memory_format)  # type: ignore[call-overload]
        for name, size in sizes.items():
            bench(vae, f"{name}, {order}", size, device)


if __name__ == "__main__":
    main()
