"""Whole models in safetensors files: names, shapes and types are compared before any tensor is read, and files are
written without a copy in memory. Nothing in a file can be executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from m4v.checkpoint_files import existing_file
from m4v.core.errors import DataIntegrityError, InfrastructureError
from m4v.core.storage import replacing, storage_faults

_PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
_FLOATS = ("F64", "F32", "F16", "BF16")
_SHOWN = 5  # keys named in a message
Shape = tuple[int, ...]


def read_weights(path: Path, expected: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Tensors of a file whose names, shapes and types fit; these are compared before any tensor is read.

    Raises DataIntegrityError naming a missing, unknown or misshapen tensor or one that holds no floats, a
    file that is missing or truncated, or a pickle.
    """
    try:
        with safe_open(existing_file(path), framework="pt") as file:
            headers = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            compare_shapes({key: tuple(header.get_shape()) for key, header in headers.items()}, expected, str(path))
            types = {key: header.get_dtype() for key, header in headers.items()}
            if wrong := [f"{key}: {kind}" for key, kind in sorted(types.items()) if kind not in _FLOATS]:
                raise DataIntegrityError("tensors are no floating-point numbers", value=wrong[:_SHOWN], where=str(path))
            return {key: file.get_tensor(key) for key in headers}
    except SafetensorError as error:
        raise _unreadable(path, " ".join(str(error).split())) from None


def _unreadable(path: Path, reason: str) -> DataIntegrityError:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLE_STARTS):
        return DataIntegrityError(
            "weights are a pickled file, which could run code when read, and not in safetensors format",
            where=str(path),
            next_step="take them in safetensors format",
        )
    return DataIntegrityError(
        f"weights are truncated or not in safetensors format ({reason})",
        where=str(path),
        next_step="m4v artifacts verify, or import the weights again",
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: dict[str, str] | None = None) -> None:
    """Write one safetensors file; equal tensors give equal bytes. `facts`: its metadata."""
    # Sorted and contiguous: equal weights give equal bytes (so `facts` has one entry at most, too). Straight to the
    # file: a serialised copy in memory would be as large as the model.
    plain = {key: tensors[key].contiguous() for key in sorted(tensors)}
    with storage_faults(str(path)), replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(plain, temporary, metadata=facts)
            temporary.chmod(mode)  # the library makes files for their owner alone
        except SafetensorError as error:  # the library's word for a disk that is full or gone
            raise InfrastructureError(
                f"weights cannot be written ({error})", where=str(path), next_step="check disk space, then run again"
            ) from None


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Shape of each tensor."""
    return {key: tuple(value.shape) for key, value in state.items()}


def compare_shapes(
    shapes: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    where: str,
    next_step: str = "check the model section of config.json",
) -> None:
    """Raise DataIntegrityError on the first kind of difference, naming a few keys."""
    missing, unknown = sorted(set(expected) - set(shapes)), sorted(set(shapes) - set(expected))
    wrong = [
        f"{key}: {shape}, expected {expected[key]}"
        for key, shape in sorted(shapes.items())
        if key in expected and shape != expected[key]
    ]
    for found, what in (
        (missing, "tensors are missing"),
        (unknown, "tensors are not part of this model"),
        (wrong, "tensors have another shape"),
    ):
        if found:
            raise DataIntegrityError(f"{len(found)} {what}", value=found[:_SHOWN], where=where, next_step=next_step)
