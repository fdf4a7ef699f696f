"""A save of state on a GPU holds the values of its moment, through pinned buffers that are used again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m4v.core.storage import Storage
from training.saved import Shard
from training.saving import SaveFacts, Saver
from training.snapshot import Snapshot
from training.state import StateStore

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ELEMENTS = 20_000_000


def state() -> Shard:
    weights = torch.zeros(ELEMENTS, device="cuda")
    return Shard("w", 0, weights, (weights + 1, weights + 2), weights + 3)


@pytest.mark.parametrize("synchronous", [False, True])
def test_updates_after_the_step_do_not_reach_its_save(tmp_path: Path, synchronous: bool) -> None:
    store, shard = StateStore(Storage(str(tmp_path)), 2, "a"), state()
    saver = Saver(store, 0, 1, SaveFacts({"w": (ELEMENTS,)}, True, ((0, 1),)))
    for step in range(1, 4):
        shard.master.fill_(step)  # queued on the stream, perhaps not done yet when the save begins
        saver.begin(step, [shard], [], synchronous=synchronous)
        if synchronous:  # nothing is computed before it is over
            manifest = saver.finish()
        saver.before_update()
        shard.master.fill_(-1)
        manifest = manifest if synchronous else saver.finish()
        assert manifest is not None
        assert torch.equal(store.whole(manifest, "master")["w"], torch.full((ELEMENTS,), float(step)))


def test_host_buffers_are_pinned_and_used_again() -> None:
    snapshot, shard = Snapshot(), state()
    copies = []
    for _ in range(2):
        snapshot.begin([shard])
        copies.append(snapshot.copy([shard])[0])
        snapshot.settle()
    assert copies[0].master.is_pinned()
    assert copies[0].master.data_ptr() == copies[1].master.data_ptr()
    assert torch.equal(copies[1].moments[1], shard.moments[1].cpu())
