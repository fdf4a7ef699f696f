"""How a checkpoint relates to a clip."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """The strongest that holds."""

    SAW = "saw"  # a step of its own stage consumed it
    DESCENDS = "descends"  # it started, directly or not, from a checkpoint that saw it
    CONTAINS = "contains"  # a dataset version that its line trained on holds it, and no step consumed it
