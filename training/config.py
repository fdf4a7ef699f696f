"""Config models of the training stages: data order, optimiser, engine, reward. Torch-free.

Units: `frames` are pixel frames (8(t-1)+1, Wan 4(t-1)+1), `tokens` are 2x2 latent patches, `steps` are optimiser steps.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from m4v.codec.config import CodecConfig, DctCodecConfig
from m4v.codec.shape import TEMPORAL, nearest_frames
from m4v.config import AnySampler, AnySchedule, Dtype, ModelConfig, Recompute, SamplerConfig, ScheduleConfig, family_of
from m4v.core.config import FrozenModel, weights_names
from m4v.family import AnyModel
from m4v.scores.config import ConseConfig, ScorerConfig
from m4v.text.config import MiniLmConfig, TextEncoderConfig
from training.reward.watch_config import WatchConfig

PYRAMID_STAGES = 3


def latents_of(frames: int, time_stride: int = TEMPORAL) -> int:
    """Latent frames of `frames` pixel frames under a causal codec: 1/57/121/241 -> 1/8/16/31 where eight frames share
    a latent, 1/15/31/61 under Wan's VAE, where four do."""
    return (frames - 1) // time_stride + 1


class StartConfig(FrozenModel):
    """Imported weights that the model starts from: `weights` is a name of the recipe's `weights` section.

    `attention_to_mamba`: the published attention becomes the mixers of `model.mixer` (paper D.2); `none` takes
    every tensor as it is, for `model.mixer: attention`.
    """

    weights: str = Field(min_length=1)
    convert: Literal["none", "attention_to_mamba"] = "none"


class InitConfig(FrozenModel):
    """The model that training starts from, saved in the checkpoint layout: built from the stage's seed, or from
    imported weights, which are then the input `weights.NAME`. Model and schedule are of one family (`kind`)."""

    model: AnyModel = ModelConfig()
    schedule: AnySchedule = ScheduleConfig()
    codec: CodecConfig = DctCodecConfig()
    text_encoder: TextEncoderConfig = MiniLmConfig()
    start: StartConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> InitConfig:
        check_families(self.model, schedule=self.schedule)
        if self.start is not None:
            check_start(self.start, self.model)
        return self

    @property
    def uses(self) -> tuple[str, ...]:
        """Names of the imported weights that the model starts from, or that its codec and text encoder are."""
        return weights_names(self.start, self.codec, self.text_encoder)


class ConvertConfig(FrozenModel):
    """A trained attention model becomes one with the mixers of `model` (paper D.2): its attention weights start them,
    what has no counterpart is drawn from the stage's seed. `start_from`: weights that are converted."""

    model: AnyModel = ModelConfig()
    start_from: Literal["weights", "ema"] = "weights"


def check_families(model: AnyModel, **sections: AnySchedule | AnySampler) -> None:
    """Raise ValueError naming the first of `sections` that is of another family than the model."""
    needs = family_of(model)
    for name, section in sections.items():
        if (has := family_of(section)) != needs:
            fix = f"set {name}.kind to {needs}" if needs == "wan" else f"leave kind out of {name}"
            raise ValueError(f"the model is of the {needs} family and {name} of the {has} family: {fix}")


def check_start(start: StartConfig, model: AnyModel) -> None:
    """Raise ValueError when the way of starting does not lead to the model's mixers."""
    if start.convert == "none" and model.mixer != "attention":
        raise ValueError(
            f"published weights mix with attention and model.mixer is {model.mixer!r}: "
            "set init.convert to attention_to_mamba, or model.mixer to attention"
        )
    if start.convert != "none" and model.mixer == "attention":
        raise ValueError(
            f"init.convert is {start.convert} and model.mixer is 'attention', where nothing is converted: "
            "set init.convert to none, or model.mixer to mm_dim"
        )


class MixtureEntry(FrozenModel):
    """A share of the data: samples whose source matches one of the globs. `weight` counts packs, which are
    equal token budgets, and is met exactly in every period of the template."""

    name: str = Field(min_length=1)
    sources: tuple[str, ...] = ("*",)
    weight: int = Field(1, ge=1)


