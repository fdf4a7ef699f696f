"""A node with everything that it takes to launch it, and the request that is made of that."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from m4v.core.stage import InputRef, OutputRef, Progress, StageRequest
from m4v.core.storage import Storage
from pipelines.keys import KeyRecord
from pipelines.launchers import Launcher
from pipelines.spec import StageNode
from pipelines.takedown.blocklist import ATTACHMENT as BLOCKED
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Assignment:
    """A node with everything that its request needs. `facts` are for the report, outside the key; `blocked` is
    the block list whose digest the key holds."""

    node: StageNode
    record: KeyRecord
    inputs: tuple[InputRef, ...]
    pipeline_run_id: str
    facts: Mapping[str, object] | None = None
    blocked: bytes | None = None
    on_progress: Callable[[Progress], None] = field(default=lambda _: None)
    on_note: Callable[[str], None] = field(default=lambda _: None)


def stage_request(work: Assignment, attempt_id: str, workspace: Workspace, launcher: Launcher) -> StageRequest:
    """The request of a new attempt; its attachments are written into the work directory."""
    node, record = work.node, work.record
    work_dir = workspace.stage_work(record.stage_key) / attempt_id
    target = launcher.target(node.resources)
    attachments = {}
    if work.facts is not None:
        facts = Storage(str(work_dir))
        facts.write_bytes("facts.json", _json(work.facts))
        attachments["facts"] = str(work_dir / "facts.json")
    if work.blocked is not None:
        Storage(str(work_dir)).write_bytes("blocked.json", work.blocked)
        attachments[BLOCKED] = str(work_dir / "blocked.json")
    return StageRequest(
        stage=node.spec.name,
        stage_version=node.spec.version,
        function=node.spec.function,
        config_model=node.spec.config_model,
        stage_key=record.stage_key,
        attempt_id=attempt_id,
        config=node.config.canonical(),
        seed=node.seed,
        inputs=work.inputs,
        outputs=tuple(OutputRef(name=n, kind=k) for n, k in node.spec.outputs.items()),
        store_uri=workspace.store_uri,
        work_dir=str(work_dir),
        state_uri=workspace.state_uri(record.stage_key),
        items_uri=workspace.items_uri,
        lock_file=target.lock_file,
        lock_digest=record.lock_digest,
        numerics=record.numerics,
        locations=dict(node.locations),
        attachments=attachments,
        resources=node.resources,
    )


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
