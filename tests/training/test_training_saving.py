"""Saves beside the training loop: what they hold, how they wait, fail and are chosen again."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from m4v.core.errors import DataIntegrityError, InfrastructureError
from m4v.core.storage import Storage
from training.config import TrainConfig
from training.saved import Kind, Row, Shard
from training.saving import DrainClock, SaveFacts, Saver, is_due, is_permanent
from training.state import MANIFEST, StateStore
from training.tensor_file import _through, write_tensors

ELEMENTS = 10


class Held(StateStore):
    """A store whose files of ranks are not written before `go` is set."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.go = threading.Event()

    def write_shards(self, *arguments: Any) -> Any:
        assert self.go.wait(300)
        return super().write_shards(*arguments)


def shards(value: float, rank: int = 0, ranks: int = 1) -> list[Shard]:
    part = ELEMENTS // ranks
    weights = torch.full((part,), float(value))
    return [Shard("w", rank * part, weights, (weights + 1, weights + 2), weights + 3)]


def saver(store: StateStore, rank: int = 0, ranks: int = 1, rows: list[Row] | None = None, **rest: Any) -> Saver:
    facts = SaveFacts({"w": (ELEMENTS,)}, True, ((0, ranks),))
    record = (lambda row: None) if rows is None else rows.append
    return Saver(store, rank, ranks, facts, record=record, **rest)


def saved(store: StateStore, steps: list[int], kinds: dict[int, Kind] | None = None) -> Saver:
    """Saves at some steps, whose weights are the step."""
    made = saver(store)
    for step in steps:
        made.begin(step, shards(step), [{"step": step}], (kinds or {}).get(step, "ephemeral"))
    made.finish()
    return made


def weight(store: StateStore) -> float:
    manifest = store.newest_verified()
    assert manifest is not None
    (value,) = set(store.whole(manifest, "master")["w"].tolist())
    return float(value)


def folders(store: StateStore) -> list[int]:
    return [int(name.split("-")[0]) for name in store.storage.directories("saves")]


def test_training_goes_on_and_the_save_holds_the_step_it_began_at(tmp_path: Path) -> None:
    rows: list[Row] = []
    store = Held(Storage(str(tmp_path)), 2, "a")
    made, live = saver(store, rows=rows), shards(5)
    assert made.begin(3, live, [{"step": 2}])
    made.before_update()
    live[0].master.fill_(6)  # the next update, while nothing is written yet
    made.check()
    assert made.begun == 3
    assert made.committed is None
    assert store.newest_verified() is None
    store.go.set()
    manifest = made.finish()
    assert manifest is not None
    assert made.committed == 3
    assert weight(store) == 5
    assert store.metric_rows(manifest) == b'{"step":2}\n'
    (row,) = rows
    assert row["event"] == "save"
    assert row["synchronous"] is False
    assert isinstance(row["seconds"], dict)
    assert set(row["seconds"]) == {"wait", "start", "copy", "write", "commit"}


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Row] = []
    store = Held(Storage(str(tmp_path)), 2, "a")
    made = saver(store, rows=rows)
    made.begin(1, shards(1), [{"step": 0}])
    finish, release = made.finish, threading.Timer(0.2, store.go.set)
    monkeypatch.setattr(made, "finish", lambda deadline: [release.start(), finish(deadline)][1])
    assert made.begin(2, shards(2), [{"step": 1}])
    monkeypatch.undo()
    assert made.committed == 1
    made.finish()
    waits = [float(row["seconds"]["wait"]) for row in rows]  # type: ignore[index]
    assert waits[1] >= 0.19
    assert weight(store) == 2


def test_a_save_that_is_late_for_its_deadline_is_abandoned(tmp_path: Path) -> None:
    saved(StateStore(Storage(str(tmp_path)), 2, "a"), [1])
    store = Held(Storage(str(tmp_path)), 2, "b")
    made = saver(store, committed=1)
    made.begin(2, shards(2), [], synchronous=True)
    assert made.finish(time.monotonic() + 0.05) is None
    assert made.committed == 1
    assert not made.begin(3, shards(3), [], deadline=time.monotonic())
    assert weight(store) == 1


def test_what_a_save_fails_with_reaches_the_loop(tmp_path: Path) -> None:
    (tmp_path / "saves").write_text("in the way")
    made = saver(StateStore(Storage(str(tmp_path)), 2, "a"))
    made.begin(1, shards(1), [])
    with pytest.raises(InfrastructureError, match="storage failed"):
        made.finish()
    with pytest.raises(InfrastructureError):
        made.check()


