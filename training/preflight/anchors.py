"""Measured speeds that estimates rest on, and how they carry over to other GPUs and kernels. Torch-free.

Tests hold estimates to the measured rows (`tests/training/preflight_measured.json`); rows of a new run go there, and
the constants here follow them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from m4v.family import AnyModel
from m4v.kernels.selection import (
    MAMBA,
    OWN_GLUE,
    OWN_GLUE_BY_DEFAULT,
    OWN_SCAN,
    OWN_SCAN_BY_DEFAULT,
    glue_choice,
    scan_choice,
)
from training.preflight.gpus import GPUS, Gpu

ANCHOR_GPU = "h200"
KernelKind = Literal["own", "stock"]


class Source(NamedTuple):
    """Where a speed was measured."""

    commit: str
    date: str


class Kernels(NamedTuple):
    """What a GPU computes a model with: our scans, our kernels around them, and scans of plain torch, if ours are off
    and mamba-ssm's too."""

    own_scan: bool
    own_glue: bool
    plain_scan: bool = False

    @classmethod
    def chosen(cls) -> Kernels:
        """What the environment asks for. What is installed counts where the stage runs, which need not be here."""
        scan, glue = scan_choice(), glue_choice()
        own_scan = scan == "triton" or (scan == "auto" and OWN_SCAN_BY_DEFAULT)
        default = scan == "triton" or (scan != "torch" and OWN_GLUE_BY_DEFAULT)
        return cls(own_scan, glue == "triton" or (glue == "auto" and default), scan == "torch")

    @classmethod
    def named(cls, summary: str) -> Kernels:
        """Of a numerics record's line (`m4v.kernels.kernel_summary`)."""
        names = {part.split()[0] for part in summary.split(",") if part.strip()}
        own_scan, own_glue = (each.split()[0] in names for each in (OWN_SCAN, OWN_GLUE))
        return cls(own_scan, own_glue, not own_scan and MAMBA not in names)

    def kind(self, model: AnyModel) -> KernelKind:
        """The anchor that speaks for a model: ours where all that it runs on is ours."""
        scans = model.mixer != "attention"
        return "own" if self.own_glue and (self.own_scan or not scans) else "stock"

    def words(self, model: AnyModel, source: Source) -> str:
        """What a time was measured with, and how this choice differs where no run measured it."""
        found = f"as measured on {ANCHOR_GPU.upper()} with {self._anchor(model)} ({source.commit}, {source.date})"
        if self.kind(model) == "own" or model.mixer == "attention":
            return found
        if self.plain_scan:
            return f"{found}; scans of plain torch, as chosen, are slower and were not measured"
        if self.own_glue or self.own_scan:
            chosen = "our scan and plain torch" if self.own_scan else "mamba-ssm's scan and our kernels"
            return f"{found}; {chosen} around it, as chosen, are faster and were not measured"
        return found

    def _anchor(self, model: AnyModel) -> str:
        if self.kind(model) == "own":
            return "our kernels"
        return (
            "plain torch around attention"
            if model.mixer == "attention"
            else "mamba-ssm's scan and plain torch around it"
        )


class TrainingSpeed(NamedTuple):
    """A training stage's pace on one H200, two packs a GPU and update, from torchrun to the optimiser.

    - share: of the peak, in forward and backward passes, recomputed operations counted.
    - pack_s: of each pack beside that: its operators are launched, and wait, whatever their size.
    - attention: how much faster an operation is where every mixer is attention: scores of frames that may not see each
      other are counted and not computed.
    """

    share: float
    pack_s: float
    attention: float
    source: Source


# `own`: 121 frames on two GPUs; that a token takes as long at 57 and 241 frames is from loops without an engine.
# `stock`: measured at 121 frames alone, with which it scales.
# `attention`: from loops without an engine, blocks recomputed, at 121 (own) and 57 frames (stock, FlexAttention).
TRAINING: Mapping[KernelKind, TrainingSpeed] = {
    "own": TrainingSpeed(0.42, 0.11, 1.22, Source("77e599de", "2026-11-23")),
    "stock": TrainingSpeed(0.1356, 0.0, 1.54, Source("02650677", "2026-11-22")),
}
UPDATE_S = 0.16  # of a step: clipping, optimiser, averages, and whole weights gathered once
# Of a pack where DeepSpeed's ZeRO-3 gathers for each pass: its hooks alone on one rank, and the collectives of ranks of
# one host. FSDP2's gathers run beside the computation (1.09 s a step with them and without).
HOOKS_S, GATHERS_S = 0.1, 0.284
# Of the peak: frames decoded and scored with a gradient (0.9 s for the flow's own forward taken off).
REWARD_SHARE = 0.157
MOST_RANKS = 4  # that were measured together


class SamplingSpeed(NamedTuple):
    """Sampling on one H200 in bfloat16. `share`: of the peak; `forward_s`: of each forward beside that, `video_s` and
    `frame_s` (768 x 1280 pixels, decoded): of each video and frame."""

    share: float
    forward_s: float
    video_s: float
    frame_s: float
    source: Source


# Lines through videos of 121 and 241 frames, by (kernels, every mixer is attention). M4V's own with CUDA graphs and
# decoding beside the next frame, which leaves next to nothing of it; the others without either. `share` and `forward_s`
# are of the commit named, `video_s` and `frame_s` of whole videos at 02650677.
SAMPLING: Mapping[tuple[KernelKind, bool], SamplingSpeed] = {
    ("own", False): SamplingSpeed(0.602, 0.0043, 9.4, 0.0, Source("77e599de", "2026-11-23")),
    ("stock", False): SamplingSpeed(0.294, 0.0114, 8.1, 0.053, Source("77e599de", "2026-11-23")),
    ("own", True): SamplingSpeed(0.713, 0.0108, 8.1, 0.053, Source("77e599de", "2026-11-23")),
    ("stock", True): SamplingSpeed(0.360, 0.0127, 8.1, 0.053, Source("77e599de", "2026-11-23")),
}


def slowness(gpu: Gpu, dtype: str = "bfloat16") -> float:
    """How many times as long the measured work takes elsewhere: the mean of what another GPU's peak and its memory
    bandwidth say, since nobody has measured which of the two bounds how much; in float32 what its peak says. 1 on the
    measured GPU in bfloat16."""
    anchor = GPUS[ANCHOR_GPU]
    if dtype != "bfloat16":
        return anchor.bfloat16 / gpu.float32
    return (anchor.bfloat16 / gpu.bfloat16 + anchor.bandwidth / gpu.bandwidth) / 2


def slowness_words(gpu: Gpu, dtype: str = "bfloat16") -> str:
    """How a time was carried over; empty on the measured GPU."""
    if dtype != "bfloat16":
        return f"; {gpu.name} in {dtype}: times {slowness(gpu, dtype):.2f}, by its peak, not measured"
    if gpu.name == ANCHOR_GPU:
        return ""
    anchor = GPUS[ANCHOR_GPU]
    low, high = sorted((anchor.bfloat16 / gpu.bfloat16, anchor.bandwidth / gpu.bandwidth))
    return (
        f"; {gpu.name}: times {slowness(gpu):.2f}, the mean of what its peak and its memory bandwidth say "
        f"({low:.2f} to {high:.2f}), not measured"
    )


def seconds_of(operations: float, share: float) -> float:
    """Of operations in bfloat16 on the measured GPU."""
    return operations / (GPUS[ANCHOR_GPU].bfloat16 * 1e12 * share)
