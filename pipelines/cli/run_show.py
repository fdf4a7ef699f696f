"""One pipeline run, stage run or attempt in full: what `m4v runs show` prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from m4v.core.errors import ExitClass, InputError
from pipelines.cli.output import Id, duration, print_facts, print_json, print_rows, short, size
from pipelines.cli.run_events import print_supervision, supervision_json
from pipelines.cli.run_measured import print_measured
from pipelines.keys import flatten
from pipelines.ledger import AttemptRow, Ledger, NodeRow, PipelineRunRow, PortRow, RunRow, VerificationRow
from pipelines.provenance import BlobStore
from pipelines.workspace import Workspace

Row = PipelineRunRow | RunRow | AttemptRow
_NESTED = ("key_record", "config", "metrics", "inputs", "outputs", "environment", "resolved")


def show(ledger: Ledger, row: Row, json_: bool) -> None:
    if isinstance(row, PipelineRunRow):
        _show_pipeline(ledger, row, json_)
    elif isinstance(row, RunRow):
        _show_run(ledger, row, json_)
    else:
        _show_attempt(ledger, row, json_)


def _show_attempt(ledger: Ledger, row: AttemptRow, json_: bool) -> None:
    facts = _attempt_json(row)
    if json_:
        print_json(facts | {"supervision": supervision_json(ledger, [row])})
        return
    print_facts(facts | {"took": duration(row.duration_s)})
    print_supervision(ledger, [row])


def print_config(row: Row) -> None:
    """Raises InputError for an attempt: its config is its run's."""
    if isinstance(row, AttemptRow):
        raise InputError("an attempt has no config of its own", value=row.attempt_id, next_step="name its run")
    config = row.resolved if isinstance(row, PipelineRunRow) else row.config
    sys.stdout.write(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def print_patch(workspace: Workspace, ledger: Ledger, row: Row) -> None:
    """Raises InputError where there were no uncommitted changes, or they were too large to keep."""
    identity, code = _code(ledger, row)
    diff = code.get("diff")
    if diff is None:
        said = "the code had no uncommitted changes" if code.get("commit") else "no state of the code was recorded"
        raise InputError(said, value=identity, next_step=f"m4v runs show {identity}")
    if not diff["kept"]:
        raise InputError(
            "the uncommitted changes were too large to keep", value=f"{diff['size_bytes']} bytes", where=identity
        )
    sys.stdout.flush()
    sys.stdout.buffer.write(BlobStore(workspace.store_uri).get(diff["sha256"]))


def _code(ledger: Ledger, row: Row) -> tuple[str, Mapping[str, Any]]:
    if isinstance(row, PipelineRunRow):
        return row.pipeline_run_id, ledger.begun_environment(row.pipeline_run_id).get("code") or {}
    if isinstance(row, AttemptRow):
        if row.run_id is None:
            raise InputError("this attempt has committed no run", value=row.attempt_id)
        row = ledger.run(row.run_id)
    return row.run_id, row.environment.get("code") or {}


def code_words(code: Mapping[str, Any]) -> str:
    """`0dc14ec on main, 3 files changed (diff 5f…)`, or the package's version."""
    if not code:
        return "not recorded"
    if not code.get("commit"):
        return f"version {code.get('version') or 'unknown'} ({code.get('note', '')})"
    text = f"{code['commit'][:12]} on {code.get('branch')}"
    if code.get("dirty"):
        diff = code.get("diff") or {}
        text += f", {len(code['changed'])} files changed (diff {short(diff.get('sha256'))}; --patch prints it)"
    return text


def _attempt_json(row: AttemptRow) -> dict[str, Any]:
    return {**asdict(row), "duration_s": row.duration_s, "exit": exit_name(row.exit_class)}


def exit_name(exit_class: int | None) -> str | None:
    """`0 ok`, `30 infrastructure`; None while it runs."""
    if exit_class is None:
        return None
    known = {int(member): member.name.lower().replace("_", " ") for member in ExitClass}
    return f"{exit_class} {known.get(exit_class, 'unknown')}"


def gpu_hours(run: RunRow, attempts: Sequence[AttemptRow]) -> float:
    """Of all attempts of a run; 0 on a CPU."""
    numerics = run.environment.get("numerics") or {}
    if numerics.get("device", "cpu") == "cpu":
        return 0.0
    return sum(a.duration_s or 0.0 for a in attempts) * int(numerics.get("world_size", 1)) / 3600


# A pipeline run


def _show_pipeline(ledger: Ledger, row: PipelineRunRow, json_: bool) -> None:
    nodes = ledger.nodes(row.pipeline_run_id)
    runs = {n.node_id: ledger.run(n.run_id) for n in nodes if n.run_id is not None}
    attempts = ledger.attempts(pipeline_run_id=row.pipeline_run_id, limit=None)
    environment = ledger.begun_environment(row.pipeline_run_id)
    verified = ledger.verifications(row.pipeline_run_id)
    if json_:
        print_json({
            **asdict(row), "exit": exit_name(row.exit_class), "duration_s": _seconds(row), "environment": environment,
            "nodes": [_node_json(n, runs.get(n.node_id), attempts) for n in nodes],
            "attempts": [_attempt_json(a) for a in attempts], "verifications": [asdict(v) for v in verified],
            "supervision": supervision_json(ledger, attempts),
        })  # fmt: skip
        return
    print_facts({
        "pipeline_run_id": row.pipeline_run_id, "recipe": row.recipe, "recipe_digest": Id(row.recipe_digest),
        "status": row.status, "exit": exit_name(row.exit_class), "message": row.message, "trigger": row.trigger,
        "host": row.host, "started": row.started_at, "finished": row.finished_at, "took": duration(_seconds(row)),
        "code": code_words(environment.get("code") or {}), "python": environment.get("python"),
    })  # fmt: skip
    print()
    print_rows(
        ("stage", "how", "took", "attempts", "run", "outputs", "reason"),
        [_node_row(n, runs.get(n.node_id), attempts) for n in nodes], text=("outputs", "reason"),
    )  # fmt: skip
    print_measured(ledger, runs)
    _print_attempts([a for a in attempts if a.status != "succeeded"], "attempts that did not succeed")
    print_supervision(ledger, attempts)
    _print_verifications(verified)
    print(f"\nconfig: m4v runs show {row.pipeline_run_id} --config; logs: m4v runs logs {row.pipeline_run_id}")


def _seconds(row: PipelineRunRow) -> float | None:
    return None if row.finished_at is None else (row.finished_at - row.started_at).total_seconds()


def _of_node(node: NodeRow, attempts: Sequence[AttemptRow]) -> list[AttemptRow]:
    return [a for a in attempts if a.node_id == node.node_id]


def _node_json(node: NodeRow, run: RunRow | None, attempts: Sequence[AttemptRow]) -> dict[str, Any]:
    own = _of_node(node, attempts)
    outputs = [asdict(p) for p in run.outputs] if run is not None else []
    return {
        **asdict(node), "metrics": run.metrics if run is not None else {}, "outputs": outputs,
        "attempts": [a.attempt_id for a in own], "duration_s": sum(a.duration_s or 0.0 for a in own),
    }  # fmt: skip


def _node_row(node: NodeRow, run: RunRow | None, attempts: Sequence[AttemptRow]) -> tuple[object, ...]:
    own = _of_node(node, attempts)
    took = duration(sum(a.duration_s or 0.0 for a in own)) if own else None
    outputs = ", ".join(f"{p.kind} {short(p.artifact_id)}" for p in (run.outputs if run else ()))
    return node.node_id, node.how, took, len(own) or None, node.run_id, outputs, node.reason


# A stage run


def _show_run(ledger: Ledger, row: RunRow, json_: bool) -> None:
    attempts = ledger.attempts(stage_key=row.stage_key, limit=None)
    made_by = next((a for a in attempts if a.attempt_id == row.attempt_id), None)
    verified = ledger.verifications(row.run_id)
    lock = row.key_record.get("lock_digest")
    if json_:
        print_json({
            **asdict(row), "attempts": [_attempt_json(a) for a in attempts], "lock_digest": lock,
            "gpu_hours": gpu_hours(row, attempts), "pipeline_run_id": made_by.pipeline_run_id if made_by else None,
            "node_id": made_by.node_id if made_by else None, "verifications": [asdict(v) for v in verified],
            "supervision": supervision_json(ledger, attempts),
        })  # fmt: skip
        return
    facts = {k: v for k, v in asdict(row).items() if k not in _NESTED}
    host = (row.environment.get("host") or {}).get("name")
    facts |= {
        "pipeline_run": made_by.pipeline_run_id if made_by else None, "node": made_by.node_id if made_by else None,
        "code": code_words(row.environment.get("code") or {}), "lock_digest": lock, "host": host,
        "took": duration(made_by.duration_s if made_by else None), "gpu_hours": gpu_hours(row, attempts) or None,
    }  # fmt: skip
    print_facts(facts)
    _print_sections(row)
    print()
    ports = [("input", *_port(ledger, p)) for p in row.inputs] + [("output", *_port(ledger, p)) for p in row.outputs]
    print_rows(("port", "name", "kind", "artifact", "size", "place"), ports, text=("place",))
    _print_attempts(attempts, "attempts")
    print_supervision(ledger, attempts)
    _print_verifications(verified)


def _print_sections(row: RunRow) -> None:
    environment = {k: v for k, v in row.environment.items() if k not in ("code", "request")}
    weights = row.key_record.get("weights") or {}
    for title, values in (
        ("environment", environment), ("config", row.config), ("weights", weights), ("metrics", row.metrics)
    ):  # fmt: skip
        if values:
            print(f"\n{title}")
            print_facts({f"  {k}": v for k, v in flatten(values).items()})


def _port(ledger: Ledger, port: PortRow) -> tuple[object, ...]:
    row = ledger.artifact(port.artifact_id, port.kind)
    return port.name, port.kind, Id(port.artifact_id), size(row.size_bytes), row.uri


def _print_attempts(attempts: Sequence[AttemptRow], title: str) -> None:
    if not attempts:
        return
    print(f"\n{title}")
    print_rows(
        ("attempt", "stage", "status", "exit", "started", "took", "host", "message", "log"),
        [
            (a.attempt_id, a.node_id or a.stage, a.status, exit_name(a.exit_class), a.started_at,
             duration(a.duration_s), a.host, a.message, a.log_path)
            for a in attempts
        ],
        text=("message", "log"),
    )  # fmt: skip


def _print_verifications(rows: Sequence[VerificationRow]) -> None:
    if not rows:
        return
    print("\nexecuted again")
    print_rows(
        ("when", "verdict", "host", "allowed to differ", "first difference", "event"),
        [
            (v.at, v.verdict, (v.facts.get("host") or {}).get("name"), ", ".join(v.facts.get("allowed") or []),
             v.facts.get("first_difference"), v.seq)
            for v in rows
        ],
        text=("allowed to differ", "first difference"),
    )  # fmt: skip
