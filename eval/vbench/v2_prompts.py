"""VBench-2.0's rules: 18 dimensions in five groups, its prompts, videos a prompt, how files are called. Torch-free.

Sampling reads this module: what scores lies in `v2`, so that a change there makes no sampled video stale.
A prompt's number is the place, from 0, of its first entry in upstream's file: seeds and file names count by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Literal, NamedTuple

from pydantic import Field

from eval.vbench.prompt_suite import packaged
from m4v.core.config import FrozenModel

SET = "vbench2"  # of prompts
DIVERSITY = "diversity"
FULL_INFO = "vbench2_full_info.json"
_FILE = "vbench2.json"


class Rules(FrozenModel):
    """`vbench2.json`, with where every figure is from.

    - totals: source of the rule of `v2.figures`. groups: dimensions by group, in the published order.
    - published_names: what upstream calls a dimension.
    - name_characters: of a prompt, in a video's name.
    - instance_min_seconds: shorter videos have no part of a second that instance preservation looks at, and upstream
      gives all of them 1.0.
    - diversity_frame_bytes: memory of a frame's features, of VGG-19's six layers at 512 x 512 in fp32; those of all
      videos of a prompt are kept.
    - on_a_cpu: dimensions that do not say `cuda` in their code.
    - may_be_void: dimensions that leave out a video where their judge finds nothing to judge.
    """

    source: str
    licence: str
    totals: str
    samples_per_prompt: int
    diversity_samples: int
    name_characters: int
    instance_min_seconds: float
    diversity_frame_bytes: int
    groups: dict[str, tuple[str, ...]]
    published_names: dict[str, str]
    on_a_cpu: tuple[str, ...]
    may_be_void: tuple[str, ...]


class Entry(NamedTuple):
    """One of upstream's 1,230 entries. `auxiliary`: what judges are asked beside the prompt, None where nothing."""

    prompt: str
    dimension: str
    auxiliary: object


class Prompt2(NamedTuple):
    """A distinct prompt with the dimensions of its entries, each once, and the videos that they want at most."""

    number: int
    prompt: str
    dimensions: tuple[str, ...]
    samples: int


@cache
def rules() -> Rules:
    return Rules.model_validate(json.loads((resources.files("eval.vbench.data") / _FILE).read_text()))


V2_DIMENSIONS = tuple(name for names in rules().groups.values() for name in names)


@cache
def entries() -> tuple[Entry, ...]:
    """In upstream's order. One prompt stands twice in dynamic spatial relationship, whose score counts it twice."""
    ours = {published: name for name, published in rules().published_names.items()}
    return tuple(
        Entry(e["prompt_en"], ours[e["dimension"][0]], e.get("auxiliary_info")) for e in json.loads(packaged(FULL_INFO))
    )


@cache
def prompts() -> tuple[Prompt2, ...]:
    """The 1,012 distinct prompts by number."""
    found: dict[str, tuple[int, list[str]]] = {}
    for place, entry in enumerate(entries()):
        found.setdefault(entry.prompt, (place, []))[1].append(entry.dimension)
    return tuple(
        Prompt2(number, text, tuple(d for d in V2_DIMENSIONS if d in read), max(samples_of(d) for d in read))
        for text, (number, read) in found.items()
    )


def prompts_of(dimension: str) -> Sequence[Prompt2]:
    """Those that a dimension reads, each once."""
    return [p for p in prompts() if dimension in p.dimensions]


def samples_of(dimension: str) -> int:
    """Videos a prompt: diversity compares 20, the others read 3, the first of the 20 where they share a prompt."""
    return rules().diversity_samples if dimension == DIVERSITY else rules().samples_per_prompt


def expected_of(dimension: str) -> int:
    """Videos that a dimension wants."""
    return samples_of(dimension) * len(prompts_of(dimension))


def video_name(prompt: str, index: int) -> str:
    """What upstream looks for: the prompt's first 180 characters. No two prompts of the suite begin alike."""
    return f"{prompt[: rules().name_characters]}-{index}.mp4"


class Selection(FrozenModel):
    """Part of the suite, as a recipe writes it: `{suite: vbench2, dimensions: [diversity]}`. `samples`: videos a prompt
    by dimension, in place of the suite's number."""

    suite: Literal["vbench2"]
    dimensions: tuple[str, ...] = V2_DIMENSIONS
    samples: dict[str, int] = Field(default={})


def listed(dimensions: Sequence[str], samples: Mapping[str, int]) -> list[dict[str, object]]:
    """Prompts of these dimensions as `eval.prompts` takes them, with a number of samples where it is not the suite's
    three: diversity's, and what `samples` says by dimension. Raises ValueError for an unknown dimension."""
    for name in (*dimensions, *samples):
        if name not in V2_DIMENSIONS:
            raise ValueError(f"VBench-2.0 has no dimension {name!r}; there are {', '.join(V2_DIMENSIONS)}")
    found: list[dict[str, object]] = []
    for each in prompts():
        mine = [d for d in each.dimensions if d in dimensions]
        if mine:
            count = max(samples.get(d, samples_of(d)) for d in mine)
            own = {"samples": count} if count != rules().samples_per_prompt else {}
            found.append({"text": each.prompt, "number": each.number, **own})
    return found
