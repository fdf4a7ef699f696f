"""Runs executed again from their ledger rows, and the verdict whether they make the same bytes."""

from pipelines.rerun.recorded import Allowed
from pipelines.rerun.verdict import (
    FileVerdict,
    OutputVerdict,
    Place,
    RunVerdict,
    StageVerdict,
    TensorVerdict,
    Tolerance,
    Verdict,
)
from pipelines.rerun.verify import Verifier, read_details

__all__ = [
    "Allowed", "FileVerdict", "OutputVerdict", "Place", "RunVerdict", "StageVerdict", "TensorVerdict", "Tolerance",
    "Verdict", "Verifier", "read_details",
]  # fmt: skip
