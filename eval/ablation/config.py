"""Config of an ablation table and of the stage that makes it; torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import Field, JsonValue, model_validator

from eval.ablation.paper import PaperName
from m4v.core.config import FrozenModel

NAME = r"^[a-z0-9][a-z0-9-]*$"


class RowConfig(FrozenModel):
    """One row: `name` is what it is called in the table, `variant` what was trained for it, or `left_out` why nothing
    was. `note` stands below the row."""

    name: str = Field(min_length=1)
    variant: str | None = None
    left_out: str | None = Field(default=None, min_length=1)
    note: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.variant is None) == (self.left_out is None):
            raise ValueError(f"row {self.name!r}: name its variant, or say in left_out why it is not run")
        return self


class TableConfig(FrozenModel):
    """One table. `paper`: the printed table that it repeats; `baseline`: the row that the others are held against,
    the first that runs if it is not named. `resamples` and `confidence` are of the bootstrap over prompts."""

    name: str = Field(pattern=NAME)
    title: str = ""
    paper: PaperName | None = None
    baseline: str | None = None
    rows: tuple[RowConfig, ...] = Field(min_length=1)
    resamples: int = Field(default=2000, ge=100, le=100_000)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)

    @property
    def running(self) -> tuple[RowConfig, ...]:
        return tuple(row for row in self.rows if row.variant is not None)

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the variants that the table shows, each once."""
        return tuple(dict.fromkeys(row.variant for row in self.running if row.variant is not None))

    @property
    def base(self) -> RowConfig:
        return next(row for row in self.running if self.baseline in (None, row.name))

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [row.name for row in self.rows]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"table {self.name!r}: the row {twice[0]!r} stands twice")
        known = [row.name for row in self.running]
        if not known:
            raise ValueError(f"table {self.name!r}: no row has a variant")
        if self.baseline is not None and self.baseline not in known:
            raise ValueError(f"table {self.name!r}: baseline {self.baseline!r} is none of {', '.join(known)}")
        return self


class Setting(FrozenModel):
    """A setting in which a row differs from the baseline; a value is None where the other has no such setting."""

    name: str
    baseline: JsonValue
    row: JsonValue


class StageRow(RowConfig):
    """A row with everything in which its variant's recipe differs from the baseline's."""

    differs: tuple[Setting, ...] = ()


class AblationStageConfig(TableConfig):
    """A table whose inputs `scores.VARIANT`, `checkpoint.VARIANT`, … are those of its rows' variants.

    - start: where all variants start: a training stage of the recipe, or None for the seed.
    - stages: the training stages that each of them went through after it.
    """

    rows: tuple[StageRow, ...] = Field(min_length=1)
    start: str | None = None
    stages: tuple[str, ...] = Field(min_length=1)


def differing(baseline: JsonValue, row: JsonValue, name: str = "") -> Sequence[Setting]:
    """Settings in which two configs differ, by dotted name; lists are compared whole."""
    if isinstance(baseline, dict) and isinstance(row, dict):
        return [
            setting
            for key in dict.fromkeys([*baseline, *row])
            for setting in differing(baseline.get(key), row.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if baseline == row else [Setting(name=name, baseline=baseline, row=row)]
