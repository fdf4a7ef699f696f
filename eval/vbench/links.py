"""What a worker sees: links to its videos and nothing else, links to the weights of its dimension, a known picture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from eval.records import SAMPLES, SampleSet
from eval.suites import SuiteVideo
from eval.vbench.config import Places, Variant
from eval.vbench.layout import lay_out
from eval.vbench.weights import catalogue, find, needs
from m4v.core.storage import storage_faults

_WHOLE = Variant()
_DINO_COPY = "dino_model/dino_vitbase16_pretrain.pth"  # VBench asks for it, and then reads torch hub's
# DreamSim takes its own folder for torch hub's.
_DREAMSIM = "dreamsim_model"
_OF_DREAMSIM = {"dino_repo": "facebookresearch_dino_main", "dino": "checkpoints/dino_vitbase16_pretrain.pth"}


class Links(NamedTuple):
    """`path_of`, `frames`, `fps` and `sizes` (width, height): by file name in the samples. `variables`:
    where the worker finds its weights."""

    path_of: dict[str, str]
    frames: dict[str, int]
    fps: dict[str, float]
    variables: dict[str, str]
    picture: Path
    sizes: dict[str, tuple[int, int]]


def lay_links(
    folder: Path,
    dimension: str,
    videos: Sequence[SuiteVideo],
    samples: Path,
    places: Places,
    *,
    variant: Variant = _WHOLE,
) -> Links:
    """Lay everything below `folder`, afresh; raises as `lay_out`."""
    known = {v.file: v for v in SampleSet.model_validate_json((samples / SAMPLES).read_bytes()).videos}
    with storage_faults(str(folder)):
        for name in ("cache", "torch", "hf", "bert-base-uncased"):
            _remove(folder / name)
        path_of = {file: str(path) for file, path in lay_out(videos, samples, folder / "links").items()}
        variables = _lay_weights(folder, needs(dimension, variant), places)
        if variant.suite == "vbench2":  # where a judge does not load it opens another of the same name in the hub
            variables |= {"VBENCH2_CACHE_DIR": variables["VBENCH_CACHE_DIR"], "HF_HOME": str(folder / "hf")}
        picture = folder / "picture.png"
        _draw(picture)
    frames, fps = {f: known[f].frames for f in path_of}, {f: known[f].fps for f in path_of}
    sizes = {f: (known[f].width, known[f].height) for f in path_of}
    return Links(path_of, frames, fps, variables, picture, sizes)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _link(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.absolute())
    return target


def _lay_weights(folder: Path, names: Sequence[str], places: Places) -> dict[str, str]:
    cache, torch = folder / "cache", folder / "torch"
    cache.mkdir()
    torch.mkdir()
    for name in names:
        row, path = catalogue().files[name], find(name, places)
        if path is None:
            continue  # the preflight named it; VBench's own word for it follows
        if name.startswith("bert_"):
            if not (folder / "bert-base-uncased").exists():
                _link(path, folder / "bert-base-uncased")
            continue
        homes = {"TORCH_HOME": torch, "HF_HOME": folder / "hf"}
        _link(path, homes.get(row.variable, cache) / row.below)
        if name == "dino":
            _link(path, cache / _DINO_COPY)
        if "dreamsim_lora" in names and name in _OF_DREAMSIM:
            _link(path, cache / _DREAMSIM / _OF_DREAMSIM[name])
    return {"VBENCH_CACHE_DIR": str(cache), "TORCH_HOME": str(torch), "HF_HOME": str(places.hf_home)}


def visible_device(device: str) -> str:
    """`CUDA_VISIBLE_DEVICES` of a child that is to see `device` (`cuda:N` as this process counts) alone."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return ""
    ours = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return ours[int(number or 0)] if int(number or 0) < len(ours) else number or "0"


def _draw(path: Path) -> None:
    """A red eight-sided sign with white letters on a grey pole: a detector that works has something to say of it."""
    picture = np.full((480, 640, 3), (235, 206, 135), np.uint8)
    cv2.rectangle(picture, (312, 300), (328, 480), (128, 128, 128), -1)
    angles = np.deg2rad(np.arange(22.5, 360, 45))
    corners = np.stack([320 + 130 * np.cos(angles), 190 + 130 * np.sin(angles)], axis=1).astype(np.int32)
    cv2.fillPoly(picture, [corners], (40, 30, 200))
    cv2.putText(picture, "STOP", (232, 215), cv2.FONT_HERSHEY_SIMPLEX, 2.2, (255, 255, 255), 8)
    cv2.imwrite(str(path), picture)
