"""Perceptual hashes of all clips, in blocks: a search within bits compares every one, which numpy does in a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from pipelines.ledger.clip_load import among, chunks
from pipelines.ledger.schema_clips import HashBlock

_MIN_MATCH = 0.5  # share of a hash's words that must be close
_ID, _WORD = 16, 8  # bytes
_BLOCKS = 32  # read together

Words = NDArray[np.uint64]


def hash_words(text: str) -> Words:
    """Words of a hash that have structure: 0 stands for a picture without any, and matches nothing."""
    return np.array([word for part in text.split("-") if part and (word := int(part, 16))], dtype=np.uint64)


def by_hashes(session: Session, asked: Sequence[Words], bits: int) -> list[list[bytes]]:
    """For each hash the clips that have a word within `bits` bits of at least half of its words."""
    found: list[list[bytes]] = [[] for _ in asked]
    query = select(HashBlock.clips, HashBlock.counts, HashBlock.words).order_by(HashBlock.block_no)
    for rows in session.execute(query.execution_options(yield_per=_BLOCKS)).partitions():
        ids, counts, data = (b"".join(column) for column in zip(*rows, strict=True))
        words = np.frombuffer(data, dtype=">u8").astype(np.uint64)
        owners = np.repeat(np.arange(len(counts)), np.frombuffer(counts, dtype=np.uint8))
        for own, query_words in zip(found, asked, strict=True):
            own += [ids[_ID * n : _ID * n + _ID] for n in _close(words, owners, query_words, bits)]
    return found


def _close(words: Words, owners: NDArray[np.int64], asked: Words, bits: int) -> list[int]:
    """Owners of a close word for at least half of the asked words."""
    if not len(asked):
        return []
    matched: dict[int, int] = {}
    for word in asked:
        places = np.flatnonzero(np.bitwise_count(words ^ word) <= bits)
        for owner in set(owners[places[words[places] != 0]].tolist()):
            matched[owner] = matched.get(owner, 0) + 1
    return sorted(owner for owner, count in matched.items() if count >= _MIN_MATCH * len(asked))


def hashes_of(session: Session, block_of: Mapping[bytes, int]) -> dict[bytes, str]:
    """Perceptual hashes of clips as text, read from the blocks that hold them."""
    wanted: dict[int, list[bytes]] = {}
    for clip, number in block_of.items():
        wanted.setdefault(number, []).append(clip)
    query = select(HashBlock.block_no, HashBlock.clips, HashBlock.counts, HashBlock.words)
    query = query.where(among(HashBlock.block_no))
    found: dict[bytes, str] = {}
    for numbers in chunks(wanted, _BLOCKS):
        for number, ids, counts, data in session.execute(query, {"asked": numbers}):
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
