"""What a takedown of some clips would touch: plain values with a JSON form that stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pipelines.exposure.verdict import Verdict
from pipelines.impact.rows import AffectedCheckpoints, Products


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
    """An artifact whose bytes hold matched clips (clips, dataset), or whose listing led to one (source); `dropped`
    are others of them that a clip table lists as dropped."""

    artifact_id: str
    kind: str
    clip_ids: tuple[str, ...]
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedTable:
    """A clip table that keeps none of the matched clips but lists some as dropped, with their facts and previews: no
    dataset or checkpoint came of that, yet a takedown withdraws the table, and the `reports` that show it."""

    artifact_id: str
    clip_ids: tuple[str, ...]
    reports: tuple[str, ...]


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
    """Everything that a takedown of the matched clips concerns. Lists are sorted, or in the order of recording, so that
    equal ledgers give equal JSON. Rows of the long ones are made when they are looked at; products read the ledger."""

    selector: Mapping[str, Any]
    clips: tuple[MatchedClip, ...]
    holders: tuple[Holder, ...]
    dropped: tuple[DroppedTable, ...]
    checkpoints: AffectedCheckpoints
    products: Products
    channels: tuple[AffectedChannel, ...]
    unread: tuple[str, ...] = ()  # recorded artifacts that the answer leaves out: `m4v ledger index` reads them
    unindexed: tuple[str, ...] = ()  # tables, datasets and sources that it leaves out, not being in the clip index

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Checkpoint id -> verdict."""
        return self.checkpoints.verdicts

    def holding(self, kind: str) -> list[str]:
        """Ids of the holders of one kind: `source`, `clips` or `dataset`."""
        return [h.artifact_id for h in self.holders if h.kind == kind]

    @property
    def artifact_ids(self) -> list[str]:
        """Every affected artifact of any kind, each once."""
        held = [h.artifact_id for h in self.holders]
        dropped = [i for table in self.dropped for i in (table.artifact_id, *table.reports)]
        return list(dict.fromkeys([*held, *dropped, *self.verdicts, *(p.artifact_id for p in self.products)]))

    def counts(self) -> dict[str, int]:
        """Numbers for people: clips, artifacts by kind, checkpoints by verdict, channels that point there now."""
        kinds, verdicts = Counter(h.kind for h in self.holders), self.checkpoints.counts()
        return {
            "clips": len(self.clips),
            **{kind: kinds[kind] for kind in ("source", "dataset")},
            "clip_tables": kinds["clips"],
            "clip_tables_dropped": len(self.dropped),
            "checkpoint": len(self.checkpoints),
            **{f"checkpoint_{verdict}": verdicts[verdict] for verdict in Verdict},
            **self.products.counts(),
            "channels": len({c.name for c in self.channels if c.current}),
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "selector": dict(self.selector),
            "counts": self.counts(),
            "clips": [asdict(c) for c in self.clips],
            "holders": [asdict(h) for h in self.holders],
            "dropped": [asdict(t) for t in self.dropped],
            "checkpoints": [c._asdict() for c in self.checkpoints],
            "products": [p._asdict() for p in self.products],
            "channels": [c._asdict() for c in self.channels],
            "unread": list(self.unread),
            "unindexed": list(self.unindexed),
        }
