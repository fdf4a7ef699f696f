"""Progress of a run: live bars on a terminal, one plain line an event otherwise."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from pipelines.cli.output import console, duration
from pipelines.execute import NodeEvent
from pipelines.plan import Plan
from pipelines.session import Session

PLAIN_INTERVAL_S = 15.0


class RunDisplay:
    """Receives the events of a run, from any thread."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = None if quiet or not sys.stdout.isatty() else _bars()
        self._bars: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}
        self._guard = threading.Lock()

    def __enter__(self) -> RunDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def announce(self, session: Session, plan: Plan) -> None:
        counts = ", ".join(f"{count} {name}" for name, count in plan.counts().items() if count)
        expected = f", about {duration(plan.estimate_s)}" if plan.estimate_s else ""
        stages = "1 stage" if len(plan.steps) == 1 else f"{len(plan.steps)} stages"
        self.tell(f"{session.recipe.name}: {stages}, {counts}{expected}; home {session.workspace.home}")

    def tell(self, text: str) -> None:
        """A line that is about no stage."""
        self._show(lambda: print(text, flush=True) if self._live is None else self._live.console.print(text))

    def __call__(self, event: NodeEvent) -> None:
        self._show(lambda: self._print(event) if self._live is None else self._update(self._live, event))

    def _show(self, show: Callable[[], None]) -> None:
        """A reader that went away (`m4v run … | head`) does not end the run."""
        with self._guard:
            if self._quiet:
                return
            try:
                show()
            except OSError:
                self._quiet = True

    def _update(self, live: Progress, event: NodeEvent) -> None:
        if event.node_id not in self._bars:
            self._bars[event.node_id] = live.add_task(event.node_id, total=None, note="")
        bar = self._bars[event.node_id]
        if event.progress is not None:
            state = event.progress
            live.update(bar, total=state.total, completed=state.done, note=_note(event))
        elif event.outcome is not None:
            outcome = event.outcome
            if outcome.status.has_outputs:
                live.update(bar, total=1, completed=1)
            live.update(bar, note=f"{outcome.status}: {outcome.error or outcome.reason}")
            live.stop_task(bar)
        elif event.text:
            live.update(bar, note=event.text)

    def _print(self, event: NodeEvent) -> None:
        now = time.monotonic()
        if event.kind == "progress":
            if now - self._printed.get(event.node_id, 0.0) < PLAIN_INTERVAL_S:
                return
            line = f"  {event.node_id}: {_note(event)}"
        elif event.outcome is not None:
            outcome = event.outcome
            why = outcome.error or outcome.reason
            line = f"{event.node_id}: {outcome.status} after {duration(outcome.seconds)} ({why})"
        elif event.kind == "note":
            line = f"  {event.node_id}: {event.text}"
        else:
            self._printed[event.node_id] = now
            return
        self._printed[event.node_id] = now
        print(line, flush=True)


def _bars() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<20}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        console=console(),
        expand=True,
    )


def _note(event: NodeEvent) -> str:
    state = event.progress
    if state is None:
        return event.text
    total = f" of {state.total:g}" if state.total is not None else ""
    rate = f", {state.rate:.3g}/s" if state.rate else ""
    left = f", {duration(state.eta_s)} left" if state.eta_s else ""
    return f"{state.done:g}{total} {state.unit}{rate}{left}" + (f" ({state.note})" if state.note else "")
