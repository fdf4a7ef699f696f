"""Which video goes to which VBench dimension, each one counted: a score over what happens to be there is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from eval.prompts import set_name
from eval.records import SampleSet, SampleVideo
from eval.suites import Mode, SuiteInputs, SuiteVideo, check_dimensions
from eval.vbench.constants import CUSTOM_DIMENSIONS, DIMENSIONS
from eval.vbench.environment import SuiteName
from eval.vbench.long import LONG_CUSTOM_DIMENSIONS, check_lengths
from eval.vbench.prompt_suite import (
    SAMPLES,
    SETS,
    STATIC_DIMENSION,
    STATIC_SAMPLES,
    prompts_of,
    suite_prompts,
    wording,
)
from m4v.core.errors import ConfigError, DataIntegrityError

LABEL_IN_NAME = "human_action"  # reads what is done from the file's name, whatever the mode
OWN = "own"
_PLAIN = "generate with `prompts: vbench`, samples_per_prompt: 5"
_FILTERED = "generate with `prompts: {suite: vbench, samples: {temporal_flickering: 25}}`, samples_per_prompt: 5"
_IMPORTED = "import the missing videos too, or judge what is there with --partial: comparable with no other result"

ByPrompt = Mapping[str, Sequence[SampleVideo]]


def suite_inputs(
    samples: SampleSet,
    samples_id: str,
    dimensions: Sequence[str],
    mode: Mode = "standard",
    *,
    partial: bool = False,
    static_filter: bool = False,
    suite: SuiteName = "vbench",
) -> SuiteInputs:
    """Videos of each dimension.

    `standard`: of the suite's prompts that the dimension reads, 5 each, and of temporal flickering's up to 25, all of
    which its static filter wants.
    `custom`: every video, whatever its prompt, for the dimensions that need no more than words.
    Raises ConfigError for a dimension that is none or not of the mode, DataIntegrityError naming count and first
    example where videos of the protocol are missing and `partial` is false, InputError for a video whose length the
    suite does not take.
    """
    wanted = check_dimensions("VBench", DIMENSIONS, dimensions)
    filtered = static_filter and suite == "vbench"  # VBench-Long chooses among the clips of 5 videos
    if mode == "custom":
        known = CUSTOM_DIMENSIONS if suite == "vbench" else LONG_CUSTOM_DIMENSIONS
        if wrong := [name for name in wanted if name not in known]:
            raise ConfigError(
                "a dimension needs more than a prompt's words, so it reads the suite's prompts alone", value=wrong[0],
                next_step=f"use mode standard, or of {', '.join(known)}",
            )  # fmt: skip
        found = {name: tuple(_video(v, v.sample_index, name, mode) for v in samples.videos) for name in wanted}
        _check_lengths(samples, found, suite)
        return SuiteInputs(mode=mode, prompt_set=prompt_set_of(samples), samples=samples_id, by_dimension=found)
    by_prompt: dict[str, list[SampleVideo]] = {}
    for video in samples.videos:
        by_prompt.setdefault(video.scored_prompt, []).append(video)
    found = {name: _standard(name, by_prompt, suite) for name in wanted}
    missing = {name: gaps for name in wanted if (gaps := _gaps(name, by_prompt, filtered))}
    if missing and not partial:
        name = next(iter(missing))
        expected = expected_of(name, static_filter=filtered)
        raise DataIntegrityError(
            f"{len(missing[name])} of {expected} videos of {name} are missing; the first",
            value=missing[name][0],
            where=f"samples {samples_id[:12]}", next_step=_complete(samples, _filters(name, filtered)),
        )  # fmt: skip
    if not any(found.values()):
        raise DataIntegrityError(
            "no video is of a prompt that these dimensions read", where=f"samples {samples_id[:12]}",
            next_step="use mode custom for prompts of your own",
        )  # fmt: skip
    _check_lengths(samples, found, suite)
    return SuiteInputs(
        mode=mode, prompt_set=prompt_set_of(samples), samples=samples_id, partial=bool(missing), by_dimension=found
    )


def _check_lengths(samples: SampleSet, found: Mapping[str, Sequence[SuiteVideo]], suite: SuiteName) -> None:
    if suite == "vbench-long":
        used = {video.file for videos in found.values() for video in videos}
        check_lengths({v.file: v for v in samples.videos if v.file in used})


def _complete(samples: SampleSet, filtered: bool) -> str:
    if samples.origin is not None:
        return _IMPORTED
    return _FILTERED if filtered else _PLAIN


def expected_of(dimension: str, *, static_filter: bool = False) -> int:
    """Videos that a dimension wants at least: 5 a prompt, 25 where a filter chooses among them."""
    return (STATIC_SAMPLES if _filters(dimension, static_filter) else SAMPLES) * len(prompts_of(dimension))


def _filters(dimension: str, static_filter: bool) -> bool:
    return static_filter and dimension == STATIC_DIMENSION


def prompt_set_of(samples: SampleSet) -> str:
    """`vbench`, `vbench-longer`, … of the whole suite or a part of it, else a shipped set's name or `own`."""
    if named := set_name(samples.prompt_set):
        return named
    numbers = {p.prompt: p.number for p in suite_prompts()}
    used = {v.prompt: v.scored_prompt for v in samples.videos}
    for name, variant in SETS.items():
        texts = wording(variant)
        if all(scored in numbers and texts[numbers[scored]] == text for text, scored in used.items()):
            return name
    return OWN


def _standard(dimension: str, by_prompt: ByPrompt, suite: SuiteName) -> tuple[SuiteVideo, ...]:
    most = STATIC_SAMPLES if dimension == STATIC_DIMENSION and suite == "vbench" else SAMPLES
    return tuple(
        _video(video, index, dimension, "standard")
        for each in prompts_of(dimension)
        for index, video in enumerate(by_prompt.get(each.prompt, ())[:most])
    )


def _gaps(dimension: str, by_prompt: ByPrompt, static_filter: bool) -> list[str]:
    """Names of the videos that are not there."""
    wanted = STATIC_SAMPLES if _filters(dimension, static_filter) else SAMPLES
    return [
        f"{each.prompt}-{index}.mp4"
        for each in prompts_of(dimension)
        for index in range(len(by_prompt.get(each.prompt, ())), wanted)
    ]


def _video(video: SampleVideo, index: int, dimension: str, mode: Mode) -> SuiteVideo:
    by_index = mode == "custom" and dimension != LABEL_IN_NAME
    name = PurePosixPath(video.file).name if by_index else f"{video.scored_prompt}-{index}.mp4"
    return SuiteVideo(
        file=video.file, name=name, prompt=video.scored_prompt, prompt_index=video.prompt_index,
        sample_index=video.sample_index,
    )  # fmt: skip
