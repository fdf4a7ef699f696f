"""What other thresholds would keep: the curate stage's decision, taken again over the stored scores.

Nothing is decoded or measured. Only thresholds can be tried so: a key that changes what is cut or measured is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataprep.curate_config import CurateConfig
from dataprep.curation.filters import decide
from dataprep.curation.stored import batches
from dataprep.curation.table import CLIPS
from m4v.core.config import parse
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from pipelines.inspection.clip_table import KEPT, ClipTable, Labels, SourceYield, count_dropped
from pipelines.inspection.samples import rows_at
from pipelines.inspection.targets import Target
from pipelines.recipe_files import apply_override

SECTION = "curate"
TRIED = ("filters", "dedup")
_CHANGE_COLUMNS = ["clip_id", "source", "path", "media", "start_us", "end_us"]


@dataclass(frozen=True)
class Change:
    """A clip that changes side. `before`, `after`: `kept` or the rule that drops it."""

    clip_id: str
    source: str
    path: str
    media: str
    start_us: int
    end_us: int
    before: str
    after: str
    duplicate_of: str | None

    def to_json(self) -> dict[str, object]:
        facts = {k: v for k, v in vars(self).items() if k not in ("before", "after")}
        return {**facts, "from": self.before, "to": self.after}


class WhatIf:
    """The table's decision (`now`) beside that of other thresholds (`then`), clip by clip."""

    def __init__(self, table: ClipTable, now: CurateConfig, then: CurateConfig) -> None:
        self.table, self.config_now, self.config_then = table, now, then
        self.fates, self.duplicate_of = self._decide(then)
        self.kept: NDArray[np.bool_] = self.fates.are(KEPT)

    def _decide(self, config: CurateConfig) -> tuple[Labels, list[str | None]]:
        decision = decide(self.table.candidates, config.filters, config.dedup)
        return Labels.of(pa.array(decision.drop_rules, pa.string()), KEPT), decision.duplicate_of

    @cached_property
    def drift(self) -> int:
        """Clips that today's rules decide otherwise even at the thresholds of the run: the code has changed, or a
        caption model had its say since."""
        return sum(count for *_, count in _moves(self.table.fates, self._decide(self.config_now)[0]))

    @cached_property
    def awaiting_captions(self) -> int:
        """Clips that would be kept and have no caption yet, where the run has a model write missing ones: whether
        it does, only a run tells."""
        captions = self.config_then.captions
        if captions is None or not captions.writes_missing:
            return 0
        path = self.table.artifact.path(CLIPS)
        bare = [pc.equal(pc.list_value_length(b["captions"]), 0).to_numpy(False) for b in batches(path, ("captions",))]
        return int(np.count_nonzero(self.kept & np.concatenate(bare)))

    @property
    def settings(self) -> dict[str, dict[str, object]]:
        """The thresholds that differ, by their key in a recipe."""
        return {
            f"{SECTION}.{section}.{key}": {"now": value, "then": then}
            for section in TRIED
            for key, value in getattr(self.config_now, section).canonical().items()
            if (then := getattr(self.config_then, section).canonical()[key]) != value
        }

    def moves(self) -> list[tuple[str, str, int]]:
        """(before, after, clips) of all whose fate differs, most first; a copy may now be of another clip besides."""
        return sorted(_moves(self.table.fates, self.fates), key=lambda move: (-move[2], move[:2]))

    @property
    def _sides(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.table.kept != self.kept)

    @property
    def changed(self) -> int:
        """How many clips change side, kept to dropped or dropped to kept."""
        return len(self._sides)

    def changes(self, limit: int | None = None) -> list[Change]:
        """The clips that change side, in the order of the table; at most `limit`."""
        places = self._sides[:limit]
        rows = rows_at(self.table.artifact.path(CLIPS), places, _CHANGE_COLUMNS)
        return [
            Change(
                **row, before=self.table.fates[place], after=self.fates[place],
                duplicate_of=self.duplicate_of[place],
            )
            for row, place in zip(rows, places, strict=True)
        ]  # fmt: skip

    def yields(self) -> list[tuple[SourceYield, SourceYield]]:
        """Each source as it is and as it would be."""
        return list(zip(self.table.yields(), self.table.yields(self.kept), strict=True))

    def to_json(self, limit: int | None = None) -> dict[str, object]:
        return {
            "set": self.settings,
            "now": _totals(self.table, self.table.kept, self.table.fates),
            "then": _totals(self.table, self.kept, self.fates),
            "sources": [
                {
                    "source": now.source, "clips": now.clips, "kept_now": now.kept, "kept_then": then.kept,
                    "kept_seconds_now": now.kept_seconds, "kept_seconds_then": then.kept_seconds,
                }
                for now, then in self.yields()
            ],
            "moves": [{"from": b, "to": a, "clips": n} for b, a, n in self.moves()],
            "changed": self.changed,
            "changes": [change.to_json() for change in self.changes(limit)],
            "awaiting_captions": self.awaiting_captions,
            "drift": self.drift,
        }  # fmt: skip


