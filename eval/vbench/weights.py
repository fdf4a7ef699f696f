"""Weight files of VBench: which dimension reads which, where each lies, and whether it is sound. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from eval.suites import Requirement
from eval.vbench.config import Places, Variant
from eval.vbench.environment import VOCABULARY, vocabulary_of
from eval.vbench.i2v_prompts import rules
from eval.vbench.prompt_suite import STATIC_DIMENSION
from m4v.core.canonical import digest_file, digest_json
from m4v.core.config import FrozenModel
from m4v.core.storage import storage_faults
from m4v.weights.source import sampled_digest

_BERT = ("bert_tokenizer", "bert_weights")
_BERT_CACHES = ("models--bert-base-uncased", "models--google-bert--bert-base-uncased")
_DINO_FILES = ("hubconf.py", "utils.py", "vision_transformer.py")
_DINOV2_FILES = ("hubconf.py", "dinov2/hub/backbones.py", "dinov2/models/vision_transformer.py")
_DREAMSIM_FILES = ("adapter_config.json",)
I2V_DATA = "i2v_data"
_PARTS = {
    "dino_repo": _DINO_FILES, "dinov2_repo": _DINOV2_FILES, "dreamsim_lora": _DREAMSIM_FILES,
    "llava_video": ("config.json",), "qwen_judge": ("config.json",), "siglip": ("refs/main",),
    "cotracker_repo": ("hubconf.py",), "instance_detector": ("args.json",), I2V_DATA: (rules().info,),
}  # fmt: skip
_MORE = ("llava_video", "qwen_judge", "siglip", "instance_detector", I2V_DATA)  # see `_missing_more`
_WHOLE = Variant()
_READ = (".py", ".json", ".bin", ".safetensors", ".jpg")  # of a folder whose parts nobody lists
MARK = "STAND-IN-WEIGHTS"  # an empty file in a folder whose weights are for tests: they are never taken as published
_VARIABLES = ("VBENCH_CACHE_DIR", "VBENCH2_CACHE_DIR", "TORCH_HOME", "HF_HOME")


class WeightFile(FrozenModel):
    """A row of `weights.json`. `place` starts with the variable that moves it."""

    place: str
    url: str
    sha256: str | None = None
    note: str | None = None
    approx_mib: float | None = None

    @property
    def variable(self) -> str:
        return next((v for v in _VARIABLES if self.place.startswith(f"${v}")), "HF_HOME")

    @property
    def below(self) -> str:
        """Path below the variable's folder."""
        return self.place.removeprefix(f"${self.variable}").strip("/")

    @property
    def is_folder(self) -> bool:
        return self.place.endswith("/")


class WeightCatalogue(FrozenModel):
    """`weights.json`, with where it is from."""

    source: str
    mode: str
    defaults: dict[str, str]
    files: dict[str, WeightFile]
    needs: dict[str, tuple[str, ...]]
    clip_to_clip_needs: dict[str, tuple[str, ...]]
    vbench2_needs: dict[str, tuple[str, ...]]
    i2v_needs: dict[str, tuple[str, ...]]
    core_environment: tuple[str, ...]
    legacy_environment: tuple[str, ...]


@cache
def catalogue() -> WeightCatalogue:
    return WeightCatalogue.model_validate(
        json.loads((resources.files("eval.vbench.data") / "weights.json").read_text())
    )


def needs(dimension: str, variant: Variant = _WHOLE) -> tuple[str, ...]:
    """Names of the files that a dimension reads."""
    if variant.suite == "vbench2":
        return catalogue().vbench2_needs[dimension]
    if variant.suite == "vbench-i2v":
        return catalogue().i2v_needs[dimension]
    known = catalogue().needs
    found = known[dimension]
    if variant.static_filter and dimension == STATIC_DIMENSION:
        found += known["static_filter"]
    if variant.suite == "vbench-long" and variant.clip_to_clip:
        found += catalogue().clip_to_clip_needs.get(dimension, ())
    return found


def candidates(name: str, places: Places) -> list[Path]:
    """Where a file may lie, the place of the table first."""
    if name in _BERT:
        snapshots = [p for c in _BERT_CACHES for p in sorted((places.hf_home / "hub" / c / "snapshots").glob("*"))]
        return [places.cache_dir / "bert-base-uncased", *snapshots]
    row = catalogue().files[name]
    roots = {
        "VBENCH_CACHE_DIR": places.cache_dir, "VBENCH2_CACHE_DIR": places.vbench2_cache_dir,
        "TORCH_HOME": places.torch_home, "HF_HOME": places.hf_home,
    }  # fmt: skip
    found = [roots[row.variable] / row.below]
    if name == "raft_2":
        found += candidates("raft", places)
    if name == "dino":  # where VBench itself puts the copy that it then does not read
        found.append(places.cache_dir / "dino_model" / Path(row.below).name)
    if name == "viclip_bpe":
        packaged = (vocabulary_of(python) for python in (places.core_python, places.long_python))
        found += [path for path in packaged if path is not None]
    return found


def find(name: str, places: Places) -> Path | None:
    """The first place that has it; None when none does."""
    return next((path for path in candidates(name, places) if _missing_part(name, path) is None), None)


def _missing_part(name: str, path: Path) -> str | None:
    """What the place lacks; None when it has all."""
    if name in _PARTS:
        missing = next((part for part in _PARTS[name] if not (path / part).is_file()), None)
        return missing or (_missing_more(name, path) if name in _MORE else None)
    if name == "bert_tokenizer":
        return None if (path / "vocab.txt").is_file() else "vocab.txt"
    if name == "bert_weights":
        weights = any((path / part).is_file() for part in ("model.safetensors", "pytorch_model.bin"))
        return None if weights and (path / "config.json").is_file() else "config.json and model.safetensors"
    return None if path.is_file() else path.name


