"""Families of models: what training asks of a kind of model stands in one place for each (`Family`)."""

from __future__ import annotations

from m4v.family import AnyCheckpoint
from m4v.wan.config import WanCheckpointConfig
from training.families.interface import Family

__all__ = ["Family", "family_of"]


def family_of(checkpoint: AnyCheckpoint) -> Family:
    """The family of a checkpoint's model. Only the chosen one's libraries are imported."""
    if isinstance(checkpoint, WanCheckpointConfig):
        from training.families.wan import WanFamily

        return WanFamily(checkpoint)
    from training.families.pyramid import PyramidFamily

    return PyramidFamily(checkpoint)
