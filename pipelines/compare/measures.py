"""Metrics, environments and code of two stage runs against each other."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import M4VError
from m4v.core.storage import Storage
from pipelines.compare.model import CodeDelta, Difference, FieldChange, MetricDelta
from pipelines.keys import CODE_ROOT, flatten
from pipelines.ledger import Ledger, RunRow

MAX_SUBJECTS = 50
_GIT_TIMEOUT_S = 10
_SCORES, _CURVES = "scores.json", "metrics.jsonl"
_SCORING = ("evaluate", "vbench")  # stages whose metrics are scores of samples
_TAIL_BYTES = 1 << 16


def delta(name: str, before: float | None, after: float | None, note: str = "") -> MetricDelta:
    """Two measurements; with a `note` they stand side by side and are not subtracted."""
    if before is None or after is None or note:
        return MetricDelta(name, before, after, None, None, note)
    change = after - before
    return MetricDelta(name, before, after, change, change / abs(before) if before else None)


def metric_deltas(ledger: Ledger, before: RunRow | None, after: RunRow | None) -> tuple[MetricDelta, ...]:
    """Every number that either run measured, what training wrote of its last step included."""
    old, new = numbers(ledger, before), numbers(ledger, after)
    note = _protocol_note(ledger, before, after)
    return tuple(delta(name, old.get(name), new.get(name), note) for name in sorted(old.keys() | new))


def numbers(ledger: Ledger, run: RunRow | None) -> dict[str, float]:
    """Metrics of a run that are numbers, by dotted name, and `last.NAME` of the last step of training."""
    if run is None:
        return {}
    last = _last_step(ledger, run)
    found = {**flatten(run.metrics), **{f"last.{name}": value for name, value in last.items()}}
    return {n: float(v) for n, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _last_step(ledger: Ledger, run: RunRow) -> dict[str, Any]:
    """The last line of a checkpoint's curves; empty where there is none, or its bytes are gone."""
    data = read_output(ledger, run, ArtifactKind.CHECKPOINT, _CURVES, _TAIL_BYTES)
    lines = (data or b"").splitlines()
    try:
        return dict(json.loads(lines[-1])) if lines else {}
    except ValueError:
        return {}


def read_output(
    ledger: Ledger, run: RunRow, kind: ArtifactKind, name: str, tail_bytes: int | None = None
) -> bytes | None:
    """A file of the run's output of a kind (its end, with `tail_bytes`); None where there is none or it is gone."""
    for port in run.outputs:
        if port.kind != kind:
            continue
        try:
            storage = Storage(ledger.artifact(port.artifact_id, kind).uri)
            if not storage.exists(name):
                return None
            if tail_bytes is None:
                return storage.read_bytes(name)
            with storage.open(name) as stream:
                end = stream.seek(0, 2)
                stream.seek(max(0, end - tail_bytes))
                return stream.read()
        except M4VError:
            return None
    return None


def _protocol_note(ledger: Ledger, before: RunRow | None, after: RunRow | None) -> str:
    """In what two evaluations were not measured alike; such scores are never subtracted."""
    from eval.records import Identity  # its vocabulary costs an import that a plan does without

    if before is None or after is None or before.stage not in _SCORING:
        return ""
    identities = []
    for run in (before, after):
        data = read_output(ledger, run, ArtifactKind.SCORES, _SCORES)
        try:
            identities.append(Identity.model_validate(json.loads(data or b"{}")["identity"]))
        except (KeyError, ValueError):
            return ""
    why = identities[0].apart(identities[1])
    return f"not measured alike: {why}" if why else ""


def environment_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Interpreter, libraries, launcher and host of two runs; what only one of them loaded is shown against None."""
    old, new = _environment(before), _environment(after)
    return tuple(Difference(n, old.get(n), new.get(n)) for n in sorted(old.keys() | new) if old.get(n) != new.get(n))


def _environment(environment: Mapping[str, Any]) -> dict[str, object]:
    host = environment.get("host") or {}
    found = {f"library {name}": value for name, value in (environment.get("libraries") or {}).items()}
    found |= {name: environment[name] for name in ("python", "launcher") if name in environment}
    found |= {f"host {name}": value for name, value in host.items()}
    return found


def code_delta(before: Mapping[str, Any], after: Mapping[str, Any], files: tuple[FieldChange, ...]) -> CodeDelta:
    """`before` and `after` are recorded code states (`environment["code"]`), empty where nothing was recorded."""
    old, new = before.get("commit"), after.get("commit")
    count, subjects = _between(old, new)
    return CodeDelta(
        files, old, new, bool(before.get("dirty")), bool(after.get("dirty")),
        (before.get("diff") or {}).get("sha256"), (after.get("diff") or {}).get("sha256"), count, subjects,
    )  # fmt: skip


def _between(old: str | None, new: str | None) -> tuple[int | None, tuple[str, ...]]:
    """Commits that one of the two has and the other has not; None when the checkout here does not know both."""
    if not old or not new:
        return None, ()
    if old == new:
        return 0, ()
    command = ["git", "-C", str(CODE_ROOT), "log", "--format=%h %s", f"{old}...{new}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None, ()
    lines = done.stdout.splitlines()
    return (len(lines), tuple(lines[:MAX_SUBJECTS])) if done.returncode == 0 else (None, ())
