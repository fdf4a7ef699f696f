"""A table as Markdown and as CSV. The paper's figures stand in a Markdown table of their own and in no CSV."""

from __future__ import annotations

import csv
import io

from eval.ablation.records import AblationTable, Cell, Row

_CSV = (
    "table", "row", "variant", "checkpoint", "metric", "value", "low", "high", "prompts", "baseline", "gain",
    "gain_low", "gain_high",
)  # fmt: skip
FACTS = ("parameters", "shared", "tflops", "steps", "loss")


def as_csv(table: AblationTable) -> str:
    """One line a row and metric; what could not be run has one line without a metric."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV)
    for row in table.rows:
        head = (table.name, row.name, row.variant, row.checkpoint)
        if row.variant is None:
            writer.writerow((*head, None, *[None] * 8))
            continue
        for name in FACTS:
            writer.writerow((*head, name, getattr(row, name), None, None, None, table.baseline,
                             row.loss_gain if name == "loss" else None, None, None))  # fmt: skip
        for name, cell in row.cells.items():
            interval, gain = cell.interval or (None, None), cell.gain_interval or (None, None)
            writer.writerow((*head, name, cell.value, *interval, cell.prompts, table.baseline, cell.gain, *gain))
    return stream.getvalue()


def as_markdown(table: AblationTable) -> str:
    """The table with its reading aids, and below it what the paper prints."""
    columns = [c for c in table.columns if any(c.name in row.cells for row in table.rows)]
    head = ["Row", "Parameters", "Loss", *(c.title for c in columns)]
    lines = [f"# {table.title}", "", *(f"- {words}" for words in reading(table)), "", *_head(head)]
    for row in table.rows:
        if row.variant is None:
            lines.append(_line([row.name, f"not run: {row.left_out}", *[""] * (len(head) - 2)]))
            continue
        cells = [
            ("stand-in " if c.name in row.stand_in else "") + _cell(row.cells.get(c.name)) for c in columns
        ]  # fmt: skip
        lines.append(_line([row.name, f"{row.parameters:,}", _loss(row), *cells]))
    notes = [f"- {row.name}: {row.note}" for row in table.rows if row.note]
    reasons = [f"- {row.name}: not compared, {row.not_compared}" for row in table.rows if row.not_compared]
    lines += ["", *notes, *reasons] if notes or reasons else []
    if table.paper is not None:
        paper = table.paper
        lines += ["", f"## As printed: {paper.source}", "", *_head(["Row", *paper.columns])]
        lines += [_line([row.name, *row.words]) for row in paper.rows]
        lines += ["", *(f"- {words}" for words in paper.remarks)]
    return "\n".join(lines) + "\n"


def reading(table: AblationTable) -> tuple[str, ...]:
    """How the figures came about and what they do not say, in sentences."""
    origin = (
        f"Every variant starts from the checkpoint of stage {table.start}: parameters of equal name and shape from "
        "equal values, a converted mixer's C, B and x from its q, k and v, all else from the seed."
        if table.start is not None
        else "Every variant starts from the seed: parameters of equal name and shape have equal values."
    )
    stages = ", ".join(table.stages)
    found = [
        origin,
        f"All go through {stages} with seed {table.seed}: same steps, and same samples, timesteps and noise at each of "
        "them unless a row says otherwise.",
        f"Differences are to the row {table.baseline!r}, paired by prompt, with {table.confidence:.0%} bootstrap "
        "intervals over prompts; one training each, so the spread between trainings is not in them.",
    ]
    if table.comparisons:
        chance = table.comparisons * (1 - table.confidence)
        found.append(
            f"Each interval is judged for itself: of {table.comparisons} differences about {chance:.1f} would leave 0 "
            "out if the variants were equal."
        )
    return tuple(found)


def flop(tflops: float | None) -> str | None:
    """Operations in the unit that leaves up to three digits before the point."""
    if tflops is None:
        return None
    for unit, size in (("TFLOP", 1.0), ("GFLOP", 1e-3)):
        if tflops >= size:
            return f"{tflops / size:.3g} {unit}"
    return f"{tflops / 1e-6:.3g} MFLOP"


def _head(names: list[str]) -> list[str]:
    return [_line(names), _line(["---", *["---:"] * (len(names) - 1)])]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _loss(row: Row) -> str:
    if row.loss is None:
        return "–"
    return f"{row.loss:.4f}" + (f" ({row.loss_gain:+.4f})" if row.loss_gain is not None else "")


def _cell(cell: Cell | None) -> str:
    if cell is None or cell.value is None:
        return "–"
    text = f"{cell.value:.4f}"
    if cell.gain is None:
        return text
    text += f" ({cell.gain:+.4f}"
    if cell.gain_interval is not None:
        text += f", {cell.gain_interval[0]:+.4f} to {cell.gain_interval[1]:+.4f}, {cell.verdict}"
    return text + ")"
