"""Host buffers of saves that are made ahead of the first one."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

import pytest
import torch

from training.saved import Shard
from training.snapshot import Snapshot


def shard_of(name: str) -> Shard:
    values = torch.arange(4.0)
    return Shard(name, 0, values, (values + 1, values + 2), values + 3)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made ahead is made on the GPU of the shards; here they lie on the CPU."""

    @contextlib.contextmanager
    def device(_: torch.device) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "device", device)


def test_buffers_count_once_all_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, go = Snapshot(), threading.Event()
    made = snapshot._buffer

    def slow(*given: object) -> torch.Tensor:
        go.wait()
        return made(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot, "_buffer", slow)
    snapshot.prepare([shard_of("a")])
    assert not snapshot.has_buffers  # a save in a hurry writes from where the state lies
    go.set()
    assert snapshot._making is not None
    snapshot._making.join()
    assert snapshot.has_buffers


def test_memory_that_cannot_be_pinned_ahead_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot, shards = Snapshot(), [shard_of("a")]

    def full(*_: object) -> torch.Tensor:
        raise RuntimeError("out of host memory")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(snapshot, "_buffer", full)
        snapshot.prepare(shards)
        assert snapshot._making is not None
        snapshot._making.join()
    assert "out of host memory" in caplog.text
    assert not snapshot.has_buffers
    snapshot.begin(shards)
    (copy,) = snapshot.copy(shards)
    assert snapshot.has_buffers
    assert torch.equal(copy.master, shards[0].master)


def test_closed_it_makes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, go, asked = Snapshot(), threading.Event(), []
    made = snapshot._buffer

    def slow(name: str, part: str, tensor: torch.Tensor) -> torch.Tensor:
        asked.append(name)
        go.wait()
        return made(name, part, tensor)

    monkeypatch.setattr(snapshot, "_buffer", slow)
    snapshot.prepare([shard_of("a"), shard_of("b")])
    closing = threading.Thread(target=snapshot.close)
    closing.start()
    while not snapshot._closed.is_set():
        threading.Event().wait(0.001)
    go.set()
    closing.join()
    assert set(asked) == {"a"}
    assert not snapshot.has_buffers
