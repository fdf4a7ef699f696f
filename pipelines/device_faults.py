"""Words in errors that tell a broken GPU, not a broken program: its node is left out of the next attempt."""

from __future__ import annotations

# What CUDA says when the machine, not the program, is at fault.
DEVICE_FAULTS = (
    "uncorrectable ECC", "uncorrectable NVLink", "Hardware stack error", "fallen off the bus", "busy or unavailable",
    "no CUDA-capable device", "system not yet initialized",
)  # fmt: skip
