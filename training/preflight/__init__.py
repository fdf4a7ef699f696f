"""What a training stage needs before it runs: parameters, memory by part, tokens, time, storage. Torch-free."""

from __future__ import annotations

from training.preflight.estimate import Estimate, Setup, estimate
from training.preflight.fit import advice, check_fits
from training.preflight.gpus import GPUS, Gpu, gpu_of

__all__ = ["GPUS", "Estimate", "Gpu", "Setup", "advice", "check_fits", "estimate", "gpu_of"]
