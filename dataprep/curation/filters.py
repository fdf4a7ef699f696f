"""The rules that drop clips: pure functions of stored scores and thresholds, in a fixed order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from dataprep.curate_config import DedupConfig, FilterConfig
from dataprep.curation.table import Clip
from dataprep.dedup import Signature, find_duplicates


class Rule(NamedTuple):
    """Drops as `name` when the measured value is below (`min`) or above (`max`) the threshold."""

    name: str
    threshold: str  # field of FilterConfig
    value: str  # a score, or `frames` or `side`
    bound: Literal["min", "max"]
    applies_to_drawn: bool = False


RULES = (
    Rule("too_short", "min_frames", "frames", "min", applies_to_drawn=True),
    Rule("too_small", "min_side", "side", "min", applies_to_drawn=True),
    Rule("interlaced", "max_interlaced", "interlaced", "max"),
    Rule("frame_gap", "max_gap", "gap", "max"),
    Rule("black", "max_black", "black", "max"),
    Rule("overexposed", "max_overexposed", "overexposed", "max"),
    Rule("letterbox", "max_letterbox", "letterbox", "max"),
    Rule("frozen", "max_frozen", "frozen", "max"),
    Rule("static", "min_motion", "motion", "min"),
    Rule("fast_motion", "max_motion", "motion", "max"),
    Rule("blurry", "min_sharpness", "sharpness", "min"),
    Rule("flashing", "max_flash", "flash", "max"),
    Rule("text", "max_text", "text", "max"),
    Rule("nsfw", "max_nsfw", "nsfw", "max"),
    Rule("low_quality", "max_brisque", "brisque", "max"),
)


def broken_rule(clip: Clip, config: FilterConfig) -> str | None:
    """Name of the first rule that the clip breaks."""
    for rule in RULES:
        threshold = getattr(config, rule.threshold)
        value = _value(clip, rule.value)
        if threshold is None or value is None or (clip.drawn and not rule.applies_to_drawn):
            continue
        if value < threshold if rule.bound == "min" else value > threshold:
            return rule.name
    return None


def _value(clip: Clip, name: str) -> float | None:
    if name == "frames":
        return clip.frames if clip.is_video else None
    if name == "side":
        return min(clip.box.width, clip.box.height)
    return clip.scores.get(name)


def apply_filters(clips: Iterable[Clip], config: FilterConfig) -> dict[str, int]:
    """Set `drop_rule` on the clips that have none and break a rule; counts by rule."""
    dropped: Counter[str] = Counter()
    for clip in clips:
        rule = broken_rule(clip, config) if clip.drop_rule is None else None
        if rule is not None:
            clip.drop_rule = rule
            dropped[rule] += 1
    return dict(dropped)


def apply_dedup(clips: Iterable[Clip], config: DedupConfig) -> dict[str, int]:
    """Drop copies among kept clips: the larger picture stays, then the longer clip, then the earlier input."""
    kept = {clip.clip_id: clip for clip in clips if clip.drop_rule is None}
    signatures = [
        Signature(
            clip_id=name,
            content=clip.content,
            preference=(-min(clip.box.width, clip.box.height), -clip.frames, clip.order, clip.first_frame),
            sampled=clip.sampled,
            dense=clip.dense,
            media=clip.file.media,
            file=clip.file.sha256,
            perceptual=not clip.drawn,
        )
        for name, clip in kept.items()
    ]
    dropped: Counter[str] = Counter()
    for name, duplicate in find_duplicates(signatures, config).items():
        kept[name].drop_rule, kept[name].duplicate_of = duplicate.rule, duplicate.of
        dropped[duplicate.rule] += 1
    return dict(dropped)
