"""Delivery from the outbox: at least once, in order, kill-safe, and never in the way of a run."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from exports_history import HttpSink, small_history
from hypothesis import given, settings
from hypothesis import strategies as st

from m4v.core.errors import ExitClass, InfrastructureError, InputError, M4VError
from pipelines.exports import delivery
from pipelines.exports.config import MAX_TIMEOUT_S, OpenLineageFile, OpenLineageHttp
from pipelines.exports.courier import Courier
from pipelines.exports.delivery import Backoff, Delivered, deliver
from pipelines.exports.openlineage import OpenLineageMapper
from pipelines.exports.sinks import open_sink
from pipelines.exports.state import read_state
from pipelines.ledger import EventRow, Ledger
from pipelines.workspace import Workspace


def http_config(server: HttpSink, **changes: Any) -> OpenLineageHttp:
    """Patient, so that a machine that stalls is no sink that fails, unless the sink is meant to hang."""
    return OpenLineageHttp(
        name="marquez", kind="openlineage-http", url=server.url, **{"timeout_s": MAX_TIMEOUT_S, **changes}
    )


def over_http(ledger: Ledger, server: HttpSink, **changes: Any) -> Delivered:
    config = http_config(server, **changes)
    return deliver(ledger, config.name, lambda: open_sink(config, ledger, Path("/nowhere")))


def expected(ledger: Ledger) -> list[dict[str, Any]]:
    mapper = OpenLineageMapper(ledger, "m4v")
    return [e for event in ledger.events(limit=None) for e in mapper.map(event)]


def without_repeats(received: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events in the order of their first arrival; a repeated one is the same to the last byte."""
    found: dict[str, dict[str, Any]] = {}
    for event in received:
        found.setdefault(json.dumps(event, sort_keys=True), event)
    return list(found.values())


def test_sink_that_refuses_hangs_and_resets_gets_every_event_in_order(
    either_ledger: Ledger, http_sink: HttpSink
) -> None:
    ledger = either_ledger
    small_history(ledger)
    http_sink.script = ["503", "hang", "reset", "200", "200", "lost-answer", "503", "200", "429", "hang"]
    endings = []
    for _ in range(12):
        hangs = http_sink.script[:1] == ["hang"]
        done = over_http(ledger, http_sink, timeout_s=1.0 if hangs else MAX_TIMEOUT_S)
        endings.append(done.error.what.split(":")[0] if done.error else "ok")
        if done.ok:
            break
        assert done.may_retry
        assert done.waiting == ledger.outbox("marquez").waiting > 0
    assert endings == [
        "the sink answers 503", "the sink cannot be reached", "the sink cannot be reached",
        "the sink cannot be reached", "the sink answers 503", "the sink answers 429", "the sink cannot be reached",
        "ok",
    ]  # fmt: skip
    assert ledger.outbox("marquez").waiting == 0
    assert without_repeats(http_sink.received) == expected(ledger)
    # The event whose answer was lost came twice in a row; so did what shares its ledger event.
    assert 1 <= len(http_sink.received) - len(expected(ledger)) <= 2
    assert http_sink.headers[0]["path"] == "/api/v1/lineage"


def test_delivery_goes_on_where_it_stopped_and_sends_nothing_twice(ledger: Ledger, http_sink: HttpSink) -> None:
    small_history(ledger)
    first = over_http(ledger, http_sink)
    assert (first.events, first.waiting) == (len(ledger.events(limit=None)), 0)
    assert over_http(ledger, http_sink) == Delivered("marquez", 0, 0)
    ledger.begin_pipeline_run("demo", {"name": "demo"})
    assert over_http(ledger, http_sink).events == 1
    assert http_sink.received == expected(ledger)


def test_sinks_come_along_on_their_own(ledger: Ledger, workspace: Workspace, http_sink: HttpSink) -> None:
    small_history(ledger)
    http_sink.script = ["503"] * 3
    config = OpenLineageFile(name="file", kind="openlineage-file")
    assert not over_http(ledger, http_sink).ok
    assert deliver(ledger, "file", lambda: open_sink(config, ledger, workspace.home)).ok
    lines = (workspace.home / config.path).read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected(ledger)
    assert ledger.outbox("marquez").delivered_seq == 0


@pytest.mark.parametrize(
    ("status", "said"),
    [("400", "refuses the event with 400"), ("401", "refuses us with 401"), ("302", "redirects")],
)
def test_refusal_that_waiting_cannot_cure_stops_at_its_event(
    ledger: Ledger, http_sink: HttpSink, status: str, said: str
) -> None:
    small_history(ledger)
    http_sink.script = ["200", status]
    done = over_http(ledger, http_sink)
    assert done.error is not None
    assert done.error.exit_class is ExitClass.CONFIG
    assert said in done.error.what
    assert not done.may_retry
    assert ledger.outbox("marquez").delivered_seq == (done.stopped_at or 0) - 1


