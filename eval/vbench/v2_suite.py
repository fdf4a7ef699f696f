"""VBench-2.0 as a suite: VBench's way of running, with its own prompts, judges and totals. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from eval.prompts import set_name
from eval.records import SampleSet, SampleVideo
from eval.suites import Aggregate, DimensionResult, SuiteInputs, SuiteVideo, check_dimensions
from eval.vbench.environment import EnvironmentRecord
from eval.vbench.links import Links
from eval.vbench.suite import VBenchSuite
from eval.vbench.v2 import INSTANCE, TITLE, figures, problem_of_seconds
from eval.vbench.v2_prompts import (
    DIVERSITY,
    SET,
    V2_DIMENSIONS,
    entries,
    expected_of,
    prompts,
    prompts_of,
    rules,
    samples_of,
    video_name,
)
from eval.vbench.v2_reader import read_v2_answer
from m4v.core.errors import ConfigError, DataIntegrityError, InputError

_PLAIN = "generate with `prompts: vbench2`, samples_per_prompt: 3"
_IMPORTED = "import the missing videos too, or judge what is there with --partial: comparable with no other result"


@dataclass(frozen=True)
class VBench2Suite(VBenchSuite):
    """See `eval.suites.Suite`."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        return V2_DIMENSIONS

    def inputs(
        self, samples: SampleSet, samples_id: str, dimensions: Sequence[str], *, partial: bool = False
    ) -> SuiteInputs:
        """See `v2_inputs`; raises ConfigError for a dimension that needs a GPU where there is none."""
        if self.devices[0] == "cpu" and (gone := [d for d in dimensions if d not in rules().on_a_cpu]):
            raise ConfigError(
                f"{len(gone)} dimensions of {TITLE} run on a GPU alone, {gone[0]} among them", value="cpu",
                where=f"suite {self.name}",
                next_step=f"run on a GPU (--device cuda), or ask for --dimensions {','.join(rules().on_a_cpu)}",
            )  # fmt: skip
        return v2_inputs(samples, samples_id, dimensions, partial=partial)

    def _request(
        self, dimension: str, videos: Sequence[SuiteVideo], links: Links, place: Path, device: str
    ) -> dict[str, object]:
        published = rules().published_names[dimension]
        held = Counter[str]()
        for video in videos:
            held[video.prompt] += links.frames[video.file] * rules().diversity_frame_bytes
        memory = {"memory_bytes": max(held.values())} if dimension == DIVERSITY else {}
        return {
            "task": "evaluate", "dimension": dimension, "published": published, "threads": self.threads,
            "device": device.partition(":")[0], "on_a_cpu": dimension in rules().on_a_cpu,
            "entries": _entries(dimension, published, videos, links.path_of),
            "full_info": str(place / "full_info.json"), **memory,
        }  # fmt: skip

    def _read(
        self, answer: Mapping[str, Any], dimension: str, videos: Sequence[SuiteVideo], links: Links
    ) -> DimensionResult:
        times = Counter(e.prompt for e in entries() if e.dimension == dimension)
        return read_v2_answer(answer, dimension, videos, links.path_of, times, self.config.allow_zero)

    def _more_options(self) -> dict[str, JsonValue]:
        return {}

    def _version_of(self, record: EnvironmentRecord) -> str:
        """A checkout has no version; its programs' digest stands beside the wheel's, whose code may be replaced."""
        code = record.packages.get("vbench2-code", "")[:12]
        return f"{record.packages.get('vbench2', 'checkout')}, code {code or 'unknown'}"

    def aggregate(self, results: Sequence[DimensionResult]) -> Aggregate:
        """The five groups and the total, by upstream's rule (`Rules.totals`)."""
        return figures(results)


def v2_inputs(samples: SampleSet, samples_id: str, dimensions: Sequence[str], *, partial: bool = False) -> SuiteInputs:
    """Videos of each dimension: the first three of each of its prompts, twenty for diversity.

    Raises ConfigError for no dimension, DataIntegrityError naming count and first example where videos of the protocol
    are missing and `partial` is false, InputError for a video that is too short for instance preservation.
    """
    wanted = check_dimensions(TITLE, V2_DIMENSIONS, dimensions)
    by_prompt: dict[str, list[SampleVideo]] = {}
    for video in samples.videos:
        by_prompt.setdefault(video.scored_prompt, []).append(video)
    where = f"samples {samples_id[:12]}"
    missing = {name: gaps for name in wanted if (gaps := _gaps(name, by_prompt))}
    if missing and not partial:
        name = next(iter(missing))
        raise DataIntegrityError(
            f"{len(missing[name])} of {expected_of(name)} videos of {name} are missing; the first",
            value=missing[name][0], where=where, next_step=_PLAIN if samples.origin is None else _IMPORTED,
        )  # fmt: skip
    found = {name: _videos(name, by_prompt) for name in wanted}
    if not any(found.values()):
        raise DataIntegrityError(
            "no video is of a prompt that these dimensions read", where=where, next_step=_PLAIN
        )  # fmt: skip
    if INSTANCE in wanted:
        _check_seconds(found[INSTANCE], samples)
    return SuiteInputs(
        mode="standard", prompt_set=_prompt_set(samples), samples=samples_id, partial=bool(missing), by_dimension=found
    )


def _videos(dimension: str, by_prompt: Mapping[str, Sequence[SampleVideo]]) -> tuple[SuiteVideo, ...]:
    return tuple(
        SuiteVideo(
            file=video.file, name=video_name(each.prompt, index), prompt=each.prompt, prompt_index=video.prompt_index,
            sample_index=video.sample_index,
        )
        for each in prompts_of(dimension)
        for index, video in enumerate(by_prompt.get(each.prompt, ())[: samples_of(dimension)])
    )  # fmt: skip


def _gaps(dimension: str, by_prompt: Mapping[str, Sequence[SampleVideo]]) -> list[str]:
    """Names of the videos that are not there."""
    return [
        video_name(each.prompt, index)
        for each in prompts_of(dimension)
        for index in range(len(by_prompt.get(each.prompt, ())), samples_of(dimension))
    ]


def _check_seconds(videos: Sequence[SuiteVideo], samples: SampleSet) -> None:
    used = {v.file for v in videos}
    for video in samples.videos:
        problem = problem_of_seconds((INSTANCE,), video.frames, video.fps)
        if video.file in used and problem is not None:
            raise InputError(
                problem,
                value=video.file, where=f"{video.frames} frames at {video.fps:g} a second",
                next_step=f"leave {INSTANCE} out (--dimensions), or sample longer videos",
            )  # fmt: skip


def _prompt_set(samples: SampleSet) -> str:
    """`vbench2` of the whole suite or a part of it in its own words, else a shipped set's name or `own`."""
    if named := set_name(samples.prompt_set):
        return named
    known = {p.prompt for p in prompts()}
    return SET if all(v.prompt == v.scored_prompt and v.prompt in known for v in samples.videos) else "own"


def _entries(
    dimension: str, published: str, videos: Sequence[SuiteVideo], path_of: Mapping[str, str]
) -> list[dict[str, object]]:
    """Upstream's entries of the dimension that have videos, in its order."""
    paths: dict[str, list[str]] = {}
    for video in videos:
        paths.setdefault(video.prompt, []).append(path_of[video.file])
    return [
        {"prompt_en": entry.prompt, "dimension": [published], "video_list": paths[entry.prompt],
         **({} if entry.auxiliary is None else {"auxiliary_info": entry.auxiliary})}
        for entry in entries()
        if entry.dimension == dimension and entry.prompt in paths
    ]  # fmt: skip
