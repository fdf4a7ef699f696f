"""Exposure: which clips a checkpoint holds, saw, or inherits, in closed form from the ledger."""

from pipelines.exposure.report import ClipVerdict, StageDraws, StageUses, clip_exposure, summarise, training_line
from pipelines.exposure.verdict import Verdict

__all__ = ["ClipVerdict", "StageDraws", "StageUses", "Verdict", "clip_exposure", "summarise", "training_line"]
