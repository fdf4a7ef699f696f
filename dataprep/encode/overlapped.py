"""Encoding with one process at the device: workers decode ahead, threads upload and write, the device waits for none.

The items are those of `encode_clip`: same codec, same frames, same bytes.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataprep.encode.device_clock import DeviceClock, Mark
from dataprep.encode.frame_memory import Decoded, DecodeJob, FrameMemory, decode_clip
from dataprep.encode.jobs import (
    Encoded,
    EncodeJob,
    codec_of,
    latent_shape_of,
    pack_latent,
    text_encoder_of,
    text_member,
)
from dataprep.engine import Engine
from dataprep.quarantine import ItemFailure
from m4v.codec.interface import DeviceCodec
from m4v.core.items import ItemStore
from m4v.core.storage import Storage

if TYPE_CHECKING:
    import torch

_UPLOADED = 2  # clips that lie on the device before their turn
_UNWRITTEN = 4  # clips encoded and not yet in the item store
_PUT_S = 0.2


def encode_overlapped(
    engine: Engine, jobs: Sequence[EncodeJob], ahead: int, timeout_s: float | None, clock: DeviceClock
) -> Iterator[Encoded | ItemFailure]:
    """`encode_clip` of every job, in order. Workers are given `ahead` clips at a time.

    Ends its threads when it is closed; what is in the item store then is whole.
    """
    if not jobs:
        return
    uploads = _Uploads(engine, jobs, ahead, timeout_s)
    writers = ThreadPoolExecutor(1, "latents")
    unwritten: deque[Future[Encoded] | ItemFailure] = deque()
    try:
        for job, upload in uploads.arrivals():
            unwritten.append(upload if isinstance(upload, ItemFailure) else _encode(job, upload, writers, clock))
            while len(unwritten) > _UNWRITTEN:
                yield _result(unwritten.popleft())
        while unwritten:
            yield _result(unwritten.popleft())
    finally:
        uploads.close()
        writers.shutdown(wait=True, cancel_futures=True)


def _result(written: Future[Encoded] | ItemFailure) -> Encoded | ItemFailure:
    return written if isinstance(written, ItemFailure) else written.result()


@dataclass(frozen=True)
class _Upload:
    """Frames (T, H, W, 3) that have arrived on the device, or the shape of the latent that is there."""

    frames: torch.Tensor | None
    shape: tuple[int, int, int] | None


def _codec(codec_job: EncodeJob) -> DeviceCodec:
    codec = codec_of(codec_job.codec, codec_job.weights, codec_job.device)
    if not isinstance(codec, DeviceCodec):
        raise TypeError(f"{type(codec).__name__} does not compute on a device")
    return codec


class _Uploads:
    """The thread that takes frames from the engine and puts them on the device, ahead of their turn."""

    def __init__(self, engine: Engine, jobs: Sequence[EncodeJob], ahead: int, timeout_s: float | None) -> None:
        self._engine, self._jobs, self._ahead, self._timeout_s = engine, jobs, ahead, timeout_s
        self._device = _codec(jobs[0]).device
        self._memory = FrameMemory(min(ahead, len(jobs)), max(map(_frame_bytes, jobs)))
        self._arrived: queue.Queue[tuple[EncodeJob, _Upload | ItemFailure] | BaseException | None] = queue.Queue(
            _UPLOADED
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)

    def arrivals(self) -> Iterator[tuple[EncodeJob, _Upload | ItemFailure]]:
        """In the order of the jobs; raises what the engine raises."""
        self._thread.start()
        while (arrived := self._arrived.get()) is not None:
            if isinstance(arrived, BaseException):
                raise arrived
            yield arrived

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._memory.close()

    def _run(self) -> None:
        try:
            for place, job, decoded in self._decoded():
                self._put((job, decoded if isinstance(decoded, ItemFailure) else self._upload(place, decoded)))
                if self._stop.is_set():
                    return
            self._put(None)
        except BaseException as error:  # raised in the thread that waits for arrivals
            self._put(error)

    def _decoded(self) -> Iterator[tuple[int, EncodeJob, Decoded | ItemFailure]]:
        """With its place in memory. Batch after batch: the next one is decoded when the last clip of this one has been
        taken, while the device still has clips before it."""
        for start in range(0, len(self._jobs), self._ahead):
            jobs = self._jobs[start : start + self._ahead]
            work = [DecodeJob(job, self._memory.path(place)) for place, job in enumerate(jobs)]
            results = self._engine.map(decode_clip, work, timeout_s=self._timeout_s)
            yield from zip(range(len(jobs)), jobs, results, strict=True)

    def _put(self, arrived: tuple[EncodeJob, _Upload | ItemFailure] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._arrived.put(arrived, timeout=_PUT_S)
            except queue.Full:
                continue
            return

    def _upload(self, place: int, decoded: Decoded) -> _Upload:
        import torch

        if decoded.frames is None:
            return _Upload(None, decoded.latent)
        frames = torch.from_numpy(self._memory.frames(place, decoded.frames))
        if self._device.type != "cuda":
            return _Upload(frames.clone(), None)
        beside = torch.cuda.Stream(self._device)
        with torch.cuda.stream(beside):
            uploaded = frames.pin_memory().to(self._device, non_blocking=True)
        beside.synchronize()  # it has arrived, and the pinned bytes may go
        return _Upload(uploaded, None)


def _frame_bytes(job: EncodeJob) -> int:
    """Of the largest bucket that the clip may fill."""
    return max(bucket.frames * bucket.height * bucket.width * 3 for bucket in job.media.buckets)


def _encode(job: EncodeJob, upload: _Upload, writers: ThreadPoolExecutor, clock: DeviceClock) -> Future[Encoded]:
    """Start the device on a clip and leave the rest to the writer."""
    if upload.frames is None:
        return writers.submit(_write, job, upload, None, None, clock)
    codec = _codec(job)
    if codec.device.type == "cuda":
        import torch

        upload.frames.record_stream(torch.cuda.current_stream(codec.device))  # it came over another one
    begin = Mark(codec.device)
    mean, logvar = codec.encode_uploaded(upload.frames)
    return writers.submit(_write, job, upload, (mean, logvar), (begin, Mark(codec.device)), clock)


def _write(
    job: EncodeJob,
    upload: _Upload,
    moments: tuple[torch.Tensor, torch.Tensor | None] | None,
    marks: tuple[Mark, Mark] | None,
    clock: DeviceClock,
) -> Encoded:
    """Bring a clip's items into the store; waits for the device."""
    shape = upload.shape
    if moments is not None and marks is not None and upload.frames is not None:
        marks[1].wait()
        clock.add(len(upload.frames), *marks)
        latent = pack_latent(*moments)
        ItemStore(Storage(job.latents_uri)).put(job.latent_key, latent)
        shape = latent_shape_of(latent)
    if shape is None:
        raise ValueError("neither frames nor a latent's shape")
    texts = ItemStore(Storage(job.texts_uri))
    text_hit = texts.get(job.text_key) is not None
    if not text_hit:
        texts.put(job.text_key, text_member(text_encoder_of(job.text_encoder, job.weights, job.device), job.captions))
    return Encoded(shape, moments is None, text_hit)


def overlaps(device: str, engine: str) -> bool:
    """Whether the encode stage works like this: on a GPU of this machine. Ray's workers hold shares of GPUs instead."""
    return device.startswith("cuda") and engine == "process"
