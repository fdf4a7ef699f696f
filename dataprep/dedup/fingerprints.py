"""What dedup knows of clips, by column: ten million of them fit where ten million objects would not."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_SPILL_HASHES = 8_000_000  # dense hashes beyond which they lie in a file


class Signature(NamedTuple):
    """One clip. `preference` orders clips, then their ids do: the smallest of a group stays.

    `sampled` hashes ask, `dense` hashes answer; hashes of structureless frames (0) are left out of both.
    Only clips of one `media` and of different files are near copies: two shots of one film may well look
    alike, and a still is no copy of the film that it is from.
    """

    clip_id: str
    content: str
    preference: tuple[float, ...]
    sampled: Hashes
    dense: Hashes
    media: str = "video"
    file: str = ""
    perceptual: bool = True


@dataclass(frozen=True)
class Fingerprints:
    """Clips in any order; row r has hashes `sampled[sampled_starts[r]:sampled_starts[r + 1]]`, `dense` alike.

    `ranks`: places in the order of preference, a permutation. `contents` (n, 2): digest of media and pictures.
    `files`: digest of the file, 0 when it is not known. `dense` may be mapped from a file: read it in runs.
    """

    ranks: NDArray[np.int64]
    contents: NDArray[np.uint64]
    files: NDArray[np.uint64]
    video: NDArray[np.bool_]
    perceptual: NDArray[np.bool_]
    sampled: Hashes
    sampled_starts: NDArray[np.int64]
    dense: Hashes
    dense_starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ranks)

    @classmethod
    def of(cls, signatures: Iterable[Signature]) -> Fingerprints:
        writer = FingerprintWriter()
        rows = list(signatures)
        if rows:
            writer.add(batch_of(rows))
        return writer.close()


class Batch(NamedTuple):
    """Columns of some clips; `sampled` and `dense` are laid end to end, with the number of each clip's."""

    clip_ids: Sequence[str]
    contents: Sequence[str]
    preference: NDArray[np.float64]  # (n, k)
    files: Sequence[str]
    media: Sequence[str]
    perceptual: NDArray[np.bool_]
    sampled: Hashes
    sampled_counts: NDArray[np.int64]
    dense: Hashes
    dense_counts: NDArray[np.int64]


def batch_of(rows: Sequence[Signature]) -> Batch:
    return Batch(
        [r.clip_id for r in rows], [r.content for r in rows], np.array([r.preference for r in rows], dtype=np.float64),
        [r.file for r in rows], [r.media for r in rows], np.array([r.perceptual for r in rows], dtype=np.bool_),
        np.concatenate([r.sampled for r in rows]), np.array([len(r.sampled) for r in rows], dtype=np.int64),
        np.concatenate([r.dense for r in rows]), np.array([len(r.dense) for r in rows], dtype=np.int64),
    )  # fmt: skip


class FingerprintWriter:
    """Collects batches; dense hashes go to an unnamed temporary file once they are many."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.bytes_]] = []
        self._columns: dict[str, list[NDArray[np.generic]]] = {name: [] for name in _COLUMNS}
        self._dense: list[Hashes] = []
        self._dense_count = 0
        self._spill: IO[bytes] | None = None

    def add(self, batch: Batch) -> None:
        contents = [f"{media}:{content}" for media, content in zip(batch.media, batch.contents, strict=True)]
        values: dict[str, NDArray[np.generic]] = {
            "preference": batch.preference,
            "contents": np.frombuffer(b"".join(_digest(c, 16) for c in contents), dtype="<u8").reshape(-1, 2),
            "files": np.frombuffer(b"".join(_digest(f, 8) if f else bytes(8) for f in batch.files), dtype="<u8"),
            "video": np.array([media == "video" for media in batch.media], dtype=np.bool_),
            "perceptual": batch.perceptual,
            "sampled": batch.sampled,
            "sampled_counts": batch.sampled_counts,
            "dense_counts": batch.dense_counts,
        }
        for name, column in values.items():
            self._columns[name].append(column)
        self._ids.append(np.array([i.encode() for i in batch.clip_ids], dtype=np.bytes_))
        self._add_dense(batch.dense)

    def close(self) -> Fingerprints:
        ranks = _ranks(self._taken("preference"), self._ids)
        return Fingerprints(
            ranks=ranks,
            contents=self._taken("contents").astype(np.uint64, copy=False),
            files=self._taken("files").astype(np.uint64, copy=False),
            video=self._taken("video").astype(np.bool_, copy=False),
            perceptual=self._taken("perceptual").astype(np.bool_, copy=False),
            sampled=self._taken("sampled").astype(np.uint64, copy=False),
            sampled_starts=_starts(self._taken("sampled_counts")),
            dense=self._all_dense(),
            dense_starts=_starts(self._taken("dense_counts")),
        )

    def _taken(self, name: str) -> NDArray[np.generic]:
        parts = self._columns.pop(name)
        return np.concatenate(parts) if parts else np.zeros(_EMPTY.get(name, (0,)), dtype=_COLUMNS[name])

    def _add_dense(self, hashes: Hashes) -> None:
        self._dense_count += len(hashes)
        self._dense.append(hashes)
        if self._dense_count > _SPILL_HASHES:
            self._spill = self._spill or tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its mapping
            for part in self._dense:
                part.astype("<u8").tofile(self._spill)
            self._dense = []

    def _all_dense(self) -> Hashes:
        if self._spill is None:
            return np.concatenate([np.zeros(0, np.uint64), *self._dense])
        self._spill.flush()
        return np.memmap(self._spill, dtype="<u8", mode="r", shape=(self._dense_count,))


_COLUMNS = {
    "preference": np.float64, "contents": np.uint64, "files": np.uint64, "video": np.bool_, "perceptual": np.bool_,
    "sampled": np.uint64, "sampled_counts": np.int64, "dense_counts": np.int64,
}  # fmt: skip
_EMPTY = {"preference": (0, 1), "contents": (0, 2)}


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def _starts(counts: NDArray[np.generic]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _ranks(preference: NDArray[np.generic], ids: list[NDArray[np.bytes_]]) -> NDArray[np.int64]:
    """Place of each row in the order of (preference, clip_id)."""
    names = np.concatenate(ids) if ids else np.zeros(0, dtype="S1")
    ids.clear()
    order = np.lexsort((names, *preference.T[::-1]))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return ranks
