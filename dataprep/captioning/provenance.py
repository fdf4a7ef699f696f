"""Where a caption comes from, as clip tables and shards keep it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import pyarrow as pa

COLUMN = "caption_provenance"


class Provenance(NamedTuple):
    """Of one caption. `origin`: from the collection or a model. `place`: its table or file there, or the prompt's name.
    `flags`: what was repaired. `length`: in tokens of what the clip table's summary names."""

    origin: Literal["source", "model"]
    place: str
    model: str | None
    flags: tuple[str, ...]
    length: int

    def row(self) -> dict[str, object]:
        return {**self._asdict(), "flags": list(self.flags)}


# One entry a caption, in the order of `captions`.
FIELD = pa.field(
    COLUMN,
    pa.list_(
        pa.struct(
            [
                ("origin", pa.string()),
                ("place", pa.string()),
                ("model", pa.string()),
                ("flags", pa.list_(pa.string())),
                ("length", pa.int32()),
            ]
        )
    ),
)


def rows(provenance: Sequence[Provenance]) -> list[dict[str, object]]:
    return [one.row() for one in provenance]
