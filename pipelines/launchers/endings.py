"""Exit class of an attempt from what its ranks wrote, else from the wait status (DESIGN, Exit classes)."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from m4v.core.errors import RANK_PRECEDENCE, ExitClass
from m4v.core.stage import ExitRecord
from pipelines.launchers.base import Ending

_TAIL_BYTES = 8192
_BINDING = (ExitClass.NEEDS_HUMAN, ExitClass.DATA_INTEGRITY, ExitClass.CONFIG)
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


def ending_of(exits: Sequence[ExitRecord], returncode: int, ranks: int, *, draining: bool, log: Path) -> Ending:
    """How an attempt of `ranks` ranks ended. `returncode` is the supervisor's: 128 + n for signal n.

    torchrun answers 1 whatever happened, and when one rank fails it sends SIGTERM to the others, which then
    drain in good order; so a gang is *drained* only if a drain was asked for or no rank says otherwise.
    """
    if ranks == 1 and returncode > 128:
        return _signalled(returncode - 128, draining)
    if not exits:
        return _silent(returncode, draining, log)
    if returncode == 0 and all(e.exit_class == ExitClass.OK for e in exits):
        return Ending(ExitClass.OK)
    worst = _worst([_class_of(e) for e in exits], ranks, draining=draining)
    words = [e.message for e in exits if _class_of(e) is worst]
    if (
        worst is None or not words
    ):  # a rank died wordless; the others were content or drained because torchrun stopped them
        return _silent(returncode, draining, log)
    return Ending(worst, words[0])


def _class_of(record: ExitRecord) -> ExitClass:
    known = {ExitClass.OK, *RANK_PRECEDENCE}
    return ExitClass(record.exit_class) if record.exit_class in known else ExitClass.BUG


def _worst(classes: list[ExitClass], ranks: int, *, draining: bool) -> ExitClass | None:
    """The binding class of the ranks that spoke; None when none of them tells why the gang failed."""
    for binding in _BINDING:
        if binding in classes:
            return binding
    if ExitClass.BUG in classes:
        return ExitClass.BUG
    drained = ExitClass.DRAINED in classes
    if drained and (draining or (len(classes) == ranks and ExitClass.INFRASTRUCTURE not in classes)):
        return ExitClass.DRAINED
    return ExitClass.INFRASTRUCTURE if ExitClass.INFRASTRUCTURE in classes else None


def _signalled(number: int, draining: bool) -> Ending:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if draining and number in (signal.SIGTERM, signal.SIGKILL):
        return Ending(ExitClass.DRAINED, f"stopped by {name} while draining")
    if number in _CRASHES:
        return Ending(ExitClass.INFRASTRUCTURE, f"crashed with {name}", crash=True)
    hint = ", perhaps for lack of memory" if number == signal.SIGKILL else ""
    return Ending(ExitClass.INFRASTRUCTURE, f"killed by {name}{hint}")


def _silent(returncode: int, draining: bool, log: Path) -> Ending:
    """No rank left a word: the wait status decides, and torchrun's report of its ranks' signals."""
    if returncode > 128:
        return _signalled(returncode - 128, draining)
    tail = log_tail(log)
    for number in (*_CRASHES, signal.SIGKILL, signal.SIGTERM):
        if f"exitcode: -{number.value}" in tail.replace(" ", "").replace("exitcode:", "exitcode: "):
            return _signalled(number, draining)
    if "EADDRINUSE" in tail or "address already in use" in tail.lower():
        return Ending(ExitClass.INFRASTRUCTURE, "the rendezvous port was taken meanwhile")
    if returncode in {c.value for c in RANK_PRECEDENCE}:
        return Ending(ExitClass(returncode), last_line(tail))
    return Ending(ExitClass.BUG, last_line(tail) or f"ended with code {returncode} and no word")


def log_tail(log: Path, size_bytes: int = _TAIL_BYTES) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - size_bytes))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
