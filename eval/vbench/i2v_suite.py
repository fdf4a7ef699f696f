"""VBench-I2V as a suite: videos that begin with its pictures. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.records import SampleSet, SampleVideo
from eval.suites import Aggregate, DimensionResult, SuiteInputs, SuiteVideo, check_dimensions
from eval.vbench.i2v import figures
from eval.vbench.i2v_prompts import I2V_DIMENSIONS, NEW, SET, Entry, entries_of, ratio_of, read_entries, rules
from eval.vbench.links import Links
from eval.vbench.suite import VBenchSuite
from eval.vbench.weights import I2V_DATA, candidates
from m4v.core.errors import DataIntegrityError, InputError

TITLE = "VBench-I2V"
_STEP = "import the missing videos too, or judge what is there with --partial: comparable with no other result"
ByPrompt = Mapping[str, Sequence[SampleVideo]]


@dataclass(frozen=True)
class VBenchI2VSuite(VBenchSuite):
    """See `eval.suites.Suite`."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        return I2V_DIMENSIONS

    @property
    def data(self) -> Path:
        """Where the suite's prompts and pictures lie."""
        return candidates(I2V_DATA, self.places)[0]

    def inputs(
        self, samples: SampleSet, samples_id: str, dimensions: Sequence[str], *, partial: bool = False
    ) -> SuiteInputs:
        """Five videos of each prompt that a dimension reads.

        Raises ConfigError for no dimension, DataIntegrityError naming count and first example where videos are missing
        and `partial` is false, InputError for the suite's data where it or a picture is not there.
        """
        wanted = check_dimensions(TITLE, I2V_DIMENSIONS, dimensions)
        entries, where = read_entries(self.data), f"samples {samples_id[:12]}"
        by_prompt: dict[str, list[SampleVideo]] = {}
        for video in samples.videos:
            by_prompt.setdefault(video.scored_prompt, []).append(video)
        missing = {name: gaps for name in wanted if (gaps := _gaps(entries_of(name, entries), by_prompt))}
        if missing and not partial:
            name = next(iter(missing))
            expected = rules().samples_per_prompt * len(entries_of(name, entries))
            raise DataIntegrityError(
                f"{len(missing[name])} of {expected} videos of {name} are missing; the first", value=missing[name][0],
                where=where, next_step=_STEP,
            )  # fmt: skip
        found = {name: _videos(entries_of(name, entries), by_prompt) for name in wanted}
        if not any(found.values()):
            raise DataIntegrityError("no video is of a prompt that these dimensions read", where=where, next_step=_STEP)
        self._check_pictures(samples, found, entries)
        return SuiteInputs(
            mode="standard", prompt_set=SET, samples=samples_id, partial=bool(missing), by_dimension=found
        )

    def _check_pictures(
        self, samples: SampleSet, found: Mapping[str, Sequence[SuiteVideo]], entries: Sequence[Entry]
    ) -> None:
        """Each picture that a used prompt names must be there, in the ratio nearest to the videos'."""
        folder = self.data / "crop" / ratio_of(samples.videos[0].width, samples.videos[0].height)
        images = {e.prompt: e.image for e in entries if e.image}
        for name in (n for n in found if n in NEW and n != "camera_motion"):
            for video in found[name]:
                if not (folder / str(images[video.prompt])).is_file():
                    raise InputError(
                        "a picture of VBench-I2V is not there", value=images[video.prompt], where=str(folder),
                        next_step="put the pictures of its crop.zip below crop/, one folder a ratio",
                    )  # fmt: skip

    def _request(
        self, dimension: str, videos: Sequence[SuiteVideo], links: Links, place: Path, device: str
    ) -> dict[str, object]:
        request = super()._request(dimension, videos, links, place, device)
        entries = read_entries(self.data)
        paths: dict[str, list[str]] = {}
        for video in videos:
            paths.setdefault(video.prompt, []).append(links.path_of[video.file])
        ratio = ratio_of(*links.sizes[videos[0].file])
        request["entries"] = [
            {"prompt_en": e.prompt, "dimension": [dimension], "video_list": paths[e.prompt],
             **({"image_name": e.image} if e.image else {})}
            for e in entries_of(dimension, entries)
            if e.prompt in paths
        ]  # fmt: skip
        return {**request, "ratio": ratio, "images": str(self.data / "crop" / ratio)}

    def aggregate(self, results: Sequence[DimensionResult]) -> Aggregate:
        """The two groups and the total, by upstream's rule (`Rules.totals`)."""
        return figures(results)


def _videos(entries: Sequence[Entry], by_prompt: ByPrompt) -> tuple[SuiteVideo, ...]:
    return tuple(
        SuiteVideo(
            file=video.file, name=f"{each.prompt}-{index}.mp4", prompt=each.prompt, prompt_index=video.prompt_index,
            sample_index=video.sample_index,
        )
        for each in entries
        for index, video in enumerate(by_prompt.get(each.prompt, ())[: rules().samples_per_prompt])
    )  # fmt: skip


def _gaps(entries: Sequence[Entry], by_prompt: ByPrompt) -> list[str]:
    return [
        f"{each.prompt}-{index}.mp4"
        for each in entries
        for index in range(len(by_prompt.get(each.prompt, ())), rules().samples_per_prompt)
    ]
