"""The ablation tables of a run, each with what must be known to read it."""

from __future__ import annotations

from eval.ablation.export import reading
from eval.ablation.records import ABLATION, AblationTable
from eval.records import read_record
from pipelines.web.sections.inputs import ReportInputs

_INPUT = "ablation."


def gather(inputs: ReportInputs) -> list[tuple[AblationTable, tuple[str, ...]]]:
    """In the order of the recipe."""
    tables = [read_record(AblationTable, a, ABLATION) for n, a in inputs.artifacts.items() if n.startswith(_INPUT)]
    return [(table, reading(table)) for table in tables]
