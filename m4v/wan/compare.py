"""Tensors found against tensors expected, by name and shape; torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from m4v.core.errors import DataIntegrityError

_SHOWN = 5  # keys named in a message

Shapes = Mapping[str, tuple[int, ...]]


def compare_tensors(found: Shapes, expected: Shapes, where: str, next_step: str) -> None:
    """Raise DataIntegrityError on the first kind of difference (missing, unknown, misshapen), naming a few keys."""
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing:
        near = difflib.get_close_matches(missing[0], unknown, n=1)
        hint = f"; {missing[0]} may be called {near[0]}" if near else ""
        raise DataIntegrityError(
            f"{_count(missing)} missing{hint}", value=missing[:_SHOWN], where=where, next_step=next_step
        )
    if unknown:
        raise DataIntegrityError(
            f"{_count(unknown)} not part of this model", value=unknown[:_SHOWN], where=where, next_step=next_step
        )
    wrong = [
        f"{key}: {tuple(shape)}, expected {expected[key]}"
        for key, shape in sorted(found.items())
        if tuple(shape) != tuple(expected[key])
    ]
    if wrong:
        raise DataIntegrityError(
            f"{_count(wrong)} of another shape", value=wrong[:_SHOWN], where=where, next_step=next_step
        )


def _count(names: list[str]) -> str:
    return f"{len(names)} tensors are" if len(names) > 1 else "1 tensor is"
