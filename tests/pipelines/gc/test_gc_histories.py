"""Random histories of runs, promotions, pins and collections that die at any call: what a root reaches is never
deleted, and the next collection always ends clean."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from channel_house import House
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m4v.core.artifacts import MANIFEST, ArtifactKind, verify
from m4v.core.errors import ExitClass
from m4v.core.storage import Storage
from pipelines.gc import artifacts as collecting
from pipelines.gc import collect_artifacts
from pipelines.holds import hold_outputs
from pipelines.ledger import ArtifactDeleted, Ledger
from pipelines.settings import RetentionConfig
from pipelines.store import ArtifactRecord, ArtifactStore

KEEP = RetentionConfig(runs=1, promotions=2, grace_hours=0)
CHANNELS = ("prod", "staging")


class Died(BaseException):
    """The process is gone."""


@dataclass
class Run:
    recipe: str
    made: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    is_running: bool = True


@dataclass
class Model:
    """What the history means, kept apart from the ledger: the oracle of reachability."""

    made_from: dict[str, set[str]] = field(default_factory=dict)
    channels: dict[str, list[str]] = field(default_factory=dict)
    pins: set[str] = field(default_factory=set)
    runs: list[Run] = field(default_factory=list)

    def reachable(self) -> set[str]:
        roots = set(self.pins)
        for entries in self.channels.values():
            roots |= set(entries[-2:])
        newest: dict[str, set[str]] = {}
        ended: dict[str, set[str]] = {}
        for run in self.runs:
            newest[run.recipe] = run.made
            if run.is_running:
                roots |= run.made | run.held
            else:
                ended[run.recipe] = run.made
        for made in (*newest.values(), *ended.values()):
            roots |= made
        found: set[str] = set()
        while roots:
            one = roots.pop()
            if one not in found:
                found.add(one)
                roots |= self.made_from.get(one, set())
        return found


class World:
    """Runs a history against a real ledger and store, and checks the store against the model after every step."""

    def __init__(self, house: House) -> None:
        self.house, self.model = house, Model()
        self.records: list[ArtifactRecord] = []
        self.pipelines: list[str] = []
        self.contents: dict[str, tuple[str, tuple[str, ...]]] = {}

    @property
    def ledger(self) -> Ledger:
        return self.house.ledger

    def begin(self, recipe: int) -> None:
        name = f"recipe{recipe % 2}"
        self.pipelines.append(self.ledger.begin_pipeline_run(name, {"n": len(self.pipelines)}))
        self.model.runs.append(Run(name))

    def pipeline(self, recipe: int, sources: list[int]) -> None:
        """A whole pipeline run of one recipe."""
        self.begin(recipe)
        for source in sources:
            self.make(source, True)
        self.end(len(self.pipelines) - 1)

    def end(self, which: int) -> None:
        if self.pipelines:
            number = which % len(self.pipelines)
            self.ledger.finish_pipeline_run(self.pipelines[number], ExitClass.OK)
            self.model.runs[number].is_running = False

    def _running(self) -> int | None:
        living = [n for n, run in enumerate(self.model.runs) if run.is_running]
        return living[-1] if living else None

    def make(self, source: int, fresh: bool) -> None:
        """A run of a stage in the newest running pipeline: a new artifact, or one that was made before, again."""
        number = self._running()
        if number is None:
            return
        sources: list[ArtifactRecord] = []
        if fresh or not self.records:
            if self.records and source % 2:
                sources = [self.records[source % len(self.records)]]
            content = f"artifact {len(self.records)}"
        else:
            known = self.records[source % len(self.records)]
            content, ids = self.contents[known.artifact_id]
            sources = [r for r in self.records if r.artifact_id in ids]
        if not self._use(number, sources):
            return
        record = self._publish(number, content)
        self.house.run(
            "train", {"out": record}, {f"in{n}": s for n, s in enumerate(sources)},
            pipeline_run_id=self.pipelines[number], key=f"{content} {self.pipelines[number]}",
        )  # fmt: skip
        if record not in self.records:
            self.records.append(record)
            self.contents[record.artifact_id] = (content, tuple(s.artifact_id for s in sources))
        self.model.made_from.setdefault(record.artifact_id, set()).update(s.artifact_id for s in sources)
        self.model.runs[number].made.add(record.artifact_id)

    def _use(self, number: int, sources: list[ArtifactRecord]) -> bool:
        """A cache hit: held, or found to be gone."""
        try:
            self.ledger.hold(self.pipelines[number], [(s.artifact_id, s.kind) for s in sources])
        except ArtifactDeleted:
            return False
        self.model.runs[number].held.update(s.artifact_id for s in sources)
        return True

    def _publish(self, number: int, content: str) -> ArtifactRecord:
        """As an attempt does: staged, held, published."""
        staged = self.house.stage(ArtifactKind.CHECKPOINT, content)
        hold_outputs(self.ledger, self.pipelines[number], [staged])
        return self.house.store.publish(staged)

    def reuse(self, which: int) -> None:
        number = self._running()
        if number is not None and self.records:
            self._use(number, [self.records[which % len(self.records)]])

    def promote(self, which: int, channel: int) -> None:
        if not self.records:
            return
        name, artifact = CHANNELS[channel % 2], self.records[which % len(self.records)].artifact_id
        now = self.ledger.channel(name)
        try:
            self.ledger.move_channel(
                name, artifact, expected=now.artifact_id if now else None, moved_by="t", reason=""
            )  # fmt: skip
        except ArtifactDeleted:
            return
        self.model.channels.setdefault(name, []).append(artifact)

    def pin(self, which: int, keep: bool) -> None:
        if not self.records:
            return
        artifact = self.records[which % len(self.records)].artifact_id
        if not keep and artifact in self.model.pins:
            self.ledger.unpin(artifact, by="t")
            self.model.pins.discard(artifact)
        elif keep and self.ledger.artifact(artifact).deletion is None:
            self.ledger.pin(artifact, by="t", reason="")
            self.model.pins.add(artifact)

    def collect(self, dies_at: int | None) -> None:
        with dying(dies_at):
            try:
                collect_artifacts(self.ledger, self.house.store.uri, KEEP, by="t")
            except Died:
                return

    def check(self) -> None:
        """What is reachable and was not deleted before it became reachable is whole, to the last byte."""
        for row in self.ledger.artifacts(limit=None):
            if row.deletion is None:
                verify(Storage(row.uri), row.artifact_id)
        events = self.ledger.events(after=self.seen, limit=None)
        deleted = {e.subject for e in events if e.kind == "artifact.deleted"}
        self.seen, self.deletions = events[-1].seq if events else self.seen, self.deletions + len(deleted)
        assert not deleted & self.model.reachable(), "reachable bytes were deleted"

    seen = deletions = 0

    def check_clean(self) -> None:
        """After a collection that nothing interrupted: exactly the reachable ones are there, and nothing else."""
        self.collect(None)
        self.check()
        assert self.ledger.marked() == []
        there = {r.artifact_id for r in self.records if self.ledger.artifact(r.artifact_id).deletion is None}
        assert there <= self.model.reachable()
        on_disk = {p.parent.name for p in Path(self.house.store.uri).rglob(MANIFEST)}
        assert on_disk == there
        assert list(Path(self.house.store.uri).rglob(".*")) == [], "no leftovers"
        report = self.ledger.verify_chain()
        assert (report.problems, report.stale) == ((), ())


@contextmanager
def dying(at: int | None) -> Iterator[None]:
    """Let a collection die just before or just after its call number `at` of everything that changes something."""
    count = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if at is not None and count == at:
                raise Died
            result = real(*arguments, **named)
            count += 1
            if at is not None and count == at:
                raise Died
            return result

        return call

    with (
        mock.patch.object(Storage, "delete", wrap(Storage.delete)),
        mock.patch.object(Path, "rename", wrap(Path.rename)),
        mock.patch.object(Path, "unlink", wrap(Path.unlink)),
        mock.patch.object(shutil, "rmtree", half_way(shutil.rmtree, wrap)),
        mock.patch.object(Ledger, "mark_deleted", wrap(Ledger.mark_deleted)),
        mock.patch.object(Ledger, "deleted", wrap(Ledger.deleted)),
        mock.patch.object(collecting, "BATCH", 2),
    ):
        yield


def half_way(real: Callable[..., Any], wrap: Callable[..., Any]) -> Callable[..., Any]:
    """A tree's deletion that may stop after its first file."""

    def rmtree(path: Any, *arguments: Any, **named: Any) -> None:
        for file in sorted(p for p in Path(path).rglob("*") if p.is_file())[:1]:
            file.unlink()
        real(path, *arguments, **named)

    return wrap(rmtree)


