"""When a reward stage is held to be hacking its reward, and what happens then. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from m4v.config import AnySampler
from m4v.core.config import FrozenModel
from m4v.scores.config import ScorerConfig


class ProbeConfig(FrozenModel):
    """What the model itself is asked before a reward stage's first step and at every save, always the same.

    - samples: clips of the dataset, of `order.held_out` ones where there are any, each one forward pass at fixed noise
      and timesteps; 0: none, and neither drift nor the loss on them is known.
    - prompts, seeds: captions of such clips, and videos of each; 0: none, and the seeds' likeness is not known.
    - latents: latent frames of a video.
    - sampler: of the model's family; none: one of few steps, since videos are held against the same ones of the start
      model alone.
    - scored: clips that `order.held_out` keeps from the stage, whose one-step estimates its scorers judge as they judge
      the stage's own; 0: none. No alarm comes from it: it tells whether the reward rises on what it was not given for.
    - draws: noises and timesteps of each of these clips.
    """

    samples: int = Field(4, ge=0)
    prompts: int = Field(4, ge=0)
    seeds: int = Field(3, ge=2)
    latents: int = Field(2, ge=1)
    sampler: AnySampler | None = None
    scored: int = Field(0, ge=0)
    draws: int = Field(4, ge=1)

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # As below: stages that were recorded before keep their ids.
        data: dict[str, object] = handler(self)
        return data if self.scored else {k: v for k, v in data.items() if k not in ("scored", "draws")}


_LATER = ("drift", "seed_similarity", "probe")  # fields that came after the first stages were recorded


class WatchConfig(FrozenModel):
    """What is watched beside a reward (none of it is in the loss) and how far it may leave the start model's level.

    The level is the mean over the steps up to the stage's first save; every later save's steps are held against it. A
    measure counts as departed when it is beyond its limit by more than two standard errors; departed at two saves in
    a row it is an alarm. Limits are shares of the start's level; 0 switches one off.

    - on_alarm: `pause` ends the stage with exit class 50, `finish` makes the last good save its checkpoint, `ignore`
      only says so. Not in the stage's key: what was trained is the same, and a paused stage goes on to `finish`.
    - held_out: scorers that no gradient comes from; `held_out_fall` is how far one may fall while the reward rises.
    - freezing: fall of the mean difference between neighbouring frames.
    - saturation, contrast, grid_energy: change of the decoded frames, up or down, up or down, and up.
    - data_loss: rise of the flow loss on data.
    - similarity: rise of the mean cosine between scored frames of different clips, towards 1.
    - drift: how far the velocity on the probe's samples may be from the start model's, a share of the true one's norm.
    - seed_similarity: rise of the mean cosine between the probe's videos of one prompt, towards 1.
    - probe: what drift, the seeds' likeness and a second data loss are measured on. These are held against the start
      model itself, sample by sample, from the first save on.
    """

    on_alarm: Literal["pause", "finish", "ignore"] = "pause"
    held_out: tuple[ScorerConfig, ...] = ()
    held_out_fall: float = Field(0.1, ge=0)
    freezing: float = Field(0.5, ge=0, le=1)
    saturation: float = Field(0.5, ge=0)
    contrast: float = Field(0.5, ge=0)
    grid_energy: float = Field(1.0, ge=0)
    data_loss: float = Field(0.25, ge=0)
    similarity: float = Field(0.5, ge=0, le=1)
    drift: float = Field(0.3, ge=0)
    seed_similarity: float = Field(0.5, ge=0, le=1)
    probe: ProbeConfig = ProbeConfig()

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # Only when they are set, so that recorded stages keep their ids.
        data: dict[str, object] = handler(self)
        return {
            k: v for k, v in data.items() if k not in _LATER or getattr(self, k) != type(self).model_fields[k].default
        }

    def key_config(self) -> dict[str, object]:
        return {name: value for name, value in super().key_config().items() if name != "on_alarm"}
