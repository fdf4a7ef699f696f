"""The estimate of one training stage on a number of GPUs, with every assumption it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from m4v.codec.config import CodecConfig
from m4v.family import AnyModel
from training.config import RewardConfig, TrainConfig
from training.preflight import pace
from training.preflight.anchors import Kernels
from training.preflight.gpus import Gpu
from training.preflight.memory import FRAGMENTATION, Memory, checkpoint_bytes, memory_of, recomputed_bytes, saved_bytes
from training.preflight.parameters import parameters_by_part
from training.preflight.reward import RewardWork, reward_work, scores_whole_clips
from training.preflight.sequence import largest_part, largest_share
from training.preflight.work import StageWork, stage_work
from training.samples import SampleGroup

TRAINING_FORWARDS = 3  # forward, and a backward of twice its operations


@dataclass(frozen=True)
class Setup:
    """A stage and what it would run on. `gpu` None: CPU ranks, whose time and memory are not promised.

    `groups`: sizes that its dataset may hold. `correction`: measured step time of an earlier run over what this
    arithmetic says of that run; None without one. `codec`: what a reward decodes with. `kernels`: of a GPU.
    """

    stage: str
    model: AnyModel
    train: TrainConfig
    groups: tuple[SampleGroup, ...]
    ranks: int
    gpu: Gpu | None = None
    correction: float | None = None
    memory_correction: float | None = None
    codec: CodecConfig | None = None
    kernels: Kernels = field(default_factory=Kernels.chosen)


@dataclass(frozen=True)
class Estimate:
    """Bytes, seconds and operations; `step_seconds` and `gpu_hours` are None on a CPU that nothing was measured on.
    `memory_bytes` is the sum of `memory` times the measured correction. `utilisation`: share of a GPU's peak that the
    uncorrected time makes of its operations, recomputed and a reward's ones counted. `kernels`: whose measured pace
    the time is."""

    stage: str
    parameters: int
    parts: dict[str, int]
    memory: Memory
    memory_bytes: int
    gpu: str | None
    gpu_memory_bytes: int | None
    ranks: int
    backend: str
    zero_stage: int
    checkpointing: str
    packs_per_rank: int
    tokens_per_step: float
    largest_pack_tokens: int
    samples_per_step: float
    step_flops: float
    reward_flops: float  # of a step: decoding and scores, not part of `step_flops`
    utilisation: float | None
    kernels: str | None
    step_seconds: float | None
    hours: float | None
    gpu_hours: float | None
    correction: float | None
    memory_correction: float | None
    checkpoint_bytes: int
    state_bytes: int
    assumptions: tuple[str, ...]

    @property
    def engine(self) -> str:
        """How states are shared among ranks, in words."""
        return f"{'FSDP2 as ' if self.backend == 'fsdp2' else ''}ZeRO-{self.zero_stage}"

    @property
    def fits(self) -> bool:
        return self.gpu_memory_bytes is None or self.memory_bytes <= self.gpu_memory_bytes

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "memory": self.memory._asdict(), "assumptions": list(self.assumptions),
                "fits": self.fits}  # fmt: skip


def work_of(setup: Setup) -> StageWork | None:
    return stage_work(setup.model, setup.train.order, setup.groups)


def estimate(setup: Setup) -> Estimate | None:
    """None when no size of the dataset is one that the stage takes."""
    work = work_of(setup)
    if work is None:
        return None
    train, gpu = setup.train, setup.gpu
    parts = parameters_by_part(setup.model)
    ema = train.ema_decay > 0
    reward = reward_of(setup)
    memory = _memory(setup, work, reward)
    flops = TRAINING_FORWARDS * work.forward_flops_per_pack * train.order.packs
    seconds = step_seconds(setup, work)
    hours = None if seconds is None else seconds * train.steps / 3600
    return Estimate(
        stage=setup.stage,
        parameters=sum(parts.values()),
        parts=parts,
        memory=memory,
        memory_bytes=round(memory.total * (setup.memory_correction or 1.0)),
        gpu=None if gpu is None else gpu.name,
        gpu_memory_bytes=None if gpu is None else gpu.memory_bytes,
        ranks=setup.ranks,
        backend=train.engine.backend,
        zero_stage=train.engine.zero_stage,
        checkpointing=train.engine.checkpointing,
        packs_per_rank=_packs_per_rank(setup),
        tokens_per_step=work.tokens_per_pack * train.order.packs,
        largest_pack_tokens=work.largest.visual + work.largest.text,
        samples_per_step=work.samples_per_pack * train.order.packs,
        step_flops=flops,
        reward_flops=0.0 if reward is None else reward.flops_per_pack * train.order.packs,
        utilisation=_utilisation(setup, work),
        kernels=None if gpu is None else setup.kernels.kind(setup.model),
        step_seconds=seconds,
        hours=hours,
        gpu_hours=None if hours is None or gpu is None else hours * setup.ranks,
        correction=setup.correction,
        memory_correction=setup.memory_correction,
        checkpoint_bytes=checkpoint_bytes(setup.model, ema),
        state_bytes=saved_bytes(setup.model, ema) * train.keep_saves,
        assumptions=tuple(_assumptions(setup)),
    )


def reward_of(setup: Setup) -> RewardWork | None:
    """None of a stage without a reward, or whose codec is not known."""
    if not isinstance(setup.train, RewardConfig) or setup.codec is None:
        return None
    return reward_work(setup.train, setup.codec, setup.groups)


def _memory(setup: Setup, work: StageWork, reward: RewardWork | None) -> Memory:
    """Of the rank that has most."""
    engine, device = setup.train.engine, "cpu" if setup.gpu is None else "cuda"
    part = largest_part(work.largest, engine.sequence_parallel)
    memory = memory_of(setup.model, engine, setup.train.ema_decay > 0, setup.ranks, part, device)
    return memory if reward is None else _with_reward(memory, reward, setup, work)


def _with_reward(memory: Memory, reward: RewardWork, setup: Setup, work: StageWork) -> Memory:
    """The reward is over before the backward pass, which computes its blocks again in the room that is left behind."""
    more = max(0, reward.activations - recomputed_bytes(setup.model, setup.train.engine, work.largest))
    apart = round(FRAGMENTATION * (reward.frozen + more)) if setup.gpu is not None else 0
    return memory._replace(frozen=reward.frozen, reward=more, buffers=memory.buffers + apart)


def step_seconds(setup: Setup, work: StageWork) -> float | None:
    """Seconds of a step by the measured pace of like ones, times the correction by an earlier run of this recipe. On a
    CPU there is no pace to go by, so only what was measured speaks (operations a second)."""
    if setup.gpu is None:
        return None if setup.correction is None else sum(_operations(setup, work)) / CPU_FLOPS * setup.correction
    return _uncorrected(setup, work, setup.gpu) * (setup.correction or 1.0)


def _uncorrected(setup: Setup, work: StageWork, gpu: Gpu) -> float:
    packs = _packs_per_rank(setup)
    own, reward = (each / packs for each in _operations(setup, work))
    return pace.gpu_seconds(setup.model, setup.train.engine, setup.kernels, gpu, setup.ranks, packs, own, reward)


def _operations(setup: Setup, work: StageWork) -> tuple[float, float]:
    """Of a step, on the rank that has most: of the model, recomputed ones too, and of a reward."""
    passes = TRAINING_FORWARDS + (1 if setup.train.engine.checkpointing == "block" else 0)
    reward = reward_of(setup)
    packs = setup.train.order.packs / setup.ranks * _unevenness(setup, work)
    return passes * work.forward_flops_per_pack * packs, 0.0 if reward is None else reward.flops_per_pack * packs


def _packs_per_rank(setup: Setup) -> int:
    """Forward passes that a rank takes part in."""
    return max(1, setup.train.order.packs * setup.train.engine.sequence_parallel // setup.ranks)


def _utilisation(setup: Setup, work: StageWork) -> float | None:
    if setup.gpu is None:
        return None
    peak = setup.gpu.bfloat16 if setup.train.engine.dtype == "bfloat16" else setup.gpu.float32
    return sum(_operations(setup, work)) / (peak * 1e12 * _uncorrected(setup, work, setup.gpu))


CPU_FLOPS = 1e10  # a unit that corrections on a CPU rank refer to, no promise


def _unevenness(setup: Setup, work: StageWork) -> float:
    """Work of the rank that has most of a shared forward, over an even part: the others wait for it."""
    shared = setup.train.engine.sequence_parallel
    return largest_share(work.largest, shared) * shared


def _assumptions(setup: Setup) -> Sequence[str]:
    found = ["every size of the dataset is as frequent as the others"]
    if setup.gpu is not None:
        found += pace.assumptions(setup.model, setup.train.engine.dtype, setup.kernels, setup.gpu, setup.ranks)
    if isinstance(setup.train, RewardConfig):
        found.append(
            "a reward decodes and scores on every GPU, nothing of it sharded, with a VAE of the published size"
            if setup.codec is not None and setup.codec.kind != "dct"
            else "of a reward, codec and decoding count next to nothing"
        )
        if scores_whole_clips(setup.train):
            found.append("of whole clips, as large a share is scored as the reward's noise window is wide")
    if (shared := setup.train.engine.sequence_parallel) > 1:
        found.append(f"{shared} ranks share each forward; what travels between them costs no time")
    if setup.train.engine.backend == "fsdp2":
        zero = setup.train.engine.zero_stage
        found.append(
            f"FSDP2 as DeepSpeed's ZeRO-{zero}, its gathers too: no run of it has been held against these figures"
        )
        if zero == 3:
            found.append("FSDP2 gathers weights for each pass whatever live_elements says; zero_stage 2 keeps them")
    if setup.correction is not None:
        found.append(f"time corrected by {setup.correction:.2f}, measured in an earlier run of this recipe")
    elif setup.gpu is None:
        found.append("no time is told for CPU ranks before a run was measured")
    if setup.memory_correction is not None:
        found.append(f"memory corrected by {setup.memory_correction:.2f}, measured in an earlier run of this recipe")
    return found
