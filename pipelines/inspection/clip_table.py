"""A clip table by column: yields by source, and every score's distribution with the rules that look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataprep.curate_config import FilterConfig
from dataprep.curation.candidates import EMBEDDINGS, HASHES, read_candidates, read_values
from dataprep.curation.filters import RULES, Candidates, breaks
from dataprep.curation.table import CLIPS
from m4v.core.artifacts import Artifact

KEPT = "kept"
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BINS = 32
_LOG_RANGE = 200.0  # a score whose 99th percentile is so many times its median is binned by its logarithm
_WORDS = ["source", "media", "drop_rule"]
_COLUMNS = [*_WORDS, "start_us", "end_us", "kept"]


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


@dataclass(frozen=True)
class Labels:
    """A column of few different words: `names` in order, and for each row the place of its word among them."""

    names: tuple[str, ...]
    codes: NDArray[np.int32]

    @classmethod
    def of(cls, column: pa.ChunkedArray | pa.Array, missing: str) -> Labels:
        """`missing` stands for null."""
        filled = pc.fill_null(column.cast(pa.string()), missing)
        words = sorted(pc.unique(filled).to_pylist())
        codes = pc.index_in(filled, value_set=pa.array(words, pa.string())).to_numpy(zero_copy_only=False)
        return cls(tuple(words), codes.astype(np.int32))

    def __getitem__(self, place: int) -> str:
        return self.names[int(self.codes[place])]

    def are(self, name: str) -> NDArray[np.bool_]:
        """(rows,) where the word is `name`."""
        return self.codes == self.names.index(name) if name in self.names else np.zeros(len(self.codes), np.bool_)

    def total(self, weights: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """(names,) how often each stands there, or the sum of the weights."""
        return np.bincount(self.codes, weights=weights, minlength=len(self.names)).astype(np.float64)

    def counts(self) -> dict[str, int]:
        """Most first."""
        pairs = [(name, int(n)) for name, n in zip(self.names, self.total(), strict=True) if n]
        return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


class ClipTable:
    """The columns of a published clip table that counting needs; its long texts stay on disk."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        table = pq.read_table(artifact.path(CLIPS), columns=_COLUMNS, read_dictionary=_WORDS)
        self.clips = table.num_rows
        self.kept: NDArray[np.bool_] = table["kept"].to_numpy()
        spans = pc.subtract(table["end_us"], table["start_us"]).to_numpy()
        self.seconds: NDArray[np.float64] = spans / 1e6
        self.video = Labels.of(table["media"], "").are("video")
        self.sources = Labels.of(table["source"], "")
        self.fates = Labels.of(table["drop_rule"], KEPT)  # `kept` or the rule that dropped the clip

    @property
    def decidable(self) -> bool:
        """Whether the artifact keeps what a new decision needs."""
        return HASHES in self.artifact.names(HASHES)

    @cached_property
    def candidates(self) -> Candidates:
        embedded = self.artifact.path(EMBEDDINGS) if EMBEDDINGS in self.artifact.names(EMBEDDINGS) else None
        return read_candidates(self.artifact.path(CLIPS), self.artifact.path(HASHES), embedded)

    @cached_property
    def values(self) -> Mapping[str, NDArray[np.float64]]:
        return self.candidates.values if self.decidable else read_values(self.artifact.path(CLIPS))

    def dropped_by_rule(self) -> dict[str, int]:
        return count_dropped(self.fates)

    def yields(self, kept: NDArray[np.bool_] | None = None) -> list[SourceYield]:
        """By source, in order of name; `kept` in place of the table's own decision."""
        kept = self.kept if kept is None else kept
        total = self.sources.total
        columns = (total(), total(kept), total(self.seconds), total(np.where(kept, self.seconds, 0.0)))
        return [
            SourceYield(n, int(c), int(k), round(float(s), 3), round(float(ks), 3))
            for n, c, k, s, ks in zip(self.sources.names, *columns, strict=True)
        ]

    def scores(self, filters: FilterConfig | None, fates: Labels | None = None) -> list[ScoreFacts]:
        """Every score that was measured on any clip; the rules' counts need `filters` and a decidable artifact.
        `fates` in place of the table's own decision."""
        fates = self.fates if fates is None else fates
        kept = fates.are(KEPT)
        facts = self._rules(filters, fates) if filters is not None and self.decidable else []
        found = []
        for name, values in self.values.items():
            rules = tuple(rule for value, rule in facts if value == name)
            if np.isfinite(values).any():
                found.append(_score(name, values, kept, rules))
        return found

    def _rules(self, filters: FilterConfig, fates: Labels) -> list[tuple[str, RuleFacts]]:
        hits = {rule.name: breaks(self.candidates, rule, filters) for rule in RULES}
        broken = np.zeros(self.clips, dtype=np.int8)
        for hit in hits.values():
            broken += hit
        return [
            (
                rule.value,
                RuleFacts(
                    rule.name, rule.threshold, rule.bound, getattr(filters, rule.threshold),
                    int(hits[rule.name].sum()), int(fates.are(rule.name).sum()),
                    int((hits[rule.name] & (broken == 1)).sum()),
                ),
            )
            for rule in RULES
        ]  # fmt: skip


def count_dropped(fates: Labels) -> dict[str, int]:
    """Dropped clips by rule, most first."""
    return {name: count for name, count in fates.counts().items() if name != KEPT}


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
