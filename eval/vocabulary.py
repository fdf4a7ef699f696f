"""The words whose truth the local metrics can check in a clip: colours, shapes, motions.

Synthetic captions are made of exactly such words ("a red circle moves from left to right on a blue
background"); a prompt that has none of them gets no follow-score rather than a guessed one.
"""

from __future__ import annotations

import re
from enum import StrEnum

from m4v.core.config import FrozenModel
from m4v.core.palette import COLOURS

_COLOUR_SYNONYMS = {"gray": "grey", "violet": "purple", "magenta": "pink", "turquoise": "cyan", "teal": "cyan"}
SHAPES = (
    "circle", "square", "triangle", "star", "ring", "rectangle", "ellipse", "cross", "diamond", "ball", "disc",
    "hexagon",
)  # fmt: skip


class Motion(StrEnum):
    """Which way the picture content goes."""

    RIGHT = "right"
    LEFT = "left"
    UP = "up"
    DOWN = "down"
    GROW = "grow"
    SHRINK = "shrink"
    CIRCLE = "circle"
    STILL = "still"


# First match wins: the longer and more exact phrases stand first.
_MOTION_PHRASES: tuple[tuple[str, Motion], ...] = (
    (r"camera (?:pans|moves|slides) (?:to the )?left|pan(?:ning)? left", Motion.RIGHT),
    (r"camera (?:pans|moves|slides) (?:to the )?right|pan(?:ning)? right", Motion.LEFT),
    (r"camera (?:tilts|pans|moves) up(?:wards?)?|tilt(?:ing)? up", Motion.DOWN),
    (r"camera (?:tilts|pans|moves) down(?:wards?)?|tilt(?:ing)? down", Motion.UP),
    (r"(?:camera )?zoom(?:s|ing)? in", Motion.GROW),
    (r"(?:camera )?zoom(?:s|ing)? out", Motion.SHRINK),
    (r"\b(?:in|round in) (?:a )?circles?\b|\bcircles around\b", Motion.CIRCLE),
    (r"from (?:the )?left to (?:the )?right", Motion.RIGHT),
    (r"from (?:the )?right to (?:the )?left", Motion.LEFT),
    (r"from (?:the )?top to (?:the )?bottom", Motion.DOWN),
    (r"from (?:the )?bottom to (?:the )?top", Motion.UP),
    (r"(?:mov|slid|fl|drift|roll)\w* (?:to the )?right(?:wards?)?", Motion.RIGHT),
    (r"(?:mov|slid|fl|drift|roll)\w* (?:to the )?left(?:wards?)?", Motion.LEFT),
    (r"(?:mov|slid|fl|drift|ris)\w* up(?:wards?)?|\brises\b", Motion.UP),
    (r"(?:mov|slid|fl|drift|fall)\w* down(?:wards?)?|\bfalls\b", Motion.DOWN),
    (r"\bgrow(?:s|ing)?\b|gets? (?:bigger|larger)", Motion.GROW),
    (r"\bshrink(?:s|ing)?\b|gets? smaller", Motion.SHRINK),
    (r"\b(?:stays?|stands?|holds?|remains?|keeps?|is) (?:completely |perfectly )?still\b", Motion.STILL),
    (r"\bdoes not move\b|\bmotionless\b|\bstatic\b", Motion.STILL),
)  # fmt: skip

_COLOUR_WORDS = "|".join([*COLOURS, *_COLOUR_SYNONYMS])
_OBJECT = re.compile(rf"\b({_COLOUR_WORDS})\s+(?:{'|'.join(SHAPES)})s?\b")
_BACKGROUND = re.compile(rf"\b({_COLOUR_WORDS})\s+(?:background|backdrop)\b|\bbackground is ({_COLOUR_WORDS})\b")
_SHAPE = re.compile(rf"\b({'|'.join(SHAPES)})s?\b")


class Facts(FrozenModel):
    """What a prompt states that can be checked; None where it says nothing. `motion` is that of the picture
    content: a camera pan to the left moves it right."""

    object_colour: str | None = None
    background_colour: str | None = None
    shape: str | None = None
    motion: Motion | None = None
    camera: bool = False  # the motion is the camera's: the whole picture moves, not one object

    @property
    def empty(self) -> bool:
        return self == Facts()


def parse_facts(text: str) -> Facts:
    """Facts of a caption: `COLOUR SHAPE`, `COLOUR background` and the first motion phrase."""
    lowered = text.lower()
    object_match, background_match = _OBJECT.search(lowered), _BACKGROUND.search(lowered)
    shape_match = _SHAPE.search(lowered)
    motion = next((m for pattern, m in _MOTION_PHRASES if re.search(pattern, lowered)), None)
    return Facts(
        object_colour=_colour(object_match.group(1)) if object_match else None,
        background_colour=_colour(next(g for g in background_match.groups() if g)) if background_match else None,
        shape=shape_match.group(1) if shape_match else None,
        motion=motion,
        camera=motion is not None and "camera" in lowered,
    )


def _colour(word: str) -> str:
    return _COLOUR_SYNONYMS.get(word, word)
