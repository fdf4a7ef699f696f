"""Ctrl-C and SIGTERM drain a run wherever they meet it, not only while it waits for a stage."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from bench import open_bench
from stages_for_faults import CountConfig, pipeline

from pipelines.execute import NodeStatus
from pipelines.interrupts import drain_on_signal

NUMBERS = (signal.SIGINT, signal.SIGTERM)
LONG = CountConfig(label="a", items=1000, seconds_an_item=0.05)


@pytest.fixture
def bench(tmp_path):
    with open_bench(tmp_path / "home") as opened:
        yield opened


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_that_meets_a_display_or_the_ledger_drains_all_the_same(bench, tmp_path, number):
    (tmp_path / "switches").mkdir()
    before, sent = [signal.getsignal(one) for one in NUMBERS], []

    def interrupt(event) -> None:
        if event.kind == "progress" and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    run = bench.new_run(pipeline(tmp_path / "switches", first=LONG)[:1], on_event=interrupt)
    outcomes = run.run_all()
    assert sent == [number]
    assert outcomes["count.a"].status is NodeStatus.DRAINED
    assert [signal.getsignal(one) for one in NUMBERS] == before


def test_the_second_ctrl_c_is_an_exception():
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def interrupt_twice() -> None:
        with drain_on_signal(asked.set):
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.wait(60)
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", NUMBERS)
def test_the_second_signal_ends_the_process_of_a_flow(number):
    code = (
        "import os, threading; from pipelines.interrupts import drain_on_signal; asked = threading.Event()\n"
        f"with drain_on_signal(asked.set, as_flow=True):\n os.kill(os.getpid(), {int(number)}); assert asked.wait(60)\n"
        f" os.kill(os.getpid(), {int(number)}); print('lives on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (-number, "")
    assert "press Ctrl-C again to end at once" in done.stderr


def test_a_lock_that_the_interrupted_code_holds_stops_nothing():
    lock, asked = threading.Lock(), threading.Event()

    def drain() -> None:
        with lock:
            asked.set()

    with drain_on_signal(drain):
        with lock:
            os.kill(os.getpid(), signal.SIGINT)
            signal.getsignal(signal.SIGINT)  # a bytecode later the handler has run, under the lock
        assert asked.wait(60)


def test_outside_the_main_thread_signals_stay_as_they_are():
    found = []

    def inside() -> None:
        before = signal.getsignal(signal.SIGINT)
        with drain_on_signal(lambda: None):
            found.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [True]
