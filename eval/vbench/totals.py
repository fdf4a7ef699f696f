"""VBench's Total, Quality and Semantic by our own arithmetic: absent, never low, when a dimension is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from eval.vbench.constants import Constants, Dimension, Group, constants, dimension_name
from m4v.core.config import FrozenModel
from m4v.core.errors import InputError

Unit = Literal["percent", "fraction"]
SCALE: Mapping[Unit, float] = {"percent": 100.0, "fraction": 1.0}


class Term(FrozenModel):
    """A dimension of the table: `raw` in the table's unit, `normalised` a fraction, below 0 or above 1 where the raw
    score lies outside the published bounds."""

    dimension: str
    group: Group
    weight: float
    raw: float
    normalised: float


class Totals(FrozenModel):
    """Totals in `unit`; None where `missing` names a dimension that goes into them."""

    unit: Unit
    total: float | None
    quality: float | None
    semantic: float | None
    terms: tuple[Term, ...]
    missing: dict[Group, tuple[str, ...]]
    warnings: tuple[str, ...]
    source: str

    @property
    def all_missing(self) -> tuple[str, ...]:
        return tuple(name for names in self.missing.values() for name in names)


def totals(scores: Mapping[str, float], unit: Unit = "percent", where: str | None = None) -> Totals:
    """Weigh raw scores by dimension, in `unit`.

    Raises InputError for an unknown dimension, one that stands twice, a value that is no finite number, and no value
    at all.
    """
    known = constants()
    raw = _checked(scores, where)
    terms = tuple(_term(d, raw[d.name], unit) for d in known.dimensions if d.name in raw)
    missing = {group: tuple(n for n in known.names(group) if n not in raw) for group in known.group_weights}
    groups = {group: None if missing[group] else _mean(terms, group) for group in known.group_weights}
    return Totals(
        unit=unit,
        total=_scaled(_weighed(groups, known), unit),
        quality=_scaled(groups["quality"], unit),
        semantic=_scaled(groups["semantic"], unit),
        terms=terms,
        missing=missing,
        warnings=_warnings(terms, unit),
        source=known.source,
    )


def _checked(scores: Mapping[str, float], where: str | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for written, value in scores.items():
        name = dimension_name(written, where)
        if name in found:
            raise InputError("dimension stands twice", value=name, where=where)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"the score of {name} is no finite number", value=value, where=where)
        found[name] = float(value)
    if not found:
        raise InputError("no dimension has a score", where=where, next_step="write {dimension: value}")
    return found


def _term(dimension: Dimension, raw: float, unit: Unit) -> Term:
    return Term(
        dimension=dimension.name, group=dimension.group, weight=dimension.weight, raw=raw,
        normalised=dimension.term(raw / SCALE[unit]),
    )  # fmt: skip


def _mean(terms: Sequence[Term], group: Group) -> float:
    mine = [t for t in terms if t.group == group]
    return math.fsum(t.weight * t.normalised for t in mine) / math.fsum(t.weight for t in mine)


def _weighed(groups: Mapping[Group, float | None], known: Constants) -> float | None:
    weights = known.group_weights
    parts = [None if groups[g] is None else weights[g] * (groups[g] or 0.0) for g in weights]
    known_parts = [p for p in parts if p is not None]
    return math.fsum(known_parts) / math.fsum(weights.values()) if len(known_parts) == len(parts) else None


def _scaled(value: float | None, unit: Unit) -> float | None:
    return None if value is None else value * SCALE[unit]


def _warnings(terms: Sequence[Term], unit: Unit) -> tuple[str, ...]:
    scale = SCALE[unit]
    found = [
        f"{t.dimension}: {t.raw:g} lies outside 0 to {scale:g}" for t in terms if not 0 <= t.raw <= scale
    ] + [
        f"{t.dimension}: its term is {t.normalised:.4f}, outside 0 to 1; terms are not clipped"
        for t in terms
        if 0 <= t.raw <= scale and not 0 <= t.normalised <= 1
    ]  # fmt: skip
    if unit == "percent" and all(0 <= t.raw <= 1 for t in terms):
        found.append("no value is above 1: if these are fractions, say --unit fraction")
    return tuple(found)


def read_scores(path: Path) -> dict[str, float]:
    """`{dimension: value}` from a JSON file, read strictly.

    Raises InputError for a file that is not there or no such object, a bare NaN, and a key that stands twice.
    """
    where = str(path)
    try:
        data = json.loads(path.read_text(), parse_constant=_no_number, object_pairs_hook=_once)
    except OSError as error:
        raise InputError(f"cannot read the scores: {error.strerror}", value=where) from None
    except ValueError as error:
        raise InputError(f"the scores are no strict JSON: {error}", where=where) from None
    if not isinstance(data, dict):
        raise InputError(
            "the scores are no object", value=type(data).__name__, where=where, next_step="write {dimension: value}"
        )
    return data


def _no_number(token: str) -> float:
    raise ValueError(f"{token} is no number")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"{twice[0]!r} stands twice")
    return dict(pairs)
