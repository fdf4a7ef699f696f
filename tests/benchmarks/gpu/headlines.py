"""The few figures that stand for a benchmark, read from its JSON, each beside its goal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

Found = dict[str, Any]


class Figure(NamedTuple):
    """A figure; its goal is a least value, or the most if it is negative."""

    label: str
    value: float
    goal: float | None = None

    def __str__(self) -> str:
        if self.goal is None:
            return f"{self.label} {self.value:.4g}"
        met = self.value >= self.goal if self.goal > 0 else self.value <= -self.goal
        sign = ">=" if self.goal > 0 else "<="
        return f"{self.label} {self.value:.3g} ({sign} {abs(self.goal):g}: {'met' if met else 'NOT MET'})"


def _ssd(found: Found) -> Iterator[Figure]:
    for tokens, wanted in ((15_488, {"forward": 2.0, "both": 1.6}), (75_600, {})):
        for key, goal in wanted.items() or (("forward", None), ("both", None)):
            own = [v for k, v in found.get(f"ratios {tokens}", {}).items() if k.startswith(key) and "default" in k]
            yield from (Figure(f"{key} {tokens}", value, goal) for value in own)


def _composition(found: Found) -> Iterator[Figure]:
    for key, name in (("forward_graph_ms", "forward"), ("both_graph_ms", "both")):
        value = found.get(f"{key} 15488", {}).get("index/cat/slice")
        if value is not None:
            yield Figure(name, value, 4.0)


def _convolution(found: Found) -> Iterator[Figure]:
    taken = {(row["kernels"], row["tokens"]): row for row in _measured(found)}
    for (name, tokens), row in taken.items():
        for key in ("graph ms", "both graph ms"):
            if key in row:
                yield Figure(f"{name} {tokens} {key}", row[key])


def _attention(found: Found) -> Iterator[Figure]:
    rows = [row for row in found["rows"] if row["case"] == found["rows"][0]["case"]]
    for key in ("forward_graph_ms", "both_graph_ms"):
        ours = [row[key] for row in rows if row["way"].startswith("ours") and key in row]
        flex = [row[key] for row in rows if row["way"].startswith("Flex") and key in row]
        if ours and flex:
            yield Figure(f"{key.split('_')[0]}, best Flex over ours", min(flex) / min(ours))


def _blocks(found: Found) -> Iterator[Figure]:
    for goal in found.get("goals", []):
        for key in ("fwd ms", "fwd+bwd ms"):
            if key in goal and "241f" in goal["case"] and "high" in goal["case"]:
                label = f"{goal['variant']} / {goal['against']} {key.removesuffix(' ms')}"
                yield Figure(label, goal[key]["ratio"], goal[key]["goal"])


def _forward(found: Found) -> Iterator[Figure]:
    """Whole forwards, and what each kind of block takes of them."""
    for row in found["rows"]:
        if row["state"] == "measured" and row["part"] in ("kernels", "eager", "graph", "sustained"):
            meters = f" at {row['MHz']:.0f} MHz, {row['W']:.0f} W" if row.get("MHz") else ""
            blocks = "" if row["blocks"] == "all" else f"{row['blocks']}, "
            yield Figure(f"{row['form']}, {row['case']}, {blocks}{row['part']}{meters}, ms", row["ms"])


def _budget(found: Found) -> Iterator[Figure]:
    for name, parts in found.get("parts", {}).items():
        for way in ("forward ms", "backward ms"):
            yield Figure(f"{name}, kernels {way}", sum(part[way] for part in parts.values()))
        for mode, (forward, both) in found.get("walls", {}).get(name, {}).items():
            yield Figure(f"{name}, {mode}, forward ms", forward)
            yield Figure(f"{name}, {mode}, both ms", both)


def _generation(found: Found) -> Iterator[Figure]:
    taken = {r["form"]: r["seconds"] for r in _measured(found) if r.get("kind") == "summed" and r.get("frames") == 241}
    eager, graphs = taken.pop("M4V, ours", None), taken.pop("M4V, ours, CUDA graphs, decoding beside", None)
    mine = graphs or eager  # graphs are what the product does where nothing else is asked for
    goals = {"attention, as released": 2.4, "attention, compiled, all scores": 1.4, "attention, FlexAttention": 1.3}
    if mine:
        yield from (Figure(f"ours, {kind}, s", s) for kind, s in (("eager", eager), ("graphs", graphs)) if s)
        yield from (Figure(form, seconds / mine, goals.get(form)) for form, seconds in taken.items())
    for row in _measured(found):
        if row.get("kind") == "end to end":
            yield Figure(f"{row['form']}, {row['frames']} frames, s", row["seconds"])


def _step(found: Found) -> Iterator[Figure]:
    for frames, mine, other, key, ratio, goal in found.get("goals", []):
        if goal:
            least, of = float(goal.split()[-1]), "" if frames == 121 else f", {frames} frames"
            yield Figure(f"{mine} / {other} {key}{of}", ratio, least if goal.startswith("at least") else -least)


def _wan_layer(found: Found) -> Iterator[Figure]:
    rows = [row for row in _measured(found) if row["tokens"] == 75_600 and row["size"].startswith("14B")]
    for key in ("forward_ms", "both_ms"):
        theirs = [row[key] for row in rows if row["way"] == "attention" and key in row]
        ours = [row[key] for row in rows if row["way"] == "MM-DiM" and key in row]
        if ours and theirs:
            yield Figure(key.removesuffix("_ms"), min(theirs) / min(ours), 3.0)


def _scaling(found: Found) -> Iterator[Figure]:
    rows = found["rows"]
    names = {name: row for name, row in rows.items() if "tokens/s/GPU" in row}
    for name, row in names.items():
        yield Figure(f"{name} tokens/s/GPU", row["tokens/s/GPU"])
        yield Figure(f"{name} data %", row["data %"], -1.0)
    for zero, goal in ((3, 91.0), (2, 94.0)):
        alone = f"121f zero{zero} x1"
        one = names.get(alone) or names.get(f"{alone} (side by side)")
        for gpus in (2, 4):
            many = names.get(f"121f zero{zero} x{gpus}")
            if one and many:
                percent = 100 * many["tokens/s/GPU"] / one["tokens/s/GPU"]
                yield Figure(f"scaling zero{zero} x{gpus}, %", percent, goal if gpus == 4 else None)
    if "saves" in rows:
        yield Figure("stall, of a synchronous save", rows["saves"]["share"], -0.05)
        if "longer share" in rows["saves"]:
            yield Figure("longer steps beside the last save, of a synchronous one", rows["saves"]["longer share"])


def _reward(found: Found) -> Iterator[Figure]:
    if found.get("fits") and "peak_gib" in found:
        yield Figure("peak GiB", found["peak_gib"], -80.0)
    yield from (Figure("step s", step["seconds"]) for step in found["steps"][-1:])


def _learning(found: Found) -> Iterator[Figure]:
    for name, counted in found["accuracy"]["unseen"].items():
        yield Figure(f"unseen {name} (chance {counted['chance']:.2g})", counted["right"] / counted["of"])


def _rehearse(found: Found) -> Iterator[Figure]:
    yield Figure("stages done", found["done"])
    for name, row in found["stages"].items():
        if row["state"] == "succeeded" and ("step_seconds_median" in row or name in ("init", "encode")):
            yield Figure(f"{name} s", row["seconds"])
            if "gpu_peak_bytes" in row:
                yield Figure(f"{name} GiB", row["gpu_peak_bytes"] / 2**30)


def _parallel(found: Found) -> Iterator[Figure]:
    yield from (Figure(f"x{n}, % of ideal", row["of ideal %"]) for n, row in found.items() if "of ideal %" in row)


def _host(found: Found) -> Iterator[Figure]:
    yield from (Figure(f"{name}, ms", row["both_ms"]) for name, row in found["modes"].items())


READERS: dict[str, Callable[[Found], Iterator[Figure]]] = {
    "ssd": _ssd, "composition": _composition, "convolution": _convolution, "attention": _attention,
    "blocks": _blocks, "budget": _budget, "forward": _forward, "generation": _generation,
    "step": _step, "wan_layer": _wan_layer,
    "scaling": _scaling, "reward": _reward, "learning": _learning, "parallel": _parallel, "rehearse": _rehearse,
    "host": _host,
}  # fmt: skip


def _measured(found: Found) -> list[Found]:
    return [row for row in found.get("rows", []) if row.get("state") == "measured"]


def figures(name: str, found: Found) -> list[Figure]:
    """Those of the job `name`, whose first words name the benchmark; none where it has no headline."""
    parts = name.split("_")
    known = ("_".join(parts[:length]) for length in range(len(parts), 0, -1))
    reader = next((READERS[key] for key in known if key in READERS), None)
    return [] if reader is None else list(reader(found))


def measured_rows(found: Found) -> tuple[int, int] | None:
    """How many rows a benchmark has measured, of how many it has; None where it keeps no states."""
    rows = found.get("rows")
    if not isinstance(rows, list) or not any("state" in row for row in rows):
        return None
    good = sum(row.get("state") in ("measured", "computed") for row in rows)
    return good, len(rows)


class Tests(NamedTuple):
    """Of a run of pytest."""

    passed: int
    failed: int
    skipped: int


def tests_of(path: Path) -> Tests:
    """From pytest's JUnit file. Raises ElementTree.ParseError for one that was cut off."""
    suite = next(ElementTree.parse(path).iter("testsuite"))
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    return Tests(count["tests"] - failed - count["skipped"], failed, count["skipped"])


def last_json(lines: Sequence[str]) -> Found | None:
    """The last line that is a JSON object."""
    for line in reversed(lines):
        if line.startswith("{") and line.rstrip().endswith("}"):
            try:
                return dict(json.loads(line))
            except ValueError:
                continue
    return None
