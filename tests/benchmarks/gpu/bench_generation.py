"""Whole 768p videos of 121 and 241 frames from a 2.2 B model with random weights, in several forms.

    python tests/benchmarks/gpu/bench_generation.py --out generation.json       (--tiny: a rehearsal on the CPU)

Every form's first-frame velocity must agree with plain torch's (the form without masks with plain torch without
masks). Two kinds of figures stand side by side and are never mixed: `summed` times one guided forward of every
(latent frame, stage) after warm-up and adds them up by the sampler's own steps (with `--every`, every so many latent
frames, those between by a straight line); `end to end` is one real run of the product's sampler, text encoding and
decoding by the causal VAE included, frames on the host. Text encoder (T5 XXL, CLIP L) and VAE have random weights, a
counter of words stands in for the tokenizers.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from block_inputs import Case, model_inputs  # noqa: E402
from generation_parts import (  # noqa: E402
    COMPILED,
    FLEX,
    LAUNCHED,
    OURS,
    RELEASED,
    STOCK,
    Form,
    RandomSampler,
    formed,
    forms,
    model_of,
    random_codec,
    random_encoder,
)
from kernel_choices import chosen, plain  # noqa: E402
from speed_clock import GIB, Bench, Row, bench_of, clear, median_ms, options_of, print_table, synchronize  # noqa: E402
from torch import Tensor  # noqa: E402

from m4v.config import SamplerConfig, VideoConfig  # noqa: E402
from m4v.flow.graphs import CudaCapture, GraphedModel  # noqa: E402
from m4v.flow.loss import VelocityModel  # noqa: E402
from m4v.model import M4VTransformer  # noqa: E402
from m4v.model.layout import forget_layouts  # noqa: E402

LENGTHS = (121, 241)
STAGES = 3
LIMIT = 0.1  # relative error of a velocity, both in bfloat16 through all blocks; bench_blocks has the strict gates
COLUMNS = ("form", "kind", "frames", "seconds", "peak GiB", "text s", "decode s", "error", "state")
GOALS = ((RELEASED, 2.4), (COMPILED, 1.4), (FLEX, 1.3), (STOCK, 0.0))
PROMPT = "a red fox runs through deep snow at the edge of a forest while the sun goes down behind the hills"


class Wrong(Exception):
    """A form does not compute what it should."""


def guided_inputs(model: M4VTransformer, frames: int, stage: int, device: torch.device) -> dict[str, Any]:
    """Arguments of one forward with guidance: [negative, positive]."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    given = model_inputs(model.config, Case(frames, stage, device.type == "cpu"), device, dtype)
    twice = {key: torch.cat([value, value]) for key, value in given.items() if isinstance(value, Tensor)}
    return given | twice | {"columns": [[torch.cat([clip, clip]) for clip in given["columns"][0]]]}


def runner(form: Form, model: M4VTransformer, device: torch.device) -> VelocityModel:
    """The model as the form launches it."""
    return GraphedModel(model, CudaCapture(device)) if form.launched and device.type == "cuda" else model


def velocity(model: VelocityModel, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**given)[0]


def gate(bench: Bench, form: Form, model: M4VTransformer) -> float:
    """Error of a velocity with some history at the lowest stage against plain torch with the same weights."""
    given = guided_inputs(model, 57, 0, bench.device)
    exact_form = form._replace(compiled=False)
    with chosen(plain()), formed(exact_form, model):
        exact = velocity(model, given).float()
    with chosen(form.choice()), formed(form, model):
        run = runner(form, model, bench.device)
        for _ in range(3):  # a graph is there from the second time on
            found = velocity(run, given).float()
    error = float((found - exact).norm() / exact.norm())
    if not error <= LIMIT:
        raise Wrong(f"velocity is off by {error:.3g}")
    return error


