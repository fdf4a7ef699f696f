"""What differs between two runs, or between a plan and an earlier run."""

from pipelines.compare.model import (
    CodeDelta,
    DataDelta,
    Difference,
    FieldChange,
    MetricDelta,
    OutputPair,
    RunComparison,
    RunSide,
    SampleFile,
    SamplePair,
    StageComparison,
)
from pipelines.compare.runs import compare_runs, compare_stage, node_runs

__all__ = [
    "CodeDelta", "DataDelta", "Difference", "FieldChange", "MetricDelta", "OutputPair", "RunComparison", "RunSide",
    "SampleFile", "SamplePair", "StageComparison", "compare_runs", "compare_stage", "node_runs",
]  # fmt: skip
