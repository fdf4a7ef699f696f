"""The page "FLOPs, time, memory against the paper's own table", from the JSON of the speed benchmarks.

    python tests/benchmarks/gpu/cost_page.py blocks.json generation.json step.json --out COST.md
    python tests/benchmarks/gpu/cost_page.py RESULTS/results.json --out COST.md

Operations are computed as `m4v flops --table4` does; times and memory come from the given files alone, and what no
file holds is `not measured`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

MISSING = "not measured"
FRAMES = (121, 241)
UNITS = (1, 10, 16, 31)  # latent frames: an image, 73, 121 and 241 frames
SHOWN = ("blocks", "generation", "step")


class Printed(NamedTuple):
    """A row of the paper's Table 4 (A100, 768p): seconds of a video of 121 and 241 frames."""

    name: str
    seconds: dict[int, float]
    forms: tuple[str, ...]  # of the generation benchmark that are this architecture
    loops: tuple[str, ...]  # of the step benchmark


ROWS = (
    Printed("Full Attn", {121: 296, 241: 812},
            ("attention, as released", "attention, compiled, all scores", "attention, FlexAttention",
             "attention, ours: frames"),
            ("reference style", "attention, auto, block", "attention, auto, selective", "attention, ours, block")),
    Printed("Full+Temp", {121: 226, 241: 613}, ("M4V, stock (mamba-ssm, plain glue)", "M4V, auto", "M4V, ours",
             "M4V, ours, CUDA graphs, decoding beside"),
            ("M4V, stock, block", "M4V, ours, block", "M4V, auto, selective", "M4V, ours, selective")),
)  # fmt: skip
Found = dict[str, dict[str, Any]]


def read(paths: Iterable[Path]) -> Found:
    """Benchmark name -> its JSON, which a file holds or, as the driver's results.json, several. Of two of one benchmark
    the rows are joined, those of the first count; the device must be the same."""
    found: Found = {}
    for path, held in ((file, one) for file in paths for one in _benchmarks(json.loads(file.read_text()))):
        known = found.setdefault(held["benchmark"], held)
        if known is not held:
            if known["facts"]["device"] != held["facts"]["device"]:
                raise SystemExit(f"{path}: {held['benchmark']} was measured on another device before")
            known["rows"] += held["rows"]
            if (other := _taken_at(held)) != _taken_at(known) and other not in known.setdefault("joined", []):
                known["joined"].append(other)
    return found


def _taken_at(held: dict[str, Any]) -> str:
    return f"commit {held['facts']['commit']}, {held['facts']['date']}"


def _benchmarks(held: dict[str, Any]) -> list[dict[str, Any]]:
    given = [held] if "benchmark" in held else held.values()
    return [one for one in given if "benchmark" in one and "facts" in one]


def figure(found: Found, benchmark: str, wanted: dict[str, Any], key: str, form: str = "{:.1f}") -> str:
    """A measured figure of the row that has all of `wanted`."""
    for row in found.get(benchmark, {}).get("rows", []):
        if row.get("state") == "measured" and key in row and all(row.get(k) == v for k, v in wanted.items()):
            return form.format(row[key])
    return MISSING


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *(f"| {' | '.join(r)} |" for r in rows), ""]


def flops_rows() -> list[list[str]]:
    from m4v.flops_table import table4

    rows = []
    for ssm, label in (("mamba1", "the paper's"), ("ssd", "the product's")):
        for row in table4(ssm):  # type: ignore[arg-type]
            rows.append([row["name"], label, f"{row['params_b']:.2f}"])
            for frames in FRAMES:
                cells = (f"{row[f'{name}_{frames}']:.2f}" for name in ("paper", "tflops", "counted", "forward"))
                rows[-1].append(" / ".join(cells))
    return rows


def generation_rows(found: Found) -> list[list[str]]:
    rows = []
    for printed in ROWS:
        for form in printed.forms:
            cells = [printed.name, form]
            for frames in FRAMES:
                wanted = {"form": form, "frames": frames}
                cells.append(f"{printed.seconds[frames]:.0f}")
                cells += [
                    figure(found, "generation", {**wanted, "kind": k}, "seconds") for k in ("summed", "end to end")
                ]
            rows.append(
                [*cells, figure(found, "generation", {"form": form, "kind": "end to end", "frames": 241}, "peak GiB")]
            )
    return rows


