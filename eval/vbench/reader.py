"""What a worker answered, made a result: every video counted, scales converted, the score recomputed. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from eval.suites import DimensionResult, SuiteVideo, VideoRow

TOLERANCE = 1e-5  # of float32 sums
PERCENT = ("imaging_quality",)
YES_NO = ("dynamic_degree", "human_action")
LEAVES_OUT = ("color",)  # a video in which the detector finds no object of that colour counts in neither sum
# VBench's own score of these is over frames, which is the mean over videos only where all have one length.
FRAME_WEIGHTED = {"subject_consistency": 1, "background_consistency": 1, "appearance_style": 0}


class Unusable(Exception):
    """The answer is no measurement; the words say why."""


def read_answer(
    answer: Mapping[str, Any],
    dimension: str,
    videos: Sequence[SuiteVideo],
    path_of: Mapping[str, str],
    frames_of: Mapping[str, int],
    allow_zero: Sequence[str] = (),
    *,
    filtered: bool = False,
) -> DimensionResult:
    """The result of a dimension.

    - filtered: VBench's filter may have left videos out, which the answer names; they stand without a value.
    - path_of: the path that the worker was given, by the file's name in the samples; frames_of: frames a video.
    Raises Unusable where videos are missing, doubled or strange, a value has another type than the dimension's, the
    score is not that of the list, or is 0.0 without leave.
    """
    values = _values(answer, dimension, {path: file for file, path in path_of.items()})
    left_out = set(answer.get("left_out", ())) if filtered else set()
    if both := sorted(file for file in values if path_of[file] in left_out):
        raise Unusable(f"VBench gave a value of a video that its filter left out: {both[0]}")
    missing = [v.file for v in videos if v.file not in values and path_of[v.file] not in left_out]
    if missing and dimension not in LEAVES_OUT:
        raise Unusable(f"VBench gave {len(values)} of {len(videos)} videos; the first without a value is {missing[0]}")
    rows = tuple(
        VideoRow(file=v.file, prompt_index=v.prompt_index, sample_index=v.sample_index, value=values.get(v.file))
        for v in videos
    )
    score = weighted_mean(dimension, rows, frames_of)
    if score is None:
        raise Unusable("no video has a value")
    told = answer.get("score")
    if not isinstance(told, int | float) or not math.isclose(float(told), score, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise Unusable(f"VBench's own score is {told}, and {score:.6f} is what its list of videos gives")
    if score == 0.0 and dimension not in allow_zero:
        raise Unusable("the score is 0.0, as of a detector that fails without a word; allow_zero admits it")
    return DimensionResult(dimension=dimension, status="measured", expected=len(videos), score=score, rows=rows)


def _values(answer: Mapping[str, Any], dimension: str, file_of: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for path, value in answer.get("videos", ()):
        if path not in file_of:
            raise Unusable(f"VBench gave a value of a video that it was not given: {path}")
        if file_of[path] in found:
            raise Unusable(f"VBench gave two values of one video: {file_of[path]}")
        found[file_of[path]] = fraction(value, dimension, file_of[path])
    return found


def fraction(value: object, dimension: str, file: str) -> float:
    if dimension in YES_NO:
        if not isinstance(value, bool):
            raise Unusable(f"{file}: {dimension} is yes or no, VBench gave {value!r}")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unusable(f"{file}: {dimension} is a number, VBench gave {value!r}")
    return float(value) / 100.0 if dimension in PERCENT else float(value)


def weighted_mean(dimension: str, rows: Sequence[VideoRow], frames_of: Mapping[str, int]) -> float | None:
    """VBench's score of a list of values: over frames where it counts frames, over videos elsewhere."""
    less = FRAME_WEIGHTED.get(dimension)
    known = [(r.value, 1 if less is None else frames_of[r.file] - less) for r in rows if r.value is not None]
    total = sum(weight for _, weight in known)
    return math.fsum(value * weight for value, weight in known) / total if total else None
