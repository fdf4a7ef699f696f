"""768p clips to latents on one GPU: the network alone, eager against ours, and the whole way from files.

    python tests/benchmarks/bench_vae_encode.py                  # on a GPU; one table, medians of three
    python tests/benchmarks/bench_vae_encode.py --tiny           # the same code on a CPU, to try it out

Eager is the published network as written: plain torch, channels first, bf16, chunks of 8 frames. From files: drawn
H.264 clips of 1080p and 121 frames; eager decodes a clip, encodes it, writes it, then takes the next; ours is
`encode_overlapped` with decoders on every core. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from dataprep.buckets import Bucket
from dataprep.encode.device_clock import DeviceClock
from dataprep.encode.jobs import ClipMedia, EncodeJob, latent_member, read_frames
from dataprep.encode.overlapped import encode_overlapped
from dataprep.engine import open_engine
from dataprep.media.location import MediaFile
from m4v.codec.causal_vae import CausalVaeCodec, open_causal_vae
from m4v.codec.config import CausalVaeConfig
from m4v.core.artifacts import ArtifactKind, ArtifactRef, build_manifest, read_manifest, write_manifest
from m4v.core.canonical import digest_file
from m4v.core.items import ItemStore
from m4v.core.stage import Resources
from m4v.core.storage import Storage
from m4v.kernels import use_kernels
from m4v.text.config import MiniLmConfig
from m4v.vae.config import VaeConfig
from m4v.vae.initialise import build_vae
from m4v.vae.weights import save_vae

NARROW = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4}
FPS = 24


def draw_clip(path: Path, frames: int, height: int, width: int, seed: int) -> None:
    """A textured picture that pans, with moving squares and film grain, as H.264 of a camera's bit rate."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (height // 8 + 64, width // 8 + 64, 3), np.uint8)
    texture = np.kron(texture, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23"}
        for t in range(frames):
            picture = texture[2 * t : 2 * t + height, 3 * t : 3 * t + width].copy()
            picture[100:300, 5 * t : 5 * t + 200] = (230, 40, 40)
            picture[::2] += rng.integers(0, 6, picture[::2].shape, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = t, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


class Bench:
    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root, self.options = root, options
        self.device = "cpu" if options.tiny else "cuda"
        self.size = (64, 96) if options.tiny else (768, 1280)
        self.frames = 9 if options.tiny else options.frames
        config = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in NARROW.items()}
        folder = root / "weights"
        save_vae(folder, build_vae(VaeConfig.model_validate(config if options.tiny else {})))
        write_manifest(folder, build_manifest(folder, ArtifactKind.WEIGHTS, {}))
        self.weights = ArtifactRef(
            read_manifest(Storage(str(folder))).artifact_id, ArtifactKind.WEIGHTS, str(folder), str(root / "cache")
        )
        self.dtype = "float32" if options.tiny else "bfloat16"

    def codec(self, window: int, eager: bool) -> CausalVaeCodec:
        config = CausalVaeConfig(weights="vae", dtype=self.dtype, encode_window=window)  # type: ignore[arg-type]
        codec = open_causal_vae(config, {"vae": Path(self.weights.uri)}, self.device)
        if eager:
            codec._vae.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return codec

    def jobs(self, name: str, window: int, count: int) -> list[EncodeJob]:
        height, width = (80, 128) if self.options.tiny else (1080, 1920)
        bucket = Bucket(self.frames, *self.size)
        found = []
        for i in range(count):
            path = self.root / f"clip-{i % self.options.files}.mp4"
            if not path.exists():
                draw_clip(path, self.frames, height, width, i)
            file = MediaFile(
                str(self.root), path.name, path.stat().st_size, digest_file(path), True, str(self.root / "c")
            )
            media = ClipMedia(file, 0, self.frames, None, FPS, (bucket,))
            found.append(
                EncodeJob(
                    media, CausalVaeConfig(weights="vae", dtype=self.dtype, encode_window=window),  # type: ignore[arg-type]
                    str(self.root / name / "latents"), f"{i:064x}", ("a clip",), MiniLmConfig(),
                    str(self.root / name / "texts"), "t" * 64, str(self.root / name / "times"),
                    (("vae", self.weights),), self.device,
                )
            )  # fmt: skip
        ItemStore(Storage(found[0].texts_uri)).put(found[0].text_key, b"there")  # this is about pixels
        return found

    def network(self, label: str, window: int, eager: bool) -> float:
        """Frames/s with the clip on the device."""
        codec = self.codec(window, eager)
        frames = torch.randint(0, 256, (self.frames, *self.size, 3), dtype=torch.uint8, device=self.device)
        with use_kernels(scan="torch" if eager else None):
            rate = self.frames / timed(lambda: codec.encode_uploaded(frames), self.device)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else 0.0
        print(f"{label:44} {rate:8.1f} frames/s {peak:6.1f} GB", flush=True)
        return rate

    def plain_script(self, count: int) -> float:
        """Frames/s of one process that does one thing after another."""
        codec, jobs = self.codec(8, eager=True), self.jobs("eager", 8, count)
        started = time.perf_counter()
        with use_kernels(scan="torch"):
            for job in jobs:
                ItemStore(Storage(job.latents_uri)).put(job.latent_key, latent_member(codec, read_frames(job.media)[0]))
        return count * self.frames / (time.perf_counter() - started)

    def ours(self, count: int, window: int) -> tuple[float, DeviceClock]:
        jobs, clock, workers = self.jobs("ours", window, count), DeviceClock(), os.cpu_count() or 1
        with open_engine(Resources(workers=workers, device=self.device), isolate=True) as engine:
            list(encode_overlapped(engine, [replace(j, latent_key="w" + j.latent_key[1:]) for j in jobs[:workers]],
                                   2 * workers, 900, DeviceClock()))  # fmt: skip
            started = time.perf_counter()
            found = list(encode_overlapped(engine, jobs, 2 * workers, 900, clock))
            took = time.perf_counter() - started
        wrong = [f for f in found if not hasattr(f, "shape")]
        if wrong:
            raise SystemExit(f"not encoded: {wrong[0]}")
        return count * self.frames / took, clock


def timed(work: Callable[[], object], device: str) -> float:
    """Median seconds of three calls after one."""
    took = []
    for _ in range(4):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    return statistics.median(took[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="narrow network, 64 x 96 pixels, on the CPU")
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--clips", type=int, default=48, help="that ours encodes from files; eager a sixth of them")
    parser.add_argument("--files", type=int, default=16, help="different files among the clips")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        print(f"{torch.cuda.get_device_name() if bench.device == 'cuda' else 'CPU'}, {os.cpu_count()} cores, "
              f"{bench.frames} frames of {bench.size[0]} x {bench.size[1]}, {bench.dtype}", flush=True)  # fmt: skip
        eager = bench.network("network, eager, channels first, window 8", 8, eager=True)
        rates = {w: bench.network(f"network, ours, window {w}", w, eager=False) for w in (8, 16)}
        window = max(rates, key=lambda w: rates[w])
        plain = bench.plain_script(max(2, options.clips // 6))
        print(f"{'from files, eager, one after another':44} {plain:8.1f} frames/s", flush=True)
        whole, clock = bench.ours(options.clips, window)
        print(f"{f'from files, ours, window {window}':44} {whole:8.1f} frames/s", flush=True)
        print(clock.figures())
        print(f"network: {max(rates.values()) / eager:.2f}x, from files: {whole / plain:.2f}x")


if __name__ == "__main__":
    main()
