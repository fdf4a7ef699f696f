"""`ablation.json`: a table of variants with their scores, the differences to the baseline row, and what is known of
how they started and trained. Torch-free."""

from __future__ import annotations

from eval.ablation.config import Setting
from m4v.core.config import FrozenModel

ABLATION, CSV, MARKDOWN = "ablation.json", "ablation.csv", "ablation.md"


class Column(FrozenModel):
    """A metric, or a figure over a suite's dimensions."""

    name: str
    title: str
    unit: str
    description: str
    higher_is_better: bool | None
    chance: float | None


class Cell(FrozenModel):
    """A value and its interval over prompts; `gain` and `gain_interval` are of the difference to the baseline, paired
    by prompt, positive where this row is better. None where there are too few prompts, or nothing to subtract."""

    value: float | None
    interval: tuple[float, float] | None = None
    prompts: int = 0
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None

    @property
    def verdict(self) -> str:
        """better or worse where the interval of the difference leaves 0 out, unclear where it does not."""
        if self.gain_interval is None:
            return ""
        low, high = self.gain_interval
        return "better" if low > 0 else "worse" if high < 0 else "unclear"


class Row(FrozenModel):
    """One row.

    - start, checkpoint, scores: ids of the checkpoint that the variant started from and ended with, and of its scores.
    - parameters; shared: those whose tensors have name and shape in common with the baseline's, so that they started
      from the same values.
    - tflops: operations of the mixers (2 per multiply-add) of one forward of the last latent frame at the highest stage
      of the scored videos, as `m4v flops` counts; None for a model without a pyramid.
    - steps: optimiser steps of the last training stage; loss: mean of its last tenth; loss_gain: how much lower that is
      than the baseline's, where both drew the same samples, timesteps and noise at every step (`same_data`).
    - stand_in: metrics and figures that were measured with stand-in weights and are no results.
    - differs: settings other than the baseline's. not_compared: why no difference is taken.
    """

    name: str
    variant: str | None
    left_out: str | None = None
    note: str | None = None
    start: str | None = None
    checkpoint: str | None = None
    scores: tuple[str, ...] = ()
    parameters: int | None = None
    shared: int | None = None
    tflops: float | None = None
    steps: int | None = None
    loss: float | None = None
    loss_gain: float | None = None
    same_data: bool | None = None
    differs: tuple[Setting, ...] = ()
    not_compared: str | None = None
    stand_in: tuple[str, ...] = ()
    cells: dict[str, Cell] = {}


class PrintedRow(FrozenModel):
    """A row of the paper; `figures` in the order of the columns."""

    name: str
    figures: tuple[float, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The figures as they are printed: two decimals, and none of seconds, which are whole."""
        return tuple(f"{f:.0f}" if f >= 100 and f == int(f) else f"{f:.2f}" for f in self.figures)


class PrintedTable(FrozenModel):
    """What the paper prints, as it prints it. It stands beside our figures and is never subtracted from them."""

    source: str
    columns: tuple[str, ...]
    rows: tuple[PrintedRow, ...]
    remarks: tuple[str, ...]


class AblationTable(FrozenModel):
    """`ablation.json`. `start_from`: the checkpoint that every variant's start came from, if one did; `seed` is of the
    data order and of whatever starts fresh."""

    schema_version: int = 1
    name: str
    title: str
    baseline: str
    confidence: float
    resamples: int
    seed: int
    start: str | None
    start_from: str | None
    stages: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    paper: PrintedTable | None = None

    @property
    def comparisons(self) -> int:
        """Differences with an interval, each judged for itself."""
        return sum(cell.gain_interval is not None for row in self.rows for cell in row.cells.values())