def _missing_more(name: str, path: Path) -> str | None:
    """What the files that are there name and the place lacks: a download that was cut short has its small files."""
    if name == I2V_DATA:
        try:
            named = {str(e["image_name"]) for e in json.loads((path / rules().info).read_bytes()) if "image_name" in e}
        except (ValueError, TypeError):
            return f"a readable {rules().info}"
        held = {p.name for p in (path / "crop").glob("*/*")}
        return next((f"picture {each}" for each in sorted(named - held)), None)
    if name == "instance_detector":
        weights = ("adapter_model.safetensors", "adapter_model.bin")
        return None if any((path / part).is_file() for part in weights) else weights[0]
    if name == "siglip":
        path = path / "snapshots" / (path / "refs" / "main").read_text().strip()
        if not (path / "config.json").is_file():
            return "config.json of the snapshot that refs/main names"
    return _missing_shard(path)


def _missing_shard(folder: Path) -> str | None:
    """The first file of a model's weights that is not there, by its index where it is in several."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (index := folder / f"{single}.index.json").is_file():
            try:
                shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError):
                return f"a readable {index.name}"
            return next((shard for shard in shards if not (folder / shard).is_file()), None)
        if (folder / single).is_file():
            return None
    return "model.safetensors"


def parts_of(name: str, path: Path) -> list[Path]:
    """The files that count: of a folder those that are read."""
    if not path.is_dir():
        return [path]
    if name == "dino_repo":
        return [path / part for part in _DINO_FILES]
    if name in _PARTS:
        return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in _READ)
    wanted: tuple[str, ...] = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
    wanted += ("config.json", "model.safetensors", "pytorch_model.bin") if name == "bert_weights" else ()
    return [path / part for part in wanted if (path / part).is_file()]


@cache
def _digest_seen(path: Path, size_bytes: int, changed_ns: int, how: Literal["all", "sampled"]) -> str:
    with storage_faults(str(path)):
        return digest_file(path) if how == "all" else sampled_digest(path)


def digest_of(name: str, path: Path, how: Literal["all", "sampled"] = "all") -> str:
    """sha256 of a file, of a folder's parts by name; `sampled`: quick, and no published one."""
    parts = parts_of(name, path)
    found = []
    for part in parts:
        facts = part.stat()
        found.append([part.name, _digest_seen(part, facts.st_size, facts.st_mtime_ns, how)])
    return found[0][1] if len(found) == 1 and not path.is_dir() else digest_json(found)


def requirements(
    dimensions: Sequence[str],
    places: Places,
    *,
    hashing: bool = False,
    published: bool = True,
    variant: Variant = _WHOLE,
) -> list[Requirement]:
    """Every file that the dimensions read, each once, in the order of the table. `hashing` reads every byte; with
    `published` what is known of a published digest must hold then."""
    readers = {n: [d for d in dimensions if n in needs(d, variant)] for n in catalogue().files}
    return [_requirement(n, mine, places, hashing, published) for n, mine in readers.items() if mine]


def stand_ins(
    dimensions: Sequence[str], places: Places, *, published: bool, variant: Variant = _WHOLE
) -> tuple[str, ...]:
    """Of `dimensions`, those that read a file which may be another than the published one. Where published digests are
    held there is none: the preflight refused what differs."""
    if published:
        return ()
    return tuple(d for d in dimensions if any(not _is_proven(n, places) for n in needs(d, variant)))


def _is_proven(name: str, places: Places) -> bool:
    path, row = find(name, places), catalogue().files[name]
    return path is not None and row.sha256 is not None and digest_of(name, path) == row.sha256


def _requirement(name: str, dimensions: list[str], places: Places, hashing: bool, published: bool) -> Requirement:
    row = catalogue().files[name]
    path = find(name, places)
    place = path or candidates(name, places)[0]
    digest = digest_of(name, path) if hashing and path is not None else None
    problem = "is not there" if path is None else None
    if path is None and place.is_dir():
        problem = f"is not whole: it lacks {_missing_part(name, place)}"
    if published and any((folder / MARK).is_file() for folder in place.parents):
        problem = f"lies in a folder of stand-in weights ({MARK})"
    if digest is not None and published and not _is_published(row, place, digest):
        problem = f"is not the published file: its sha256 is {digest}"
    step = f"put it there, from {row.url}" + (f" ({row.note})" if row.note else "")
    return Requirement(
        name=name, kind="folder" if row.is_folder or name in _BERT else "file", dimensions=tuple(dimensions),
        place=str(place), present=path is not None, problem=problem,
        size_bytes=None if path is None else sum(part.stat().st_size for part in parts_of(name, path)),
        approx_bytes=None if path is not None or row.approx_mib is None else round(row.approx_mib * 2**20),
        sha256=digest, source=row.url, variable=row.variable, next_step=None if problem is None else step,
    )  # fmt: skip


def _is_published(row: WeightFile, path: Path, digest: str) -> bool:
    """Whole digests where the table has one; a name that ends in -XXXXXXXX carries the digest's beginning."""
    if row.sha256 is not None:
        return digest == row.sha256
    tail = path.stem.rpartition("-")[2]
    return len(tail) != 8 or any(c not in "0123456789abcdef" for c in tail) or digest.startswith(tail)


__all__ = [
    "I2V_DATA",
    "VOCABULARY",
    "WeightFile",
    "candidates",
    "catalogue",
    "digest_of",
    "find",
    "needs",
    "parts_of",
    "requirements",
    "stand_ins",
]
