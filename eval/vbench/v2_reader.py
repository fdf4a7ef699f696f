"""What the worker of VBench-2.0 answered, made a result: every judgement counted, the score recomputed. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from eval.suites import DimensionResult, SuiteVideo, VideoRow
from eval.vbench.reader import TOLERANCE, Unusable, fraction
from eval.vbench.v2_prompts import DIVERSITY, rules

VOID = -1.0  # upstream's word for a video that does not count


def read_v2_answer(
    answer: Mapping[str, Any],
    dimension: str,
    videos: Sequence[SuiteVideo],
    path_of: Mapping[str, str],
    times: Mapping[str, int],
    allow_zero: Sequence[str] = (),
) -> DimensionResult:
    """The result of a dimension: its score is the mean over judgements, those that do not count left out.

    Diversity has one value a prompt, which stands with the prompt's first video.

    - times: how often the suite judges a prompt; a prompt that stands twice counts twice.
    Raises Unusable where judgements are missing, too many or of a video that was not given, a value has no meaning,
    nothing counts, the score is not that of the list, or is 0.0 without leave.
    """
    found = _values(answer, dimension, {path: file for file, path in path_of.items()})
    wanted = _wanted(dimension, videos, times)
    for video in videos:
        count = len(found.get(video.file, ()))
        if count != wanted.get(video.file, 0):
            raise Unusable(f"VBench-2.0 gave {count} of {wanted.get(video.file, 0)} judgements of {video.file}")
    rows, counted = [], list[float]()
    for video in videos:
        values = [value for value in found.get(video.file, ()) if value is not None]
        counted += values
        mean = math.fsum(values) / len(values) if values else None
        rows.append(
            VideoRow(file=video.file, prompt_index=video.prompt_index, sample_index=video.sample_index, value=mean)
        )
    if not counted:
        raise Unusable("no video counts: the judge found nothing to judge in any")
    score = math.fsum(counted) / len(counted)
    told = answer.get("score")
    if not isinstance(told, int | float) or not math.isclose(float(told), score, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise Unusable(f"VBench-2.0's own score is {told}, and {score:.6f} is what its list gives")
    if score == 0.0 and dimension not in allow_zero:
        raise Unusable("the score is 0.0, as of a judge that fails without a word; allow_zero admits it")
    return DimensionResult(dimension=dimension, status="measured", expected=len(videos), score=score, rows=tuple(rows))


def _wanted(dimension: str, videos: Sequence[SuiteVideo], times: Mapping[str, int]) -> dict[str, int]:
    if dimension != DIVERSITY:
        return {video.file: times[video.prompt] for video in videos}
    first: dict[str, str] = {}
    for video in videos:
        first.setdefault(video.prompt, video.file)
    return dict.fromkeys(first.values(), 1)


def _values(answer: Mapping[str, Any], dimension: str, file_of: Mapping[str, str]) -> dict[str, list[float | None]]:
    """Judgements by file; None: it does not count."""
    found: dict[str, list[float | None]] = {}
    for path, value in answer.get("videos", ()):
        if path not in file_of:
            raise Unusable(f"VBench-2.0 gave a value of a video that it was not given: {path}")
        number = fraction(value, dimension, file_of[path])
        if number == VOID and dimension in rules().may_be_void:
            found.setdefault(file_of[path], []).append(None)
            continue
        if not -TOLERANCE <= number <= 1 + TOLERANCE:
            raise Unusable(f"{file_of[path]}: {dimension} lies in 0 to 1, VBench-2.0 gave {number}")
        found.setdefault(file_of[path], []).append(number)
    return found
