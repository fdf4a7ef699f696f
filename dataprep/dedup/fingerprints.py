"""What dedup knows of clips, by column: ten million of them fit where ten million objects would not."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataprep.dedup.spill import Spilled, Texts

Hashes = NDArray[np.uint64]


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
    embedding: bytes = b""  # int8 components; empty where it was not measured


@dataclass(frozen=True)
class Fingerprints:
    """Clips in any order; row r has hashes `sampled[sampled_starts[r]:sampled_starts[r + 1]]`, `dense` alike.

    `ranks`: places in the order of preference, a permutation. `contents` (n, 2): digest of media and pictures.
    `files`: digest of the file, 0 when it is not known. `embeddings` (n, d): zeros where it was not measured, d = 0
    when it was nowhere. `sampled`, `dense` and `embeddings` may be mapped from a file: read them in runs.
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
    embeddings: NDArray[np.int8]
    mapped: tuple[mmap.mmap, ...] = ()  # what these lie in

    def release(self) -> None:
        """Give pages of mapped files back; they come again when they are read."""
        for mapping in self.mapped:
            mapping.madvise(mmap.MADV_DONTNEED)

    def __len__(self) -> int:
        return len(self.ranks)

    def by_preference(self) -> NDArray[np.int64]:
        """Rows, the preferred first."""
        order = np.empty(len(self), dtype=np.int64)
        order[self.ranks] = np.arange(len(self))
        return order

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
    embeddings: NDArray[np.int8]  # (n, d)


def embedding_rows(values: Sequence[bytes | None], count: int) -> NDArray[np.int8]:
    """(count, d) from the bytes of each clip; zeros for a clip without."""
    size = max((len(value) for value in values if value), default=0)
    joined = b"".join(value or bytes(size) for value in values)
    return np.frombuffer(joined, dtype=np.int8).reshape(count, size) if size else np.zeros((count, 0), np.int8)


def batch_of(rows: Sequence[Signature]) -> Batch:
    return Batch(
        [r.clip_id for r in rows], [r.content for r in rows], np.array([r.preference for r in rows], dtype=np.float64),
        [r.file for r in rows], [r.media for r in rows], np.array([r.perceptual for r in rows], dtype=np.bool_),
        np.concatenate([r.sampled for r in rows]), np.array([len(r.sampled) for r in rows], dtype=np.int64),
        np.concatenate([r.dense for r in rows]), np.array([len(r.dense) for r in rows], dtype=np.int64),
        embedding_rows([r.embedding for r in rows], len(rows)),
    )  # fmt: skip


class FingerprintWriter:
    """Collects batches; what is large goes to unnamed temporary files."""

    def __init__(self) -> None:
        self._ids = Texts()
        self._columns = {name: Spilled() for name in _COLUMNS}
        self._preferences = 0  # values that order a clip
        self._sampled, self._dense, self._embeddings = Spilled(), Spilled(), Spilled()
        self._components: list[tuple[int, int]] = []

    def add(self, batch: Batch) -> None:
        contents = [f"{media}:{content}" for media, content in zip(batch.media, batch.contents, strict=True)]
        values: dict[str, NDArray[np.generic]] = {
            "preference": batch.preference,
            "contents": np.frombuffer(b"".join(_digest(c, 16) for c in contents), dtype="<u8").reshape(-1, 2),
            "files": np.frombuffer(b"".join(_digest(f, 8) if f else bytes(8) for f in batch.files), dtype="<u8"),
            "video": np.array([media == "video" for media in batch.media], dtype=np.bool_),
            "perceptual": batch.perceptual,
            "sampled_counts": batch.sampled_counts,
            "dense_counts": batch.dense_counts,
        }
        for name, column in values.items():
            self._columns[name].add(column.ravel())
        self._preferences = batch.preference.shape[1]
        self._ids.add(batch.clip_ids)
        self._sampled.add(batch.sampled)
        self._dense.add(batch.dense)
        self._components.append(batch.embeddings.shape)
        self._embeddings.add(batch.embeddings.ravel())

    def close(self) -> Fingerprints:
        preference = self._taken("preference").reshape(-1, max(1, self._preferences))
        ranks = _ranks(preference, self._ids)
        del preference
        return Fingerprints(
            ranks=ranks,
            contents=self._taken("contents").astype(np.uint64, copy=False).reshape(-1, 2),
            files=self._taken("files").astype(np.uint64, copy=False),
            video=self._taken("video").astype(np.bool_, copy=False),
            perceptual=self._taken("perceptual").astype(np.bool_, copy=False),
            sampled=self._sampled.whole(np.uint64),
            sampled_starts=_starts(self._taken("sampled_counts")),
            dense=self._dense.whole(np.uint64),
            dense_starts=_starts(self._taken("dense_counts")),
            embeddings=self._all_embeddings(),
            mapped=tuple(s.mapping for s in (self._sampled, self._dense, self._embeddings) if s.mapping is not None),
        )

    def _taken(self, name: str) -> NDArray[np.generic]:
        """A column of one block: parts that had waited here would have left the heap in pieces."""
        return np.array(self._columns.pop(name).whole(_COLUMNS[name]))

    def _all_embeddings(self) -> NDArray[np.int8]:
        rows, most = sum(n for n, _ in self._components), max((d for _, d in self._components), default=0)
        flat = self._embeddings.whole(np.int8)
        if all(d == most for _, d in self._components):
            return flat.reshape(rows, most)
        wide = np.zeros((rows, most), dtype=np.int8)  # a batch without any: small collections only
        row = place = 0
        for count, components in self._components:
            wide[row : row + count, :components] = flat[place : place + count * components].reshape(count, components)
            row, place = row + count, place + count * components
        return wide


_COLUMNS: dict[str, type[np.generic]] = {
    "preference": np.float64, "contents": np.uint64, "files": np.uint64, "video": np.bool_, "perceptual": np.bool_,
    "sampled_counts": np.int64, "dense_counts": np.int64,
}  # fmt: skip


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def _starts(counts: NDArray[np.generic]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _ranks(preference: NDArray[np.generic], ids: Texts) -> NDArray[np.int64]:
    """Place of each row in the order of (preference, clip_id). Only ids of rows that are preferred alike are read."""
    order = np.lexsort(preference.T[::-1])
    tied = np.ones(max(0, len(order) - 1), dtype=np.bool_)  # with the next in order
    for column in preference.T:
        tied &= column[order[1:]] == column[order[:-1]]
    if tied.any():
        group = np.cumsum(np.concatenate([[True], ~tied]))
        among = np.flatnonzero(np.append(tied, False) | np.insert(tied, 0, False))
        names = np.array([ids[row].encode() for row in order[among].tolist()], dtype=np.bytes_)
        order[among] = order[among[np.lexsort((names, group[among]))]]
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return ranks
