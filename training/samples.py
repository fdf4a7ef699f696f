"""Samples of a dataset version as the data order sees them: columns, so that ten million fit. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_SIZE_BITS = 16  # of a latent size
_MEDIA = ("", "image", "video")
COLUMNS = ("sample_id", "source", "media", "bucket_t", "bucket_h", "bucket_w")

Ids = NDArray[np.bytes_]
Places = NDArray[np.int32]


class SampleRow(NamedTuple):
    """What the order needs of one index row; t, h, w are latent sizes."""

    sample_id: str
    source: str
    media: str
    t: int
    h: int
    w: int


class SampleGroup(NamedTuple):
    """Samples that no order tells apart but by their ids: one source, media and latent size."""

    source: str
    media: str
    t: int
    h: int
    w: int
    samples: int

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        return self[:5]


@dataclass(frozen=True)
class Samples:
    """Rows sorted by id. `source` holds places in `sources`; `sizes` are (3, n) latent t, h, w."""

    ids: Ids  # UTF-8, whose order is that of the strings
    sources: tuple[str, ...]
    source: Places
    video: NDArray[np.bool_]
    image: NDArray[np.bool_]
    sizes: NDArray[np.int32]

    @classmethod
    def of_rows(cls, rows: Iterable[SampleRow]) -> Samples:
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in COLUMNS]
        return cls.of_index(pa.table(dict(zip(COLUMNS, map(pa.array, columns), strict=True))))

    @classmethod
    def of_index(cls, index: pa.Table) -> Samples:
        """From a table that has `COLUMNS` of `index.parquet`."""
        ids = id_array(index["sample_id"])
        order = np.argsort(ids, kind="stable").astype(np.int32)
        source, sources = _codes(index["source"])
        media, kinds = _codes(index["media"])
        video, image = (_is(media, kinds, kind)[order] for kind in ("video", "image"))
        sizes = np.stack([index[name].to_numpy().astype(np.int32)[order] for name in COLUMNS[3:]])
        return cls(ids[order], sources, source[order], video, image, sizes)

    def groups(self) -> tuple[list[SampleGroup], Places]:
        """Groups of the samples, and (n,) the group of each. Samples of other media than the two have groups too."""
        if not len(self.ids):
            return [], np.zeros(0, dtype=np.int32)
        media = 2 * self.video.astype(np.int64) + self.image
        t, h, w = self.sizes.astype(np.int64)
        words = ((self.source * 4 + media << _SIZE_BITS | t) << _SIZE_BITS | h) << _SIZE_BITS | w
        encoded = pa.array(words).dictionary_encode()  # by hash: sorting ten million takes longer
        group = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        counts = np.bincount(group, minlength=len(encoded.dictionary))
        return [self._group(int(w), int(n)) for w, n in zip(encoded.dictionary.to_pylist(), counts, strict=True)], group

    def _group(self, word: int, count: int) -> SampleGroup:
        t, h, w = (word >> k * _SIZE_BITS & (1 << _SIZE_BITS) - 1 for k in (2, 1, 0))
        source, media = divmod(word >> 3 * _SIZE_BITS, 4)
        return SampleGroup(self.sources[source], _MEDIA[media], t, h, w, count)

    def members(self, group: Places, groups: Sequence[int]) -> SampleIds:
        """Samples of some groups; `group` is that of each sample."""
        return SampleIds(self.ids, np.flatnonzero(np.isin(group, groups)).astype(np.int32))


class SampleIds(Sequence[str]):
    """Some ids of an array of all, by rising place, as strings."""

    def __init__(self, ids: Ids, places: Places) -> None:
        self._ids, self.places = ids, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[str]: ...
    def __getitem__(self, number: int | slice) -> str | Sequence[str]:
        if isinstance(number, slice):
            return SampleIds(self._ids, self.places[number])
        return bytes(self._ids[self.places[number]]).decode()

    def find(self, sample_id: str) -> int | None:
        """Number of an id among these, or None."""
        place = int(np.searchsorted(self._ids, sample_id.encode()))
        number = int(np.searchsorted(self.places, place))
        if number < len(self.places) and self.places[number] == place and self[number] == sample_id:
            return number
        return None


class SampleCounts(Mapping[str, int]):
    """How often each sample was used; those that were not are left out."""

    def __init__(self, ids: Ids, counts: NDArray[np.int64]) -> None:
        used = np.flatnonzero(counts).astype(np.int32)
        self._ids, self._counts = SampleIds(ids, used), counts[used]

    def __len__(self) -> int:
        return len(self._counts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __getitem__(self, sample_id: str) -> int:
        number = self._ids.find(sample_id)
        if number is None:
            raise KeyError(sample_id)
        return int(self._counts[number])


def id_array(column: pa.ChunkedArray) -> Ids:
    """Strings as UTF-8 in fixed-size cells; chunk by chunk, for Python's strings take three times the room."""
    parts = [
        np.array([text.encode() for text in chunk.to_pylist()] or [b""], dtype=np.bytes_)[: len(chunk)]
        for batch in pa.table({"id": column}).to_batches(max_chunksize=65_536)
        for chunk in (batch["id"],)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype="S1")


def _codes(column: pa.ChunkedArray) -> tuple[Places, tuple[str, ...]]:
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32), tuple(encoded.dictionary.to_pylist())


def _is(codes: Places, names: tuple[str, ...], name: str) -> NDArray[np.bool_]:
    return np.asarray(codes == (names.index(name) if name in names else -1), dtype=np.bool_)