class OrderConfig(FrozenModel):
    """What decides which sample is seen when: a pure function of this, the dataset version and the seed."""

    frames: int = Field(57, ge=1)
    min_frames: int = Field(9, ge=1)  # shorter clips are left out of a video stage
    time_stride: Literal[4, 8] = 8  # the codec's: frames that share a latent after the first
    mixture: tuple[MixtureEntry, ...] = (MixtureEntry(name="all"),)
    # Pyramid stage of each column of a pack, ratio 1:2:1. None at all: whole clips, for a model without a pyramid.
    columns: tuple[int, ...] = (0, 1, 1, 2)
    tokens_per_pack: int = Field(2048, ge=1)
    packs: int = Field(2, ge=1)  # per optimiser step, over all ranks; world size divides it
    image_every: int = Field(8, ge=0)  # one image step after so many video steps; 0: no image steps
    high_units: int = Field(0, ge=0)  # high-stage columns train only the last so many latents; 0: all of them
    held_out: int = Field(0, ge=0, le=500_000)  # clips per million, by hash of their id, that never train

    @property
    def latents(self) -> int:
        return latents_of(self.frames, self.time_stride)

    @property
    def min_latents(self) -> int:
        return min(latents_of(self.min_frames, self.time_stride), self.latents)

    @property
    def is_image_stage(self) -> bool:
        return self.frames == 1

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # What came later stands in the canonical form only when it is used, so that recorded orders keep their ids.
        data: dict[str, object] = handler(self)
        if not self.held_out:
            del data["held_out"]
        if self.time_stride == TEMPORAL:
            del data["time_stride"]
        return data

    @model_validator(mode="after")
    def _check(self) -> OrderConfig:
        for key, frames in (("frames", self.frames), ("min_frames", self.min_frames)):
            if frames % self.time_stride != 1:
                near = " or ".join(map(str, nearest_frames(frames, self.time_stride)))
                raise ValueError(f"{key} is {frames}; the causal codec needs {self.time_stride}n+1: use 1, {near}")
        if any(not 0 <= c < PYRAMID_STAGES for c in self.columns):
            raise ValueError(f"columns {self.columns} must name pyramid stages 0 (low) to 2 (high)")
        names = [e.name for e in self.mixture]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"mixture entries need distinct names, not {names}")
        return self


