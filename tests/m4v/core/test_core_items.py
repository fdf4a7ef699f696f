"""The item store and stable ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m4v.core.canonical import digest_bytes
from m4v.core.errors import InfrastructureError, InputError
from m4v.core.ids import clip_id, sample_id
from m4v.core.items import ItemStore
from m4v.core.storage import Storage

KEY = digest_bytes(b"video")
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x1f"), min_size=1)


@pytest.fixture(params=["local", "s3"])
def items(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ItemStore, Storage]:
    storage = Storage(str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_root"))
    return ItemStore(storage), storage


def test_an_item_is_made_once(items: tuple[ItemStore, Storage]) -> None:
    store, _ = items
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"signals"

    assert store.get(KEY) is None
    assert store.get_or_make(KEY, make) == b"signals"
    assert store.get_or_make(KEY, make) == b"signals"
    assert len(made) == 1
    store.put(KEY + "-empty", b"")
    assert store.get(KEY + "-empty") == b""


@pytest.mark.parametrize("damage", [b"", b"short", b"0" * 64 + b"signals", None])
def test_a_damaged_item_is_made_again(items: tuple[ItemStore, Storage], damage: bytes | None) -> None:
    store, storage = items
    store.put(KEY, b"signals")
    path = f"{KEY[:2]}/{KEY}"
    storage.write_bytes(path, storage.read_bytes(path)[:-1] if damage is None else damage)
    assert store.get(KEY) is None
    assert store.get_or_make(KEY, lambda: b"again") == b"again"
    assert store.get(KEY) == b"again"


def test_a_store_that_cannot_be_reached_is_not_a_miss(s3_server: str) -> None:
    with pytest.raises(InfrastructureError):
        ItemStore(Storage("s3://no-such-bucket/items")).put(KEY, b"x")


@pytest.mark.parametrize("key", ["ab", "", "../../etc/x", "a/../../b", "/abs"])
def test_keys_stay_inside(tmp_path: Path, key: str) -> None:
    store = ItemStore(Storage(str(tmp_path)))
    for call in (store.get, lambda k: store.put(k, b"x")):
        with pytest.raises((InputError, ValueError)):
            call(key)


def test_frozen_ids() -> None:
    """Ids stand in published datasets: these may never change."""
    assert clip_id("webvid-10m", "00001/123", 0, 2_000_000) == "46474d037d31430f87ff972305b77e8f"
    assert sample_id("46474d037d31430f87ff972305b77e8f", "e" * 64, "9x64x64") == "f9f9b39b3480bd61be633e8ce9921343"


@given(names, names, st.integers(0, 10**12), st.integers(0, 10**12))
def test_ids_are_32_hex_digits_and_tell_spans_apart(dataset: str, source: str, start: int, length: int) -> None:
    clip = clip_id(dataset, source, start, start + length)
    assert len(clip) == 32
    assert set(clip) <= set("0123456789abcdef")
    assert clip != clip_id(dataset, source, start, start + length + 1)
    assert clip != clip_id(dataset + "x", source, start, start + length)
    assert sample_id(clip, "e", "b") != sample_id(clip, "e", "b2")


def test_parts_cannot_run_together() -> None:
    assert clip_id("ab", "c", 0, 0) != clip_id("a", "bc", 0, 0)
    assert clip_id("a", "1", 23, 30) != clip_id("a", "12", 3, 30)
    with pytest.raises(ValueError, match="control character"):
        clip_id("a\x1fb", "c", 0, 0)


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 4)])
def test_spans_run_forward(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="half-open span"):
        clip_id("a", "b", start, end)
