"""A local folder that holds the published files of a catalogue entry: which files those are, and their probe.

Torch-free: the plan probes a folder before any stage runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from m4v.core.canonical import digest_json
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.core.storage import storage_faults
from m4v.weights.catalogue import CatalogueEntry, CatalogueFile, entry
from m4v.weights.config import WeightsConfig

INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
_BLOCKS, _BLOCK_BYTES = 64, 64 << 10


@dataclass(frozen=True)
class SourceFile:
    """A file of an entry. `place` is its path below the entry's folder, `path` where it lies here (it may
    be missing), `catalogued` its catalogue row (of a pattern: the pattern's row)."""

    place: str
    path: Path
    catalogued: CatalogueFile

    @property
    def is_absent(self) -> bool:
        """Optional, and not here."""
        return self.catalogued.optional and not self.path.is_file()


def source_files(found: CatalogueEntry, folder: Path, published: bool = True) -> list[SourceFile]:
    """Every file that an import of the entry from `folder` would read, present or not, in catalogue order.

    `folder` may be the copy of the hub's repository, the weights root above it, or, of an entry whose files
    share one folder (`diffusion_transformer_768p/`), that folder under any name. Not `published`: the weight
    files of a component may have other names or another number of shards.
    """
    layouts = [_layout(found, folder, ""), _layout(found, folder / found.place, "")]
    parents = {PurePosixPath(f.place).parent.as_posix() for f in found.files}
    if len(parents) == 1 and "." not in parents:
        layouts.append(_layout(found, folder, parents.pop() + "/"))
    files = max(layouts, key=lambda files: sum(f.path.is_file() for f in files))
    return files if published else _own_names(files)


def _layout(found: CatalogueEntry, base: Path, strip: str) -> list[SourceFile]:
    files: list[SourceFile] = []
    for row in found.files:
        names = _shards(base, row) if row.is_pattern else [row.place]
        files += [SourceFile(name, base / name.removeprefix(strip), row) for name in names]
    return files


def _own_names(files: list[SourceFile]) -> list[SourceFile]:
    """The same, with the weight files that each folder really has where it lacks the catalogued ones."""
    found: list[SourceFile] = []
    for folder in dict.fromkeys(PurePosixPath(f.place).parent for f in files):
        here = [f for f in files if PurePosixPath(f.place).parent == folder]
        needed = [f for f in here if not f.catalogued.optional]
        weights = [f for f in needed if f.place.endswith((*WEIGHT_SUFFIXES, INDEX_SUFFIX))]
        if weights and not all(f.path.is_file() for f in weights):
            names = _weight_names(weights[0].path.parent)
            own = [_uncatalogued(folder, weights[0].path.parent / name) for name in names]
            here = [f for f in here if f not in weights] + (own or weights)
        found += here
    return found


def _weight_names(folder: Path) -> list[str]:
    """Index and shards, or the one weight file of a folder; empty when it is not clear which they are."""
    indexes = sorted(path.name for path in folder.glob(f"*{INDEX_SUFFIX}"))
    if len(indexes) == 1:
        return [*indexes, *read_index(folder / indexes[0]).shards]
    for suffix in WEIGHT_SUFFIXES:
        names = sorted(path.name for path in folder.glob(f"*{suffix}"))
        if names:
            return names if len(names) == 1 else []
    return []


def _uncatalogued(folder: PurePosixPath, path: Path) -> SourceFile:
    place = (folder / path.name).as_posix()
    return SourceFile(place, path, CatalogueFile(file=place))


def _shards(base: Path, row: CatalogueFile) -> list[str]:
    """Places of the shards that a pattern stands for: those that the index beside them names."""
    parent, stem = PurePosixPath(row.place).parent, PurePosixPath(row.place).name.split("-*")[0]
    index = base / parent / f"{stem}{INDEX_SUFFIX}"
    if not index.is_file():
        return [row.place]
    return [str(parent / name) for name in read_index(index).shards]


@dataclass(frozen=True)
class ShardIndex:
    """`*.index.json`: tensor name -> file name beside the index."""

    shard_of: dict[str, str]

    @property
    def shards(self) -> list[str]:
        return sorted(set(self.shard_of.values()))


def read_index(path: Path) -> ShardIndex:
    """Raises DataIntegrityError when the index is not one, or leads out of its folder."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shard_of = {str(tensor): str(file) for tensor, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataIntegrityError(f"shard index does not parse ({type(error).__name__})", where=str(path)) from None
    if strange := sorted(f for f in set(shard_of.values()) if "/" in f or "\\" in f or f in ("", ".", "..")):
        raise DataIntegrityError("shard index names a file outside its folder", value=strange[0], where=str(path))
    return ShardIndex(shard_of)


def sampled_digest(path: Path) -> str:
    """sha256 of the size and 64 evenly spread blocks of 64 KiB; of all bytes for files up to 4 MiB. Quick for
    any size, and the same on every machine that holds the same file."""
    size = path.stat().st_size
    sha = hashlib.sha256(f"sampled:{size}:".encode())
    with storage_faults(str(path)), path.open("rb") as stream:
        if size <= _BLOCKS * _BLOCK_BYTES:
            sha.update(stream.read())
        else:
            for block in range(_BLOCKS):
                stream.seek((size - _BLOCK_BYTES) * block // (_BLOCKS - 1))
                sha.update(stream.read(_BLOCK_BYTES))
    return sha.hexdigest()


def probe(config: WeightsConfig, locations: Mapping[str, str]) -> str:
    """Digest of what the folder of published files holds now (StageSpec.probe): names, sizes, sampled bytes.

    `locations[config.name]` is the folder; without one, the entry's place below the weights root. Raises
    InputError naming the first missing file and how to get it.
    """
    found = entry(config.entry)
    rows = []
    for file in source_files(found, source_folder(config, locations), config.published):
        if file.is_absent:
            continue
        if not file.path.is_file():
            raise missing_file(found, file)
        rows.append([file.place, sampled_digest(file.path)])
    return digest_json([found.format, rows])


def source_folder(config: WeightsConfig, locations: Mapping[str, str]) -> Path:
    """Folder of the published files; raises ConfigError for a location that is not a local path."""
    location = locations.get(config.name)
    if location is None:
        return entry(config.entry).folder()
    if "://" in location.removeprefix("file://"):
        raise ConfigError(
            "weights are imported from a local folder", value=location, where=f"weights {config.name}",
            next_step="copy the files to this machine and name that folder",
        )  # fmt: skip
    return Path(location.removeprefix("file://")).expanduser()


def missing_file(found: CatalogueEntry, file: SourceFile) -> InputError:
    """The error for a file that is not there."""
    return InputError(
        f"file of weights entry {found.name} is not there", value=file.place, where=str(file.path.parent),
        next_step=f"m4v weights check {found.name}; to fetch: {found.fetch_command}",
    )  # fmt: skip
