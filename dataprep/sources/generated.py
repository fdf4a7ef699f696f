"""Adapter `generated`: what a video or image model made, with what is known of how: prompt, model, seed.

Layouts: `videos2caption.json`; `videos.txt` with `prompt.txt`; `a.mp4` with `a.txt` or `a.json`;
`metadata.csv|json|jsonl`. What no layout has a place for is taken from whatever columns carry it.
"""

from __future__ import annotations

from collections.abc import Mapping

from dataprep.sources.captions import CaptionIndex, FileFacts
from dataprep.sources.config_tables import GeneratedConfig
from dataprep.sources.listing import Caption
from dataprep.sources.rows import media_of
from dataprep.sources.tree import IMAGE_SUFFIXES, VIDEO_SUFFIXES, TreeAdapter
from m4v.core.storage import Storage

# Our name: names met for it.
PROVENANCE = {
    "prompt": ("prompt",),
    "model": ("model", "model_name", "generator"),
    "model_version": ("model_version", "generator_version", "version"),
    "seed": ("seed",),
    "steps": ("steps", "num_inference_steps", "sampling_steps", "num_steps"),
    "guidance": ("guidance", "guidance_scale", "cfg_scale", "cfg"),
    "sampler": ("sampler", "scheduler"),
    "negative_prompt": ("negative_prompt",),
    "prompt_id": ("prompt_id", "prompt_index"),
    "frames_claimed": ("num_frames", "length"),
}
_MAX_CHARS = 4000


class GeneratedAdapter(TreeAdapter):
    """Both media of a tree; captions that are not there may have been the prompt all the same."""

    def __init__(self) -> None:
        super().__init__("video")
        self._suffixes = VIDEO_SUFFIXES | IMAGE_SUFFIXES
        self._media_of = media_of

    def _index(self, location: Storage, texts: set[str], usable: set[str], max_chars: int) -> CaptionIndex:
        return CaptionIndex(location, texts, usable, max_chars, provenance)

    def _extra(self, facts: FileFacts, captions: list[Caption], config: object) -> Mapping[str, object]:
        extra = dict(facts.extra)
        if isinstance(config, GeneratedConfig):
            for name, value in (("model", config.model), ("model_version", config.model_version)):
                if value:
                    extra.setdefault(name, value)
        if captions:
            extra.setdefault("prompt", captions[0].text)
        return extra


def provenance(fields: Mapping[str, object]) -> dict[str, object]:
    """How a clip was made, as far as its row says; whole numbers in text become numbers."""
    found: dict[str, object] = {}
    for name, keys in PROVENANCE.items():
        value = next((fields[k] for k in keys if fields.get(k) not in (None, "")), None)
        if isinstance(value, str) and value.strip().isdecimal() and name in ("seed", "steps", "frames_claimed"):
            value = int(value.strip()[:40])
        if isinstance(value, str):
            value = " ".join(value.split())[:_MAX_CHARS]
        finite = not isinstance(value, float) or abs(value) < 1e300
        if isinstance(value, str | int | float) and finite:
            found[name] = value
    return found
