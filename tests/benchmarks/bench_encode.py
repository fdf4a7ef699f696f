"""Speed of encoding on one thread, per second of CPU time: codec, text, score, shards.

    python tests/benchmarks/bench_encode.py              # frames/s, texts/s, MB/s as a table

Pixels are noise: none of these costs depends on the content. Decoding video files is not included.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dataprep.encode.jobs import latent_member, text_member
from dataprep.shards import Sample, ShardWriter, verify_shards
from m4v.codec import open_codec
from m4v.codec.config import DctCodecConfig
from m4v.core.rng import generator
from m4v.scores.conse import open_conse
from m4v.text import open_text_encoder
from m4v.text.config import MiniLmConfig

FRAMES, HEIGHT, WIDTH = 57, 128, 192
SECONDS = 1.5


def rate(work: Callable[[int], object], units: float) -> float:
    """Units per CPU second of `work(i)`, called until SECONDS have passed, after one call to warm up."""
    work(0)
    started, calls = time.process_time(), 0
    while time.process_time() - started < SECONDS:
        calls += 1
        work(calls)
    return calls * units / (time.process_time() - started)


def bench_codec() -> None:
    codec = open_codec(DctCodecConfig())
    clip = generator(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    latent = codec.encode(clip)
    size = f"{HEIGHT}x{WIDTH}"
    show(f"codec encode, {size}", rate(lambda _: codec.encode(clip), FRAMES), "frames/s")
    show(f"codec decode, {size}", rate(lambda _: codec.decode(latent), FRAMES), "frames/s")
    tensor = torch.from_numpy(latent)[None].requires_grad_()

    def with_gradient(_: int) -> object:
        return torch.autograd.grad(codec.decode_tensor(tensor).sum(), tensor)

    show(f"codec decode with gradient, {size}", rate(with_gradient, FRAMES), "frames/s")


def bench_text() -> None:
    encoder = open_text_encoder(MiniLmConfig())
    show(
        "text encoder, 12 words", rate(lambda i: encoder.encode([f"take {i} of " + "a red circle " * 3]), 1), "texts/s"
    )


def bench_score() -> None:
    conse = open_conse()
    text = conse.text_features(["a red circle"])
    frame = torch.rand(1, 3, HEIGHT, WIDTH).requires_grad_()

    def forward(_: int) -> object:
        with torch.no_grad():
            return conse.score(frame, text)

    show("conse, forward", rate(forward, 1), "frames/s")
    show(
        "conse, with gradient",
        rate(lambda _: torch.autograd.grad(conse.score(frame, text).sum(), frame), 1),
        "frames/s",
    )


def bench_shards() -> None:
    codec, encoder = open_codec(DctCodecConfig()), open_text_encoder(MiniLmConfig())
    clip = generator(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    members = {
        "latent": latent_member(codec, clip),
        "text": text_member(encoder, ("a red circle",)),
        "meta": b"{}" * 400,
    }
    megabytes = sum(map(len, members.values())) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(Path(folder), samples=1000, size_bytes=1 << 30) as writer:
            rows: list[dict[str, object]] = []

            def add(number: int) -> None:
                key = f"{number:032x}"
                row: dict[str, object] = {"sample_id": key}
                for name, r in writer.add(Sample(key, "57", members)).items():
                    row |= {f"{name}_offset": r.offset, f"{name}_size": r.size_bytes, f"{name}_sha256": r.sha256}
                    row["shard"] = r.shard
                rows.append(row)

            show("shard writing", rate(add, megabytes), "MB/s")
        started = time.process_time()
        verify_shards(Path(folder), rows)
        show("shard verification", len(rows) * megabytes / (time.process_time() - started), "MB/s")


def show(what: str, value: float, unit: str) -> None:
    sys.stdout.write(f"{what:40s} {value:10,.0f} {unit}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for bench in (bench_codec, bench_text, bench_score, bench_shards):
        bench()