def test_no_manifest_before_every_rank_has_its_file(tmp_path: Path) -> None:
    stores = [StateStore(Storage(str(tmp_path)), 2, "a") for _ in range(2)]
    first, second = (saver(store, rank, 2) for rank, store in enumerate(stores))
    first.begin(4, shards(4, 0, 2), [])
    assert first.finish(time.monotonic() + 0.1) is None
    assert stores[0].newest_verified() is None
    first, second = (saver(store, rank, 2) for rank, store in enumerate(stores))
    for rank, made in enumerate((first, second)):
        made.begin(4, shards(4, rank, 2), [])
    for made in (first, second):
        assert made.finish() is not None
        assert made.committed == 4
    assert weight(stores[1]) == 4


def test_a_rank_that_never_writes_ends_the_save(tmp_path: Path) -> None:
    made = saver(StateStore(Storage(str(tmp_path)), 2, "a"), 0, 2, timeout_s=0.05)
    made.begin(1, shards(1, 0, 2), [])
    with pytest.raises(InfrastructureError, match="not finished by all ranks"):
        made.finish()


def test_retention_keeps_the_newest_and_never_deletes_permanent_ones(tmp_path: Path) -> None:
    store = StateStore(Storage(str(tmp_path)), 2, "a")
    saved(store, [1, 2, 3, 4, 5, 6], {2: "permanent", 6: "permanent"})
    assert folders(store) == [2, 4, 5, 6]
    again = StateStore(Storage(str(tmp_path)), 2, "b")  # knows the kinds from the manifests alone
    saved(again, [7, 8])
    assert folders(again) == [2, 6, 7, 8]


def test_permanent_saves_come_at_their_own_steps() -> None:
    config = TrainConfig(name="s", steps=20, save_every=4, keep_every=6)
    assert [s for s in range(1, 20) if is_due(s, config)] == [4, 6, 8, 12, 16, 18]
    assert [s for s in range(1, 20) if is_permanent(s, config)] == [6, 12, 18]
    assert not is_permanent(6, TrainConfig(name="s", steps=20))


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "manifest", "metrics"])
def test_a_damaged_save_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    store = StateStore(Storage(str(tmp_path)), 3, "a")
    saved(store, [1, 2])
    folder = tmp_path / "saves" / "0000000002-a"
    file = {
        "manifest": folder / MANIFEST, "metrics": tmp_path / "metrics" / "0000000002-0000000002.jsonl",
    }.get(damage, folder / "rank-00000.safetensors")  # fmt: skip
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if damage != "changed" else data[:-1] + bytes([data[-1] ^ 1]))
    again = StateStore(Storage(str(tmp_path)), 3, "b")
    assert weight(again) == 1
    ((name, reason),) = again.passed_over
    assert name == "saves/0000000002-a"
    assert {"missing": "missing", "manifest": "cannot be read"}.get(damage, "digest") in reason


def test_when_every_save_is_damaged_nothing_starts_from_the_beginning(tmp_path: Path) -> None:
    saved(StateStore(Storage(str(tmp_path)), 2, "a"), [1])
    (tmp_path / "saves" / "0000000001-a" / "rank-00000.safetensors").write_bytes(b"")
    with pytest.raises(DataIntegrityError, match="every save"):
        StateStore(Storage(str(tmp_path)), 2, "b").newest_verified()


def test_a_half_deleted_save_is_none_and_goes_at_the_next_start(tmp_path: Path) -> None:
    store = StateStore(Storage(str(tmp_path)), 3, "a")
    saved(store, [1, 2])
    (tmp_path / "saves" / "0000000001-a" / MANIFEST).unlink()  # killed right after this, retention left the rest
    again = StateStore(Storage(str(tmp_path)), 3, "b")
    assert [c.folder for c in again.candidates()] == ["saves/0000000002-a"]
    again.drop_unfinished()
    assert folders(again) == [2]


def test_tensor_files_are_safetensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(5, dtype=torch.bfloat16), "none": torch.empty(0),
        "c": torch.tensor([1.5], dtype=torch.float64),
    }  # fmt: skip
    storage = Storage(str(tmp_path))
    written = write_tensors(storage, "x/y.safetensors", tensors)
    assert storage.digest("x/y.safetensors") == written.sha256
    assert (tmp_path / "x" / "y.safetensors").stat().st_size == written.size_bytes
    loaded = load_file(tmp_path / "x" / "y.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[k], t) and loaded[k].dtype == t.dtype for k, t in tensors.items())


def test_bytes_from_elsewhere_come_through_little_room() -> None:
    flat = torch.arange(200, dtype=torch.uint8)
    assert b"".join(map(bytes, _through(flat, torch.empty(64, dtype=torch.uint8)))) == bytes(flat.tolist())


def test_the_drain_clock_runs_from_the_request(tmp_path: Path) -> None:
    flag = threading.Event()
    clock = DrainClock(flag.is_set, 100)
    before = time.monotonic()
    assert clock.deadline >= before + 100
    flag.set()
    asked = [clock.deadline]
    while len(asked) < 2 or asked[-1] != asked[-2]:  # it stands still once the request was seen
        assert len(asked) < 1000
        time.sleep(0.02)
        asked.append(clock.deadline)
    clock.close()
