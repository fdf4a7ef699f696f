"""Real-size models on one GPU at 768p: `python tests/benchmarks/bench_real_size.py [--generate FOLDER]`.

Times and peak memory of the last unit of 57, 121 and 241 frames, forward and forward with backward, bfloat16,
one sample: each pyramid stage alone and all three as columns of one row. Weights are random, none is zero.
Every case must give a finite loss and finite gradients. `recompute` counts blocks of each kind whose
activations are recomputed in backward: all where the rest does not fit into memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from gpu.random_model import random_model
from torch import Tensor

from m4v.codec import open_codec
from m4v.codec.config import CausalVaeConfig, DctCodecConfig
from m4v.codec.interface import LatentCodec
from m4v.config import ModelConfig, SamplerConfig, ScheduleConfig
from m4v.flow.packing import history_shape
from m4v.flow.sampler import generate as sample
from m4v.flow.schedule import PyramidSchedule
from m4v.kernels import kernel_set, use_kernels
from m4v.model import M4VTransformer
from m4v.vae.config import VaeConfig
from m4v.vae.initialise import build_vae
from m4v.vae.weights import save_vae
from m4v.video_io import read_mp4, write_mp4

FRAMES = (57, 121, 241)
HEIGHT, WIDTH = 96, 160  # latent places at 768 x 1280
VARIANTS = {
    "attention": (ModelConfig(mixer="attention"), "flex"),
    "attention, dense mask": (ModelConfig(mixer="attention"), "dense"),
    "M4V": (ModelConfig(), "flex"),
}
GIB = 2**30
HEADER = ("variant", "frames", "stage", "tokens", "fwd ms", "fwd+bwd ms", "peak GiB", "recompute", "loss")


class Case(NamedTuple):
    """Stages of the columns of one row, and the number of pixel frames."""

    stages: list[int]
    frames: int

    @property
    def unit(self) -> int:
        return (self.frames - 1) // 8 + 1

    @property
    def name(self) -> str:
        return "all three" if len(self.stages) > 1 else ("low", "mid", "high")[self.stages[0]]


def inputs_of(config: ModelConfig, case: Case) -> dict[str, object]:
    generator = torch.Generator("cuda").manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").bfloat16()

    def clips(stage: int) -> list[Tensor]:
        sizes = [*history_shape(stage, case.unit), (stage, 1)]
        return [normal(1, 16, n, HEIGHT >> (2 - s), WIDTH >> (2 - s)) for s, n in sizes]

    rows, slots = len(case.stages), config.text_slots
    return {
        "columns": [clips(stage) for stage in case.stages],
        "timesteps": torch.full((rows,), 500.0, device="cuda"),
        "text": normal(rows, slots, config.text_dim),
        "text_mask": (torch.arange(slots) < 77).expand(rows, -1).cuda(),
        "pooled": normal(rows, config.pooled_dim),
        "stages": case.stages,
    }


def loss_of(model: M4VTransformer, inputs: dict[str, object]) -> Tensor:
    """Mean squared error against noise, as in training."""
    generator, outs = torch.Generator("cuda").manual_seed(2), model(**inputs)
    errors = [(o.float() - torch.randn(o.shape, generator=generator, device="cuda")).square().mean() for o in outs]
    return torch.stack(errors).mean()


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median over `repeats` calls after one that is not counted."""
    call()
    found = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return statistics.median(found)


