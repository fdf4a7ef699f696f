"""The exit class of a stage process: from its ranks' records, else from its wait status and log."""

import pytest

from m4v.core.stage import ExitRecord
from pipelines.launchers.endings import ending_of


def exits(*classes: int | None) -> list[ExitRecord]:
    return [ExitRecord(rank=i, exit_class=c, message=f"rank {i}") for i, c in enumerate(classes) if c is not None]


@pytest.mark.parametrize(
    ("classes", "code", "draining", "expected"),
    [
        ((0, 0), 0, False, 0),
        ((10, 30), 1, False, 10),
        ((20, 10), 1, False, 20),
        ((50, 20), 1, False, 50),
        ((40, 30), 1, True, 40),
        ((40, 30), 1, False, 30),  # torchrun's own SIGTERM drained rank 0
        ((40, 40), 1, False, 40),  # the machine is being taken away: every rank saved its state
        ((40, 1), 1, False, 1),
        ((30, 1), 1, False, 1),
        ((30, None), 1, False, 30),
        ((99, 0), 1, False, 1),
        ((40, None), 128 + 9, False, 30),
    ],
)
def test_precedence_of_ranks(tmp_path, classes, code, draining, expected):
    ending = ending_of(exits(*classes), code, len(classes), draining=draining, log=tmp_path / "none.log")
    assert ending.exit_class == expected


@pytest.mark.parametrize(
    ("ranks", "code", "log", "draining", "expected", "crash"),
    [
        (1, 128 + 9, "", False, 30, False),
        (1, 128 + 15, "", False, 30, False),
        (1, 128 + 9, "", True, 40, False),
        (1, 128 + 11, "", False, 30, True),
        (1, 128 + 6, "", False, 30, True),
        (1, 1, "ImportError: no module\n", False, 1, False),
        (1, 10, "usage\n", False, 10, False),
        (2, 1, "  exitcode  : -9 (pid: 123)\n", False, 30, False),
        (2, 1, "  exitcode  : -11 (pid: 123)\n", False, 30, True),
        (2, 1, "RuntimeError: EADDRINUSE, message: address already in use\n", False, 30, False),
    ],
)
def test_endings_without_a_word(tmp_path, ranks, code, log, draining, expected, crash):
    (tmp_path / "stage.log").write_text(log)
    ending = ending_of([], code, ranks, draining=draining, log=tmp_path / "stage.log")
    assert (ending.exit_class, ending.crash) == (expected, crash)
    assert ending.message
