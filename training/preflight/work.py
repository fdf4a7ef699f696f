"""Tokens and floating-point operations of a stage's packs, from its order and the sizes that its dataset may hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from m4v.config import ModelConfig
from m4v.family import AnyModel
from m4v.wan.config import WanConfig
from training.config import OrderConfig
from training.samples import SampleGroup
from training.streams import Media, Stream, streams_of
from training.template import HIGH, WHOLE, Column, column_tokens, stage_tokens

SCAN_FLOPS = 9  # per token, channel and state place of a selective scan, as `m4v flops` counts


class PackWork(NamedTuple):
    """One forward pass: visual and text tokens, tokens that the temporal branch sees, operations; latent frames of its
    longest column, samples of each column."""

    visual: int
    text: int
    temporal: int
    forward_flops: float
    frames: int = 1
    samples: int = 1


@dataclass(frozen=True)
class StageWork:
    """`largest` is the pack with the most tokens; means are over the packs of all sizes and an image:video round.
    `longest`: latent frames of the longest clip."""

    largest: PackWork
    tokens_per_pack: float
    samples_per_pack: float
    forward_flops_per_pack: float
    longest: int = 1


@lru_cache(maxsize=256)
def stage_work(model: AnyModel, order: OrderConfig, groups: tuple[SampleGroup, ...]) -> StageWork | None:
    """Work of a stage on samples of these sizes, each size of an entry as frequent as the others; None when the stage
    takes none of them."""
    main: Media = "image" if order.is_image_stage else "video"
    kinds = [(main, Fraction(order.image_every, order.image_every + 1) if order.image_every else Fraction(1))]
    if main == "video" and order.image_every:
        kinds.append(("image", Fraction(1, order.image_every + 1)))
    shares: list[tuple[Stream, Fraction]] = []
    for kind, share in kinds:
        shares += [(stream, share * part) for stream, part in _shares(order, groups, kind)]
    if not shares:
        return None
    whole = sum(share for _, share in shares)
    packs = [
        (pack, share / whole / len(works)) for s, share in shares for works in [_packs(model, s)] for pack in works
    ]
    return StageWork(
        largest=max((pack for pack, _ in packs), key=lambda p: (p.visual + p.text, p.forward_flops)),
        tokens_per_pack=float(sum(pack.visual * share for pack, share in packs)),
        samples_per_pack=float(sum(stream.slots * share / whole for stream, share in shares)),
        forward_flops_per_pack=sum(pack.forward_flops * float(share) for pack, share in packs),
        longest=max(pack.frames for pack, _ in packs),
    )


def _shares(order: OrderConfig, groups: Sequence[SampleGroup], kind: Media) -> Iterable[tuple[Stream, Fraction]]:
    weights = {entry.name: entry.weight for entry in order.mixture}
    entries = streams_of(groups, order, kind)
    total = sum(weights[streams[0].entry] for streams in entries)
    for streams in entries:
        for stream in streams:
            yield stream, Fraction(weights[stream.entry], total * len(streams))


def _packs(model: AnyModel, stream: Stream) -> list[PackWork]:
    found = []
    for columns in stream.cycle:
        visual = sum(column_tokens(column, stream.h, stream.w) for column in columns)
        temporal = sum(_temporal_tokens(column, stream.h, stream.w) for column in columns)
        flops = sum(forward_flops(model, column, stream.h, stream.w) for column in columns)
        text, batch = len(columns) * model.text_slots, stream.batch
        frames = max(column.unit for column in columns)
        found.append(PackWork(batch * visual, batch * text, batch * temporal, batch * flops, frames, batch))
    return found


def _temporal_tokens(column: Column, height: int, width: int) -> int:
    """Tokens of the branch between frames: pieces of the lowest size, or whole frames where there is no pyramid."""
    if column.stage == WHOLE:
        return column_tokens(column, height, width)
    return _temporal_pieces(column) * stage_tokens(0, height, width)


def _temporal_pieces(column: Column) -> int:
    return column.unit - 1 + (1 << 2 * column.stage)


def forward_flops(config: AnyModel, column: Column, height: int, width: int) -> float:
    """Operations (2 per multiply-add) of one forward of one column: matrix products, every score of the attention,
    scans and convolutions; `m4v flops` counts the same on the built model."""
    if isinstance(config, WanConfig):
        return _wan_flops(config, column, height, width)
    visual, noisy = column_tokens(column, height, width), stage_tokens(column.stage, height, width)
    tokens, d = visual + config.text_slots, config.width
    inner, token = config.mlp_ratio * d, config.latent_channels * config.patch**2
    attention = 4.0 * tokens**2 * d
    double = 8 * tokens * d * d + attention + 4 * tokens * d * inner + 24 * d * d
    single = 2 * tokens * d * inner + 2 * tokens * (d + inner) * d + 6 * d * d
    mixed = 0.0
    for block in range(config.single_blocks):
        for mixer in config.mixers(block):
            if mixer == "attention":
                mixed += 6 * tokens * d * d + attention
            else:
                mixed += _mamba_flops(config, column, tokens) + _temporal_flops(config, column, height, width)
    edges = 2 * visual * token * d + 2 * config.text_slots * config.text_dim * d + 2 * noisy * token * d
    return config.double_blocks * double + config.single_blocks * single + mixed + edges


def _wan_flops(config: WanConfig, column: Column, height: int, width: int) -> float:
    """One clip of `column.unit` latent frames: self-attention or mixers over it, cross-attention to the text."""
    tokens, d, slots = column_tokens(column, height, width), config.width, config.text_slots
    token = config.latent_channels * config.patch**2
    crossed = 4 * tokens * d * d + 4 * slots * d * d + 4 * tokens * slots * d
    mlp = 4 * tokens * d * config.mlp_width
    if config.mixer == "attention":
        mixed = 8.0 * tokens * d * d + 4 * tokens**2 * d
    else:
        packed = tokens + config.sequence_text
        mixed = _mamba_flops(config.mixer_config, column, packed) + 2 * packed * d * d
        if config.temporal_branch:
            places = stage_tokens(HIGH, height, width)
            mixed += 6 * tokens * d * d + 4 * column.unit**2 * places * d
    time = 2 * config.frequency_dim * d + 2 * d * d + 12 * d * d
    edges = 4 * tokens * token * d + 2 * slots * (config.text_dim * d + d * d) + time
    return config.blocks * (mixed + crossed + mlp) + edges


def _mamba_flops(config: ModelConfig, column: Column, tokens: int) -> float:
    d, frames = config.width, column.unit if config.registers else 0
    packed = tokens + frames
    length = packed + (config.text_slots if config.text_recomposition else 0)
    steps = config.heads if config.ssm == "ssd" else 2 * config.dt_rank
    projected = 6 * packed * d * d + 2 * tokens * d * d + 2 * packed * d * steps
    convolved = 2 * config.conv_width * length * d
    if config.ssm == "mamba1":
        return projected + convolved + SCAN_FLOPS * length * d * config.ssm_state
    # Chunked: C B^T and its product with x inside chunks, states in and out of them.
    return projected + convolved + 4 * length * d * config.chunk_size + 4 * length * d * config.ssm_state


def _temporal_flops(config: ModelConfig, column: Column, height: int, width: int) -> float:
    if not config.temporal_branch:
        return 0.0
    pieces, places = _temporal_pieces(column), stage_tokens(0, height, width)
    return 6 * pieces * places * config.width**2 + 4 * pieces**2 * places * config.width
