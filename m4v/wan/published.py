"""Wan2.1's published weights from a local folder: diffusers' layout or the original one.

Keys and shapes are compared from the files' headers before any tensor is read. Only safetensors and JSON are
opened, so nothing in the folder can be executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from m4v.checkpoint_files import PICKLES
from m4v.core.errors import DataIntegrityError, InputError
from m4v.tensor_files import compare_shapes, shapes_of
from m4v.wan.config import WanConfig
from m4v.wan.initialise import empty_wan
from m4v.wan.keys import Layout, layout_of, to_diffusers
from m4v.wan.published_config import read_published_config
from m4v.wan.transformer import WanTransformer

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class PublishedWan:
    """A checked folder. `tensors`: diffusers key -> (file, name in the file); nothing is loaded yet."""

    config: WanConfig
    layout: Layout
    tensors: Mapping[str, tuple[Path, str]]

    def stored(self) -> Mapping[str, Tensor]:
        """The tensors in their stored types under diffusers' keys, on the CPU, each read when it is asked for."""
        return _Stored(self.tensors)

    def state(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """All tensors under diffusers' keys, on the CPU."""
        return {key: tensor.to(dtype) for key, tensor in self.stored().items()}


class _Stored(Mapping[str, Tensor]):
    def __init__(self, tensors: Mapping[str, tuple[Path, str]]) -> None:
        self._tensors = tensors
        self._files = {path: _opened(path) for path, _ in tensors.values()}

    def __getitem__(self, key: str) -> Tensor:
        path, name = self._tensors[key]
        tensor: Tensor = self._files[path].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def open_published(folder: Path) -> PublishedWan:
    """Read `config.json` and the headers of the weights of a Wan2.1 text-to-video folder (1.3B, 14B or other sizes).

    A folder of diffusers' pipeline stands for its `transformer` part. Raises InputError when there is no such
    folder or no weights in safetensors, DataIntegrityError naming a missing, unknown or misshapen tensor, a
    missing or broken file, or a config of another model.
    """
    if not (folder / "config.json").is_file() and (folder / "transformer" / "config.json").is_file():
        folder = folder / "transformer"
    config = read_published_config(folder / "config.json")
    files = _weight_files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    tensors: dict[str, tuple[Path, str]] = {}
    names = [name for listed in files.values() for name in listed]
    layout = layout_of(names)
    if layout is None:
        raise DataIntegrityError("weights are in neither diffusers' nor Wan's original layout", where=str(folder))
    for path, name, shape in _headers(files):
        key = to_diffusers(name) if layout == "original" else name
        tensors[key], shapes[key] = (path, name), shape
    expected = shapes_of(empty_wan(config).state_dict())
    compare_shapes(shapes, expected, str(folder), "check that config.json belongs to these weights")
    return PublishedWan(config, layout, {key: tensors[key] for key in expected})


def load_published(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> WanTransformer:
    """The attention model of a published folder; recurrence and norms aside, parameters are `dtype`.

    Raises as `open_published` does.
    """
    found = open_published(folder)
    model = empty_wan(found.config)
    model.load_state_dict(dict(found.stored()), assign=True)
    model.restore_rotary()
    model.cast(dtype)
    model.to(device)
    return model


def _weight_files(folder: Path) -> dict[Path, list[str]]:
    """Each safetensors file and the tensors that it should hold."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        raise DataIntegrityError(
            "folder has more than one index of weights", value=[i.name for i in indexes], where=str(folder)
        )
    if indexes:
        return _indexed_files(indexes[0])
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        what = "weights are pickled, which can run code" if pickles else "folder has no weights in safetensors format"
        hint = "fetch the safetensors files of the model"
        raise InputError(what, value=pickles or None, where=str(folder), next_step=hint)
    if len(files) > 1:
        hint = "fetch the *.safetensors.index.json too, or keep one file"
        raise DataIntegrityError(
            "several weight files and no index", value=[f.name for f in files], where=str(folder), next_step=hint
        )
    with _opened(files[0]) as file:
        return {files[0]: list(file.keys())}


def _indexed_files(index: Path) -> dict[Path, list[str]]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        pairs = [(str(name), str(file)) for name, file in weight_map.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataIntegrityError("index of the weights is not valid: it needs a weight_map", where=str(index)) from None
    files: dict[Path, list[str]] = {}
    for name, file in pairs:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise DataIntegrityError(
                "index names a file that is not a safetensors neighbour", value=file, where=str(index)
            )
        files.setdefault(index.parent / file, []).append(name)
    return files


def _headers(files: Mapping[Path, list[str]]) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    for path in sorted(files):
        with _opened(path) as file:
            held, listed = set(file.keys()), set(files[path])
            if held != listed:
                missing = bool(listed - held)
                kind = "lacks tensors that the index lists" if missing else "has tensors that the index leaves out"
                raise DataIntegrityError(
                    f"weight file {kind}", value=sorted(listed ^ held)[:5], where=str(path), next_step="fetch it again"
                )
            for name in sorted(held):
                piece = file.get_slice(name)
                if piece.get_dtype() not in _FLOATS:
                    raise DataIntegrityError(
                        f"tensor {name} is quantised or of whole numbers", value=piece.get_dtype(), where=str(path)
                    )
                yield path, name, tuple(piece.get_shape())


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise DataIntegrityError("weight file is missing", value=path.name, where=str(path.parent))
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise DataIntegrityError(
            f"weights are truncated or not in safetensors format ({error})", where=str(path), next_step="fetch it again"
        ) from None
