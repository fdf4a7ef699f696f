"""Packaged ONNX models, single-threaded so that the same picture gives the same score everywhere."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from m4v.core.asset_catalog import asset_path


@cache
def _session(asset: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(asset_path(asset)), options, providers=["CPUExecutionProvider"])


def infer(asset: str, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """First output for one input array; raises InputError when the asset is not on this machine."""
    session = _session(asset)
    output: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: batch})[0]
    return output
