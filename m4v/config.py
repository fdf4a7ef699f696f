"""Frozen configuration of the transformer, the flow-matching schedule and the sampler (torch-free).

The defaults are the published PyramidFlow sizes (pyramid_flux, 768p) with the M4V mixers; recipes name
smaller ones.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from m4v.core.config import FrozenModel
from m4v.strides import TEMPORAL
from m4v.wan_flow_config import WanFlowConfig, WanSamplerConfig

Mixer = Literal["attention", "mm_dim"]
Dtype = Literal["float32", "bfloat16"]
Recompute = Literal["none", "selective", "block"]  # see `m4v.model.checkpointing`
PIXEL_MULTIPLE = 64  # three pyramid levels x 2x2 patches x 8x8 pixels a latent
Architecture = Literal["attention", "mm_dim", "pre_half", "post_half", "interleaved", "parallel"]

NEGATIVE_PROMPT = (
    "cartoon style, worst quality, low quality, blurry, absolute black, absolute white, low res, extra limbs, "
    "extra digits, misplaced objects, mutated anatomy, monochrome, horror"
)


def default_dtype(device: str) -> Dtype:
    """The transformer's type on a device: bfloat16 on a GPU, as it was trained, float32 on the CPU."""
    return "float32" if device == "cpu" else "bfloat16"


class ModelConfig(FrozenModel):
    """The M4V transformer (paper §3.2, §3.3). `mixer` chooses what the single-stream blocks mix with.

    `attention` is the PyramidFlow reference, `mm_dim` is the paper's *Full*; `pre_half`, `post_half`,
    `interleaved` and `parallel` are the other rows of Table 4. Double-stream blocks always use attention.
    """

    width: int = Field(1920, gt=0)
    heads: int = Field(30, gt=0)
    double_blocks: int = Field(8, ge=1)
    single_blocks: int = Field(16, ge=1)
    latent_channels: int = Field(16, gt=0)
    patch: Literal[2] = 2  # latent places per token and side
    mlp_ratio: int = Field(4, gt=0)
    text_dim: int = Field(4096, gt=0)
    pooled_dim: int = Field(768, gt=0)
    text_slots: int = Field(128, gt=0)  # text tokens per column, pads included
    rope_axes: tuple[int, int, int] | None = None  # channels of a head for t, h, w; None: 1/4, 3/8, 3/8
    rope_theta: float = Field(10000.0, gt=1)
    use_temporal_causal: bool = True

    mixer: Architecture = "mm_dim"
    ssm: Literal["ssd", "mamba1"] = "ssd"
    state_size: int | None = Field(None, gt=0)  # per head (ssd: the head size) or per group (mamba1: 16)
    dt_rank: int = Field(64, gt=0)  # mamba1 only; ssd has one step size per head
    conv_width: int = Field(4, ge=2)
    chunk_size: int = Field(32, ge=4)  # tokens per SSD chunk: speed and rounding only
    scan: Literal["serpentine", "raster"] = "serpentine"
    text_recomposition: bool = True  # Table 3 "Text": a second copy of the text closes the sequence
    registers: bool = True  # Table 3 "Vis": one register before every frame
    temporal_branch: bool = True  # Table 3 "Temp"
    projection_order: Literal["dual", "literal"] = "dual"  # attention -> SSM: dual C<-q, B<-k; literal the reverse
    rope_on_ssm: bool = True  # rotate C and B as the attention rotates q and k

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def axes(self) -> tuple[int, int, int]:
        """Rotary channels of a head for the axes t, h, w."""
        if self.rope_axes is not None:
            return self.rope_axes
        time = self.head_dim // 4
        return (time, (self.head_dim - time) // 2, (self.head_dim - time) // 2)

    @property
    def ssm_state(self) -> int:
        """State places per channel."""
        return self.state_size or (self.head_dim if self.ssm == "ssd" else 16)

    def mixers(self, block: int) -> tuple[Mixer, ...]:
        """What single-stream block `block` mixes with: one mixer, or both for `parallel`."""
        half = self.single_blocks // 2
        match self.mixer:
            case "attention":
                return ("attention",)
            case "mm_dim":
                return ("mm_dim",)
            case "parallel":
                return ("attention", "mm_dim")
            case "pre_half":
                return ("mm_dim",) if block < half else ("attention",)
            case "post_half":
                return ("attention",) if block < half else ("mm_dim",)
            case "interleaved":
                return ("mm_dim",) if block % 2 == 0 else ("attention",)

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if any(axis < 0 or axis % 2 for axis in self.axes) or sum(self.axes) != self.head_dim:
            raise ValueError(f"rope_axes {self.axes} must be even and sum to the head size {self.head_dim}")
        if self.ssm == "ssd" and self.ssm_state != self.head_dim:
            raise ValueError(f"ssd keeps C and B at the width, so state_size must be {self.head_dim}")
        if self.width % self.ssm_state:
            raise ValueError(f"state_size {self.ssm_state} does not divide width {self.width}")
        return self


class ScheduleConfig(FrozenModel):
    """Pyramidal flow matching: three resolutions from noise to data (PyramidFlow), history corruption (paper A.3)."""

    train_steps: int = Field(1000, gt=1)
    shift: float = Field(1.0, gt=0)
    stages: int = Field(3, ge=1)
    stage_range: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0)
    gamma: float = Field(1 / 3, ge=0, le=1 / 3)  # covariance of the renoising block; 1/3 makes it zero-sum
    corruption: Literal["linear", "constant"] = "linear"  # constant is the reference's
    corruption_ratio: float = Field(1 / 3, ge=0, le=1)  # eta: the strongest noise that history can get

    @model_validator(mode="after")
    def _check(self) -> ScheduleConfig:
        bounds = self.stage_range
        if (
            len(bounds) != self.stages + 1
            or bounds[0] != 0.0
            or bounds[-1] != 1.0
            or list(bounds) != sorted(set(bounds))
        ):
            raise ValueError(f"stage_range must rise from 0 to 1 in {self.stages} steps")
        return self


