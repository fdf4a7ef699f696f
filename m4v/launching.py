"""How one sampler runs: its model recorded as CUDA graphs or not, decoding beside denoising or after it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from functools import partial

import torch

from m4v.ahead import ahead
from m4v.codec.interface import Frames, Latent
from m4v.flow.graphs import CudaCapture, GraphedModel
from m4v.flow.loss import VelocityModel
from m4v.launches import Launches, launches
from m4v.model import M4VTransformer

_log = logging.getLogger(__name__)

# Of GPU memory, for each pixel of a frame, that decoding beside the model shall find free: the VAE's peak in bfloat16
# at 768 x 1280 is 17.8 kB, which its stream cannot share with the model's.
DECODE_BYTES = 24_000


class Launching:
    """`model` is what a sampler shall call, and `beside` what shall decode when `overlaps` says so."""

    def __init__(self, model: VelocityModel, device: torch.device, chosen: Launches) -> None:
        self.device, self.chosen = device, chosen
        self._graphed = GraphedModel(model, CudaCapture(device)) if chosen.graphs else None
        self.model: VelocityModel = self._graphed or model
        self._stream: torch.cuda.Stream | None = None
        self._beside = 0
        self._tried: set[int] = set()
        self._peak = 0

    def overlaps(self, pixels: int) -> bool:
        """Whether frames of so many pixels are decoded while the next are made; a lack of memory is logged. The first
        video of a size on a GPU is not: what its forwards take is known afterwards only."""
        if not self.chosen.overlap:
            return False
        if not self._tried_before(pixels):
            return False
        free = self._free()
        if free < DECODE_BYTES * pixels:
            _log.warning(
                "frames are decoded between denoising, not beside it: %.1f GiB of GPU memory are free, %.1f are needed",
                free / 2**30, DECODE_BYTES * pixels / 2**30,
            )  # fmt: skip
            return False
        return True

    def beside(
        self, latents: Generator[Latent, None, None], decode: Callable[[Iterator[Latent]], Iterator[Frames]]
    ) -> Iterator[Frames]:
        """`decode(latents)`; latents are made in a thread of their own on the device's usual stream, `decode` runs
        here on another. The same bits as one after the other: what passes between them lies on the host."""
        self._beside += 1
        on_device = self.device.type == "cuda"
        within = partial(torch.cuda.device, self.device) if on_device else nullcontext
        if on_device and self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        if self._stream is not None:  # the weights may still be under way
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with closing(ahead(latents, within=within)) as made:
            chunks = decode(made)
            while True:
                with torch.cuda.stream(self._stream):  # not around the yield: the caller has its own
                    found = next(chunks, None)
                if found is None:
                    return
                yield found

    def report(self) -> dict[str, str | int]:
        """The choice, forwards launched each way, videos decoded beside, and why graphs were given up."""
        found: dict[str, str | int] = {"launches": self.chosen.summary, "videos_decoded_beside": self._beside}
        if self._graphed is not None:
            graphed = self._graphed
            found |= {
                "forwards_replayed": graphed.replayed, "forwards_captured": graphed.captured,
                "forwards_plain": graphed.plain,
            }  # fmt: skip
            if graphed.refused is not None:
                found["graphs_refused"] = graphed.refused
        return found

    def _free(self) -> int:
        """Bytes of the GPU that this process has or can have, less the peak of the videos so far: of those that were
        not decoded beside, once there is one that was. On a CPU nothing is kept twice."""
        if self.device.type != "cuda":
            return sys.maxsize
        if not self._beside:
            self._peak = torch.cuda.max_memory_allocated(self.device)
        free: int = torch.cuda.mem_get_info(self.device)[0]
        used = max(self._peak, torch.cuda.memory_allocated(self.device))
        return free + torch.cuda.memory_reserved(self.device) - used

    def _tried_before(self, pixels: int) -> bool:
        """Whether a video of frames of so many pixels was begun before; on a CPU nobody asks."""
        tried = pixels in self._tried or self.device.type != "cuda"
        self._tried.add(pixels)
        return tried


def launching_of(model: M4VTransformer, device: torch.device) -> Launching:
    """As `m4v.launches` chooses for the device. A model whose forwards are shared by ranks is not recorded."""
    chosen = launches(device.type)
    if model.sequence is not None:
        chosen = chosen._replace(graphs=False)
    _log.info("sampling: %s", chosen.summary)
    return Launching(model, device, chosen)