number = st.integers(0, 7)
steps = st.one_of(
    st.tuples(st.just("pipeline"), number, st.lists(number, min_size=1, max_size=2)),
    st.tuples(st.just("pipeline"), st.just(0), st.lists(number, min_size=1, max_size=2)),
    st.tuples(st.just("begin"), number),
    st.tuples(st.just("end"), number),
    st.tuples(st.just("make"), number, st.booleans()),
    st.tuples(st.just("reuse"), number),
    st.tuples(st.just("promote"), number, number),
    st.tuples(st.just("pin"), number, st.just(True)),
    st.tuples(st.just("pin"), number, st.just(False)),
    st.tuples(st.just("collect"), st.none() | st.integers(1, 40)),
    st.tuples(st.just("collect"), st.integers(1, 12)),
)
histories = st.tuples(
    st.lists(st.integers(0, 7), min_size=2, max_size=4), st.lists(steps, min_size=6, max_size=20)
).map(lambda parts: [*(("pipeline", 0, [source]) for source in parts[0]), *parts[1]])


@pytest.fixture(scope="module")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "ledger.sqlite"
    Ledger.open(str(path)).close()
    return path


def play(history: list[tuple[Any, ...]], empty_ledger: Path) -> World:
    folder = Path(tempfile.mkdtemp(prefix="m4v-gc-"))
    shutil.copy(empty_ledger, folder / "ledger.sqlite")
    try:
        with Ledger.open(str(folder / "ledger.sqlite")) as ledger:
            world = World(House(ledger, ArtifactStore(str(folder / "store")), folder / "staging"))
            for name, *arguments in [("begin", 0), ("make", 0, True), *history]:
                getattr(world, name)(*arguments)
                if name == "collect":
                    world.check()
            world.check_clean()
            return world
    finally:
        shutil.rmtree(folder)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(history=histories)
