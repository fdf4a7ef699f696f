"""Errors by who must act, and the exit classes every process of the product uses.

A message says what went wrong, with which value, where, and the next command. The exit class tells a
supervisor whether a retry can help; `DESIGN` calls these numbers frozen, and a test holds them.
"""

from __future__ import annotations

from enum import IntEnum

_SHOWN_CHARS = 300  # of an offending value


class ExitClass(IntEnum):
    """Process exit codes; what a supervisor does with each stands beside it."""

    OK = 0
    BUG = 1  # anything unclassified: show the log, never retry on its own
    USAGE = 2  # command-line usage
    CONFIG = 10  # never retry: somebody must change the recipe or the environment
    DATA_INTEGRITY = 20  # never retry: bytes are not what they claim to be
    INFRASTRUCTURE = 30  # retry with backoff
    DRAINED = 40  # state is saved: resume when allowed
    NEEDS_HUMAN = 50
    GATE_REFUSED = 60


class M4VError(Exception):
    """Base of every error a user may see.

    `what` is a sentence without its full stop; `value` the offending value; `where` a file, key or row;
    `next_step` the command or edit that helps.
    """

    exit_class = ExitClass.BUG

    def __init__(
        self,
        what: str,
        *,
        value: object = None,
        where: str | None = None,
        next_step: str | None = None,
    ) -> None:
        self.what, self.value, self.where, self.next_step = what, value, where, next_step
        super().__init__(self.message)

    @property
    def problem(self) -> str:
        """What, value and where, without the next step."""
        text = self.what
        if self.value is not None:
            shown = repr(self.value)
            text += f": {shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + '…'}"
        if self.where:
            text += f" (in {self.where})"
        return text

    @property
    def message(self) -> str:
        return f"{self.problem}. Next: {self.next_step}" if self.next_step else self.problem

    def __str__(self) -> str:
        return self.message


class ConfigError(M4VError):
    """A recipe, override, environment or declared lock file is wrong."""

    exit_class = ExitClass.CONFIG


class InputError(M4VError):
    """Something the user pointed at is missing or of the wrong form."""

    exit_class = ExitClass.CONFIG


class DataIntegrityError(M4VError):
    """Bytes differ from their recorded digest, or a table from its schema."""

    exit_class = ExitClass.DATA_INTEGRITY


class InfrastructureError(M4VError):
    """Disk, network, database, scheduler: trying again may help."""

    exit_class = ExitClass.INFRASTRUCTURE


class Drained(M4VError):
    """The stage saved its state on request and stopped."""

    exit_class = ExitClass.DRAINED


class NeedsHuman(M4VError):
    """A person must decide before this can go on."""

    exit_class = ExitClass.NEEDS_HUMAN


class GateRefused(M4VError):
    """An evaluation gate did not pass."""

    exit_class = ExitClass.GATE_REFUSED


RANK_PRECEDENCE = (
    ExitClass.NEEDS_HUMAN,
    ExitClass.DATA_INTEGRITY,
    ExitClass.CONFIG,
    ExitClass.DRAINED,
    ExitClass.INFRASTRUCTURE,
)


def worst_of(classes: list[ExitClass]) -> ExitClass:
    """The exit class of a gang of ranks: the most binding one; `OK` only if all are."""
    for candidate in RANK_PRECEDENCE:
        if candidate in classes:
            return candidate
    return ExitClass.OK if classes and all(c is ExitClass.OK for c in classes) else ExitClass.BUG
