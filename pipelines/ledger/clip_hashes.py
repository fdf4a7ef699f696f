"""Perceptual hashes of all clips, in blocks: a search within bits compares every one, which numpy does in a second."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from pipelines.ledger.clip_load import among, chunks, driver_faults
from pipelines.ledger.database import AS_BYTES
from pipelines.ledger.schema_clips import HashBlock

_MIN_MATCH = 0.5  # share of a hash's words that must be close
_ID, _WORD = 16, 8  # bytes
_BLOCKS = 32  # read together
_ALL = "SELECT clips, counts, words FROM hash_block ORDER BY block_no"

Words = NDArray[np.uint64]


def hash_words(text: str) -> Words:
    """Words of a hash that have structure: 0 stands for a picture without any, and matches nothing."""
    return np.array([word for part in text.split("-") if part and (word := int(part, 16))], dtype=np.uint64)


def by_hashes(session: Session, asked: Sequence[Words], bits: int) -> list[list[bytes]]:
    """For each hash the clips that have a word within `bits` bits of at least half of its words."""
    found: list[list[bytes]] = [[] for _ in asked]
    swapped = [words.byteswap() for words in asked]  # as they lie in the blocks; no bit is lost
    for ids, counts, data in _read(session):
        words = np.frombuffer(data, dtype=np.uint64)
        ends = np.cumsum(np.frombuffer(counts, dtype=np.uint8), dtype=np.int64)
        for own, query_words in zip(found, swapped, strict=True):
            own += [ids[_ID * n : _ID * n + _ID] for n in _close(words, ends, query_words, bits)]
    return found


def _read(session: Session) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Ids, counts and words of all blocks, many blocks at a time."""
    raw: Any = session.connection().connection.driver_connection
    if isinstance(raw, sqlite3.Connection):
        cursor = raw.execute(_ALL)
        while rows := cursor.fetchmany(_BLOCKS):
            yield _joined(rows)
        return
    with driver_faults(HashBlock.__tablename__), raw.cursor("hash_blocks", binary=True) as stream:
        stream.execute(_ALL)
        while rows := stream.fetchmany(_BLOCKS):
            yield _joined(rows)


def _joined(rows: Sequence[Sequence[bytes]]) -> tuple[bytes, bytes, bytes]:
    ids, counts, words = (b"".join(column) for column in zip(*rows, strict=True))
    return ids, counts, words


def _close(words: Words, ends: NDArray[np.int64], asked: Words, bits: int) -> list[int]:
    """Places of clips with a close word for at least half of the asked words; `ends` are of each clip's words."""
    if not len(asked):
        return []
    matched: Counter[int] = Counter()
    for word in asked:
        places = np.flatnonzero(np.bitwise_count(words ^ word) <= bits)
        owners = np.searchsorted(ends, places[words[places] != 0], side="right")
        matched.update(np.unique(owners).tolist())
    return sorted(owner for owner, count in matched.items() if count >= _MIN_MATCH * len(asked))


def hashes_of(session: Session, block_of: Mapping[bytes, int]) -> dict[bytes, str]:
    """Perceptual hashes of clips as text, read from the blocks that hold them."""
    wanted: dict[int, list[bytes]] = {}
    for clip, number in block_of.items():
        wanted.setdefault(number, []).append(clip)
    query = select(HashBlock.block_no, HashBlock.clips, HashBlock.counts, HashBlock.words)
    found: dict[bytes, str] = {}
    for numbers in chunks(wanted, _BLOCKS):
        rows = session.execute(query.where(among(session, HashBlock.block_no, numbers)), execution_options=AS_BYTES)
        for number, ids, counts, data in rows:
            ends = np.cumsum(np.frombuffer(counts, dtype=np.uint8), dtype=np.int64).tolist()
            place_of = _places(ids, wanted[number])
            for clip in wanted[number]:
                place = place_of[clip]
                own = data[_WORD * (ends[place] - counts[place]) : _WORD * ends[place]].hex()
                found[clip] = "-".join(own[at : at + 2 * _WORD] for at in range(0, len(own), 2 * _WORD))
    return found


def _places(ids: bytes, clips: Sequence[bytes]) -> dict[bytes, int]:
    """The places of ids of 16 bytes in a row of them."""
    if len(clips) > 8:
        return {ids[at : at + _ID]: at // _ID for at in range(0, len(ids), _ID)}
    found = {}
    for clip in clips:
        at = ids.find(clip)
        while at % _ID:  # bytes of two neighbours
            at = ids.find(clip, at + 1)
        found[clip] = at // _ID
    return found
