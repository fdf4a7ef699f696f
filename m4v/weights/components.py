"""The parts of an entry: which files make one model together, of which kind, and where they go in the artifact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from m4v.checkpoint_files import read_json_object
from m4v.core.errors import DataIntegrityError
from m4v.weights.catalogue import CatalogueEntry, WeightsFormat
from m4v.weights.pyramidflow import our_key
from m4v.weights.source import INDEX_SUFFIX, PICKLE_SUFFIXES, WEIGHT_SUFFIXES, SourceFile, read_index
from m4v.weights.tensors import SafetensorsFile, TensorFile, TensorInfo
from m4v.weights.wan_original import text_encoder_config, text_encoder_key, vae_config, vae_keys

Kind = Literal[
    "pyramidflow_dit", "pyramidflow_vae", "clip_text", "t5", "wan_transformer", "umt5", "wan_vae", "state_dict"
]
MODEL, PUBLISHED_MODEL, CONFIG = "model.safetensors", "diffusion_pytorch_model.safetensors", "config.json"
# Kind by the folder that the files lie in; None stands for any.
_KINDS: Mapping[WeightsFormat, Mapping[str | None, Kind]] = {
    "pyramidflow_dit": {None: "pyramidflow_dit"},
    "pyramidflow_vae": {None: "pyramidflow_vae"},
    "t5_clip": {"text_encoder": "clip_text", "text_encoder_2": "t5"},
    "wan_diffusers": {"transformer": "wan_transformer", "text_encoder": "umt5", "vae": "wan_vae"},
    "wan_original": {".": "wan_transformer"},
    "state_dict": {None: "state_dict"},
    "in_place": {},
}
# The original Wan layout has its other models beside the transformer; they go where diffusers has them.
_WAN_ORIGINAL: Mapping[str, tuple[str, Kind]] = {
    "Wan2.1_VAE": ("vae", "wan_vae"),
    "models_t5_umt5-xxl-enc-bf16": ("text_encoder", "umt5"),
}


@dataclass(frozen=True)
class Component:
    """One model: its weight files in order, `config.json` and index. `output` is its folder in the artifact
    (empty: the artifact's own), `merged`: it becomes one safetensors file there, `wan_original`: keys are
    Wan's own, and there is no `config.json`, since its values follow from the tensors."""

    name: str
    kind: Kind
    weights: tuple[SourceFile, ...]
    config_file: SourceFile | None
    index_file: SourceFile | None
    output: str
    merged: bool
    wan_original: bool = False

    @property
    def merged_name(self) -> str:
        """File name of the merged weights, as the loader of the kind looks for it."""
        return PUBLISHED_MODEL if self.kind in ("pyramidflow_vae", "wan_vae") else MODEL

    @cached_property
    def files(self) -> tuple[TensorFile, ...]:
        return tuple(open_tensors(file.path) for file in self.weights)

    def config(self) -> dict[str, object]:
        """The published `config.json`; empty when the kind has none. Raises DataIntegrityError if it is no object."""
        if self.wan_original:
            where = str(self.weights[0].path)
            return vae_config() if self.kind == "wan_vae" else text_encoder_config(self.infos(), where)
        return {} if self.config_file is None else read_json_object(self.config_file.path)

    def tensors(self) -> dict[str, tuple[TensorFile, str]]:
        """Our key -> (file, key in the file), tensors of other models left out. Raises DataIntegrityError when
        two files hold one tensor, or the index says another file than the one that holds it."""
        found: dict[str, tuple[TensorFile, str]] = {}
        for file in self.files:
            for name, key in self._keys(file).items():
                if key is None:
                    continue
                if key in found:
                    raise DataIntegrityError("tensor stands in two places", value=name, where=str(file.path))
                found[key] = (file, name)
        self._check_index({name: file.path.name for file, name in found.values()})
        return found

    def _keys(self, file: TensorFile) -> Mapping[str, str | None]:
        """Published name -> our key, None for tensors of other models."""
        names = file.tensors
        if self.kind == "pyramidflow_dit":
            return {name: our_key(name) for name in names}
        if self.wan_original:
            return (
                vae_keys(names, str(file.path))
                if self.kind == "wan_vae"
                else {name: text_encoder_key(name) for name in names}
            )
        return {name: name for name in names}

    def infos(self) -> dict[str, TensorInfo]:
        return {key: file.tensors[name] for key, (file, name) in self.tensors().items()}

    def _check_index(self, holder: Mapping[str, str]) -> None:
        if self.index_file is None:
            return
        listed = read_index(self.index_file.path).shard_of
        if wrong := sorted(name for name in {*listed, *holder} if listed.get(name) != holder.get(name)):
            raise DataIntegrityError(
                f"index and shards differ on {len(wrong)} tensors", value=wrong[:5], where=str(self.index_file.path),
                next_step="fetch the index and its shards again, from one revision",
            )  # fmt: skip


def open_tensors(path: Path) -> TensorFile:
    """Reader of a weight file by its suffix; torch is loaded for pickled ones only."""
    if path.suffix in PICKLE_SUFFIXES:
        from m4v.weights.pickles import PickledFile

        return PickledFile(path)
    return SafetensorsFile(path)


def components(found: CatalogueEntry, files: list[SourceFile]) -> list[Component]:
    """Models among `files`, in their order."""
    return list(_components(found, files))


def rest(files: list[SourceFile], parts: list[Component]) -> list[SourceFile]:
    """Files that belong to no model (tokenizers, schedulers): copied as they are."""
    taken = {file.place for part in parts for file in (*part.weights, part.config_file, part.index_file) if file}
    return [file for file in files if file.place not in taken]


def _components(found: CatalogueEntry, files: list[SourceFile]) -> Iterator[Component]:
    kinds = _KINDS[found.format]
    folders = dict.fromkeys(PurePosixPath(file.place).parent.as_posix() for file in files)
    for folder in folders:
        here = [file for file in files if PurePosixPath(file.place).parent.as_posix() == folder]
        kind = kinds.get(folder, kinds.get(None))
        weights = [file for file in here if file.place.endswith(WEIGHT_SUFFIXES)]
        if found.format == "wan_original":
            others = {f: _WAN_ORIGINAL[s] for f in weights if (s := PurePosixPath(f.place).stem) in _WAN_ORIGINAL}
            for file, (output, other) in others.items():
                yield Component(output, other, (file,), None, None, output, merged=True, wan_original=True)
            weights = [file for file in weights if file not in others]
        if kind is None or not weights:
            continue
        single = found.format in ("pyramidflow_dit", "pyramidflow_vae", "state_dict")
        yield Component(
            name=found.name if single or folder == "." else folder,
            kind=kind,
            weights=tuple(weights),
            config_file=next((f for f in here if PurePosixPath(f.place).name == CONFIG), None),
            index_file=next((f for f in here if f.place.endswith(INDEX_SUFFIX)), None),
            output="" if single or folder == "." else folder,
            merged=single or any(file.place.endswith(PICKLE_SUFFIXES) for file in weights),
        )
