"""When a reward stage is held to be hacking its reward, and what happens then. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from m4v.core.config import FrozenModel
from m4v.scores.config import ScorerConfig


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

    def key_config(self) -> dict[str, object]:
        return {name: value for name, value in super().key_config().items() if name != "on_alarm"}
