"""A clip table by column: yields by source, and every score's distribution with the rules that look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataprep.curate_config import FilterConfig
from dataprep.curation.candidates import HASHES, read_candidates, read_values
from dataprep.curation.filters import RULES, Candidates, breaks
from dataprep.curation.table import CLIPS
from m4v.core.artifacts import Artifact

KEPT = "kept"
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BINS = 32
_LOG_RANGE = 200.0  # a score whose 99th percentile is so many times its median is binned by its logarithm
_COLUMNS = ["clip_id", "source", "media", "start_us", "end_us", "kept", "drop_rule"]


@dataclass(frozen=True)
class RuleFacts:
    """A rule at its threshold. `breaks`: clips that break it; `dropped`: those it was the first rule for;
    `alone`: those that break no other rule, so that they would go on without it."""

    rule: str
    key: str  # below curate.filters
    bound: str  # min | max
    threshold: float | None
    breaks: int
    dropped: int
    alone: int


@dataclass(frozen=True)
class ScoreFacts:
    """Distribution of one score over all candidates, kept and dropped. `edges` has one entry more than the counts."""

    name: str
    measured: int
    unmeasured: int
    mean: float | None
    quantiles: dict[str, float]
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    rules: tuple[RuleFacts, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class SourceYield:
    source: str
    clips: int
    kept: int
    seconds: float
    kept_seconds: float

    @property
    def share(self) -> float:
        return self.kept / self.clips if self.clips else 0.0

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "kept_share": round(self.share, 4)}


class ClipTable:
    """The columns of a published clip table that counting needs; its long texts stay on disk."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._table = pq.read_table(artifact.path(CLIPS), columns=_COLUMNS).combine_chunks()
        self.clips = self._table.num_rows
        self.kept: NDArray[np.bool_] = np.asarray(self._table["kept"])
        spans = pc.subtract(self._table["end_us"], self._table["start_us"])
        self.seconds: NDArray[np.float64] = np.asarray(spans, dtype=np.float64) / 1e6
        self.video: NDArray[np.bool_] = np.asarray(pc.equal(self._table["media"], "video"))

    @property
    def decidable(self) -> bool:
        """Whether the artifact keeps what a new decision needs."""
        return HASHES in self.artifact.names(HASHES)

    @cached_property
    def candidates(self) -> Candidates:
        return read_candidates(self.artifact.path(CLIPS), self.artifact.path(HASHES))

    @cached_property
    def values(self) -> Mapping[str, NDArray[np.float64]]:
        return self.candidates.values if self.decidable else read_values(self.artifact.path(CLIPS))

    @cached_property
    def fates(self) -> NDArray[np.object_]:
        """`kept` or the rule that dropped the clip."""
        return np.asarray(pc.fill_null(self._table["drop_rule"], KEPT).to_numpy(zero_copy_only=False), dtype=object)

    @cached_property
    def sources(self) -> NDArray[np.object_]:
        return np.asarray(self._table["source"].to_numpy(zero_copy_only=False), dtype=object)

    def ids(self, places: NDArray[np.intp]) -> list[str]:
        found: list[str] = self._table["clip_id"].take(pa.array(places)).to_pylist()
        return found

    def dropped_by_rule(self) -> dict[str, int]:
        return count_fates(self.fates)

    def yields(self, kept: NDArray[np.bool_] | None = None) -> list[SourceYield]:
        """By source, in order of name; `kept` in place of the table's own decision."""
        kept = self.kept if kept is None else kept
        names, place = np.unique(self.sources.astype(str), return_inverse=True)

        def total(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(np.bincount(place, weights=weights, minlength=len(names)), dtype=np.float64)

        columns = (total(np.ones(self.clips)), total(kept.astype(float)), total(self.seconds))
        kept_seconds = total(np.where(kept, self.seconds, 0.0))
        return [
            SourceYield(str(n), int(c), int(k), round(float(s), 3), round(float(ks), 3))
            for n, c, k, s, ks in zip(names, *columns, kept_seconds, strict=True)
        ]

    def scores(self, filters: FilterConfig | None) -> list[ScoreFacts]:
        """Every score that was measured on any clip; the rules' counts need `filters` and a decidable artifact."""
        facts = self._rules(filters) if filters is not None and self.decidable else []
        found = []
        for name, values in self.values.items():
            rules = tuple(rule for value, rule in facts if value == name)
            if np.isfinite(values).any():
                found.append(_score(name, values, self.kept, rules))
        return found

    def _rules(self, filters: FilterConfig) -> list[tuple[str, RuleFacts]]:
        hits = {rule.name: breaks(self.candidates, rule, filters) for rule in RULES}
        broken = np.sum(list(hits.values()), axis=0)
        return [
            (
                rule.value,
                RuleFacts(
                    rule.name, rule.threshold, rule.bound, getattr(filters, rule.threshold),
                    int(hits[rule.name].sum()), int((self.fates == rule.name).sum()),
                    int((hits[rule.name] & (broken == 1)).sum()),
                ),
            )
            for rule in RULES
        ]  # fmt: skip


def count_fates(fates: NDArray[np.object_]) -> dict[str, int]:
    """Dropped clips by rule, most first."""
    names, counts = np.unique(fates.astype(str), return_counts=True)
    pairs = [(str(n), int(c)) for n, c in zip(names, counts, strict=True) if n != KEPT]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _score(name: str, values: NDArray[np.float64], kept: NDArray[np.bool_], rules: tuple[RuleFacts, ...]) -> ScoreFacts:
    measured = np.isfinite(values)
    finite = values[measured]
    edges = _edges(finite)
    inside = np.clip(finite, edges[0], edges[-1])
    kept_counts, _ = np.histogram(inside[kept[measured]], bins=edges)
    dropped_counts, _ = np.histogram(inside[~kept[measured]], bins=edges)
    at = np.quantile(finite, QUANTILES)
    return ScoreFacts(
        name=name, measured=int(measured.sum()), unmeasured=int((~measured).sum()), mean=_round(finite.mean()),
        quantiles={f"p{round(q * 100)}": _round(v) for q, v in zip(QUANTILES, at, strict=True)},
        edges=tuple(_round(e) for e in edges), kept=tuple(map(int, kept_counts)),
        dropped=tuple(map(int, dropped_counts)), rules=rules,
    )  # fmt: skip


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal bins over all values; for a long tail equal steps of the logarithm."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.linspace(low, low + max(1.0, abs(low)), BINS + 1)
    middle = float(np.median(values))
    if low >= 0 and middle > 0 and high > _LOG_RANGE * middle:
        floor = max(low, middle / _LOG_RANGE)
        return np.concatenate([[min(low, floor * 0.999)], np.geomspace(floor, high, BINS)])
    return np.linspace(low, high, BINS + 1)


def _round(value: float) -> float:
    return float(f"{float(value):.6g}")
