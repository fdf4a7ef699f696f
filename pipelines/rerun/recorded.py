"""A stage's request, made again from its ledger row: config, inputs by id, seed, how it was launched.

Recipe files are not read. What surrounds the request (code, lock file, machine) must be what it was, or be allowed to
differ by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from m4v.core.artifacts import verify
from m4v.core.config import FrozenModel, parse
from m4v.core.errors import ConfigError, InputError
from m4v.core.stage import InputRef, OutputRef, StageRequest
from m4v.core.storage import Storage
from pipelines import stages
from pipelines.environment import file_digest, numerics_record
from pipelines.graph import build_graph
from pipelines.keys import CODE_ROOT, Change, KeyRecord, reachable_files, summarise
from pipelines.keys.changes import differing
from pipelines.launchers import Launcher
from pipelines.ledger import Ledger, RunRow, new_id
from pipelines.lookup import known_record
from pipelines.provenance import BlobStore, RecordedRequest
from pipelines.recipe import Recipe
from pipelines.spec import StageSpec, load_function, load_object
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Allowed:
    """What may differ from the recorded execution. `code`: source files and the lock file; `machine`: the numerics
    record (device, architecture, threads, kernels)."""

    code: bool = False
    machine: bool = False


@dataclass(frozen=True)
class Recorded:
    """A stage run as it was asked for. `node_id` is its place in the pipeline run that made it."""

    run: RunRow
    record: KeyRecord
    request: RecordedRequest
    node_id: str


def recorded(ledger: Ledger, run: RunRow) -> Recorded:
    """Raises InputError for a run that was recorded before requests were, and whose recipe cannot be resolved."""
    attempt = ledger.attempt(run.attempt_id)
    known = run.environment.get("request")
    request = RecordedRequest.model_validate(known) if known is not None else _from_recipe(ledger, run)
    return Recorded(run, known_record(run), request, attempt.node_id or run.stage)


def _from_recipe(ledger: Ledger, run: RunRow) -> RecordedRequest:
    """Of a run recorded by an earlier release: from the resolved recipe in its pipeline run's row."""
    attempt = ledger.attempt(run.attempt_id)
    unknown = InputError(
        "the ledger does not hold how this run was launched", value=run.run_id,
        next_step="it was recorded by an earlier release: run its recipe again",
    )  # fmt: skip
    if attempt.pipeline_run_id is None:
        raise unknown
    resolved = ledger.pipeline_run(attempt.pipeline_run_id).resolved
    try:
        recipe = parse(Recipe, resolved, "recorded recipe")
        nodes = {node.id: node for node in build_graph(recipe)}
    except (ConfigError, InputError) as error:
        raise unknown from error
    node = nodes.get(attempt.node_id or "")
    if node is None or node.spec.name != run.stage:
        raise unknown
    lock = recipe.active_profile.lock_file
    return RecordedRequest(
        function=node.spec.function, config_model=node.spec.config_model, config=node.config.canonical(),
        resources=node.resources, inputs=tuple(node.inputs), locations=dict(node.locations),
        lock_file=None if lock is None else str(CODE_ROOT / lock), lock_digest=known_record(run).lock_digest,
    )  # fmt: skip


def check(stage: Recorded, launcher: Launcher, allowed: Allowed) -> tuple[str, ...]:
    """Hold code, lock file, machine and the files outside the store against the record; returns in words what differs
    and is allowed to.

    Raises ConfigError for a difference that is not allowed, InputError for files outside the store that changed.
    """
    code = [*_code_changes(stage), *_lock_changes(stage)]
    machine = _machine_changes(stage, launcher)
    for found, permitted, what, option in (
        (code, allowed.code, "code or lock file differ from the recorded run's", "--allow-code"),
        (machine, allowed.machine, "this machine differs from the recorded run's", "--allow-machine"),
    ):
        if found and not permitted:
            commit = stage.run.environment.get("code", {}).get("commit")
            there = f"git checkout {commit[:12]} first, or " if commit and option == "--allow-code" else ""
            raise ConfigError(
                f"{what}: {summarise(found)}", where=stage.node_id,
                next_step=f"{there}{option} to execute it all the same and see what differs",
            )  # fmt: skip
    _check_probe(stage)
    return tuple(change.words() for change in (*code, *machine))


def _spec(stage: Recorded) -> StageSpec | None:
    """The declaration of this stage today, if it still has the recorded function."""
    return next((s for s in stages.ALL if s.name == stage.run.stage and s.function == stage.request.function), None)


