"""PyTorch `.bin`, `.pt` and `.pth` files: tensors only, mapped from disk; code in them is never run."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from m4v.core.errors import DataIntegrityError
from m4v.weights.tensors import TensorInfo

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_ROWS_BYTES = 4 << 20


class PickledFile:
    """`TensorFile` over a file of `torch.save`. Raises DataIntegrityError naming the file, and the offending
    global when it is a pickle that would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        return _state_dict(load_pickle(self.path), self.path)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: TensorInfo(_DTYPES[t.dtype], tuple(t.shape)) for name, t in self._state.items()}

    def chunks(self, name: str) -> Iterator[bytes]:
        tensor = self._state[name].detach()
        if tensor.numel() == 0:
            return
        rows = tensor.reshape(1, -1) if tensor.ndim < 2 else tensor
        step = max(1, _ROWS_BYTES // max(1, rows[0].numel() * rows.element_size()))
        for at in range(0, len(rows), step):
            part = rows[at : at + step].contiguous()
            yield part.reshape(-1).view(torch.uint8).numpy().tobytes()


def load_pickle(path: Path) -> object:
    """What a file of `torch.save` holds, tensors mapped from disk and nothing executed.

    Raises DataIntegrityError naming the file, and the offending global when the pickle would run code.
    """
    try:
        # Nothing but tensors and plain containers is built; storages stay on disk until they are read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        raise DataIntegrityError(
            "pickled file holds code and was not read", value=found.group(1) if found else str(error).splitlines()[0],
            where=str(path), next_step="take a copy of these weights in safetensors format",
        ) from None  # fmt: skip
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataIntegrityError(
            f"weights are truncated or not a file of torch.save (zip format) ({reason})",
            where=str(path), next_step="copy the file again, or save it anew with torch.save or as safetensors",
        ) from None  # fmt: skip


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in _DTYPES and value.layout == torch.strided


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    """The dict of tensors, also when it is wrapped as a training script saves it."""
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded:
        raise DataIntegrityError("file holds no state dict", value=type(loaded).__name__, where=str(path))
    strange = [str(name) for name, value in loaded.items() if not _is_plain(value)]
    if strange:
        raise DataIntegrityError(
            "state dict holds something that is no dense tensor", value=strange[0], where=str(path)
        )
    return {str(name): tensor for name, tensor in loaded.items()}
