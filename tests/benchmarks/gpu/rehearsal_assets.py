"""Stand-ins for packaged weights on a machine that cannot have them: the same files, sizes and shapes, drawn values.

    python tests/benchmarks/gpu/rehearsal_assets.py pack assets.tar.xz        # where `make assets` has been run
    python tests/benchmarks/gpu/rehearsal_assets.py draw assets.tar.xz FOLDER # M4V_ASSETS=FOLDER

Small files (vocabularies, tokenizers, licences) travel as they are; of weights only the layout does. What such weights
answer means nothing: they are for rehearsals, which ask for memory and time.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from m4v.core.asset_catalog import ASSETS, asset_path
from m4v.core.assets import assets_dir

PACKAGES = ("minilm", "efficientnet-lite2", "open-clip", "brisque")
LARGE_BYTES = 2 << 20  # from here on only the layout travels
LAYOUTS = "layouts.json"
Layout = dict[str, Any]


def pack(target: Path) -> None:
    """Raises InputError for an asset that is not here."""
    layouts: dict[str, Layout] = {}
    with tarfile.open(target, "w:xz") as archive:
        for file in ASSETS.values():
            if file.package not in PACKAGES:
                continue
            path = asset_path(file.name)
            if file.size_bytes < LARGE_BYTES:
                archive.add(path, file.path)
            else:
                layouts[file.path] = layout_of(path)
        for derived in sorted((assets_dir() / "derived").glob("conse-*")):
            archive.add(derived, f"derived/{derived.name}")
        held = json.dumps(layouts).encode()
        info = tarfile.TarInfo(LAYOUTS)
        info.size = len(held)
        archive.addfile(info, io.BytesIO(held))


def layout_of(path: Path) -> Layout:
    """Size of a file of weights, and name, shape and type of each tensor; of safetensors also the header."""
    facts: Layout = {"size": path.stat().st_size}
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            length = file.read(8)
            facts["header"] = base64.b64encode(length + file.read(int.from_bytes(length, "little"))).decode()
        with safe_open(path, framework="pt") as found:
            tensors = {name: found.get_tensor(name) for name in found.offset_keys()}
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    rows = [(name, list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()]
    return {**facts, "tensors": rows}


def draw(source: Path, folder: Path) -> None:
    """Write the assets of an archive of `pack`, weights drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    for name, layout in json.loads((folder / LAYOUTS).read_text()).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = drawn(layout["tensors"])
        if "header" in layout:
            with path.open("wb") as file:
                file.write(base64.b64decode(layout["header"]))
                for tensor in tensors.values():
                    file.write(tensor.numpy().tobytes())
        else:
            # The older of torch's formats, as published: it is read up to its end and no further.
            torch.save(tensors, path, _use_new_zipfile_serialization=False)
        missing = layout["size"] - path.stat().st_size
        if missing < 0:
            raise SystemExit(f"{name} came out {-missing} bytes too long")
        with path.open("ab") as file:
            file.write(bytes(missing))


def drawn(rows: list[tuple[str, list[int], str]]) -> OrderedDict[str, Tensor]:
    """A value for every tensor: matrices and filters by their fan-in, scales and variances 1, all else 0."""
    made: OrderedDict[str, Tensor] = OrderedDict()  # `OrderedDict[...]()` would be pickled with its types
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros((), dtype=torch.int64)  # shared, which leaves room for longer keys of the others
    for name, shape, kind in rows:
        dtype, leaf = getattr(torch, kind), name.rpartition(".")[2]
        if not dtype.is_floating_point:
            made[name] = torch.arange(shape[-1]).expand(shape).contiguous().to(dtype) if shape else counts
        elif len(shape) > 1:
            fan_in = torch.Size(shape[1:]).numel()
            made[name] = torch.randn(shape, generator=generator, dtype=dtype) * fan_in**-0.5
        else:
            made[name] = torch.full(shape, float(leaf in ("weight", "running_var")), dtype=dtype)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    away, there = verbs.add_parser("pack"), verbs.add_parser("draw")
    away.add_argument("archive", type=Path)
    away.set_defaults(main=lambda o: pack(o.archive))
    there.add_argument("archive", type=Path)
    there.add_argument("folder", type=Path)
    there.set_defaults(main=lambda o: draw(o.archive, o.folder))
    options = parser.parse_args()
    options.main(options)


if __name__ == "__main__":
    main()