class OptimizerConfig(FrozenModel):
    """AdamW; biases, one-dimensional tensors (norms) and what steers the state-space recurrence are not decayed."""

    lr: float = Field(5e-5, gt=0)
    warmup_steps: int = Field(1000, ge=0)
    warmup_from: float = Field(1e-6, ge=0)  # linear from here to `lr`
    decay: Literal["constant", "cosine"] = "constant"  # after the warm-up; cosine ends at 0 with the stage
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    clip_norm: float = Field(1.0, gt=0)

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of step `step` (the first is 0) of a stage of `steps`."""
        if step < self.warmup_steps:
            return self.warmup_from + (self.lr - self.warmup_from) * step / self.warmup_steps
        if self.decay == "constant":
            return self.lr
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.lr * (1 + math.cos(math.pi * done)) / 2


OF_DEEPSPEED = ("param_persistence_elements", "bucket_elements", "live_elements", "overlap_comm")


class EngineConfig(FrozenModel):
    """How the numbers are computed.

    - backend: `deepspeed`, or torch's FSDP2 (`fsdp2`), which is there to be compared with it. Under that, `zero_stage`
      3 gathers a block's weights for each pass and 2 leaves them whole from the first pass of a step to its last (as
      well as gradients); `param_persistence_elements`, `bucket_elements`, `live_elements` and `overlap_comm` are
      DeepSpeed's alone. Saves and checkpoints are the same.
    - dtype: `bfloat16` is autocast: matrix products in bfloat16, master weights and moments in float32.
    - deterministic: on a GPU, equal runs give equal bytes (torch's deterministic mode, which costs some time).
    - checkpointing: what a forward pass keeps of each block for the backward pass: everything (`none`), results of
      matrix products and attention (`selective`), or the block's input alone (`block`). Not a bit of the result
      depends on it.
    - overlap_comm: on a GPU, gradients travel while the next ones are computed.
    - fixed_order: not a bit depends on the number of ranks; every rank then computes every pack.
    - sequence_parallel: neighbouring ranks that share every forward, each with a part of the frames, for clips whose
      activations one GPU does not hold. The other ranks, in groups of so many, divide the packs.
    - live_elements: whole parameters that ZeRO-3 keeps on a rank between uses instead of gathering them again. Room
      for all of them: each rank gathers them once, after the update, and nothing is done about them in between.
    """

    backend: Literal["deepspeed", "fsdp2"] = "deepspeed"
    zero_stage: int = Field(3, ge=0, le=3)
    dtype: Dtype = "float32"
    checkpointing: Recompute = "none"
    deterministic: bool = True
    param_persistence_elements: int = Field(10_000, ge=0)  # ZeRO-3 keeps smaller tensors whole, if not all
    bucket_elements: int = Field(20_000_000, ge=1)
    live_elements: int = Field(1_000_000_000, ge=0)
    overlap_comm: bool = True
    fixed_order: bool = False
    timeout_s: int = Field(600, ge=10)  # collective timeout
    sequence_parallel: int = Field(1, ge=1)

    def keeps_whole(self, elements: int) -> bool:
        """Do all parameters of a model of so many elements stay whole on each rank, although ZeRO-3 shards them?"""
        return self.backend == "deepspeed" and self.zero_stage == 3 and self.live_elements >= elements

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        data: dict[str, object] = handler(self)
        for name in ("backend",) if self.backend == "deepspeed" else OF_DEEPSPEED:
            del data[name]
        if self.sequence_parallel == 1:
            del data["sequence_parallel"]
        return data

    @model_validator(mode="after")
    def _check_backend(self) -> EngineConfig:
        if self.backend == "fsdp2" and self.zero_stage < 2:
            raise ValueError(
                f"backend fsdp2 has no counterpart of zero_stage {self.zero_stage}: set zero_stage to 3 (weights are "
                "gathered for each pass) or 2 (they stay whole during a step), or leave out backend"
            )
        return self

    @model_validator(mode="after")
    def _check_order(self) -> EngineConfig:
        if self.fixed_order and self.sequence_parallel > 1:
            raise ValueError("fixed_order has every rank compute every pack alone: leave out sequence_parallel")
        return self


class GuardConfig(FrozenModel):
    """What a step whose numbers went wrong leads to; each intervention is recorded in its row of the metrics.

    - stop: the stage ends with exit class 50, the step is not taken.
    - skip: the step's update is not taken, training goes on with the next step's data.
    - roll_back: training starts again at the last save and takes no update from the last `rewind` steps' data up to
      the step's own; they are never loaded again.

    A spike is a loss above `spike_factor` times the median of the last `window` updates of the same media, or a
    gradient norm above `norm_factor` times theirs (0: not looked at), once there are `settled` of them.
    """

    not_finite: Literal["stop", "skip", "roll_back"] = "stop"
    spike: Literal["ignore", "stop", "skip", "roll_back"] = "ignore"
    spike_factor: float = Field(3.0, gt=1)
    norm_factor: float = Field(0.0, ge=0)
    window: int = Field(64, ge=1)
    settled: int = Field(16, ge=1)
    rewind: int = Field(1, ge=1)  # steps that a roll-back leaves out, the offending one included
    most: int = Field(20, ge=1)  # updates not taken in one stage before a person must look


class ValidationConfig(FrozenModel):
    """Loss on the clips that `order.held_out` keeps from training, and videos made of their captions.

    Samples, timesteps and noise are the same at every validation, of every stage and at any world size.
    """

    every: int = Field(0, ge=0)  # steps from one validation to the next, and after the last step; 0: none
    samples: int = Field(16, ge=1)  # at most so many held-out samples of each latent size
    videos: int = Field(0, ge=0)  # videos made at each validation
    sampler: AnySampler = SamplerConfig()  # of the model's family


class TrainConfig(FrozenModel):
    """One stage of the ladder. `name` keys the data order, so two stages never repeat each other's draws."""

    name: str = Field(min_length=1)
    steps: int = Field(ge=1)
    order: OrderConfig = OrderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    start_from: Literal["weights", "ema"] = "weights"
    ema_decay: float = Field(0.9999, ge=0, lt=1)  # 0: no EMA; ramped as min(decay, (1+n)/(10+n))
    text_drop: float = Field(0.1, ge=0, le=1)
    save_every: int = Field(500, ge=1)  # resume state, not artifacts
    keep_saves: int = Field(2, ge=2)  # ephemeral ones; the newest may be damaged when a machine dies
    keep_every: int = Field(0, ge=0)  # steps between permanent saves, which retention never deletes; 0: none
    async_saves: bool = True  # training goes on while a save is written; off: it waits
    save_timeout_s: float = Field(1800, gt=0)  # for all ranks' files of one save
    drain_deadline_s: float = Field(120, gt=0)  # from the request to stop to the exit, the emergency save included
    guard: GuardConfig = GuardConfig()
    validation: ValidationConfig = ValidationConfig()

    @model_validator(mode="after")
    def _check_validation(self) -> TrainConfig:
        if self.validation.every and not self.order.held_out:
            raise ValueError("validation.every needs clips that never train: set order.held_out")
        return self


class WeightedScorer(FrozenModel):
    """One image-text score of the reward and its share."""

    scorer: ScorerConfig = ConseConfig()
    weight: float = Field(1.0, gt=0)


class RewardTermConfig(FrozenModel):
    """Where and how strongly the reward acts (spec: one-step clean estimate, high pyramid stage, last latents).

    `noise_window`: range of the local noise ratio r that high-stage columns are drawn from; the estimate's
    gradient is proportional to r, so it vanishes near 0, and near 1 the estimate is a blur.
    """

    weight: float = Field(0.1, gt=0)
    scorers: tuple[WeightedScorer, ...] = (WeightedScorer(),)
    last_latents: int = Field(8, ge=1)  # only frames of the clip's final latents are scored
    context_latents: int = Field(1, ge=0)  # clean latents decoded before the scored one, without gradient
    noise_window: tuple[float, float] = (0.1, 0.6)

    @model_validator(mode="after")
    def _check(self) -> RewardTermConfig:
        low, high = self.noise_window
        if not 0 <= low < high <= 1:
            raise ValueError(f"noise_window {self.noise_window} must be 0 <= low < high <= 1")
        if not self.scorers:
            raise ValueError("a reward needs at least one scorer")
        return self


class RewardConfig(TrainConfig):
    """Reward post-training: the flow loss stays on, the reward is added at the high stage."""

    reward: RewardTermConfig = RewardTermConfig()
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="after")
    def _check_engine(self) -> RewardConfig:
        if self.engine.sequence_parallel > 1:
            raise ValueError(
                "engine.sequence_parallel is not for reward post-training, whose watch looks at frames of its own on "
                "every rank: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_watch(self) -> RewardConfig:
        if self.save_every < 2 and self.watch.on_alarm != "ignore":
            raise ValueError("save_every is 1: the watch compares the steps between two saves and needs two of them")
        return self

    @model_validator(mode="after")
    def _check_scored(self) -> RewardConfig:
        if self.watch.probe.scored and not self.order.held_out:
            raise ValueError("watch.probe.scored needs clips that the stage never trains on: set order.held_out")
        return self

    @property
    def scorers(self) -> tuple[ScorerConfig, ...]:
        """Of the reward, and held out of it."""
        return (*(weighted.scorer for weighted in self.reward.scorers), *self.watch.held_out)

    def key_config(self) -> dict[str, object]:
        """Without what an alarm leads to: a stage that it paused goes on from its state when asked to finish."""
        return {**super().key_config(), "watch": self.watch.key_config()}


def weights_of(config: RewardConfig) -> dict[str, str]:
    """Asset name -> sha256 of the frozen models that the reward reads."""
    return {name: digest for scorer in config.scorers for name, digest in scorer.packaged().items()}
