"""What a reward stage needs beside its model on every GPU: frozen networks, the decode with a gradient, scores.

Nothing of it is sharded: each rank decodes and scores the frames of its own packs, one column at a time; of models
without a pyramid whole clips, one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from m4v.codec.config import CausalVaeConfig, CodecConfig, WanVaeConfig
from m4v.codec.shape import SPATIAL, TEMPORAL
from m4v.scores.clip_config import TOWERS, ClipTowers
from m4v.scores.config import ConseConfig, ScorerConfig
from m4v.vae.config import LEVELS, VaeConfig
from training.config import OrderConfig, RewardConfig
from training.samples import SampleGroup
from training.streams import Media, Stream, streams_of
from training.template import HIGH

_WIDTH = {"bfloat16": 2, "float32": 4}
VAE_PARAMETERS = 335_402_067  # of the published VAE, encoder included: it is loaded whole
# Elements alive at most for each pixel of a frame, while a latent's eight frames are decoded and differentiated: caches
# of the context, the inputs of blocks, one block. Counted on the meta device at the published size; tests hold both.
DECODED_ELEMENTS = 15_600
WAN_VAE_PARAMETERS = 126_892_531  # of Wan2.1's published VAE, likewise
# Its decode computes nothing again, so a clip's every frame keeps what its gradient needs: elements for each pixel of
# each frame, and those that are there once; and of a single latent behind its context. Counted likewise.
WAN_FRAME_ELEMENTS, WAN_EDGE_ELEMENTS, WAN_LATENT_ELEMENTS = 5_200, 5_700, 24_300
# Operations of its decoder for a place of the first latent and of a later one, counted by torch; attention adds more.
WAN_FIRST_FLOPS, WAN_NEXT_FLOPS, WAN_ATTENTION_FLOPS = 687_882_752, 2_161_889_792, 4 * 384
_CONSE_BYTES = 60 << 20  # EfficientNet-Lite2, float32, and what it keeps of a frame
_FRAME_COPIES = 8  # float32 copies of a scored frame: pixels, their gradient, what resizing makes of them
_KEPT = 10  # of a tower's block, in channels of its tokens, counted with autograd's hooks (eval_reward, section 6)
_PASSES = 3  # a frozen network: forward, forward again block by block, and a gradient to its input alone
_WAN_PASSES = 2
_SCORED_AT_ONCE = 8  # frames of a whole clip


class RewardWork(NamedTuple):
    """Bytes of frozen weights, the most bytes that decode and scores hold, and operations of a mean pack."""

    frozen: int
    activations: int
    flops_per_pack: float


def reward_work(config: RewardConfig, codec: CodecConfig, groups: Sequence[SampleGroup]) -> RewardWork:
    """Of a stage on samples of these sizes; the largest pack decides the memory."""
    streams = [stream for entry in streams_of(groups, config.order, _kind(config.order)) for stream in entry]
    frozen = _codec_weights(codec) + sum(_scorer_bytes(scorer)[0] for scorer in config.scorers)
    activations = max((_activations(config, codec, stream) for stream in streams), default=0)
    flops = [_flops_of(config, codec, stream) for stream in streams]
    return RewardWork(frozen, activations, sum(flops) / max(1, len(flops)))


def scores_whole_clips(config: RewardConfig) -> bool:
    """Whether every frame of a clip is decoded and scored: there is no pyramid stage to take one from."""
    return not config.order.columns


def _clip_frames(config: RewardConfig, stream: Stream) -> int:
    return (stream.t - 1) * config.order.time_stride + 1


def _kind(order: OrderConfig) -> Media:
    return "image" if order.is_image_stage else "video"


def _codec_weights(codec: CodecConfig) -> int:
    if isinstance(codec, CausalVaeConfig):
        return _WIDTH[codec.dtype] * VAE_PARAMETERS
    return _WIDTH[codec.dtype] * WAN_VAE_PARAMETERS if isinstance(codec, WanVaeConfig) else 0


def _activations(config: RewardConfig, codec: CodecConfig, stream: Stream) -> int:
    """Of one column, or of one clip: its decode with a gradient, its scored frames, and what the scorers keep."""
    whole, pixels = scores_whole_clips(config), stream.h * stream.w * SPATIAL**2
    decoded, frames, at_once = TEMPORAL, 1, 1
    if whole:
        decoded = frames = _clip_frames(config, stream)
        at_once = min(_SCORED_AT_ONCE, frames)
    else:
        pixels, at_once = pixels * stream.batch, stream.batch
    if isinstance(codec, CausalVaeConfig):
        held = _WIDTH[codec.dtype] * DECODED_ELEMENTS
    elif isinstance(codec, WanVaeConfig):
        elements = WAN_FRAME_ELEMENTS * frames + WAN_EDGE_ELEMENTS if whole else WAN_LATENT_ELEMENTS
        held = _WIDTH[codec.dtype] * elements
    else:
        held = 4 * 3 * decoded * 4  # a transform: its frames, and a few copies
    kept = sum(_scorer_bytes(scorer)[1] for scorer in config.scorers)
    return pixels * (held + _FRAME_COPIES * 3 * 4 * frames) + at_once * kept


def _scorer_bytes(scorer: ScorerConfig) -> tuple[int, int]:
    """Weights on the device, and what one frame keeps. A text tower stays on the CPU."""
    if isinstance(scorer, ConseConfig):
        return 0, _CONSE_BYTES
    towers, width = towers_of(scorer), _WIDTH[scorer.dtype]
    block = _KEPT * places_of(towers) * towers.vision_width * width
    kept = (1 + towers.vision_layers / _KEPT) if scorer.checkpointing else towers.vision_layers
    return width * vision_parameters(towers), round(block * kept)


def towers_of(scorer: ScorerConfig) -> ClipTowers:
    assert not isinstance(scorer, ConseConfig)
    return scorer.towers if isinstance(scorer.towers, ClipTowers) else TOWERS[scorer.towers]


def places_of(towers: ClipTowers) -> int:
    """Tokens of a frame: patches and the class."""
    return (towers.image_side // towers.patch) ** 2 + 1


def vision_parameters(towers: ClipTowers) -> int:
    wide = towers.vision_width
    edges = 3 * towers.patch**2 * wide + wide + places_of(towers) * wide + 4 * wide + wide * towers.embed_dim
    return edges + towers.vision_layers * (12 * wide * wide + 13 * wide)


def _flops_of(config: RewardConfig, codec: CodecConfig, stream: Stream) -> float:
    """Operations for a mean pack of a stream."""
    per_frame = _PASSES * sum(2.0 * places_of(t) * vision_parameters(t) for t in map(towers_of, _clip(config.scorers)))
    kept = stream.batch * (1 - config.text_drop)
    if scores_whole_clips(config):
        low, high = config.reward.noise_window
        return kept * (high - low) * (_clip_decode(codec, stream) + _clip_frames(config, stream) * per_frame)
    met = min(config.order.high_units or stream.t, stream.t)
    scored = config.order.columns.count(HIGH) * kept * min(1.0, config.reward.last_latents / met)
    return scored * (_latent_decode(config, codec, stream) + per_frame)


def _clip_decode(codec: CodecConfig, stream: Stream) -> float:
    """A whole clip decoded and differentiated."""
    if isinstance(codec, WanVaeConfig):
        return _WAN_PASSES * wan_decode_flops(stream.t, stream.h, stream.w)
    if isinstance(codec, CausalVaeConfig):
        return _PASSES * (stream.t - 1 + 1 / TEMPORAL) * decode_flops(VaeConfig(), stream.h, stream.w)
    return 0.0


def _latent_decode(config: RewardConfig, codec: CodecConfig, stream: Stream) -> float:
    """Context forward, the scored latent differentiated; the first latent is one frame."""
    context = config.reward.context_latents
    if isinstance(codec, WanVaeConfig):
        first = wan_decode_flops(1, stream.h, stream.w)
        return first + (context + _WAN_PASSES) * (wan_decode_flops(2, stream.h, stream.w) - first)
    if isinstance(codec, CausalVaeConfig):
        return (context + 1 / TEMPORAL + _PASSES) * decode_flops(VaeConfig(), stream.h, stream.w)
    return 0.0


def wan_decode_flops(latents: int, height: int, width: int) -> float:
    """Operations (2 per multiply-add) of the published Wan2.1 decoder for a clip's latents (height x width)."""
    places = float(height * width)
    attention = WAN_ATTENTION_FLOPS * places * latents
    return places * (WAN_FIRST_FLOPS + (latents - 1) * WAN_NEXT_FLOPS + attention)


def _clip(scorers: Sequence[ScorerConfig]) -> list[ScorerConfig]:
    return [scorer for scorer in scorers if not isinstance(scorer, ConseConfig)]


def decode_flops(vae: VaeConfig, height: int, width: int) -> float:
    """Operations (2 per multiply-add) of the decoder's convolutions for one latent (height x width) after the first."""
    widths, layers = vae.decoder_block_out_channels[::-1], vae.decoder_layers_per_block[::-1]
    places, macs = float(height * width), 0.0
    macs += places * (27 * vae.decoder_in_channels * widths[0] + 4 * 27 * widths[0] ** 2)  # conv_in, middle block
    macs += places * (4 * widths[0] ** 2 + 2 * places * widths[0])  # its attention
    before = widths[0]
    for level, (channels, blocks) in enumerate(zip(widths, layers, strict=True)):
        macs += places * (27 * (before * channels + (2 * blocks - 1) * channels**2))
        macs += places * (before * channels if before != channels else 0)
        if level < LEVELS - 1:
            macs += places * 27 * 4 * channels**2
            macs += 4 * places * 27 * 2 * channels**2
            places *= 8
        before = channels
    return 2 * (macs + places * 27 * before * vae.decoder_out_channels)
