"""Configuration of the `version` stage: which samples of which datasets make the new one. Torch-free."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from dataprep.encode_config import ShardConfig
from m4v.core.config import FrozenModel
from m4v.core.shard_index import SCHEMA

Value = str | int | float
_LISTS = ("in", "not in")
_TEXT = ("like",)
HASH_BITS = 64


class Condition(FrozenModel):
    """A test of one index column: `like` takes a glob of a text column, `in` and `not in` take a list."""

    column: str
    test: Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in", "like"]
    value: Value | tuple[Value, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.column not in SCHEMA.names:
            near = difflib.get_close_matches(self.column, SCHEMA.names, n=3, cutoff=0.5)
            raise ValueError(f"index has no column {self.column!r}; it has {', '.join(near or SCHEMA.names)}")
        is_list = isinstance(self.value, tuple)
        if is_list != (self.test in _LISTS):
            raise ValueError(f"test {self.test!r} takes {'a list' if not is_list else 'one value, not a list'}")
        is_text = pa.types.is_string(SCHEMA.field(self.column).type)
        if self.test in _TEXT and not is_text:
            raise ValueError(f"test {self.test!r} is for text, column {self.column} holds numbers")
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        if wrong := next((v for v in values if isinstance(v, str) != is_text), None):
            raise ValueError(f"column {self.column} holds {'text' if is_text else 'numbers'}, not {wrong!r}")
        return self


class Merge(FrozenModel):
    """All samples of two or more datasets. A sample that several hold, in equal bytes, stands once."""

    kind: Literal["merge"] = "merge"


class Subset(FrozenModel):
    """Samples that meet every condition and, where `clips` are given, are of one of them."""

    kind: Literal["subset"] = "subset"
    where: tuple[Condition, ...] = ()
    clips: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.where and not self.clips:
            raise ValueError("a subset needs conditions (`where`) or `clips`")
        return self


class Remove(FrozenModel):
    """All samples but those of the named clips, sources, caption digests or perceptual hashes.

    `overlapping` also takes clips whose span of the same source file overlaps a named clip's. `phashes` are hex
    words as the index has them, joined by dashes: a clip goes when at least one of its frames is within
    `phash_bits` differing bits of one of them.
    """

    kind: Literal["remove"] = "remove"
    clips: tuple[str, ...] = ()
    overlapping: bool = False
    sources: tuple[str, ...] = ()
    caption_digests: tuple[str, ...] = ()
    phashes: tuple[str, ...] = ()
    phash_bits: int = Field(0, ge=0, le=HASH_BITS // 2)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.clips or self.sources or self.caption_digests or self.phashes):
            raise ValueError("nothing to remove: name clips, sources, caption_digests or phashes")
        for text in self.phashes:
            words = text.split("-")
            if not all(_is_hash(word) for word in words) or not any(int(word, 16) for word in words):
                raise ValueError(f"{text!r} is no perceptual hash: hex words of 64 bits, joined by dashes")
        return self


def _is_hash(word: str) -> bool:
    try:
        return 0 <= int(word, 16) < 1 << HASH_BITS
    except ValueError:
        return False


class MixtureWeight(FrozenModel):
    """A share of the data that training is meant to draw: the form of a recipe's mixture entries."""

    name: str = Field(min_length=1)
    sources: tuple[str, ...] = ("*",)
    weight: int = Field(1, ge=1)


class VersionConfig(FrozenModel):
    """Config of the `version` stage. `mixture` is recorded with the version and each entry must find a source in
    it; `shards` limits the shards that are written."""

    operation: Annotated[Merge | Subset | Remove, Field(discriminator="kind")]
    mixture: tuple[MixtureWeight, ...] = ()
    shards: ShardConfig = ShardConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [entry.name for entry in self.mixture]
        if len(set(names)) != len(names):
            raise ValueError(f"mixture names an entry twice: {names}")
        return self
