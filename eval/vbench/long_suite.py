"""VBench-Long as a suite: VBench's way of running, on clips. Torch-free."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from eval.suites import Aggregate, DimensionResult, SuiteVideo
from eval.vbench.aggregate import standard_figures
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.i2v_suite import VBenchI2VSuite
from eval.vbench.links import Links
from eval.vbench.long import clip_count, clip_seconds, rules
from eval.vbench.long_reader import read_long_answer
from eval.vbench.suite import VBenchSuite
from eval.vbench.v2_suite import VBench2Suite
from m4v.core.storage import storage_faults

CLIPS = "long"  # beside the request: clips, and the videos of first frames


@dataclass(frozen=True)
class VBenchLongSuite(VBenchSuite):
    """See `eval.suites.Suite`. The worker cuts the videos with the package's own function, in the dimension's folder;
    the clips go when the dimension has ended."""

    def _request(
        self, dimension: str, videos: Sequence[SuiteVideo], links: Links, place: Path, device: str
    ) -> dict[str, object]:
        clips = place / CLIPS
        with storage_faults(str(clips)):
            shutil.rmtree(clips, ignore_errors=True)
            clips.mkdir(parents=True)
        request = super()._request(dimension, videos, links, place, device)
        request["clips"] = {
            "folder": str(clips),
            "videos": {
                links.path_of[v.file]: {
                    "seconds": self._seconds(v),
                    "clips": self._clips(v, links),
                    "fps": int(links.fps[v.file]),
                }
                for v in videos
            },
        }
        branch = rules().clip_to_clip.get(dimension)
        if branch is not None:
            request["clip_to_clip"] = {**branch.canonical(), "mapping": branch.table(), "on": self.config.clip_to_clip}
        return request

    def _read(
        self, answer: Mapping[str, Any], dimension: str, videos: Sequence[SuiteVideo], links: Links
    ) -> DimensionResult:
        clips_of = {v.file: self._clips(v, links) for v in videos}
        return read_long_answer(
            answer, dimension, videos, links.path_of, clips_of, self.config.allow_zero,
            filtered=self._filters(dimension),
        )  # fmt: skip

    def _more_options(self) -> dict[str, JsonValue]:
        return {"clip_to_clip": self.config.clip_to_clip, "clips": "libx264 at its default quality, whole frames a s"}

    def _seconds(self, video: SuiteVideo) -> int:
        return clip_seconds(video.prompt, custom=self.config.mode == "custom")

    def _clips(self, video: SuiteVideo, links: Links) -> int:
        return clip_count(links.frames[video.file], links.fps[video.file], self._seconds(video))

    def _clear(self, place: Path) -> None:
        shutil.rmtree(place / CLIPS, ignore_errors=True)

    def aggregate(self, results: Sequence[DimensionResult]) -> Aggregate:
        """Total, Quality and Semantic by VBench's rule (`LongRules.totals`); of other prompts there is no figure."""
        return standard_figures(results) if self.config.mode == "standard" else Aggregate(figures={})


def open_suite(
    places: Places,
    config: VBenchConfig,
    devices: tuple[str, ...] = ("cpu",),
    threads: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> VBenchSuite:
    """The suite that `config` names."""
    kinds = {
        "vbench": VBenchSuite,
        "vbench-long": VBenchLongSuite,
        "vbench2": VBench2Suite,
        "vbench-i2v": VBenchI2VSuite,
    }
    return kinds[config.suite](places, config, devices, threads, should_stop)
