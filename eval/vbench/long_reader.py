"""What the worker of VBench-Long answered, made a result: clips counted, joined to their videos. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from eval.suites import DimensionResult, SuiteVideo, VideoRow
from eval.vbench.reader import LEAVES_OUT, TOLERANCE, Unusable, fraction


def read_long_answer(
    answer: Mapping[str, Any],
    dimension: str,
    videos: Sequence[SuiteVideo],
    path_of: Mapping[str, str],
    clips_of: Mapping[str, int],
    allow_zero: Sequence[str] = (),
    *,
    filtered: bool = False,
) -> DimensionResult:
    """The result of a dimension: a video's value is the mean of its clips.

    VBench-Long's score is the mean of all clips; where its filter chose among them, of the videos that have any.

    - clips_of: how many a video has, by the file's name in the samples; filtered: clips may be left out, which the
      answer names, and a video without any stands without a value.
    Raises Unusable as `read_answer`, and where clips are missing.
    """
    values = _values(answer, dimension, {path_of[v.file]: v.file for v in videos})
    left_out = _left_out(answer, path_of) if filtered else {}
    for video in videos:
        found, wanted = len(values.get(video.file, ())), clips_of[video.file] - left_out.get(video.file, 0)
        if found > wanted or (found < wanted and dimension not in LEAVES_OUT):
            raise Unusable(f"VBench-Long gave {found} of {wanted} clips of {video.file}")
    rows = tuple(
        VideoRow(
            file=v.file, prompt_index=v.prompt_index, sample_index=v.sample_index,
            value=math.fsum(values[v.file]) / len(values[v.file]) if values.get(v.file) else None,
        )
        for v in videos
    )  # fmt: skip
    counted = [(r.value, 1 if filtered else len(values[r.file])) for r in rows if r.value is not None]
    if not counted:
        raise Unusable("no video has a value")
    score = math.fsum(value * weight for value, weight in counted) / sum(weight for _, weight in counted)
    told = answer.get("score")
    if not isinstance(told, int | float) or not math.isclose(float(told), score, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise Unusable(f"VBench-Long's own score is {told}, and {score:.6f} is what its list of clips gives")
    if score == 0.0 and dimension not in allow_zero:
        raise Unusable("the score is 0.0, as of a detector that fails without a word; allow_zero admits it")
    return DimensionResult(dimension=dimension, status="measured", expected=len(videos), score=score, rows=rows)


def _values(answer: Mapping[str, Any], dimension: str, file_of: Mapping[str, str]) -> dict[str, list[float]]:
    """Of each video its clips' values."""
    found: dict[str, list[float]] = {}
    for path, value in answer.get("clips", ()):
        if path not in file_of:
            raise Unusable(f"VBench-Long gave a value of a video that it was not given: {path}")
        found.setdefault(file_of[path], []).append(fraction(value, dimension, file_of[path]))
    return found


def _left_out(answer: Mapping[str, Any], path_of: Mapping[str, str]) -> dict[str, int]:
    counts = dict(answer.get("left_out", ()))
    return {file: counts[path] for file, path in path_of.items() if path in counts}
