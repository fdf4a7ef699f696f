"""A run goes on at another number of ranks: the same losses within rounding, and in a fixed order the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_nursery import Nursery

from m4v.core.errors import ConfigError
from m4v.core.storage import Storage
from training.fixed_order import check_fixed_order
from training.saved import PARTS
from training.state import StateStore

SCRIPT = Path(__file__).parent / "training_reshard_probe.py"
STAGES = "0123fw"  # ZeRO 0 to 3, FSDP2 as its third stage and as its second
Lines = list[tuple[int, float, float]]


def steps(nursery: Nursery, out: Path, ranks: int, first: int, saves: str, stages: str, mode: str) -> None:
    """Take steps at a number of ranks, from the save at `first`."""
    nursery.run(ranks, [str(SCRIPT), str(out), str(first), saves, stages, mode], out / "output.log")


def lines(out: Path, stage: str) -> Lines:
    """(step, loss, norm) of every step."""
    rows = [json.loads(line) for line in (out / f"stage{stage}.jsonl").read_text().splitlines()]
    return [(step, float.fromhex(loss), float.fromhex(norm)) for step, loss, norm in rows]


def state(out: Path, stage: str) -> dict[str, torch.Tensor]:
    """Weights, moments and averages of the newest save, whole."""
    store = StateStore(Storage(str(out / f"state{stage}")), 2, "read")
    manifest = store.newest_verified()
    assert manifest is not None
    return {f"{part}.{name}": t for part in PARTS for name, t in store.whole(manifest, part).items()}


def assert_same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name].view(torch.int32), value.view(torch.int32)), name


def test_in_a_fixed_order_two_ranks_go_on_with_the_bits_of_one(nursery: Nursery, tmp_path: Path) -> None:
    alone, resized = tmp_path / "alone", tmp_path / "resized"
    alone.mkdir()
    resized.mkdir()
    steps(nursery, alone, 1, 0, "1,3", "23fw", "fixed")
    for stage in "23fw":
        shutil.copytree(alone / f"state{stage}", resized / f"state{stage}")
        shutil.rmtree(resized / f"state{stage}" / "saves" / "0000000003-00000000")
    steps(nursery, resized, 2, 1, "3", "23fw", "fixed")
    for stage in "23fw":
        assert lines(resized, stage) == lines(alone, stage)[1:]
        assert_same_bits(state(resized, stage), state(alone, stage))


def resize(nursery: Nursery, out: Path, mode: str, length: int) -> dict[str, tuple[Lines, Lines]]:
    """Lines of 1 -> 2 -> 4 -> 1 ranks and of one rank all the way, for every stage, `length` steps a world."""
    alone, resized = out / "alone", out / "resized"
    alone.mkdir()
    resized.mkdir()
    steps(nursery, alone, 1, 0, str(4 * length), STAGES, mode)
    for place, ranks in enumerate((1, 2, 4, 1)):
        steps(nursery, resized, ranks, place * length, str((place + 1) * length), STAGES, mode)
    return {stage: (lines(resized, stage), lines(alone, stage)) for stage in STAGES}


def worst(pairs: list[tuple[tuple[int, float, float], tuple[int, float, float]]]) -> float:
    """Largest relative difference of losses and norms."""
    assert all(a[0] == b[0] for a, b in pairs)
    return max(abs(x - y) / abs(y) for a, b in pairs for x, y in zip(a[1:], b[1:], strict=True))


@pytest.mark.deep
def test_one_two_four_one_ranks_agree_within_rounding(nursery: Nursery, tmp_path: Path) -> None:
    """The first step after each change within 1e-6, 20 steps after it within 1e-4."""
    for stage, (resized, alone) in resize(nursery, tmp_path, "fast", 20).items():
        pairs = list(zip(resized, alone, strict=True))
        first = worst([pairs[20]])
        all_of_them = worst(pairs)
        print(f"stage {stage}: first step after the first change {first:.1e}, all 80 steps {all_of_them:.1e}")
        assert first < 1e-6
        assert all_of_them < 1e-4


@pytest.mark.deep
def test_one_two_four_one_ranks_are_equal_in_a_fixed_order(nursery: Nursery, tmp_path: Path) -> None:
    for stage, (resized, alone) in resize(nursery, tmp_path, "fixed", 5).items():
        assert resized == alone, stage
        assert_same_bits(state(tmp_path / "resized", stage), state(tmp_path / "alone", stage))


def test_a_fixed_order_needs_a_power_of_two_of_ranks() -> None:
    check_fixed_order(4)
    with pytest.raises(ConfigError, match="power of two"):
        check_fixed_order(3)
