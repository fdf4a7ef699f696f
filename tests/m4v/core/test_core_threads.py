"""Work in threads: order, errors."""

from __future__ import annotations

import threading

import pytest

from m4v.core.threads import together


def test_together_keeps_the_order_and_works_at_once() -> None:
    meeting = threading.Barrier(3, timeout=300)

    def meet(item: int) -> int:
        meeting.wait()  # none goes on before all three are at work
        return 10 * item

    assert together(meet, (3, 1, 2)) == [30, 10, 20]
    assert together(str, iter([7])) == ["7"]
    assert together(str, []) == []


def test_the_first_error_of_the_order_is_raised() -> None:
    def fail(item: int) -> int:
        if item:
            raise ValueError(item)
        return item

    with pytest.raises(ValueError, match="1"):
        together(fail, (0, 1, 2))
