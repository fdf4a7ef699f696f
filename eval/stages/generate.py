"""Stage `generate`: checkpoint -> samples. Every video is one resumable job.

Finished videos lie in the resume state, so a killed stage makes none of them again; `workers` and `threads` become
that many processes (on GPUs one each), `ranks` share the videos over hosts. None of them can change a byte.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from eval.config import GenerateConfig
from eval.prompts import SEED_RULE, jobs, prompt_set_digest, video_name, video_seed
from eval.records import SAMPLES, SampleSet, SampleVideo, write_record
from eval.stages.sharing import own_share, sampling_devices, use_device, wait_for_others
from m4v.core.artifacts import Artifact
from m4v.core.canonical import digest_bytes
from m4v.core.errors import DataIntegrityError, InfrastructureError
from m4v.core.items import ItemStore
from m4v.core.stage import StageContext
from m4v.core.storage import Storage, write_atomic
from m4v.family import read_checkpoint_config
from m4v.video_io import encode_frames

if TYPE_CHECKING:
    from m4v.sampling import VideoSampler

Job = tuple[int, int]
_CONFIG = "config.json"


@dataclass(frozen=True)
class Worker:
    """What a sampling process needs; picklable."""

    files: dict[str, str]  # name in the checkpoint -> local path
    config: GenerateConfig
    state_uri: str
    device: str
    folders: dict[str, Path]  # of imported weights, by name

    def open(self) -> VideoSampler:
        from m4v.sampling import open_sampler

        config = self.config
        use_device(self.device)
        return open_sampler(self._path_of, ema=config.ema, device=self.device, dtype=config.dtype, folders=self.folders)

    def _path_of(self, name: str) -> Path:
        if name not in self.files:
            raise DataIntegrityError("checkpoint has no such file", value=name)
        return Path(self.files[name])


def run(context: StageContext) -> None:
    config = context.config(GenerateConfig)
    artifact = context.input("checkpoint")
    all_jobs = jobs(config.prompts, config.samples_per_prompt)
    state = context.state.child("videos")
    finished = ItemStore(state)
    missing = [job for job in all_jobs if finished.get(_key(job)) is None]
    worker = Worker(
        files={name: str(artifact.path(name)) for name in artifact.names()},
        config=config,
        state_uri=state.uri,
        device=context.resources.device,
        folders=context.weights_folders(),
    )
    _make_all(context, worker, own_share(all_jobs, context), set(missing), len(all_jobs))
    if context.rank != 0:
        return  # the first rank publishes for all
    for done in wait_for_others(context, all_jobs, lambda job: finished.get(_key(job)) is not None, time.sleep):
        context.progress.update(done, len(all_jobs), "videos", note="waiting for other ranks")
    samples = _collect(context.output("samples"), finished, config, artifact, all_jobs)
    context.summary(
        "samples",
        {
            "videos": len(samples.videos), "prompts": samples.prompts, "checkpoint": artifact.id,
            "frames": config.frames, "height": config.height, "width": config.width, "fps": config.fps,
        },
    )  # fmt: skip


def _make_all(context: StageContext, worker: Worker, share: list[Job], unmade: set[Job], total: int) -> None:
    """The unmade jobs of `share`. `sampling`, how forwards were launched, is recorded where this process makes the
    videos; counts of worker processes are not gathered."""
    missing = [job for job in share if job in unmade]
    devices = sampling_devices(context)[: max(1, len(missing))]
    progress = _Progress(context, total, total - len(unmade))
    started = time.monotonic()
    if len(devices) > 1:
        _make_in_processes(context, worker, missing, devices, progress)
    elif missing:
        sampler, config = replace(worker, device=devices[0]).open(), worker.config
        store = ItemStore(Storage(worker.state_uri))
        for job in missing:
            _make(sampler, config, store, job, progress.part)
            progress.video()
            if sampler.launched:
                context.metrics({"sampling": sampler.launched})
            context.check_drain()
    seconds = time.monotonic() - started
    resumed = len(share) - len(missing)
    context.metrics({"videos_made": len(missing), "videos_resumed": resumed, "processes": len(devices)})
    if missing:
        context.metrics({"seconds_per_video": round(seconds / len(missing), 3)})


class _Progress:
    """Counts videos, and parts of them where one process makes them."""

    def __init__(self, context: StageContext, total: int, done: int) -> None:
        self._context, self._total, self._done = context, total, done
        context.progress.update(done, total, "videos")

    def part(self, done: int, total: int) -> None:
        """`done` of `total` latent frames, or steps of the sampler, of the video under way; decoding is one more."""
        self._context.progress.update(self._done + done / (total + 1), self._total, "videos")

    def video(self) -> None:
        self._done += 1
        self._context.progress.update(self._done, self._total, "videos")


def _make(
    sampler: VideoSampler,
    config: GenerateConfig,
    store: ItemStore,
    job: Job,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    prompt_index, sample_index = job
    latents = []

    def seen(index: int, latent: npt.NDArray[np.float32]) -> None:
        if config.keep_latents:
            latents.append(latent)

    seed = video_seed(config.base_seed, prompt_index, sample_index)
    video = io.BytesIO()
    chunks = sampler.stream(config.by_number[prompt_index].text, seed, config, on_latent=seen, on_progress=on_progress)
    encode_frames(chunks, video, config.fps, config.crf)
    if config.keep_latents:
        stream = io.BytesIO()
        np.save(stream, np.concatenate(latents, axis=1), allow_pickle=False)
        store.put(_key(job, "latent"), stream.getvalue())
    # The video last: a job counts as finished by it.
    store.put(_key(job), video.getvalue())


# One sampler per worker process, loaded by its first job, so that what is wrong with it is that job's error.
_WORKER: list[Worker] = []
_SAMPLER: list[VideoSampler] = []


def _start_worker(worker: Worker, devices: SimpleQueue[str]) -> None:
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    _WORKER[:] = [replace(worker, device=devices.get())]


def _end_with_parent() -> None:
    """A killed stage process must not leave workers behind."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make_in_worker(job: Job) -> None:
    worker = _WORKER[0]
    if not _SAMPLER:
        _SAMPLER.append(worker.open())
    _make(_SAMPLER[0], worker.config, ItemStore(Storage(worker.state_uri)), job, None)


