"""Config of the `weights` stage. Torch-free."""

from __future__ import annotations

from pydantic import Field, field_validator

from m4v.core.config import FrozenModel
from m4v.core.errors import InputError
from m4v.weights.catalogue import entry


class WeightsConfig(FrozenModel):
    """One imported model. `name` is what the recipe calls it and the key of its location; `entry` is its row
    in the catalogue (`m4v weights list`), which fixes format and expected model.

    `published`: the files are the published ones, so sizes and digests that the catalogue states must hold;
    false takes another model in the same format (a fine-tune of one's own).
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    entry: str
    published: bool = True

    @field_validator("entry")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            found = entry(name)
        except InputError as error:
            raise ValueError(f"{error.what} {name!r}; {error.next_step}") from None
        if not found.importable:
            raise ValueError(f"{name!r} is used in place and never imported: put its files below {found.place}")
        return name