class SamplerConfig(FrozenModel):
    """Autoregressive sampling: Euler steps per stage (low to high) and guidance, for the first frame and later ones.

    Options that came later stand in the canonical form only when they are used, so that older digests hold and
    older scores stay comparable.
    """

    time_stride: ClassVar[int] = TEMPORAL
    pixel_multiple: ClassVar[int] = PIXEL_MULTIPLE

    steps_first: tuple[int, ...] = (20, 20, 20)
    steps_later: tuple[int, ...] = (10, 10, 10)
    guidance_first: float = Field(7.0, ge=0)  # 0 turns classifier-free guidance off
    guidance_later: float = Field(5.0, ge=0)
    guidance_decay: float = Field(0.0, ge=0)  # taken off per later frame, never below 2
    guidance_image: float = Field(4.0, ge=0)  # in place of guidance_later when frame 0 is a given image
    self_guidance: float = Field(0.0, ge=0)  # self-quality guidance (paper E.3, eq. 10) at the highest stage; 0: off
    self_guidance_from: int = Field(8, ge=2)  # latent frame, counted from 1, that it begins with
    prompt_suffix: str = ", hyper quality, Ultra HD, 8K"
    negative_prompt: str = NEGATIVE_PROMPT

    @model_validator(mode="after")
    def _check(self) -> SamplerConfig:
        if len(self.steps_first) != len(self.steps_later) or min(*self.steps_first, *self.steps_later) < 1:
            raise ValueError("steps_first and steps_later need one positive count per stage")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        data: dict[str, object] = handler(self)
        for name in ("guidance_image", "self_guidance", "self_guidance_from"):
            if data.get(name) == type(self).model_fields[name].default:
                del data[name]
        return data


def family_of(value: object) -> str:
    """`kind` of a section that a family of models has its own form of: `wan`, or `pyramid`, which recipes wrote before
    there was another and whose sections do not say it."""
    kind = value.get("kind", "pyramid") if isinstance(value, dict) else getattr(value, "kind", "pyramid")
    return str(kind)


AnySchedule = Annotated[
    Annotated[ScheduleConfig, Tag("pyramid")] | Annotated[WanFlowConfig, Tag("wan")],
    Discriminator(family_of, custom_error_type="family", custom_error_message="kind is wan, or not there"),
]
AnySampler = Annotated[
    Annotated[SamplerConfig, Tag("pyramid")] | Annotated[WanSamplerConfig, Tag("wan")],
    Discriminator(family_of, custom_error_type="family", custom_error_message="kind is wan, or not there"),
]


class VideoConfig(FrozenModel):
    """How a video is made from a checkpoint, whatever its prompt and seed.

    - sampler: of the model's family; `kind: wan` for Wan's.
    - frames: 8k + 1, as the causal codec has them, 4k + 1 for Wan; fps is the true rate the model was trained at.
    - crf: H.264 quality; at most 12 for figures one wants to keep (compression moves flicker).
    """

    sampler: AnySampler = SamplerConfig.model_validate({})  # first: sizes depend on its family
    frames: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    fps: float = Field(default=24.0, gt=0)
    crf: int = Field(default=12, ge=0, le=51)

    @field_validator("frames")
    @classmethod
    def _causal(cls, frames: int, info: ValidationInfo) -> int:
        stride = info.data.get("sampler", SamplerConfig).time_stride
        if frames % stride != 1:
            near = max(1, (frames - 1) // stride * stride + 1)
            raise ValueError(f"must be {stride}k + 1 (the codec is causal): use {near} or {near + stride}")
        return frames

    @field_validator("height", "width")
    @classmethod
    def _whole_tokens(cls, size: int, info: ValidationInfo) -> int:
        multiple = info.data.get("sampler", SamplerConfig).pixel_multiple
        if size < multiple:
            raise ValueError(f"Input should be greater than or equal to {multiple}")
        if size % multiple:
            near = size // multiple * multiple
            raise ValueError(f"not a multiple of {multiple}: use {near} or {near + multiple}")
        return size


class CheckpointConfig(FrozenModel):
    """What `config.json` of a checkpoint says: enough to rebuild the model and to decode what it makes."""

    model: ModelConfig
    schedule: ScheduleConfig
    codec: dict[str, JsonValue] = {}
    text_encoder: dict[str, JsonValue] = {}
    weights: dict[str, str] = {}  # artifact ids of the imported weights that codec and text encoder name
    ema: bool = False  # `ema.safetensors` lies beside the raw weights
