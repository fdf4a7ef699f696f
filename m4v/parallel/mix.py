"""What the MM-DiM blocks of one forward share, of one rank's frames."""

from __future__ import annotations

from torch import Tensor

from m4v.config import ModelConfig
from m4v.model.recomposition import Recomposition, text_order
from m4v.model.scan import LAYER_ORDER
from m4v.model.tables import register_types
from m4v.parallel.segment import segment
from m4v.parallel.shard import Shard


def part_of_mix(
    config: ModelConfig, blocks: int, turn: Tensor, valid: Tensor, like: Tensor, shard: Shard
) -> tuple[Tensor, Tensor, list[Recomposition]]:
    """Register types, rotations and tables of `blocks` blocks; `turn` and `valid` (b, C, slots) are of all tokens."""
    closing = config.text_recomposition and shard.whole.text_slots > 0
    order = text_order(valid)
    tables = [
        segment(shard, order, path, config.scan, config.registers, closing, config.chunk_size, config.conv_width - 1,
                like.dtype)
        for path in range(min(len(LAYER_ORDER), blocks))
    ]  # fmt: skip
    types = register_types(shard.whole, shard.device).index_select(0, shard.frames)
    scans_text = closing and shard.group.rank == shard.group.size - 1
    return types, shard.select_turn(turn, config.registers, scans_text), tables