def summed(bench: Bench, form: Form, model: M4VTransformer, every: int, lengths: tuple[int, ...]) -> Row:
    """Seconds of the transformer in a video of each length, and what was timed."""
    units = [(frames - 1) // 8 + 1 for frames in lengths]
    asked = sorted({1, 2, 3, *range(4, max(units), every), *units})
    config, times, first = SamplerConfig(), np.zeros((len(asked), STAGES)), np.zeros((len(asked), STAGES))
    repeats = 3 if bench.device.type == "cuda" else 1
    with chosen(form.choice()), formed(form, model):
        run = runner(form, model, bench.device)
        for row, unit in enumerate(asked):
            for stage in range(STAGES):
                given = guided_inputs(model, 8 * unit - 7, stage, bench.device)
                # Twice before: the second time a graph is recorded.
                times[row, stage] = median_ms(lambda given=given: velocity(run, given), bench.device, repeats, 2)
                first[row, stage] = times[row, stage]
                if run is not model:  # what a video's first two steps of a stage take, but for the recording itself
                    first[row, stage] = median_ms(lambda given=given: velocity(model, given), bench.device, repeats, 1)
            forget_layouts()
    seconds = {}
    for frames, last in zip(lengths, units, strict=True):
        total = 0.0
        for unit in range(1, last + 1):
            steps = config.steps_first if unit == 1 else config.steps_later
            for stage, n in enumerate(steps):
                total += 2 * np.interp(unit, asked, first[:, stage]) / 1e3
                total += (n - 2) * np.interp(unit, asked, times[:, stage]) / 1e3
        seconds[frames] = float(total)
    return {"seconds": seconds, "units": asked, "ms": times.tolist()}


def end_to_end(bench: Bench, form: Form, model: M4VTransformer, parts: dict[str, Any], frames: int) -> Row:
    """A real run; text and, with our form, decoding timed by themselves, too."""
    device = bench.device
    sampler = RandomSampler(model, parts["codec"], parts["encoder"], device, form.launched)
    size = (64, 64) if device.type == "cpu" else (768, 1280)
    few = SamplerConfig(steps_first=(1, 1, 1), steps_later=(1, 1, 1)) if device.type == "cpu" else SamplerConfig()
    video = VideoConfig(frames=frames, height=size[0], width=size[1], sampler=few)
    found = bench.found
    latents: list[Any] = []
    with chosen(form.choice()), formed(form, model):
        if form.launched:  # the first video of a size is not decoded beside
            list(sampler.stream(PROMPT, 1, video.model_copy(update={"frames": 9})))
        clear(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        parts["encoder"]._known.clear()
        begin = time.perf_counter()
        parts["encoder"].encode([PROMPT])
        found["text s"] = time.perf_counter() - begin
        parts["encoder"]._known.clear()
        begin = time.perf_counter()
        chunks = sampler.stream(PROMPT, 1, video, on_latent=lambda _, latent: latents.append(latent))
        count = sum(len(chunk) for chunk in chunks)
        synchronize(device)
        found["seconds"] = time.perf_counter() - begin
        if device.type == "cuda":
            found["peak GiB"] = torch.cuda.max_memory_allocated() / GIB
        if form.name == OURS:  # of the same size in every form
            begin = time.perf_counter()
            count = min(count, sum(len(chunk) for chunk in parts["codec"].decode_stream(latents)))
            synchronize(device)
            found["decode s"] = time.perf_counter() - begin
    if count != frames:
        raise Wrong(f"{count} frames instead of {frames}")
    return found


def run(bench: Bench, options: argparse.Namespace) -> None:
    parts: dict[str, Any] = {}
    lengths = (17,) if options.tiny else tuple(sorted(options.frames))
    whole = [form for form in forms() if form.name == options.only]
    for number, form in enumerate(whole or [form for form in forms() if (options.only or "") in form.name]):
        held: dict[str, Any] = {}

        def gated(form: Form = form, held: dict[str, Any] = held) -> Row:
            held["model"] = model_of(form, bench.device)
            return {"error": gate(bench, form, held["model"])}

        row = bench.case({"form": form.name, "kind": "gate"}, gated)
        if row["state"] == "measured" and not options.only_end:
            measure_sum(bench, form, held["model"], options.every, lengths)
        if row["state"] == "measured" and not options.only_sum and (number == 0 or form.launched or options.all_ends):
            for frames in reversed(lengths):  # goals are those of the longest
                if not parts:
                    made = bench.case(
                        {"form": "-", "kind": "text encoder and VAE made"}, lambda: make_parts(bench, parts)
                    )
                    if made["state"] != "measured":
                        break
                label = {"form": form.name, "kind": "end to end", "frames": frames}
                model = held["model"]
                bench.case(label, lambda f=frames, m=model, o=form: end_to_end(bench, o, m, parts, f), 400)
        held.clear()
        clear(bench.device)
        torch._dynamo.reset()


def make_parts(bench: Bench, parts: dict[str, Any]) -> Row:
    parts["codec"], parts["encoder"] = random_codec(bench.device), random_encoder(bench.device)
    return {}


def measure_sum(bench: Bench, form: Form, model: M4VTransformer, every: int, lengths: tuple[int, ...]) -> None:
    """One row for each length."""
    kept: Row = {}

    def measured() -> Row:
        kept.update(summed(bench, form, model, every, lengths))
        bench.extra.setdefault("forwards", {})[form.name] = {"units": kept["units"], "ms": kept["ms"]}
        return {"seconds": kept["seconds"][lengths[-1]]}

    row = bench.case({"form": form.name, "kind": "summed", "frames": lengths[-1]}, measured, 240)
    for frames in lengths[:-1]:
        bench.rows.append(row | {"frames": frames, "seconds": kept["seconds"][frames]} if kept else row)


def summarise(bench: Bench) -> None:
    bench.table(COLUMNS)
    table = []
    for frames in sorted({row["frames"] for row in bench.rows if "frames" in row}):
        of = {
            row["form"]: row.get("seconds")
            for row in bench.rows
            if row.get("frames") == frames and row["kind"] == "summed"
        }
        rest = sorted(name for name in of if name.startswith("attention, ours"))
        for own, (name, goal) in product((OURS, LAUNCHED), [*GOALS, *((name, 0.0) for name in rest)]):
            mine, other = of.get(own), of.get(name)
            said = "not measured" if not mine or not other else f"{other / mine:.2f}x ({other:.1f} s / {mine:.1f} s)"
            if mine and other and goal and frames == LENGTHS[-1]:
                said += f", goal {goal}: {'met' if other / mine >= goal else 'not met'}"
            table.append([str(frames), own, name, said])
    bench.write()
    print_table(("frames", "form", "against", "transformer, summed"), table)


def main() -> None:
    parser = options_of(__doc__, 540)
    parser.add_argument("--every", type=int, default=6, help="latent frames from one that is timed to the next")
    parser.add_argument("--only", help="the form of this name, else those whose name holds it")
    parser.add_argument("--frames", type=int, nargs="+", choices=LENGTHS, default=LENGTHS)
    parser.add_argument("--all-ends", action="store_true", help="a real run of every form, not of ours alone")
    parser.add_argument("--only-sum", "--sum", action="store_true", help="no real run")
    parser.add_argument("--only-end", action="store_true", help="no sums")
    options = parser.parse_args()
    bench = bench_of("generation", options)
    torch._dynamo.config.recompile_limit = 64
    try:
        run(bench, options)
    finally:
        summarise(bench)


if __name__ == "__main__":
    main()
