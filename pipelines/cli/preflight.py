"""What a plan tells beside its stages, as tables: what is missing, training stages, videos to sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.cli.output import duration, print_rows, size
from pipelines.generation_cost import GenerationCost
from pipelines.plan import hours_text
from pipelines.plan_view import Missing
from pipelines.preflight import Preflight
from pipelines.session import Session
from training.preflight import Estimate
from training.preflight.memory import Memory

BILLION = 1e9
PETA = 1e15


def print_notes(session: Session) -> None:
    """What stands in for what in a rehearsal."""
    for note in session.notes:
        print(f"rehearsal: {note}")


def print_missing(found: Sequence[Missing]) -> None:
    """What is not here, and for whom; how to bring it comes last, behind the plan."""
    rows = [(each.needed_by, each.problem) for each in found]
    if rows:
        print_rows(("needed by", "missing"), rows, title="Missing here", text=("needed by", "missing"))


def print_preflight(found: Mapping[str, Preflight]) -> None:
    """A row for each stage, the memory of a GPU by part, and what the figures rest on."""
    if not found:
        return
    told = {node: each.estimate for node, each in found.items()}
    columns = ("stage", "how", "ranks", "tokens/step", "step", "GPU-hours", "memory each")
    print_rows(columns, [_row(node, each) for node, each in told.items()], title="Preflight of the training stages")
    known = [each.gpu_hours for each in told.values() if each.gpu_hours is not None]
    if known:
        print(f"training: about {hours_text(sum(known))} GPU-hours")
    _print_sizes(told)
    _print_memory(told)
    for words in dict.fromkeys(w for each in told.values() for w in each.assumptions):
        print(f"assumed: {words}")
    for node, each in found.items():
        if each.advice is not None:
            print(f"{node}: {each.advice}")


def _row(node: str, told: Estimate) -> tuple[object, ...]:
    hours = "-" if told.gpu_hours is None else hours_text(told.gpu_hours)
    memory = size(told.memory_bytes)
    if told.gpu_memory_bytes is not None:
        memory = f"{memory.removesuffix(' GiB')} of {size(told.gpu_memory_bytes)}"
    return (
        node, f"{told.engine}, keeps {_KEPT[told.checkpointing]}", f"{told.ranks} x {told.gpu or 'cpu'}",
        f"{told.tokens_per_step:,.0f}", duration(told.step_seconds), hours, memory,
    )  # fmt: skip


def _print_sizes(found: Mapping[str, Estimate]) -> None:
    """Parameters and what is written, once for stages that are alike."""
    alike: dict[str, list[str]] = {}
    for node, told in found.items():
        words = f"{_count(told.parameters)} parameters, a checkpoint of {size(told.checkpoint_bytes)}, "
        alike.setdefault(f"{words}saves of {size(told.state_bytes)}", []).append(node)
    for words, nodes in alike.items():
        print(f"{'each stage' if len(alike) == 1 else ', '.join(nodes)}: {words}")


def _print_memory(found: Mapping[str, Estimate]) -> None:
    """The parts that any of the stages has."""
    names = [name for name in Memory._fields if any(getattr(told.memory, name) for told in found.values())]
    rows = [(node, *(size(getattr(told.memory, name)) for name in names)) for node, told in found.items()]
    print_rows(("stage", *names), rows, title="Memory by part")


def print_generation(found: Mapping[str, GenerationCost], gpu: str | None = None) -> None:
    """A row for each stage that samples videos on GPUs: what they cost on the profile's type, else on each."""
    if not found:
        return
    known = tuple(next(iter(found.values())).gpu_hours)
    types = (gpu,) if gpu in known else known
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
