"""The held-out split: clips that no stage trains on, told by their id alone. Torch-free.

A clip id is a SHA-256, so that its last digits are the hash. Every stage, dataset version and seed with an equal
share holds out the same clips, and with a greater share these and more.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from training.samples import COLUMNS

CLIP = "clip_id"
_DIGITS = 8
_MILLION = 1_000_000


def is_held_out(clip_id: str, per_million: int) -> bool:
    """Whether a clip never trains when `per_million` clips of a million do not."""
    return clip_id[-_DIGITS:] < _bound(per_million)


def held_out_samples(index: pa.Table, per_million: int) -> frozenset[str]:
    """Ids of the samples made of held-out clips; `index` needs the columns of the order and `clip_id`."""
    return frozenset(held_out_rows(index, per_million)["sample_id"].to_pylist()) if per_million else frozenset()


def held_out_rows(index: pa.Table, per_million: int) -> pa.Table:
    """Rows of held-out clips with the columns of the data order, sorted by sample id."""
    tail = pc.utf8_slice_codeunits(index[CLIP], -_DIGITS)
    rows = index.filter(pc.less(tail, _bound(per_million))).select(list(COLUMNS))
    return rows.sort_by("sample_id")


def _bound(per_million: int) -> str:
    """Tails below it are held out. Never past the last tail: at most half of all clips are."""
    return f"{per_million * 16**_DIGITS // _MILLION:0{_DIGITS}x}"
