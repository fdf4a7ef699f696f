"""VBench's standard prompts as package data: 946 entries, 944 distinct prompts, three wordings. Torch-free.

A prompt's number is the line, from 0, of its first entry: seeds and file names count by it, so that a part of the
suite gives the very videos that the whole gives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Literal, NamedTuple

from pydantic import Field

from eval.vbench.constants import DIMENSIONS
from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError

Variant = Literal["short", "longer", "wanx"]
SAMPLES = 5  # videos a prompt
STATIC_DIMENSION, STATIC_SAMPLES = (
    "temporal_flickering",
    25,
)  # before its filter, which keeps at most 5 near-static ones
SETS: Mapping[str, Variant] = {"vbench": "short", "vbench-longer": "longer", "vbench-wanx": "wanx"}
FULL_INFO = "full_info.json"
_DATA = "eval.vbench.data.prompts"
_TEXTS: Mapping[Variant, str] = {"longer": "longer.txt", "wanx": "wanx.txt"}


class SuitePrompt(NamedTuple):
    """A distinct prompt with the dimensions of all its entries, in the published order."""

    number: int
    prompt: str
    dimensions: tuple[str, ...]


class Selection(FrozenModel):
    """Part of the suite, as a recipe writes it: `{suite: vbench, variant: longer, dimensions: [scene]}`.

    - samples: videos a prompt by dimension, in place of the recipe's number (`temporal_flickering: 25`).
    """

    suite: Literal["vbench"]
    variant: Variant = "short"
    dimensions: tuple[str, ...] = DIMENSIONS
    samples: dict[str, int] = Field(default={})


def packaged(name: str) -> bytes:
    """A file of the suite; raises DataIntegrityError when it is not the published one."""
    root = resources.files(_DATA)
    expected = json.loads((root / "files.json").read_text())["files"][name]["sha256"]
    data = (root / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise DataIntegrityError("packaged VBench prompts differ from the published ones", value=name, where=_DATA)
    return data


@cache
def suite_prompts() -> tuple[SuitePrompt, ...]:
    """The 944 distinct prompts by number."""
    found: dict[str, tuple[int, set[str]]] = {}
    for line, entry in enumerate(json.loads(packaged(FULL_INFO))):
        _, dimensions = found.setdefault(entry["prompt_en"], (line, set()))
        dimensions.update(entry["dimension"])
    return tuple(
        SuitePrompt(line, prompt, tuple(d for d in DIMENSIONS if d in dimensions))
        for prompt, (line, dimensions) in found.items()
    )


@cache
def wording(variant: Variant) -> Mapping[int, str]:
    """What the model is given, by prompt number."""
    if variant == "short":
        return {p.number: p.prompt for p in suite_prompts()}
    lines = packaged(_TEXTS[variant]).decode().splitlines()
    return {p.number: lines[p.number] for p in suite_prompts()}


def selected(selection: Selection) -> list[dict[str, object]]:
    """Prompts of a part of the suite as `eval.prompts` takes them; raises ValueError for an unknown dimension."""
    for name in (*selection.dimensions, *selection.samples):
        if name not in DIMENSIONS:
            raise ValueError(f"VBench has no dimension {name!r}; there are {', '.join(DIMENSIONS)}")
    texts = wording(selection.variant)
    return [
        _prompt(each, texts[each.number], selection.samples)
        for each in suite_prompts()
        if set(each.dimensions) & set(selection.dimensions)
    ]


def _prompt(each: SuitePrompt, text: str, samples: Mapping[str, int]) -> dict[str, object]:
    found: dict[str, object] = {"text": text, "number": each.number}
    if text != each.prompt:
        found["scored_as"] = each.prompt
    if wanted := [samples[d] for d in each.dimensions if d in samples]:
        found["samples"] = max(wanted)
    return found


def prompts_of(dimension: str) -> Sequence[SuitePrompt]:
    """Those that a dimension reads."""
    return [p for p in suite_prompts() if dimension in p.dimensions]