def measure(model: M4VTransformer, case: Case, repeats: int) -> dict[str, object]:
    inputs = inputs_of(model.config, case)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss_of(model, inputs).backward()

    with torch.no_grad():
        loss = float(loss_of(model, inputs))
        forward = milliseconds(lambda: model(**inputs), repeats)
    torch.cuda.reset_peak_memory_stats()
    both = milliseconds(step, repeats)
    finite = all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    if not (torch.tensor(loss).isfinite() and finite) or missing:
        raise SystemExit(f"loss {loss}, gradients finite: {finite}, without gradient: {missing[:3]}")
    columns = inputs["columns"]
    image = sum(c.shape[2] * c.shape[3] * c.shape[4] // 4 for column in columns for c in column)
    return {
        "tokens": image + model.config.text_slots * len(case.stages), "fwd ms": round(forward, 1),
        "fwd+bwd ms": round(both, 1), "peak GiB": round(torch.cuda.max_memory_allocated() / GIB, 1),
        "recompute": model.recompute_blocks, "loss": round(loss, 3),
    }  # fmt: skip


def fitted(model: M4VTransformer, case: Case, repeats: int) -> dict[str, object]:
    """Without recomputation if that fits, else with all blocks recomputed."""
    for blocks in (0, max(model.config.double_blocks, model.config.single_blocks)):
        model.recompute_blocks = blocks
        try:
            return measure(model, case, repeats)
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    return dict.fromkeys(HEADER[3:], "out of memory")


def rows(names: list[str], frames: list[int], repeats: int) -> Iterator[dict[str, object]]:
    for name in names:
        config, attention = VARIANTS[name]
        model = random_model(config, "cuda", torch.bfloat16)
        for count in frames:
            for stages in ([0], [1], [2], [0, 1, 2]):
                case = Case(stages, count)
                with use_kernels(attention=attention):
                    yield {"variant": name, "frames": count, "stage": case.name} | fitted(model, case, repeats)
        del model
        torch.cuda.empty_cache()


class Text(NamedTuple):
    """Features as a text encoder gives them."""

    embedding: Tensor
    mask: Tensor
    pooled: Tensor


def random_text(config: ModelConfig, words: int) -> Text:
    generator = torch.Generator("cuda").manual_seed(words)
    embedding = torch.randn(1, config.text_slots, config.text_dim, generator=generator, device="cuda")
    pooled = torch.randn(1, config.pooled_dim, generator=generator, device="cuda")
    return Text(embedding.bfloat16(), torch.arange(config.text_slots, device="cuda")[None] < words, pooled.bfloat16())


def codecs(folder: Path) -> Iterator[tuple[str, LatentCodec]]:
    """The transform codec, and the causal VAE at its published size with random weights."""
    yield "dct", open_codec(DctCodecConfig())
    save_vae(folder, build_vae(VaeConfig()))
    config = CausalVaeConfig(weights="vae", dtype="bfloat16")
    yield "causal_vae", open_codec(config, {"vae": folder}, "cuda")


def generate(folder: Path, latents: int) -> None:
    """Videos from random weights, all the way: sampler with its default steps and guidance, codec, file."""
    config = ModelConfig()
    model, texts = random_model(config, "cuda", torch.bfloat16), (random_text(config, 20), random_text(config, 45))
    torch.cuda.reset_peak_memory_stats()
    begin, schedule = time.perf_counter(), PyramidSchedule(ScheduleConfig())
    latent = sample(model, schedule, SamplerConfig(), *texts, (latents, HEIGHT, WIDTH), [0])
    torch.cuda.synchronize()
    print(
        f"sampled {latents} latents in {time.perf_counter() - begin:.1f} s (compilation included), peak "
        f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB, mean {latent.mean():.3f}, std {latent.std():.3f}, "
        f"finite: {bool(latent.isfinite().all())}",
        flush=True,
    )
    del model
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as weights:
        for kind, codec in codecs(Path(weights)):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
            video = codec.decode(latent[0].float().cpu().numpy())
            spent, path = time.perf_counter() - begin, folder / f"{kind}.mp4"
            write_mp4(path, video, 24, crf=23)
            frames, fps = read_mp4(path)
            print(
                f"{kind}: decoded {video.shape} in {spent:.1f} s, peak {torch.cuda.max_memory_allocated() / GIB:.1f} "
                f"GiB, std of the pixels {video.std():.1f}; {path.name} {path.stat().st_size} bytes, read back as "
                f"{frames.shape} at {fps:g} a second",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", action="append", choices=list(VARIANTS))
    parser.add_argument("--frames", action="append", type=int, choices=FRAMES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    parser.add_argument("--generate", type=Path, metavar="FOLDER", help="make videos there instead of the table")
    parser.add_argument("--latents", type=int, default=2)
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, kernel_set("cuda"), flush=True)
    if arguments.generate:
        generate(arguments.generate, arguments.latents)
        return
    print("| " + " | ".join(HEADER) + " |", "| " + " | ".join("---" for _ in HEADER) + " |", sep="\n")
    found = []
    for row in rows(arguments.variant or list(VARIANTS), arguments.frames or list(FRAMES), arguments.repeats):
        found.append(row)
        print("| " + " | ".join(str(row[key]) for key in HEADER) + " |", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
