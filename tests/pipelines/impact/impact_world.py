"""A random ledger of datasets, ladders and what was made of them, kept in plain Python beside it for brute force."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path

from clip_material import TestClip, random_clips, shards_of, without, write_dataset, write_table
from ledger_scenario import Scenario, artifact

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import canonical_json
from m4v.core.storage import Storage
from pipelines.exposure.states import record_state
from pipelines.ledger import Ledger
from pipelines.store import ArtifactRecord
from training.config import OrderConfig
from training.exposure import TRAINING_STATE, ExposureState
from training.order import DataOrder
from training.samples import SampleRow

ORDERS = (
    OrderConfig(frames=1, min_frames=1, tokens_per_pack=64, packs=2, image_every=0),
    OrderConfig(frames=17, min_frames=9, tokens_per_pack=64, packs=2, image_every=2),
    OrderConfig(frames=33, min_frames=9, tokens_per_pack=64, packs=2, image_every=0),
)


@dataclass
class World:
    """`members`: artifact -> ids of its clips; `rows`: dataset -> its samples; `states`: checkpoint -> its state;
    `made`: product -> artifacts that the runs making it read."""

    scenario: Scenario
    folder: Path
    rng: random.Random
    clips: dict[str, TestClip] = field(default_factory=dict)
    members: dict[str, set[str]] = field(default_factory=dict)
    rows: dict[str, list[TestClip]] = field(default_factory=dict)
    states: dict[str, ExposureState] = field(default_factory=dict)
    made: dict[str, set[str]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    records: dict[str, ArtifactRecord] = field(default_factory=dict)
    moves: list[tuple[str, str]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _replayed: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    @property
    def ledger(self) -> Ledger:
        return self.scenario.ledger

    def build(self, checkpoints: int, products: int) -> World:
        self._build_data()
        init = self._checkpoint(None, None, 0)
        trained = [init]
        for _ in range(checkpoints):
            dataset, start = self.rng.choice(sorted(self.rows)), self.rng.choice(trained)
            trained.append(self._checkpoint(dataset, start, self.rng.choice([1, 2, 5, 9])))
        readable = [*trained, *self.members]
        for _ in range(products):
            kind = self.rng.choice([ArtifactKind.SAMPLES, ArtifactKind.SCORES, ArtifactKind.REPORT])
            readable.append(self._product(kind, self.rng.sample(readable, self.rng.randint(1, 2))))
        for number in range(6):
            name, target = f"channel-{number % 2}", self.rng.choice(trained)
            now = self.ledger.channel(name)
            self.ledger.move_channel(
                name, target, expected=now.artifact_id if now else None, moved_by="me", reason="test"
            )
            self.moves.append((name, target))
        return self

    def _build_data(self) -> None:
        clips = random_clips(self.rng, 24)
        self.clips = {c.clip_id: c for c in clips}
        source = artifact("web listing", ArtifactKind.SOURCE)
        table = self._add(write_table(self.folder / "table", clips), [c for c in clips if c.kept])
        self._run("curate", table, [source])
        shards = shards_of(clips)
        first = self._add(write_dataset(self.folder / "whole", shards), [c for s in shards for c in s])
        self._run("encode", first, [table])
        gone = {c.clip_id for c in self.rng.sample([c for s in shards for c in s], 5)}
        rest = without(shards, gone)
        self._run(
            "version", self._add(write_dataset(self.folder / "rest", rest), [c for s in rest for c in s]), [first]
        )
        half = shards[len(shards) // 2 :]
        self._run(
            "version", self._add(write_dataset(self.folder / "half", half), [c for s in half for c in s]), [first]
        )

    def _add(self, record: ArtifactRecord, clips: list[TestClip]) -> ArtifactRecord:
        self.members[record.artifact_id] = {c.clip_id for c in clips}
        if record.kind == ArtifactKind.DATASET:
            self.rows[record.artifact_id] = clips
        self.ledger.index_members(record.artifact_id, record.kind, Storage(record.uri))
        return record

    def _run(self, stage: str, output: ArtifactRecord, inputs: list[ArtifactRecord]) -> str:
        for record in inputs:
            self.ledger.import_artifact(record)
        self.records |= {r.artifact_id: r for r in (output, *inputs)}
        self.kinds |= {r.artifact_id: str(r.kind) for r in (output, *inputs)}
        named = {f"input.{n}": record for n, record in enumerate(inputs)}
        self.scenario.run(f"key {next(self._numbers)}", {"output": output}, named, stage=stage)
        return output.artifact_id

    def _checkpoint(self, dataset: str | None, start: str | None, steps: int) -> str:
        order = self.rng.choice(ORDERS)
        stage, seed = self.rng.choice(["a", "b"]), self.rng.choice([3, 1 << 52])
        record = artifact(f"checkpoint {next(self._numbers)}", ArtifactKind.CHECKPOINT)
        state = ExposureState(
            stage=stage, dataset_id=dataset, order=order if dataset else None, seed=seed, global_batch=(8,),
            cursor=steps, init_from=start,
        )  # fmt: skip
        place = self.folder / record.artifact_id
        place.mkdir()
        (place / TRAINING_STATE).write_bytes(canonical_json(state.canonical()))
        record_state(self.ledger, record.artifact_id, Storage(str(place)))
        self._run("train", record, [self.records[i] for i in (dataset, start) if i is not None])
        self.states[record.artifact_id] = state
        return record.artifact_id

    def _product(self, kind: ArtifactKind, inputs: list[str]) -> str:
        # Few names: the same bytes come from several runs.
        record = artifact(f"{kind} {self.rng.randrange(12)}", kind)
        inputs = [i for i in inputs if i != record.artifact_id]
        if inputs:
            self._run(str(kind), record, [self.records[i] for i in inputs])
            self.made.setdefault(record.artifact_id, set()).update(inputs)
        return record.artifact_id if inputs else self.rng.choice(sorted(self.states))

    # Brute force

    def steps(self, checkpoint: str, clips: set[str]) -> list[int]:
        """Steps of a checkpoint's own stage that used any of the clips, by replay."""
        if checkpoint not in self._replayed:
            self._replayed[checkpoint] = self._replay(self.states[checkpoint])
        return [step for step, clip in self._replayed[checkpoint] if clip in clips]

    def _replay(self, state: ExposureState) -> list[tuple[int, str]]:
        """(step, clip) of every draw."""
        if state.order is None or state.dataset_id is None:
            return []
        rows = self.rows[state.dataset_id]
        order = DataOrder([SampleRow(c.sample_id, *c.group) for c in rows], state.order, state.seed, state.stage)
        clip_of = {c.sample_id: c.clip_id for c in rows}
        packs = ((step, pack) for step in range(state.cursor) for pack in order.packs(step))
        return [(step, clip_of[sample]) for step, pack in packs for sample in pack.samples]

    def line(self, checkpoint: str) -> list[str]:
        found = [checkpoint]
        while (before := self.states[found[-1]].init_from) is not None:
            found.append(before)
        return found

    def verdict(self, checkpoint: str, clips: set[str]) -> str | None:
        line = self.line(checkpoint)
        if self.steps(checkpoint, clips):
            return "saw"
        if any(self.steps(c, clips) for c in line):
            return "descends"
        return (
            "contains" if any(clips & self.members.get(self.states[c].dataset_id or "", set()) for c in line) else None
        )

    def product_verdict(self, product: str, clips: set[str], seen: frozenset[str] = frozenset()) -> str | None:
        """The strongest of what it was made from, through other products."""
        found = []
        for source in self.made[product] - seen:
            if source in self.made:
                found.append(self.product_verdict(source, clips, seen | {product}))
            elif source in self.states:
                found.append(self.verdict(source, clips))
            else:
                found.append("contains" if clips & self.members.get(source, set()) else None)
        return next((v for v in ("saw", "descends", "contains") if v in found), None)
