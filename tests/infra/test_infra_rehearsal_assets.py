"""Drawn weights stand in for packaged ones of the same layout."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "gpu"))

from rehearsal_assets import LAYOUTS, draw, layout_of


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_drawn_weights_have_size_names_and_shapes_of_the_real_ones(name: str, tmp_path: Path) -> None:
    real = tmp_path / name
    tensors = OrderedDict(
        [(f"layer.{n}.weight", torch.full((8, 16), 3.0)) for n in range(4)]
        + [(f"norm.{n}.num_batches_tracked", torch.tensor(n)) for n in range(64)]
        + [("norm.weight", torch.full((16,), 3.0)), ("norm.bias", torch.full((16,), 3.0))]
    )
    if name.endswith(".safetensors"):
        save_file(tensors, real)
    else:
        torch.save(tensors, real, _use_new_zipfile_serialization=False)
    archive, held = tmp_path / "assets.tar.xz", json.dumps({f"models/{name}": layout_of(real)}).encode()
    with tarfile.open(archive, "w:xz") as made:
        info = tarfile.TarInfo(LAYOUTS)
        info.size = len(held)
        made.addfile(info, io.BytesIO(held))
    draw(archive, tmp_path / "drawn")
    path = tmp_path / "drawn" / "models" / name
    assert path.stat().st_size == real.stat().st_size
    found = load_file(path) if name.endswith(".safetensors") else torch.load(path, weights_only=True)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in tensors.items()}
    assert bool((found["norm.weight"] == 1).all())
    assert bool((found["norm.bias"] == 0).all())
    assert 0.15 < float(torch.stack([found[f"layer.{n}.weight"] for n in range(4)]).std()) < 0.35
