"""VBench-I2V's rules: nine dimensions in two groups, which pictures and prompts each reads. Torch-free.

Its prompts and pictures come with its data, which is not ours to ship: `vbench2_i2v_full_info.json` beside a folder
`crop/RATIO` of pictures for each of four ratios. What is read of them is counted against the published numbers.
Sampling reads this module: what scores lies in `i2v`, so that a change there makes no sampled video stale.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from m4v.core.config import FrozenModel
from m4v.core.errors import InputError

SET = "vbench-i2v"
CACHE_VARIABLE = "VBENCH_CACHE_DIR"
_FILE = "i2v.json"
Group = Literal["i2v", "quality"]


class I2VDimension(FrozenModel):
    """`min` and `max` of the raw score as fractions; `weight` within the group; `reads`: of which of the three kinds of
    entries it takes the videos."""

    name: str
    group: Group
    min: float
    max: float
    weight: float
    reads: tuple[str, ...]


class Rules(FrozenModel):
    """`i2v.json`, with where every figure is from. `totals`: source of the rule of `i2v.figures`; `ratios`: width to
    height of the pictures; `counts`: prompts by kind of entry."""

    source: str
    licence: str
    totals: str
    samples_per_prompt: int
    ratios: tuple[str, ...]
    info: str
    counts: dict[str, int]
    dimensions: tuple[I2VDimension, ...]

    def names(self, group: Group | None = None) -> tuple[str, ...]:
        return tuple(d.name for d in self.dimensions if group in (None, d.group))


class Entry(NamedTuple):
    """A prompt with its kind, and the picture that its videos begin with; camera motion's entries name none."""

    number: int
    prompt: str
    kind: str
    image: str | None


@cache
def rules() -> Rules:
    return Rules.model_validate(json.loads((resources.files("eval.vbench.data") / _FILE).read_text()))


I2V_DIMENSIONS = rules().names()
NEW = rules().names("i2v")  # the three that VBench does not have
_KINDS = {d.name: d.reads for d in rules().dimensions}


def default_data() -> Path:
    """Where the suite's data lies when no place is told: `i2v_data` below VBench's own folder."""
    root = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "vbench")
    return root.expanduser().absolute() / "i2v_data"


def read_entries(folder: Path) -> tuple[Entry, ...]:
    """The suite's entries, from its data; raises InputError where there is none, or another than the published one."""
    path = folder / rules().info
    step = (
        f"put VBench-I2V's data there: {rules().info} and crop/, as its download script has them; or set "
        f"{CACHE_VARIABLE} to the folder whose i2v_data has them"
    )
    try:
        data = json.loads(path.read_bytes())
        found = tuple(
            Entry(number, e["prompt_en"], kind, e.get("image_name"))
            for number, e in enumerate(data)
            for kind in rules().counts
            if kind in e["dimension"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"VBench-I2V's prompts cannot be read: {error}", value=str(path), next_step=step) from None
    for kind, count in rules().counts.items():
        mine = {e.prompt for e in found if e.kind == kind}
        if len(mine) != count:
            raise InputError(
                f"VBench-I2V has {count} prompts of {kind}, and this file {len(mine)}", value=str(path), next_step=step
            )
    if missing := next((e for e in found if e.kind != "camera_motion" and not e.image), None):
        raise InputError("a prompt of VBench-I2V names no picture", value=missing.prompt, where=str(path))
    return found


def entries_of(dimension: str, entries: Sequence[Entry]) -> list[Entry]:
    """Those whose videos a dimension reads, each prompt once."""
    found = {e.prompt: e for e in reversed(entries) if e.kind in _KINDS[dimension]}
    return sorted(found.values())


def ratio_of(width: int, height: int) -> str:
    """The pictures' ratio that is nearest to a video's, as upstream asks: by what the longer side is wrong."""

    def distance(name: str) -> float:
        wide, high = map(int, name.split("-"))
        return abs(math.log(width / height) - math.log(wide / high))

    return min(rules().ratios, key=distance)
