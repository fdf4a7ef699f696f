"""What a takedown of some clips would touch: plain values with a JSON form that stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pipelines.exposure.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedClip:
    """A clip that the selector names. Times are microseconds, half-open; `why` says in words what matched."""

    clip_id: str
    source: str
    source_id: str
    start_us: int
    end_us: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """An artifact whose bytes hold matched clips (clips, dataset), or whose listing led to one (source)."""

    artifact_id: str
    kind: str
    clip_ids: tuple[str, ...]


class AffectedCheckpoint(NamedTuple):
    """`uses` of matched clips by the checkpoint's own stage, the first in `first_step`, the last in `last_step`.

    `inherited` counts the uses by the stages it started from; `through` is the nearest checkpoint before it that saw.
    The numbers are None where the selector matches so many samples that single uses were not counted.
    """

    artifact_id: str
    verdict: Verdict
    stage: str
    dataset_id: str | None
    steps: int
    uses: int | None
    first_step: int | None
    last_step: int | None
    inherited: int | None
    through: str | None
    init_from: str | None


class Product(NamedTuple):
    """Samples, scores or a report made from affected artifacts; `verdict` is that of the most affected of them."""

    artifact_id: str
    kind: str
    verdict: Verdict


class AffectedChannel(NamedTuple):
    """A channel that names an affected checkpoint (`current`), or named it before with its move `seq`."""

    name: str
    seq: int
    artifact_id: str
    verdict: Verdict
    current: bool
    moved_at: str


@dataclass(frozen=True)
class Impact:
    """Everything that a takedown of the matched clips concerns. Lists are sorted, so equal ledgers give equal JSON."""

    selector: Mapping[str, Any]
    clips: tuple[MatchedClip, ...]
    holders: tuple[Holder, ...]
    checkpoints: tuple[AffectedCheckpoint, ...]
    made: Mapping[tuple[str, Verdict], Collection[str]]  # products by kind and verdict, each once
    channels: tuple[AffectedChannel, ...]
    unread: tuple[str, ...] = ()  # recorded artifacts that the answer leaves out: `m4v ledger index` reads them
    unindexed: tuple[str, ...] = ()  # tables, datasets and sources that it leaves out, not being in the clip index

    @cached_property
    def products(self) -> tuple[Product, ...]:
        """Samples, scores and reports, by kind and id."""
        rows = [(kind, i, verdict) for (kind, verdict), ids in self.made.items() for i in ids]
        return tuple(Product(i, kind, verdict) for kind, i, verdict in sorted(rows))

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Checkpoint id -> verdict."""
        return {c.artifact_id: c.verdict for c in self.checkpoints}

    def holding(self, kind: str) -> list[str]:
        """Ids of the holders of one kind: `source`, `clips` or `dataset`."""
        return [h.artifact_id for h in self.holders if h.kind == kind]

    @property
    def artifact_ids(self) -> list[str]:
        """Every affected artifact of any kind, each once."""
        rows: tuple[Holder | AffectedCheckpoint | Product, ...] = (*self.holders, *self.checkpoints, *self.products)
        return list(dict.fromkeys(row.artifact_id for row in rows))

    def counts(self) -> dict[str, int]:
        """Numbers for people: clips, artifacts by kind, checkpoints by verdict, channels that point there now."""
        kinds = Counter(h.kind for h in self.holders)
        for (kind, _), ids in self.made.items():
            kinds[kind] += len(ids)
        verdicts = Counter(c.verdict for c in self.checkpoints)
        return {
            "clips": len(self.clips),
            **{kind: kinds[kind] for kind in ("source", "dataset")},
            "clip_tables": kinds["clips"],
            "checkpoint": len(self.checkpoints),
            **{f"checkpoint_{verdict}": verdicts[verdict] for verdict in Verdict},
            **{kind: kinds[kind] for kind in ("samples", "scores", "report")},
            "channels": len({c.name for c in self.channels if c.current}),
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "selector": dict(self.selector),
            "counts": self.counts(),
            "clips": [asdict(c) for c in self.clips],
            "holders": [asdict(h) for h in self.holders],
            "checkpoints": [c._asdict() for c in self.checkpoints],
            "products": [p._asdict() for p in self.products],
            "channels": [c._asdict() for c in self.channels],
            "unread": list(self.unread),
            "unindexed": list(self.unindexed),
        }