def test_reachable_bytes_stay_and_the_end_is_clean(history: list[tuple[Any, ...]], empty_ledger: Path) -> None:
    play(history, empty_ledger)


@pytest.mark.deep
@pytest.mark.parametrize("part", range(5))  # of 1,500 histories, that a stopped run has less to do again
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(history=histories)
def test_reachable_bytes_stay_in_many_histories(history: list[tuple[Any, ...]], part: int, empty_ledger: Path) -> None:
    play(history, empty_ledger)


# Five artifacts of pipeline runs that newer ones of the recipe have followed; one is pinned.
GARBAGE = [
    ("make", 0, True), ("make", 2, True), ("end", 0), ("begin", 0), ("make", 1, True), ("end", 1),
    ("begin", 0), ("make", 2, True), ("pin", 1, True), ("end", 2), ("begin", 0), ("make", 4, True),
    ("end", 3),
]  # fmt: skip


@pytest.mark.parametrize("at", range(1, 25, 2))
def test_a_collection_that_dies_at_any_call_is_finished_by_the_next(at: int, empty_ledger: Path) -> None:
    history = [*GARBAGE, ("collect", at), ("begin", 1), ("make", 0, False), ("collect", at)]
    assert play(history, empty_ledger).deletions >= 3


def test_a_killed_collection_leaves_no_lock_and_no_harm(tmp_path: Path, empty_ledger: Path) -> None:
    """SIGKILL in the middle of deleting bytes: the claim is the dead process's, and is taken over at once."""
    shutil.copy(empty_ledger, tmp_path / "ledger.sqlite")
    store = ArtifactStore(str(tmp_path / "store"))
    with Ledger.open(str(tmp_path / "ledger.sqlite")) as ledger:
        world = World(House(ledger, store, tmp_path / "staging"))
        for name, *arguments in [("begin", 0), ("make", 0, True), *GARBAGE]:
            getattr(world, name)(*arguments)
    pid = os.fork()
    if pid == 0:
        try:
            with Ledger.open(str(tmp_path / "ledger.sqlite")) as ledger:
                real = collecting.erase

                def erase_then_die(row: Any) -> None:
                    real(row)
                    os.kill(os.getpid(), signal.SIGKILL)

                with mock.patch.object(collecting, "erase", erase_then_die):
                    collect_artifacts(ledger, store.uri, KEEP, by="t")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with Ledger.open(str(tmp_path / "ledger.sqlite")) as ledger:
        world.house = House(ledger, store, tmp_path / "staging")
        assert ledger.marked() != []
        world.check_clean()
