"""Guidance of the sampler: what the model is asked, and how its answers become one velocity."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from m4v.config import SamplerConfig
from m4v.flow.loss import VelocityModel

GUIDANCE_FLOOR = 2.0  # linear decay never goes below


class TextFeatures(Protocol):
    """Encoded prompts: `embedding` (n, slots, d), `mask` (n, slots), `pooled` (n, p)."""

    @property
    def embedding(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...
    @property
    def pooled(self) -> Tensor: ...


def guidance_at(config: SamplerConfig, frame: int) -> float:
    """Scale of classifier-free guidance for latent frame `frame` (from 0): its own for frame 0, then the other
    one, less `guidance_decay` for every frame before, down to 2 (PyramidFlow's linear guidance)."""
    if frame == 0:
        return config.guidance_first
    if config.guidance_later <= GUIDANCE_FLOOR or config.guidance_decay == 0:
        return config.guidance_later
    return max(config.guidance_later - config.guidance_decay * frame, GUIDANCE_FLOOR)


def self_guidance_at(config: SamplerConfig, frame: int, stage: int, stages: int) -> float:
    """Scale of self-quality guidance (paper E.3): at the highest stage, from `self_guidance_from` on; else 0."""
    late = frame + 1 >= config.self_guidance_from and frame > 0
    return config.self_guidance if late and stage == stages - 1 else 0.0


class GuidedModel:
    """A model with the text of a batch. Its inputs are cast to the text's type, its answers to the clip's.

    Rows of one call are [negative, positive] with guidance, positive alone without (as PyramidFlow has them).
    """

    def __init__(self, model: VelocityModel, positive: TextFeatures, negative: TextFeatures, batch: int) -> None:
        self.model, self.batch = model, batch
        self.plain = (positive.embedding, positive.mask, positive.pooled)
        rows = (negative.embedding, negative.mask, negative.pooled)
        spread = [r.expand(batch, *r.shape[1:]) if r.shape[0] == 1 else r for r in rows]
        self.guided = tuple(torch.cat([n, p]) for n, p in zip(spread, self.plain, strict=True))

    def velocity(
        self, history: list[Tensor], x: Tensor, timestep: float, stage: int, guidance: float, self_guidance: float = 0.0
    ) -> Tensor:
        """Velocity of the noisy clip `x` (b, c, 1, h, w) after the clips `history` (paper E.3).

        Eq. 8: `v_l`, classifier-free guidance with the frames f so far. Eq. 9: `v_h`, the same of the same x_t
        without them, as if it were a first frame: what the model learned from images knows nothing of the
        errors that the frames have gathered. Eq. 10: `v_l + self_guidance * (v_h - v_l)`.

        The paper's words put a clean estimate of x_0 between (8) and (9), noised again to x_t's level. With the
        noise that the model itself predicts this gives x_t back, and the equations show no other draw.
        """
        low = self._text_guided([*history, x], timestep, stage, guidance)
        if self_guidance == 0 or not history:
            return low
        high = self._text_guided([x], timestep, stage, guidance)
        return low + self_guidance * (high - low)

    def _text_guided(self, clips: list[Tensor], timestep: float, stage: int, guidance: float) -> Tensor:
        embedding, mask, pooled = self.guided if guidance > 0 else self.plain
        given = [clip.to(embedding.dtype) for clip in clips]
        if guidance > 0:
            given = [torch.cat([clip, clip]) for clip in given]
        timesteps = torch.full((given[0].shape[0],), timestep, dtype=torch.float32, device=embedding.device)
        (answer,) = self.model([given], timesteps, embedding, mask, pooled, [stage])
        answer = answer.to(clips[-1].dtype)
        if guidance <= 0:
            return answer
        without, with_text = answer[: self.batch], answer[self.batch :]
        return without + guidance * (with_text - without)