def _code_changes(stage: Recorded) -> list[Change]:
    spec = _spec(stage)
    references = (stage.request.function, stage.request.config_model)
    now = reachable_files(references, spec.data_files if spec is not None else ())
    return list(differing("code", stage.record.code, now))


def _lock_changes(stage: Recorded) -> list[Change]:
    then, now = stage.record.lock_digest, _lock_digest(stage)
    return [] if then == now else [Change(component="lock", field="", old=then, new=now)]


def _lock_digest(stage: Recorded) -> str | None:
    path = stage.request.lock_file
    return file_digest(Path(path)) if path is not None and Path(path).is_file() else None


def _config(stage: Recorded) -> FrozenModel:
    model = load_object(stage.request.config_model)
    config = parse(model, stage.request.config, f"recorded request of {stage.run.stage}")
    assert isinstance(config, FrozenModel)
    return config


def _machine_changes(stage: Recorded, launcher: Launcher) -> list[Change]:
    then = stage.record.numerics
    if then is None:
        return []
    return list(differing("numerics", then, _numerics(stage, launcher) or {}))


def _numerics(stage: Recorded, launcher: Launcher) -> dict[str, object] | None:
    then = stage.record.numerics
    if then is None:
        return None
    resources = stage.request.resources
    now = numerics_record(_config(stage), resources, launcher.target(resources)).canonical()
    # Stages whose ranks share out whole items record no number of ranks: it does not touch what they make.
    return {name: value for name, value in now.items() if name in then or name != "world_size"}


def _check_probe(stage: Recorded) -> None:
    spec = _spec(stage)
    if spec is None or spec.probe is None or stage.record.probe is None:
        return
    now = load_function(spec.probe)(_config(stage), dict(stage.request.locations))
    if now != stage.record.probe:
        raise InputError(
            "files outside the store are no longer those that this run read", where=stage.node_id,
            value=", ".join(stage.request.locations.values()) or None,
            next_step="bring them back as they were; what was made from them cannot be checked without",
        )  # fmt: skip


def again(stage: Recorded, ledger: Ledger, launcher: Launcher, workspace: Workspace, work_dir: Path) -> StageRequest:
    """The request, to be executed in `work_dir` with resume state and items of its own, so that nothing is reused.

    Raises InputError or DataIntegrityError for an input or attachment that is no longer there.
    """
    run, request = stage.run, stage.request
    attachments = _attachments(stage, ledger, BlobStore(workspace.store_uri), work_dir)
    return StageRequest(
        stage=run.stage, stage_version=run.stage_version, function=request.function,
        config_model=request.config_model, stage_key=run.stage_key, attempt_id=new_id(), config=request.config,
        seed=run.seed, inputs=tuple(_inputs(ledger, stage)),
        outputs=tuple(OutputRef(name=port.name, kind=port.kind) for port in run.outputs),
        store_uri=workspace.store_uri, work_dir=str(work_dir), state_uri=str(work_dir / "state"),
        items_uri=str(work_dir / "items"), lock_file=request.lock_file if _lock_digest(stage) else None,
        lock_digest=_lock_digest(stage), numerics=_numerics(stage, launcher), locations=request.locations,
        attachments=attachments, resources=request.resources,
    )  # fmt: skip


def _inputs(ledger: Ledger, stage: Recorded) -> list[InputRef]:
    """In the order in which the stage was given them; a ledger's rows have none of their own. Raises Withdrawn for one
    that a takedown took out of use."""
    ledger.refuse_withdrawn([(port.artifact_id, port.kind) for port in stage.run.inputs], stage.run.stage)
    found = {}
    for port in stage.run.inputs:
        row = ledger.artifact(port.artifact_id, port.kind)
        verify(Storage(row.uri), port.artifact_id, deep=False)
        found[port.name] = InputRef(name=port.name, kind=port.kind, artifact_id=port.artifact_id, uri=row.uri)
    order = [name for name in stage.request.inputs if name in found]
    return [found[name] for name in (*order, *(name for name in found if name not in order))]


def _attachments(stage: Recorded, ledger: Ledger, blobs: BlobStore, work_dir: Path) -> Mapping[str, str]:
    found = {}
    work_dir.mkdir(parents=True, exist_ok=True)
    for name, reference in stage.request.attachments.items():
        path = work_dir / f"attached-{name}.json"
        path.write_bytes(blobs.get(reference.sha256))
        found[name] = str(path)
    earlier = Path(ledger.attempt(stage.run.attempt_id).work_dir) / "facts.json"
    if not found and stage.run.stage == "report" and earlier.is_file():  # recorded by an earlier release
        found["facts"] = str(earlier)
    return found
