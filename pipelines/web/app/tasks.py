"""Work that an action started and that outlasts its request: what it says meanwhile, and how it ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from m4v.core.errors import InfrastructureError, InputError, M4VError
from pipelines.access import Actor
from pipelines.ledger.ids import new_id
from pipelines.ledger.types import utc_now

_KEPT = 50  # ended ones whose page can still be looked at
_LINES = 500  # told lines that are kept of each
_log = logging.getLogger(__name__)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What was done, in a sentence, and the page that shows it."""

    text: str
    address: str


@dataclass
class Task:
    """`outcome` or `error` is set once it has ended."""

    task_id: str
    name: str
    by: str
    began_at: datetime
    lines: list[str] = field(default_factory=list)
    outcome: Outcome | None = None
    error: M4VError | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def is_live(self) -> bool:
        return not self._ended.is_set()

    @property
    def state(self) -> str:
        return "running" if self.is_live else "failed" if self.error else "succeeded"

    def wait(self, seconds: float) -> bool:
        """Has it ended, at the latest after so many seconds?"""
        return self._ended.wait(seconds)

    def tell(self, text: str) -> None:
        if len(self.lines) < _LINES:
            self.lines.append(text)

    def work(self, do: Callable[[Tell], Outcome]) -> None:
        try:
            self.outcome = do(self.tell)
        except M4VError as error:
            self.error = error
        except Exception as error:
            _log.exception("%s failed", self.name)
            self.error = M4VError(
                "a fault of m4v", value=type(error).__name__, next_step="the server's log has the details"
            )
        finally:
            self._ended.set()


class Tasks:
    """The work of one server, in threads that end with it: whatever runs here goes on where it was killed when it is
    asked for again. One of each name at a time."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._lock = threading.Lock()

    def begin(self, name: str, actor: Actor, do: Callable[[Tell], Outcome]) -> Task:
        """Start work; raises InfrastructureError while other work of this name runs."""
        with self._lock:
            running = next((t for t in self._tasks.values() if t.is_live and t.name == name), None)
            if running is not None:
                raise InfrastructureError(
                    f"{name} is at work already, begun by {running.by}", value=running.task_id,
                    next_step=f"look at /tasks/{running.task_id}",
                )  # fmt: skip
            task = Task(new_id(), name, actor.name, utc_now())
            self._tasks[task.task_id] = task
            ended = [t.task_id for t in self._tasks.values() if not t.is_live]
            for task_id in ended[: max(0, len(ended) - _KEPT)]:
                del self._tasks[task_id]
        threading.Thread(target=task.work, args=(do,), name=name, daemon=True).start()
        return task

    def get(self, task_id: str) -> Task:
        """Raises InputError for work that this server does not know (any more)."""
        task = self._tasks.get(task_id)
        if task is None:
            raise InputError(
                "this server knows no such work", value=task_id,
                next_step="it was begun before the server was started, or long ago; asked for again it goes on",
            )  # fmt: skip
        return task
