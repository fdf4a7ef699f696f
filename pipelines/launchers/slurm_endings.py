"""How a Slurm job ended: from its own last word, else from the state that Slurm gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from m4v.core.errors import ExitClass
from m4v.core.stage import ExitRecord, read_exits
from pipelines.device_faults import DEVICE_FAULTS
from pipelines.launchers.base import DRAIN_ASKED, LOG, Ending
from pipelines.launchers.endings import ending_of
from pipelines.launchers.slurm_client import JobState
from pipelines.launchers.slurm_files import JobEnd, JobSpec

_NODE_STATES = ("NODE_FAIL", "BOOT_FAIL")
_MESSAGES = {
    "PREEMPTED": "preempted before its state was saved",
    "TIMEOUT": "the time limit came before its state was saved: raise slurm.drain_s or slurm.time_minutes",
    "DEADLINE": "Slurm's deadline came before it was done",
    "OUT_OF_MEMORY": "killed by Slurm for lack of memory: raise slurm.memory",
    "BOOT_FAIL": "its nodes did not start",
    "NODE_FAIL": "a node of it was lost",
}


def ending_of_job(end: JobEnd, spec: JobSpec, work_dir: Path) -> Ending:
    """From the batch step's last word and what the ranks wrote."""
    if end.exit_class is not None:
        return Ending(ExitClass(end.exit_class), end.message, nodes=end.lost)
    asked = (work_dir / DRAIN_ASKED).exists()
    exits = read_exits(work_dir)
    ending = ending_of(exits, end.returncode, spec.ranks, draining=asked, log=work_dir / LOG)
    if ending.exit_class is ExitClass.DRAINED and end.preempted:
        return replace(ending, preempted=True, message="its place was taken away; the state is saved")
    if ending.exit_class is not ExitClass.INFRASTRUCTURE:
        return ending
    return replace(ending, nodes=end.failed or suspects(exits, end.nodes, spec))


def suspects(exits: Sequence[ExitRecord], nodes: Sequence[str], spec: JobSpec) -> tuple[str, ...]:
    """Nodes whose ranks died without a word or blame their device; none when that is all of several nodes."""
    if len(nodes) != spec.nodes:
        return ()
    spoke = {e.rank for e in exits}
    blamed = {e.rank for e in exits if any(sign in e.message for sign in DEVICE_FAULTS)}
    ranks = blamed or (set(range(spec.ranks)) - spoke)
    found = sorted({nodes[rank // spec.ranks_per_node] for rank in ranks})
    return () if len(found) == len(nodes) > 1 else tuple(found)


def ending_of_state(state: JobState | None, down: Sequence[str], asked: bool) -> Ending:
    """Of a job that left no word. `down`: its nodes that are out of order; `asked`: a drain was asked for."""
    if state is None:
        return Ending(ExitClass.INFRASTRUCTURE, "Slurm has forgotten the job, and it left no word", nodes=tuple(down))
    if state.state == "CANCELLED":
        said = "cancelled while draining" if asked else "cancelled in Slurm by somebody (scancel)"
        return Ending(ExitClass.DRAINED, said)
    if asked and state.state in ("TIMEOUT", "PREEMPTED"):
        return Ending(ExitClass.DRAINED, f"ended while draining ({state.state.lower()})")
    message = _MESSAGES.get(state.state, f"ended without a word (Slurm says {state.state})")
    if state.reason and state.state not in _MESSAGES:
        message += f": {state.reason}"
    if down:
        message += f"; out of order: {', '.join(down)}"
    blamed = tuple(down) if state.state in (*_NODE_STATES, "FAILED", "COMPLETED") else ()
    return Ending(ExitClass.INFRASTRUCTURE, message, nodes=blamed, preempted=state.state == "PREEMPTED")