def _make_in_processes(
    context: StageContext, worker: Worker, missing: list[Job], devices: list[str], progress: _Progress
) -> None:
    """At most one job a process is under way, so that a drain waits for no more than these."""
    waiting: Iterator[Job] = iter(missing)
    spawn = get_context("spawn")
    queue: SimpleQueue[str] = spawn.SimpleQueue()
    for device in devices:
        queue.put(device)
    with ProcessPoolExecutor(
        len(devices), mp_context=spawn, initializer=_start_worker, initargs=(worker, queue)
    ) as pool:
        running: set[Future[None]] = set()
        for job in waiting:
            running.add(pool.submit(_make_in_worker, job))
            if len(running) == len(devices):
                running = _settle(running, progress)
            if context.drain_requested:
                break
        while running:
            running = _settle(running, progress)
    context.check_drain()


def _settle(running: set[Future[None]], progress: _Progress) -> set[Future[None]]:
    done, rest = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        try:
            future.result()
        except BrokenProcessPool:
            raise InfrastructureError(
                "a sampling process was killed", where="generate", next_step="look for a lack of memory, run again"
            ) from None
        progress.video()
    return rest


def _collect(
    output: Path, finished: ItemStore, config: GenerateConfig, artifact: Artifact, all_jobs: list[Job]
) -> SampleSet:
    videos = tuple(_publish(output, finished, config, job) for job in all_jobs)
    checkpoint = read_checkpoint_config(artifact.path(_CONFIG))
    samples = SampleSet(
        checkpoint=artifact.id,
        ema=config.ema and checkpoint.ema,
        sampler=cast(dict[str, JsonValue], config.sampler.canonical()),
        codec=checkpoint.codec,
        text_encoder=checkpoint.text_encoder,
        crf=config.crf,
        prompt_set=prompt_set_digest(config.prompts),
        seed_rule=SEED_RULE,
        base_seed=config.base_seed,
        prompts=len(config.prompts),
        samples_per_prompt=config.samples_per_prompt,
        videos=videos,
        counts=_counts(config),
    )
    write_record(output / SAMPLES, samples)
    return samples


def _counts(config: GenerateConfig) -> dict[int, int]:
    """Samples by prompt number, where the set is not simply the list times `samples_per_prompt`."""
    if all(p.number is None and p.samples is None for p in config.prompts):
        return {}
    return {number: p.samples or config.samples_per_prompt for number, p in config.by_number.items()}


def _publish(output: Path, finished: ItemStore, config: GenerateConfig, job: Job) -> SampleVideo:
    data = finished.get(_key(job))
    if data is None:
        raise DataIntegrityError("finished video is gone from the resume state", value=video_name(*job))
    prompt = config.by_number[job[0]]
    file = video_name(*job)
    write_atomic(output / file, data)
    latent = finished.get(_key(job, "latent")) if config.keep_latents else None
    latent_file = f"latents/{Path(file).stem}.npy" if latent is not None else None
    if latent is not None and latent_file is not None:
        write_atomic(output / latent_file, latent)
    return SampleVideo(
        file=file, prompt=prompt.text, prompt_index=job[0], sample_index=job[1],
        seed=video_seed(config.base_seed, *job), facts=prompt.stated, frames=config.frames, fps=config.fps,
        height=config.height, width=config.width, sha256=digest_bytes(data), latent=latent_file,
        scored_as=prompt.scored_as,
    )  # fmt: skip


def _key(job: Job, part: str = "video") -> str:
    return f"{job[0]:04d}-{job[1]:04d}-{part}"