def forward_rows(found: Found) -> list[list[str]]:
    """Milliseconds of both samples' forward by latent frame and stage, for the forms that were timed."""
    rows = []
    timed = found.get("generation", {}).get("forwards", {})
    for form, held in timed.items():
        by_unit = dict(zip(held["units"], held["ms"], strict=True))
        cells = [[f"{ms:.1f}" for ms in by_unit.get(unit, ())] or [MISSING] * 3 for unit in UNITS]
        rows.append([form, *(" / ".join(each) for each in cells)])
    return rows or [[MISSING] * (1 + len(UNITS))]


def block_rows(found: Found) -> list[list[str]]:
    rows = []
    for row in found.get("blocks", {}).get("rows", []):
        if row.get("state") == "measured" and "fwd ms" in row:
            cells = (f"{row[key]:.2f}" if row.get(key) else "-" for key in ("fwd ms", "fwd+bwd ms", "step MiB"))
            rows.append([row["case"], str(row["tokens"]), row["variant"], row["mode"], *cells])
    return rows or [[MISSING] * 7]


def step_rows(found: Found) -> list[list[str]]:
    rows = []
    lengths = sorted({row["frames"] for row in found.get("step", {}).get("rows", [])}) or [121]
    for frames in lengths:
        for printed in ROWS:
            for loop in printed.loops:
                wanted = {"loop": loop, "frames": frames}
                cells = (figure(found, "step", wanted, key) for key in ("tokens/s", "peak GiB", "above state GiB"))
                rows.append([printed.name, loop, str(frames), *cells])
    return rows


def _origin(name: str, held: dict[str, Any]) -> str:
    """The page's line on where a benchmark's figures come from."""
    facts = held["facts"]
    said = f"- {name}: {facts['device']}, torch {facts['torch']}, {_taken_at(held)}"
    if "kernels" in facts:
        said += f"; *auto* then meant {', '.join(f'{k} {v}' for k, v in facts['kernels'].items())}"
    if "joined" in held:
        said += f"; what that run lacks: {'; '.join(held['joined'])}"
    return said


def page(found: Found) -> str:
    lines = ["# FLOPs, time and memory against the paper's own table", ""]
    taken = {name: held for name, held in found.items() if name in SHOWN}
    if taken:
        lines += [_origin(name, held) for name, held in taken.items()]
    else:
        lines += ["No benchmark's file was given: every time and every amount of memory is `not measured`."]
    heads = [f"{f} frames: {w}" for f in FRAMES for w in ("paper, A100", "summed", "end to end")]
    lines += ["", "## Operations", "",
              "TFLOPs of one forward, last latent frame, 768p: the paper's mixers / ours by its convention / our "
              "mixers as torch counts them / the whole model (`m4v flops --table4`).", "",
              *table(("model", "SSM", "params B", *(f"{f} frames" for f in FRAMES)), flops_rows()),
              "## A whole video", "",
              "Seconds. The paper's are of one A100; ours of the device above. *Summed* adds up the transformer's "
              "forwards by the sampler's steps; *end to end* is a real run with text encoding and VAE.", "",
              *table(("model", "form", *heads, "peak GiB, 241"), generation_rows(found)),
              "## A guided forward by latent frame and stage", "",
              "Milliseconds at the low / middle / high stage, both samples of guidance. Small forwards are where the "
              "host's launches count, which CUDA graphs replace.", "",
              *table(("form", *("an image" if n == 1 else f"{8 * n - 7} frames" for n in UNITS)), forward_rows(found)),
              "## One single-stream block", "",
              *table(("case", "tokens", "block", "mode", "fwd ms", "fwd+bwd ms", "step MiB"), block_rows(found)),
              "## A training step", "",
              *table(("model", "loop", "frames", "tokens/s", "peak GiB", "above state GiB"), step_rows(found)),
              ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="JSON of bench_blocks, bench_generation, bench_step")
    parser.add_argument("--out", type=Path, help="the page; without it, it is printed")
    options = parser.parse_args()
    text = page(read(options.files))
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
