"""Flow matching over whole clips and its sampler, as Wan has them. Needs no other config, so that all may name it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from m4v.core.config import FrozenModel
from m4v.strides import PATCH, SPATIAL, WAN_TEMPORAL

# Wan's own default; its text encoder is multilingual.
WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)


class WanFlowConfig(FrozenModel):
    """Flow matching over whole clips: noise levels sigma in (0, 1], pushed towards noise by `shift`."""

    kind: Literal["wan"] = "wan"
    train_steps: int = Field(1000, gt=1)  # the model is told sigma * train_steps
    shift: float = Field(5.0, gt=0)  # sigma -> shift sigma / (1 + (shift - 1) sigma); Wan: 3 at 480p, 5 at 720p
    sigma_draw: Literal["uniform", "logit_normal"] = "logit_normal"  # before the shift


class WanSamplerConfig(FrozenModel):
    """Sampling of whole clips, with Wan's published defaults for 720p."""

    time_stride: ClassVar[int] = WAN_TEMPORAL
    pixel_multiple: ClassVar[int] = SPATIAL * PATCH

    kind: Literal["wan"] = "wan"
    scheduler: Literal["unipc", "euler"] = "unipc"
    steps: int = Field(50, ge=1)
    shift: float = Field(5.0, gt=0)
    guidance: float = Field(5.0, ge=0)  # 1 and less turn classifier-free guidance off, as in diffusers
    train_steps: int = Field(1000, gt=1)
    negative_prompt: str = WAN_NEGATIVE_PROMPT
