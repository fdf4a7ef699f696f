"""The section `ablation` of a recipe; torch-free. `table-3`, `table-4` and `table-5` stand for the paper's tables with
all their rows, whose variants are then defined by what the table says that they are."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator

from eval.ablation.config import NAME, TableConfig
from eval.ablation.paper import TABLES, PaperTable
from eval.prompts import PromptList
from m4v.core.config import FrozenModel

GENERATED = "generated"  # the variant whose stages train on generated clips, too: only a recipe can say on which


class VariantConfig(FrozenModel):
    """A deviation from the recipe. `model`: keys of the recipe's model section; `train`: keys of its training stages,
    by stage (`{57f: {order: {mixture: [...]}}}`); `reward`: post-trained by the recipe's reward section."""

    name: str = Field(pattern=NAME)
    model: dict[str, JsonValue] = {}
    train: dict[str, dict[str, JsonValue]] = {}
    reward: bool = False


class AblationConfig(FrozenModel):
    """Variants that are trained from one start by the same stages, and tables of their scores.

    - after: the training stage of the recipe whose checkpoint all start from; one that mixes with attention is
      converted to each variant's mixers (paper C.2). None: from the recipe's seed or imported weights.
    - stages: training stages of the recipe that each variant then goes through; () stands for all behind `after`.
    - steps: optimiser steps of each of them; None: as many as the recipe has.
    - vbench: measure every variant by the recipe's `evaluation.vbench`, too.
    - prompts, frames: what is sampled of every variant; none: as the recipe's `generate` says.
    """

    after: str | None = None
    stages: tuple[str, ...] = ()
    steps: int | None = Field(default=None, ge=1)
    variants: tuple[VariantConfig, ...] = ()
    tables: tuple[TableConfig, ...] = Field(min_length=1)
    vbench: bool = False
    prompts: PromptList | None = None
    frames: int | None = Field(default=None, ge=1)

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # Asked for later than recipes were first recorded: they keep their digests.
        later = ("prompts", "frames")
        return {name: value for name, value in handler(self).items() if name not in later or value is not None}

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        """Write out the paper's tables that are named only, and the variants of their rows."""
        if not isinstance(data, dict) or not isinstance(data.get("tables"), list | tuple):
            return data
        variants = [v for v in data.get("variants") or () if isinstance(v, dict | VariantConfig)]
        if len(variants) < len(data.get("variants") or ()):
            return data  # something is wrong with one: the field says so
        plain = [v.model_dump(mode="json") if isinstance(v, VariantConfig) else v for v in variants]
        known = {v.get("name"): v for v in plain}
        tables = [_table(t, known) if isinstance(t, str) else t for t in data["tables"]]
        return {**data, "variants": list(known.values()), "tables": tables}

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, names in (("variants", [v.name for v in self.variants]), ("tables", [t.name for t in self.tables])):
            if twice := sorted({n for n in names if names.count(n) > 1}):
                raise ValueError(f"{what}: the name {twice[0]!r} stands twice")
        known = {v.name for v in self.variants}
        for table in self.tables:
            if unknown := [name for name in table.variants if name not in known]:
                raise ValueError(f"table {table.name!r}: there is no variant {unknown[0]!r}; define it in variants")
            if table.paper is not None:
                _check_complete(table, TABLES[table.paper])
        shown = {name for table in self.tables for name in table.variants}
        if unused := sorted(known - shown):
            raise ValueError(f"variants: no table shows {unused[0]!r}; name it in a row, or remove it")
        return self


def _table(name: str, known: dict[Any, dict[str, Any]]) -> Any:
    """The paper's table `name` written out, its variants added to `known`; another name stays, to be refused."""
    paper = next((table for table in TABLES.values() if table.name == name), None)
    if paper is None:
        raise ValueError(f"tables: the paper has no {name!r} here; use one of {', '.join(TABLES)}, or write rows")
    rows: list[dict[str, Any]] = []
    for row in paper.rows:
        if row.generated and GENERATED not in known:
            why = f"the recipe defines no variant {GENERATED!r}: name in ablation.variants what its stages train on"
            rows.append({"name": row.name, "left_out": why})
            continue
        if row.variant not in known:
            trained = known[GENERATED].get("train", {}) if row.generated else {}
            known[row.variant] = {
                "name": row.variant, "model": dict(row.model), "train": trained, "reward": row.reward,
            }  # fmt: skip
        rows.append({"name": row.name, "variant": row.variant} | ({"note": row.note} if row.note else {}))
    return {"name": paper.name, "title": paper.title, "paper": paper.name, "rows": rows}


def _check_complete(table: TableConfig, paper: PaperTable) -> None:
    """Nothing of the paper's table is left out in silence, and nothing is added under its name."""
    printed, here = [row.name for row in paper.rows], [row.name for row in table.rows]
    if missing := [name for name in printed if name not in here]:
        raise ValueError(
            f"table {table.name!r}: the paper's {paper.name} has a row {missing[0]!r}: "
            "name its variant, or say in left_out why it is not run"
        )
    if added := [name for name in here if name not in printed]:
        raise ValueError(f"table {table.name!r}: the paper's {paper.name} has no row {added[0]!r}: leave paper out")