def _moves(before: Labels, after: Labels) -> Iterator[tuple[str, str, int]]:
    pairs = before.codes.astype(np.int64) * len(after.names) + after.codes
    for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
        names = before.names[pair // len(after.names)], after.names[pair % len(after.names)]
        if names[0] != names[1]:
            yield *names, int(count)


def _totals(table: ClipTable, kept: NDArray[np.bool_], fates: Labels) -> dict[str, object]:
    return {
        "kept": int(kept.sum()),
        "kept_videos": int((kept & table.video).sum()),
        "kept_seconds": round(float(table.seconds[kept].sum()), 3),
        "dropped_by_rule": count_dropped(fates),
    }


def stored_config(target: Target) -> CurateConfig | None:
    """The config that the clips were curated with; None when the ledger has no such run."""
    if target.run is None or target.run.stage != "curate":
        return None
    return parse(CurateConfig, target.run.config, f"run {target.run.run_id}")


def what_if(target: Target, table: ClipTable, overrides: Sequence[str]) -> WhatIf:
    """Take the decision again with `overrides` (`curate.filters.min_motion=2`) on the run's own thresholds.

    Raises ConfigError for a key that is unknown or no threshold, InputError or DataIntegrityError for clips whose
    run or tables do not allow it.
    """
    now = stored_config(target)
    if now is None:
        raise InputError(
            "the ledger does not know the thresholds of these clips", value=target.id[:12], where="ledger",
            next_step="name clips that a run of this home made: m4v artifacts list --kind clips",
        )  # fmt: skip
    if not table.decidable:
        raise DataIntegrityError(
            "these clips were curated before hashes were kept beside them", value=target.id[:12],
            next_step=f"m4v run {target.recipe or 'RECIPE'} --until curate (measurements that are kept are not redone)",
        )  # fmt: skip
    return WhatIf(table, now, changed_config(now, overrides))


def changed_config(config: CurateConfig, overrides: Sequence[str]) -> CurateConfig:
    """`config` with overrides that name thresholds only."""
    data = {SECTION: copy.deepcopy(config.canonical())}
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key.split(".")[0] != SECTION:
            step = f"write {SECTION}.{key}=…" if key.split(".")[0] in TRIED else f"--set {SECTION}.filters.min_motion=2"
            raise ConfigError(f"only keys below {SECTION} can be tried", value=key, where="--set", next_step=step)
        apply_override(data, override)
    if not isinstance(data[SECTION], dict):
        raise ConfigError(f"{SECTION} is a section", value=data[SECTION], where="--set")
    changed = parse(CurateConfig, data[SECTION], "--set")
    before, after = config.canonical(), changed.canonical()
    if others := sorted(k for k in after if after[k] != before[k] and k not in TRIED):
        raise ConfigError(
            f"this changes more than thresholds, and needs a run: {SECTION}.{others[0]}", value=after[others[0]],
            where="--set", next_step="m4v plan RECIPE --set … says what that would cost",
        )  # fmt: skip
    return changed
