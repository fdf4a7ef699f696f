"""Makes the missing videos of a folder, one after the other, each streamed from latent to file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from m4v.config import VideoConfig
from m4v.core.storage import storage_faults
from m4v.image_io import Picture, read_image
from m4v.video_io import stream_mp4
from pipelines.generation.folder import OutputFolder, VideoRecord
from pipelines.generation.prompts import Job

if TYPE_CHECKING:
    from m4v.sampling import VideoSampler


class Reporter(Protocol):
    """Hears how far the work is."""

    def start(self, total: int, there: int) -> None:
        """`there` of `total` videos need not be made again."""

    def loading(self) -> None:
        """The checkpoint is being loaded."""

    def frame(self, done: int, total: int) -> None:
        """`done` of `total` latent frames, or steps of the sampler, of the video under way."""

    def video(self, record: VideoRecord) -> None:
        """A video is finished."""


def make_videos(
    folder: OutputFolder,
    jobs: Sequence[Job],
    config: VideoConfig,
    open_sampler: Callable[[], VideoSampler],
    reporter: Reporter,
) -> tuple[list[VideoRecord], int]:
    """Records of all jobs in order, and how many were made now; finished ones are left as they are.

    The checkpoint is loaded only when something is missing. Raises ConfigError when a file of the folder belongs to
    another video, InputError and DataIntegrityError for an image that cannot be read.
    """
    found = {job: folder.finished(job) for job in jobs}
    missing = [job for job, record in found.items() if record is None]
    reporter.start(len(jobs), len(jobs) - len(missing))
    for image in sorted({job.image for job in missing if job.image is not None}):
        read_image(image)  # before hours of work, not after
    records = {job: record for job, record in found.items() if record is not None}
    if missing:
        reporter.loading()
        sampler = open_sampler()
        for job in missing:
            _make(folder.path(job), job, config, sampler, reporter)
            records[job] = folder.add(job)
            reporter.video(records[job])
        folder.write_manifest()
    return [records[job] for job in jobs], len(missing)


def _make(path: Path, job: Job, config: VideoConfig, sampler: VideoSampler, reporter: Reporter) -> None:
    image: Picture | None = None if job.image is None else read_image(job.image)
    chunks = sampler.stream(
        job.prompt, job.seed, config, negative=job.negative, image=image,
        on_progress=reporter.frame,
    )  # fmt: skip
    with storage_faults(str(path)):
        stream_mp4(path, chunks, config.fps, config.crf)