def test_refused_event_is_passed_over_only_by_its_number(ledger: Ledger, http_sink: HttpSink) -> None:
    small_history(ledger)
    http_sink.script = ["200", "400"]
    stopped = over_http(ledger, http_sink).stopped_at
    assert stopped is not None
    with pytest.raises(InputError, match="only the event that a sink stopped at"):
        ledger.skip_delivery("marquez", stopped + 1, by="ana")
    ledger.skip_delivery("marquez", stopped, by="ana")
    assert over_http(ledger, http_sink).ok
    assert http_sink.received == [e for e in expected(ledger) if e != expected(ledger)[1]]
    (skipped,) = [e for e in ledger.events(limit=None) if e.kind == "sink.skipped"]
    assert (skipped.subject, skipped.payload) == ("marquez", {"seq": stopped, "by": "ana"})
    assert ledger.verify_chain().ok
    with pytest.raises(InputError, match="only the event that a sink stopped at"):
        ledger.skip_delivery("marquez", ledger.outbox("marquez").delivered_seq + 1, by="ana")


def test_key_and_headers_come_from_the_environment_and_stand_in_no_message(
    ledger: Ledger, http_sink: HttpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_history(ledger)
    settings = {"token_env": "LINEAGE_KEY", "headers_env": {"X-Team": "LINEAGE_TEAM"}}
    missing = over_http(ledger, http_sink, **settings)
    assert missing.error is not None
    assert "'LINEAGE_TEAM'" in missing.error.message
    monkeypatch.setenv("LINEAGE_KEY", "s3cret")
    monkeypatch.setenv("LINEAGE_TEAM", "video")
    http_sink.script = ["401"]
    refused = over_http(ledger, http_sink, **settings)
    assert refused.error is not None
    assert "s3cret" not in refused.error.message
    assert over_http(ledger, http_sink, **settings).ok
    assert http_sink.headers[0]["Authorization"] == "Bearer s3cret"
    assert http_sink.headers[0]["X-Team"] == "video"


def _killed_while(ledger_url: str, call: Callable[[Ledger], object]) -> int:
    """Run `call` in a forked child that is expected to be killed; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            with Ledger.open(ledger_url) as ledger:
                call(ledger)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("events", [1, 4, 9])
def test_kill_between_delivery_and_confirmation_repeats_the_same_events(
    workspace: Workspace, events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CONFIRM_EVERY_S", math.inf)  # however long the machine takes over its events
    with Ledger.open(workspace.ledger_url) as ledger:
        small_history(ledger)
    config = OpenLineageFile(name="file", kind="openlineage-file")
    path = workspace.home / config.path

    def deliver_and_die(ledger: Ledger) -> None:
        sink: Any = open_sink(config, ledger, workspace.home)
        send, sent = sink.send, []

        def dying(event: EventRow) -> None:
            send(event)
            sent.append(event)
            if len(sent) == events:
                with path.open("a") as stream:
                    stream.write('{"eventTime": "2026-')  # and in the middle of the next one
                os.kill(os.getpid(), signal.SIGKILL)

        sink.send = dying
        deliver(ledger, "file", lambda: sink)

    assert _killed_while(workspace.ledger_url, deliver_and_die) == -signal.SIGKILL
    with Ledger.open(workspace.ledger_url) as ledger:
        assert ledger.outbox("file").delivered_seq == 0
        # The dead deliverer's claim does not hold up the next one.
        assert deliver(ledger, "file", lambda: open_sink(config, ledger, workspace.home)).ok
        received = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(received) > len(expected(ledger))
        assert without_repeats(received) == expected(ledger)


def test_one_deliverer_a_sink(either_ledger: Ledger, http_sink: HttpSink) -> None:
    small_history(either_ledger)
    http_sink.script = ["hang"]
    first: list[Delivered] = []
    config = http_config(http_sink)
    thread = threading.Thread(
        target=lambda: first.append(deliver(either_ledger, "marquez", lambda: open_sink(config, either_ledger, Path())))
    )
    thread.start()
    while http_sink.script:
        time.sleep(0.01)
    second = over_http(either_ledger, http_sink)
    http_sink.let_go.set()
    thread.join()
    assert (second.busy, second.events, second.ok) == (True, 0, True)
    assert http_sink.received == []
    assert over_http(either_ledger, http_sink).ok
    assert http_sink.received == expected(either_ledger)


class Flaky:
    """A sink that fails as a plan says: at these numbers of calls, before or after it has kept the event."""

    def __init__(self, plan: dict[int, bool], kept: list[int]) -> None:
        self.plan, self.kept, self.calls = plan, kept, 0

    def send(self, event: EventRow) -> None:
        self.calls += 1
        keeps = self.plan.pop(self.calls, None)
        if keeps is None or keeps:
            self.kept.append(event.seq)
        if keeps is not None:
            raise InfrastructureError("away") if self.calls % 2 else ValueError("a fault of a client library")

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def eight_events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger file to copy."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    with Ledger.open(str(path)) as ledger:
        for number in range(8):
            ledger.begin_pipeline_run("demo", {"name": "demo", "number": number})
        ledger.backup(path.with_name("copy.db"))
    return path.with_name("copy.db")


@settings(max_examples=30)
@given(plans=st.lists(st.dictionaries(st.integers(1, 12), st.booleans(), max_size=3), max_size=6))
def test_any_pattern_of_failures_loses_nothing_and_keeps_the_order(
    plans: list[dict[int, bool]], eight_events: Path
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(eight_events, f"{folder}/ledger.db")
        with Ledger.open(f"{folder}/ledger.db") as ledger:
            kept: list[int] = []
            for plan in [*plans, {}]:
                deliver(ledger, "flaky", lambda p=plan: Flaky(dict(p), kept))  # type: ignore[misc]
            assert list(dict.fromkeys(kept)) == list(range(1, 9))
            assert ledger.outbox("flaky").waiting == 0


def test_a_client_that_breaks_when_opened_or_closed_is_a_fault_of_the_sink(ledger: Ledger) -> None:
    def broken() -> Flaky:
        raise RuntimeError("no such version")

    class Closing(Flaky):
        def close(self) -> None:
            raise RuntimeError("cannot log out")

    small_history(ledger)
    assert "RuntimeError: no such version" in str(deliver(ledger, "one", broken).error)
    kept: list[int] = []
    done = deliver(ledger, "two", lambda: Closing({}, kept))
    assert "RuntimeError: cannot log out" in str(done.error)
    assert (done.events, done.waiting) == (len(kept), 0)


def test_backoff_grows_to_its_limit() -> None:
    backoff = Backoff(base_s=1, factor=2, max_s=300)
    assert [backoff.pause_s(n) for n in (1, 2, 3, 9, 10, 10_000)] == [1, 2, 4, 256, 300, 300]


def _wait(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def test_courier_delivers_while_the_run_works_and_tells_of_an_outage_once(
    workspace: Workspace, ledger: Ledger, http_sink: HttpSink
) -> None:
    http_sink.script = ["503", "503", "503"]
    notes: list[str] = []
    courier = Courier(workspace, [http_config(http_sink)], notes.append, Backoff(base_s=0.05, max_s=0.1))
    small_history(ledger)
    courier.wake()
    _wait(lambda: ledger.outbox("marquez").waiting == 0)
    ledger.begin_pipeline_run("demo", {"name": "demo"})
    courier.wake()
    _wait(lambda: ledger.outbox("marquez").waiting == 0)
    ledger.begin_pipeline_run("demo", {"name": "demo"})
    courier.close()
    assert http_sink.received == expected(ledger)
    assert [n.split(",")[0] for n in notes] == ["sink marquez takes no events", "sink marquez takes events again"]
    assert read_state(workspace, "marquez").failures == 0


def test_sink_that_hangs_holds_a_run_up_for_no_longer_than_the_grace(
    workspace: Workspace, ledger: Ledger, http_sink: HttpSink
) -> None:
    http_sink.script = ["hang"] * 50
    notes: list[str] = []
    courier = Courier(workspace, [http_config(http_sink, timeout_s=3.0)], notes.append)
    small_history(ledger)
    started = time.monotonic()
    courier.wake()
    assert time.monotonic() - started < 2.9, "the sink answers nobody for longer"
    _wait(lambda: bool(notes))
    started = time.monotonic()
    courier.close(grace_s=0.5)
    courier.close()
    assert time.monotonic() - started < 60
    assert ledger.outbox("marquez").delivered_seq == 0
    state = read_state(workspace, "marquez")
    assert state.failures >= 1
    assert "cannot be reached" in (state.error or "")


def test_courier_without_sinks_starts_no_thread(workspace: Workspace) -> None:
    before = {*threading.enumerate()}
    courier = Courier(workspace, [], lambda _: None)
    courier.wake()
    courier.close()
    assert {*threading.enumerate()} <= before


def test_courier_outlives_a_sink_that_cannot_be_opened(workspace: Workspace, ledger: Ledger) -> None:
    small_history(ledger)
    bad = OpenLineageFile(name="bad", kind="openlineage-file", path="/proc/no/such/place.jsonl")
    good = OpenLineageFile(name="good", kind="openlineage-file")
    notes: list[str] = []
    courier = Courier(workspace, [bad, good], notes.append)
    courier.wake()
    courier.close()
    assert ledger.outbox("good").waiting == 0
    assert ledger.outbox("bad").delivered_seq == 0
    assert len(notes) == 1
    assert notes[0].startswith("sink bad takes no events")


def test_faults_of_the_ledger_are_raised_not_blamed_on_the_sink(workspace: Workspace) -> None:
    ledger = Ledger.open(workspace.ledger_url)
    ledger.close()
    for path in workspace.home.glob("ledger.db*"):
        path.unlink()
    (workspace.home / "ledger.db").mkdir()
    with pytest.raises(M4VError, match="ledger database failed"):
        deliver(ledger, "flaky", lambda: Flaky({}, []))
