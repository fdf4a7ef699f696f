"""The checkpoint that a user names, a folder or an artifact of the ledger, and what is known about sampling it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m4v.checkpoint_files import (
    CONFIG,
    EMA,
    MODEL,
    existing_file,
    file_facts,
    read_json_object,
    refuse_pickles,
)
from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind, build_manifest, verify
from m4v.core.canonical import FileEntry, digest_file, merkle_root
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.core.storage import Storage
from m4v.family import AnyCheckpoint, read_checkpoint_config
from pipelines.ledger import Ledger
from pipelines.workspace import Workspace

_KNOWN = ("frames", "height", "width", "fps", "crf", "sampler")


@dataclass(frozen=True)
class FoundCheckpoint:
    """`identity`: artifact id, or the Merkle root of the files that sampling reads. `defaults`: how the ledger's
    recipe samples it, `origin` says where that stands. `folders` and `imported`: weights by name, as local folders
    and as ids."""

    config: AnyCheckpoint
    path_of: Callable[[str], Path]
    identity: str
    ema: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    folders: Mapping[str, Path] = field(default_factory=dict)
    imported: Mapping[str, str] = field(default_factory=dict)


def find_checkpoint(name: str, given: Mapping[str, Path], *, ema: bool) -> FoundCheckpoint:
    """`name` is a folder or an artifact's id (or a unique prefix); `given` has folders of imported weights.

    Raises InputError when neither is found, ConfigError when weights that its codec or text encoder needs have no
    folder, DataIntegrityError when files are missing or of another size than the manifest says.
    """
    directory = Path(name)
    if directory.is_dir():
        return _folder(directory, given, ema)
    if directory.exists():
        raise InputError("a checkpoint is a folder, this is a file", value=name, next_step=f"give {directory.parent}")
    if os.sep in name or name.startswith((".", "~")):
        raise InputError(
            "checkpoint folder does not exist", value=name, next_step="m4v artifacts list --kind checkpoint"
        )
    return _recorded(name, given, ema)


def parse_weights(pairs: list[str]) -> dict[str, Path]:
    """`NAME=DIR` options. Raises InputError for another form or a folder that is none."""
    found = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise InputError("weights are given as NAME=DIR", value=pair, next_step="e.g. --weights vae=/models/vae")
        if not Path(folder).is_dir():
            raise InputError(f"folder of the weights {name} does not exist", value=folder)
        found[name] = Path(folder)
    return found


def _folder(directory: Path, given: Mapping[str, Path], ema: bool) -> FoundCheckpoint:
    config = _config(directory / CONFIG)
    refuse_pickles(directory)
    ema = ema and config.ema
    identity = folder_identity(directory, [CONFIG, EMA if ema else MODEL])
    ema = ema or file_facts(existing_file(directory / MODEL)).get("weights") == "ema"  # an export of averaged weights
    imported = {n: folder_identity(p) for n, p in _needed(config, given, "give --weights").items()}
    return FoundCheckpoint(
        config=config, path_of=directory.joinpath, identity=identity, ema=ema, folders=dict(given), imported=imported
    )


def folder_identity(directory: Path, names: list[str] | None = None) -> str:
    """Id in the manifest, after a look at the files' sizes; without one the Merkle root over the files `names` (None:
    all). Raises DataIntegrityError for a missing file or another size."""
    if (directory / MANIFEST).is_file():
        return verify(Storage(str(directory)), deep=False).artifact_id
    if names is None:
        return build_manifest(directory, ArtifactKind.WEIGHTS, {}).artifact_id
    files = [(n, existing_file(directory / n)) for n in names]
    return merkle_root(FileEntry(n, p.stat().st_size, digest_file(p)) for n, p in files)


def _recorded(name: str, given: Mapping[str, Path], ema: bool) -> FoundCheckpoint:
    workspace = Workspace.open()
    with Ledger.open(workspace.ledger_url) as ledger:
        try:
            row = ledger.artifact(name, kind=ArtifactKind.CHECKPOINT)
        except InputError as error:
            raise InputError(
                f"no checkpoint folder and no checkpoint artifact ({error.what})", value=name, where=error.where,
                next_step=error.next_step or "m4v artifacts list --kind checkpoint",
            ) from None  # fmt: skip
        defaults, origin = _known(ledger, row.artifact_id)
        cache = Path(os.environ.get("M4V_CACHE", workspace.home / "cache"))
        artifact = Artifact(row.uri, row.artifact_id, ArtifactKind.CHECKPOINT, cache)
        config = _config(artifact.path(CONFIG))
        missing = set(needed_names(config)) - set(given)
        made_with = {name: _weights(ledger, config.weights[name], cache) for name in missing & set(config.weights)}
    folders = {**{n: a.folder() for n, a in made_with.items()}, **given}
    used = _needed(config, folders, "import them, or give --weights")
    imported = {n: made_with[n].id if n in made_with else folder_identity(p) for n, p in used.items()}
    return FoundCheckpoint(
        config=config, path_of=artifact.path, identity=artifact.id, ema=ema and config.ema, defaults=defaults,
        origin=origin, folders=folders, imported=imported,
    )  # fmt: skip


def _known(ledger: Ledger, checkpoint: str) -> tuple[dict[str, Any], str]:
    """How this checkpoint was sampled last, else how the recipe that made it samples."""
    sampled = [run for run in ledger.consumers(checkpoint) if run.stage == "generate"]
    if sampled:
        return _sampling(sampled[-1].config), f"generate run {sampled[-1].run_id}"
    for run in reversed(ledger.producers(checkpoint)):
        owner = ledger.attempt(run.attempt_id).pipeline_run_id
        if owner is not None:
            pipeline = ledger.pipeline_run(owner)
            return _sampling(pipeline.resolved.get("generate", {})), f"recipe {pipeline.recipe}"
    return {}, ""


def _sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in _KNOWN if name in config}


def _weights(ledger: Ledger, artifact_id: str, cache: Path) -> Artifact:
    row = ledger.artifact(artifact_id, kind=ArtifactKind.WEIGHTS)
    return Artifact(row.uri, row.artifact_id, ArtifactKind.WEIGHTS, cache)


def needed_names(config: AnyCheckpoint) -> list[str]:
    """Names of the imported weights that codec and text encoder use."""
    named = [section.get("weights") for section in (config.codec, config.text_encoder)]
    return [name for name in named if isinstance(name, str)]


def _needed(config: AnyCheckpoint, folders: Mapping[str, Path], how: str) -> dict[str, Path]:
    names = needed_names(config)
    if missing := [name for name in names if name not in folders]:
        raise ConfigError(
            f"the checkpoint's codec or text encoder needs the imported weights {', '.join(missing)}",
            next_step=" ".join([how, *(f"{name}=DIR" for name in missing)]),
        )
    return {name: folders[name] for name in names}


def _config(path: Path) -> AnyCheckpoint:
    if not path.is_file():
        raise InputError(
            f"folder holds no checkpoint: it has no {CONFIG}", value=str(path.parent),
            next_step="give the folder with config.json and model.safetensors",
        )  # fmt: skip
    _refuse_others(path)
    return read_checkpoint_config(path)


def _refuse_others(path: Path) -> None:
    """Raises InputError for a Wan model that names no codec, and for a model as published."""
    try:
        data = read_json_object(path)
    except DataIntegrityError:
        return  # told in full by who parses it
    model, published = data.get("model"), str(data.get("_class_name", ""))
    bare = isinstance(model, dict) and model.get("kind") == "wan" and not data.get("codec")
    if published.startswith("Wan") or bare:
        raise InputError(
            "folder holds a Wan model without the names of its codec and text encoder", value=str(path.parent),
            next_step="in Python: m4v.wan.generate.WanGenerator.open(FOLDER, parts=FOLDER_WITH_VAE_AND_TEXT_ENCODER)"
            ".generate(PROMPT).save(FILE)",
        )  # fmt: skip
    if published:
        raise InputError(
            f"folder holds a published {published} and no checkpoint", value=str(path.parent),
            next_step="name its entry under `weights` in a recipe (m4v weights list), then m4v run RECIPE --until init",
        )  # fmt: skip
