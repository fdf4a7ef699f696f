"""The Wan transformer behind the call that training makes of every model (`m4v.flow.loss.VelocityModel`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from m4v.shapes_only import shapes_only
from m4v.wan.transformer import WanTransformer


class WanColumns(WanTransformer):
    """A `VelocityModel` of one column with one clip: the whole video. Its parameters have the transformer's names."""

    @classmethod
    def of(cls, model: WanTransformer) -> WanColumns:
        """With the weights of `model`, which are not copied."""
        with shapes_only():
            made = cls(model.wan)
        made.load_state_dict(model.state_dict(), assign=True)
        made.requires_grad_(True)
        made.restore_rotary()
        return made

    def forward(  # type: ignore[override]
        self,
        columns: Sequence[Sequence[Tensor]],
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        pooled: Tensor,
        stages: Sequence[int],
    ) -> list[Tensor]:
        """Velocity of the clip `columns[0][0]` (b, c, t, h, w). What `text_mask` (b, L) leaves out becomes zero, by
        which Wan tells pads; a pooled text and pyramid stages it does not have. Raises ValueError for more clips."""
        ((clip,),) = columns
        (velocity,) = super().forward(clip, timesteps, torch.where(text_mask[..., None], text, 0), return_dict=False)
        return [velocity]
