"""VBench-Long's rules: how a video is cut into clips, which videos it takes, two branches of consistency. Torch-free.

Every dimension of VBench is taken of clips of 2 or 10 s; of subject and background consistency a second branch compares
the clips' first frames with each other, by features of its own, and its value is mapped to the first's scale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import NamedTuple

from eval.records import SampleVideo
from eval.vbench.prompt_suite import suite_prompts
from m4v.core.config import FrozenModel
from m4v.core.errors import InputError

_FILE = "long.json"


class UpstreamFile(FrozenModel):
    """Where figures were read: sha256 of the file at that commit."""

    commit: str
    sha256: str


class ClipToClip(FrozenModel):
    """The second branch of a dimension. `mapping[n]`: its value n/100 on the scale of the first."""

    features: str
    in_clip_weight: float
    clip_to_clip_weight: float
    mapping: tuple[float, ...]

    def table(self) -> dict[str, float]:
        """The mapping by its written value, as VBench-Long's own file has it."""
        return {f"{n / 100}": value for n, value in enumerate(self.mapping)}


class LongRules(FrozenModel):
    """`long.json`, with where every figure is from. `totals`: why VBench's totals hold here."""

    source: str
    licence: str
    files: dict[str, UpstreamFile]
    totals: str
    min_seconds: float
    clip_seconds: dict[str, int]
    custom_clip_seconds: int
    custom_dimensions: tuple[str, ...]
    samples_per_prompt: int
    clip_to_clip: dict[str, ClipToClip]


@cache
def rules() -> LongRules:
    return LongRules.model_validate(json.loads((resources.files("eval.vbench.data") / _FILE).read_text()))


LONG_CUSTOM_DIMENSIONS = rules().custom_dimensions


@cache
def _seconds_by_prompt() -> Mapping[str, int]:
    known = rules().clip_seconds
    return {p.prompt: max(known[d] for d in p.dimensions) for p in suite_prompts()}


def clip_seconds(prompt: str, *, custom: bool = False) -> int:
    """Length of a video's clips: of the suite's prompts the longest that any dimension of the prompt wants, whichever
    is measured (upstream cuts once for all); of others 2 s."""
    return rules().custom_clip_seconds if custom else _seconds_by_prompt()[prompt]


def clip_count(frames: int, fps: float, seconds: int) -> int:
    """Clips of a video: whole ones, and one more where frames are left over, filled up with those before them; a
    video that is shorter than a clip is one."""
    length = int(fps) * seconds
    return 1 if frames < length else -(-frames // length)


class Rate(NamedTuple):
    """What a set of videos is sampled at."""

    frames: int
    fps: float

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


def problem_of_length(rate: Rate) -> str | None:
    """Why VBench-Long does not take videos of that length or rate; None where it does."""
    least = rules().min_seconds
    if rate.seconds < least:
        given = f"{rate.frames} frames at {rate.fps:g} a second are {rate.seconds:.2f} s"
        return f"VBench-Long is for videos of {least:g} s and more: {given}"
    if rate.fps != int(rate.fps):
        return f"VBench-Long cuts by whole frames a second and would take {rate.fps:g} for {int(rate.fps)}"
    return None


def check_lengths(videos: Mapping[str, SampleVideo]) -> None:
    """Raise InputError for a video that VBench-Long does not take, naming it."""
    for video in videos.values():
        problem = problem_of_length(Rate(video.frames, video.fps))
        if problem is not None:
            raise InputError(
                problem, value=video.file, where="suite vbench-long",
                next_step="measure them with --suite vbench, or sample longer ones",
            )  # fmt: skip
