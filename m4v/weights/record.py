"""`weights.json`: what an imported folder was made from. Apart from the conversion, so that the keys of stages that
only read weights do not change with the code that imports them."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError, InputError
from m4v.weights.catalogue import WeightsFormat

RECORD = "weights.json"


class SourceRecord(FrozenModel):
    """A published file that was read."""

    path: str
    size_bytes: int
    sha256: str


class WeightsRecord(FrozenModel):
    """`weights.json`: what an artifact of kind `weights` was made from."""

    schema_version: int = 1
    entry: str
    format: WeightsFormat
    hub: str | None
    licence: str | None
    published: bool
    source: tuple[SourceRecord, ...]
    tensors: int
    parameters: int


def read_record(folder: Path) -> WeightsRecord:
    """`weights.json` of an imported folder. Raises InputError when the folder was not imported,
    DataIntegrityError when the record is damaged."""
    path = folder / RECORD
    if not path.is_file():
        raise InputError(
            "folder holds no imported weights", value=RECORD, where=str(folder), next_step="m4v weights import"
        )
    try:
        return WeightsRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "(root)"
        raise DataIntegrityError(
            f"record of imported weights is not valid: {where}: {first['msg']}", where=str(path)
        ) from None
