"""Configuration of the curate stage: how clips are cut, what is measured, and which thresholds keep them.

`filters`, `dedup` and the cutting part of `shots` are applied to stored measurements: changing them
recomputes nothing. Only the `*_identity` methods say what a measurement depends on.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dataprep.captioning.config import CaptionConfig
from m4v.core.asset_catalog import weights_digests
from m4v.core.config import FrozenModel
from m4v.text.config import MiniLmConfig, TextEncoderConfig

_TOKENIZER = "minilm/tokenizer"
Share = Annotated[float, Field(ge=0, le=1)]


class LimitsConfig(FrozenModel):
    """Bounds for untrusted files.

    Times are of one segment or one clip, on the clock and of processor; past them, or past `item_memory_mib`, the
    child is killed. A file whose work ended so `poison_after` times is not tried again until a limit is raised.
    `max_damaged`: share of a file's frames that may be damaged; clips are cut at the damage. Few codecs have checksums
    of their pictures (HEVC may), so what is left of a rotten file can hold other damage unseen: 0 takes nothing of it.
    """

    max_pixels: int = Field(8192 * 4352, ge=1)
    max_frames: int = Field(2_000_000, ge=1)
    item_timeout_s: float = Field(900, gt=0)
    item_cpu_s: float | None = Field(900, gt=0)
    item_memory_mib: int | None = Field(8192, ge=256)
    poison_after: int = Field(2, ge=1)
    max_damaged: float = Field(0.25, ge=0, le=1)


class ShotConfig(FrozenModel):
    """Cutting videos into clips.

    `transnetv2` finds cuts and dissolves; `histogram` is about fifty times cheaper and finds cuts and fades;
    `none` takes each file (or its frame range) as one clip, for collections that are cut already.
    `trim_frames` are left out on both sides of a boundary; shots longer than `max_frames` are split evenly.
    """

    detector: Literal["transnetv2", "histogram", "none"] = "transnetv2"
    threshold: float = Field(0.5, gt=0, lt=1)
    trim_frames: int = Field(2, ge=0)
    max_frames: int | None = Field(None, ge=2)


class SignalConfig(FrozenModel):
    """What is measured. `key_frames` of each clip go to the packaged models; models that are off give null scores.

    `analysis_side`: long side, in pixels, of the frames that the cheap signals look at; motion is reported
    for pictures of this size. `embedding`: what a clip shows, as a vector for `dedup.semantic`.
    """

    analysis_side: int = Field(320, ge=64, le=1280)
    motion_stride: int = Field(4, ge=1)
    key_frames: int = Field(3, ge=1, le=16)
    text: bool = True
    nsfw: bool = True
    quality: bool = True
    embedding: bool = False


class FilterConfig(FrozenModel):
    """A clip is dropped by the first rule that it breaks, in the order of these fields; null switches one off.

    Shares are of a clip's frames unless stated otherwise. The first two rules hold for every clip, the others
    for filmed ones only (`CurateConfig.drawn_kinds`). What was not measured breaks no rule.
    """

    min_frames: int | None = Field(17, ge=1)
    min_side: int | None = Field(96, ge=1)  # pixels, shorter displayed side after the letterbox crop
    max_interlaced: float | None = Field(0.25, ge=0, le=1)  # flagged or combed, the larger share; telecine combs 0.4
    max_gap: float | None = Field(8.0, gt=1)  # longest pause between frames, in frames
    max_black: float | None = Field(0.5, ge=0, le=1)
    max_overexposed: float | None = Field(0.5, ge=0, le=1)
    max_letterbox: float | None = Field(0.5, ge=0, le=1)  # of the picture's area
    max_frozen: float | None = Field(0.9, ge=0, le=1)
    min_motion: float | None = Field(0.5, ge=0)  # pixels a second at `analysis_side`
    max_motion: float | None = Field(None, gt=0)
    max_jitter: float | None = Field(60.0, gt=0)  # pixels a second; filming by hand gives 10 to 30
    min_sharpness: float | None = Field(15.0, ge=0)  # variance of the Laplacian at `analysis_side`
    max_blockiness: float | None = Field(2.0, gt=1)  # 1 where no 8x8 grid shows; JPEG: 1.5 at quality 20, 2.3 at 10
    max_flash: float | None = Field(0.1, ge=0, le=1)
    max_text: float | None = Field(0.02, ge=0, le=1)  # largest text area among the key frames
    max_nsfw: float | None = Field(0.5, ge=0, le=1)  # mean probability over the key frames
    max_brisque: float | None = Field(90.0, ge=0)  # mean over the key frames; lower is better


class DedupConfig(FrozenModel):
    """`exact`: equal decoded pictures. `perceptual`: at least `min_match` of the sampled frames of one clip
    have a frame of the other within `max_distance` bits (of 64; in very large collections pairs whose every frame
    is off by 4 bits or more may be missed). `semantic`: clips that show the same thing, by the cosine of their
    embeddings, across the whole collection and inside one file."""

    exact: bool = True
    perceptual: bool = True
    max_distance: int = Field(6, ge=0, le=7)
    min_match: float = Field(0.6, gt=0, le=1)
    semantic: bool = False
    min_cosine: float = Field(0.95, gt=0, le=1)


class CurateConfig(FrozenModel):
    """Config of the `curate` stage.

    `decoder`: `pyav` decodes VP8 and VP9 twice and holds AV1 to the letter, since these carry no checksums and most
    damage would pass; `pyav-once` does not, for collections whose encoder bends the rules.
    `interlaced`: what becomes of clips past `filters.max_interlaced`; deinterlacing takes the upper field of every
    frame, half the lines.
    `missing_caption`: what becomes of a clip that no caption covers (at least `min_caption_overlap` of its
    frames): a quarantine row, or a dropped row of the clip table with all its scores.
    `drawn_kinds`: kinds of collections whose pictures are drawn, not filmed. Models and content rules are
    calibrated on camera footage, and drawings differ by colours that a grey hash does not see: their clips
    pass size and length rules and exact dedup only.
    `max_quarantine_rate`: share of the listed files past which the stage fails (from 20 files on).
    `expected_yield`: least and greatest share of the clips that may be kept; outside of it the stage fails.
    `captions`: clean-up, provenance and re-captioning; null takes captions as the sources give them.
    """

    decoder: Literal["pyav", "pyav-once", "decord", "torchcodec"] = "pyav"
    limits: LimitsConfig = LimitsConfig()
    shots: ShotConfig = ShotConfig()
    signals: SignalConfig = SignalConfig()
    filters: FilterConfig = FilterConfig()
    dedup: DedupConfig = DedupConfig()
    interlaced: Literal["drop", "deinterlace"] = "drop"
    missing_caption: Literal["quarantine", "drop"] = "quarantine"
    min_caption_overlap: float = Field(0.5, gt=0, le=1)
    drawn_kinds: tuple[str, ...] = ("synthetic",)
    max_quarantine_rate: float = Field(0.5, ge=0, le=1)
    expected_yield: tuple[Share, Share] | None = None
    captions: CaptionConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for measured, rule in (("text", "max_text"), ("nsfw", "max_nsfw"), ("quality", "max_brisque")):
            if not getattr(self.signals, measured) and getattr(self.filters, rule) is not None:
                raise ValueError(f"filters.{rule} needs signals.{measured}: switch that on, or set the rule to null")
        if self.expected_yield is not None and self.expected_yield[0] > self.expected_yield[1]:
            raise ValueError("expected_yield is the least share, then the greatest")
        if self.dedup.semantic and not self.signals.embedding:
            raise ValueError("dedup.semantic needs signals.embedding: switch that on")
        return self

    def counting_for(self, encoder: TextEncoderConfig) -> CurateConfig:
        """The same config with captions counted in tokens of `encoder`, unless it says otherwise itself."""
        captions = self.captions
        if captions is None or captions.count == "words" or captions.text_encoder is not None:
            return self
        return self.model_copy(update={"captions": captions.model_copy(update={"text_encoder": encoder})})

    def key_config(self) -> dict[str, object]:
        own = {name: value for name, value in self.canonical().items() if name != "captions"}
        if self.expected_yield is None:
            del own["expected_yield"]  # a check that is not made leaves the keys as they were
        return own if self.captions is None else {**own, "captions": self.captions.key_config()}

    def segment_identity(self) -> dict[str, object]:
        """What the per-frame measurements of a file depend on."""
        return {
            "decoder": self.decoder,
            "detector": self.shots.detector,
            "analysis_side": self.signals.analysis_side,
            "motion_stride": self.signals.motion_stride,
            "weights": {n: s for n, s in weights_of(self).items() if n == "transnetv2"},
        }

    def clip_identity(self) -> dict[str, object]:
        """What the key-frame measurements of a clip depend on."""
        signals = self.signals
        return {
            "decoder": self.decoder,
            "key_frames": signals.key_frames,
            "models": [signals.text, signals.nsfw, signals.quality],
            **({"embedding": True} if signals.embedding else {}),
            "weights": {n: s for n, s in weights_of(self).items() if n not in ("transnetv2", _TOKENIZER)},
        }


def weights_of(config: CurateConfig) -> dict[str, str]:
    """Asset name -> sha256 of every packaged model that this config uses."""
    names = ["transnetv2"] if config.shots.detector == "transnetv2" else []
    names += ["ppocr-det"] if config.signals.text else []
    names += ["open-nsfw"] if config.signals.nsfw else []
    names += ["brisque", "brisque/ranges"] if config.signals.quality else []
    names += ["efficientnet-lite2"] if config.signals.embedding else []
    if config.captions is not None and isinstance(config.captions.counting, MiniLmConfig):
        names.append(_TOKENIZER)
    return weights_digests(names)
