"""The preflight of training stages as a table below the plan."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.cli.output import duration, print_rows, size
from pipelines.generation_cost import GenerationCost
from pipelines.plan import hours_text
from pipelines.preflight import Preflight
from pipelines.session import Session

BILLION = 1e9
PETA = 1e15


def print_notes(session: Session) -> None:
    """What stands in for what in a rehearsal."""
    for note in session.notes:
        print(f"rehearsal: {note}")


def print_preflight(found: Mapping[str, Preflight]) -> None:
    """A row for each stage, the memory of a GPU by part, and what the figures rest on."""
    if not found:
        return
    columns = ("stage", "parameters", "ranks", "tokens/step", "step", "GPU-hours", "memory each", "saves", "checkpoint")
    rows: list[tuple[object, ...]] = []
    parts: list[tuple[object, ...]] = []
    for node, each in found.items():
        told = each.estimate
        kind = f"{told.ranks} x {told.gpu or 'cpu'}"
        hours = "-" if told.gpu_hours is None else hours_text(told.gpu_hours)
        room = "" if told.gpu_memory_bytes is None else f" of {size(told.gpu_memory_bytes)}"
        rows.append((
            node, _count(told.parameters), kind, f"{told.tokens_per_step:,.0f}", duration(told.step_seconds), hours,
            size(told.memory_bytes) + room, size(told.state_bytes), size(told.checkpoint_bytes),
        ))  # fmt: skip
        how = f"ZeRO-{told.zero_stage}, keeps {_KEPT[told.checkpointing]}"
        parts.append((node, how, *(size(part) for part in told.memory)))
    print_rows(columns, rows, title="Preflight of the training stages")
    known = [each.estimate.gpu_hours for each in found.values() if each.estimate.gpu_hours is not None]
    if known:
        print(f"training: about {hours_text(sum(known))} GPU-hours")
    print_rows(("stage", "how", *next(iter(found.values())).estimate.memory._fields), parts, title="Memory by part")
    for words in dict.fromkeys(w for each in found.values() for w in each.estimate.assumptions):
        print(f"assumed: {words}")
    for node, each in found.items():
        if each.advice is not None:
            print(f"{node}: {each.advice}")


def print_generation(found: Mapping[str, GenerationCost]) -> None:
    """A row for each stage that samples videos on GPUs: what they cost on each type."""
    if not found:
        return
    types = tuple(next(iter(found.values())).gpu_hours)
    columns = ("stage", "prompts", "videos", "PFLOP a video", *(f"{name}: a video, GPU-hours" for name in types))
    rows = [
        (node, each.prompts, f"{each.videos:,}", f"{each.flops / PETA:.3g}",
         *(f"{duration(each.seconds[name])}, {hours_text(each.gpu_hours[name])}" for name in types))
        for node, each in found.items()
    ]  # fmt: skip
    print_rows(columns, rows, title="Videos to sample")
    for words in dict.fromkeys(w for each in found.values() for w in each.assumptions):
        print(f"assumed: {words}")


_KEPT = {"none": "all activations", "selective": "products", "block": "block inputs"}


def _count(parameters: int) -> str:
    return f"{parameters / BILLION:.2f} B" if parameters >= BILLION / 10 else f"{parameters:,}"
