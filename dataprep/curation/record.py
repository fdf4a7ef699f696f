"""What is recorded of a clip's media: facts measured beside claims, what was done to the pixels, and warnings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from dataprep.sources.entries import CROP, ListedFile

_MISMATCH = 0.1  # share by which a claim of the collection may differ from what was measured
_SLACK_S = 0.5
DEINTERLACED = "deinterlaced:upper_field"
CROPPED = "cropped:listed"  # to the rectangle that the collection names


class MediaRecord(NamedTuple):
    """`facts`: those of the file, and of the clip where it differs. `transforms`: in the order they are applied."""

    facts: Mapping[str, Any] = {}
    transforms: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def deinterlaced(self) -> bool:
        return DEINTERLACED in self.transforms

    def facts_json(self) -> str:
        return json.dumps(self.facts, sort_keys=True, separators=(",", ":"))


def record_of(file: ListedFile, facts: Mapping[str, Any], own: Mapping[str, Any], deinterlace: bool) -> MediaRecord:
    """`facts` as probed; `own`: facts of the clip (its size, damage, combs) that are added to them."""
    transforms = [*facts["transforms"], *([DEINTERLACED] if deinterlace else []), *crop_of(file)]
    warnings = set(facts["warnings"])
    listed = _claims(file)
    if any(_differs(name, value, facts, own) for name, value in listed.items()):
        warnings.add("meta_mismatch")
    if own.get("damaged_frames"):
        warnings.add("damaged")
    if (own["width"], own["height"]) != (facts["width"], facts["height"]):
        warnings.add("size_change")
    kept = {name: value for name, value in facts.items() if name not in ("transforms", "warnings")}
    return MediaRecord({**kept, "listed": listed, "clip": dict(own)}, tuple(transforms), tuple(sorted(warnings)))


def crop_of(file: ListedFile) -> tuple[str, ...]:
    """The transform that the collection's crop is, nothing where its row has none."""
    return (CROPPED,) if CROP in file.extra else ()


def _claims(file: ListedFile) -> dict[str, float]:
    """What the collection says of the file."""
    found = {"width": file.width, "height": file.height, "fps": file.fps, "duration_s": file.duration_s}
    return {name: value for name, value in found.items() if value is not None}


def _differs(name: str, claim: float, facts: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    if name == "duration_s":
        measured = float(facts["duration_us"]) / 1e6
        return not abs(claim - measured) <= max(_MISMATCH * measured, _SLACK_S)  # NaN differs
    if name == "fps":
        return not abs(claim - float(facts["fps"])) <= _MISMATCH * float(facts["fps"])
    # Collections count pixels as coded or as displayed.
    return claim not in (facts[name], facts[f"claimed_{name}"], own[name])
