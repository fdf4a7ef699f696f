"""Candidates of a decision from the tables of a published artifact.

`hashes.parquet` keeps what the clip table leaves out and a new decision needs: for each row of that table, in its
order, the place of its file among the inputs, whether it is drawn, and its dense perceptual hashes.
`embeddings.parquet`, where embeddings were measured, has those of the same rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataprep.curation.filters import Candidates
from dataprep.curation.stored import (
    StoredTable,
    StoredValues,
    check_same_clips,
    column,
    read_fingerprints,
    texts,
)
from dataprep.dedup import Fingerprints
from dataprep.quarantine import Reason

HASHES, EMBEDDINGS = "hashes.parquet", "embeddings.parquet"
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("input_order", pa.int64()),
        ("drawn", pa.bool_()),
        ("dense", pa.binary()),  # little-endian 64-bit words
    ]
)
EMBEDDING_SCHEMA = pa.schema([("clip_id", pa.string()), ("embedding", pa.binary())])  # int8 components, or null


def read_candidates(clips_path: Path, hashes_path: Path, embeddings_path: Path | None = None) -> Candidates:
    """Candidates of a published clip table, in its order.

    Raises DataIntegrityError when a column is missing or the two tables are not of the same clips.
    """
    check_same_clips(clips_path, hashes_path)
    if embeddings_path is not None:
        check_same_clips(clips_path, embeddings_path)

    def fingerprints(places: NDArray[np.int64]) -> Fingerprints:
        return read_fingerprints(clips_path, hashes_path, places, embeddings_path)

    drawn = column(hashes_path, "drawn").to_numpy()
    return Candidates(
        texts(clips_path, "clip_id"), StoredValues(StoredTable(clips_path)), drawn, _captioned(clips_path), fingerprints
    )


def read_values(clips_path: Path) -> dict[str, NDArray[np.float64]]:
    """What rules look at, by `Rule.value`, in the order of the clip table; NaN where nothing was measured.

    Read column by column: all of a large table at once would stand in memory twice.
    """
    return dict(StoredValues(StoredTable(clips_path)))


def _captioned(path: Path) -> NDArray[np.bool_]:
    """By the rule that dropped a clip: one without captions may have waited for a model's when another rule did."""
    rule = column(path, "drop_rule")
    return np.asarray(pc.fill_null(pc.not_equal(rule, str(Reason.MISSING_CAPTION)), True).to_numpy(), dtype=np.bool_)
