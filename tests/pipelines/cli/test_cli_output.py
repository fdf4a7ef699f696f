"""What commands print: tables that fit the terminal, plain lines, JSON, durations and sizes, the run display."""

import io
import json
import re
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest

from m4v.core.artifacts import ArtifactKind
from m4v.core.stage import Progress
from pipelines.cli.display import RunDisplay
from pipelines.cli.lineage import tree_lines
from pipelines.cli.output import Id, duration, print_facts, print_json, print_rows, short, size
from pipelines.execute import NodeEvent, NodeOutcome, NodeStatus
from pipelines.ledger import LineageArtifact, LineageEdge, LineageGraph, LineageRun

DIGEST = "32d516ba41db3a0ae814201e986ea11ad7325034983500bb147506190e6812db"
COLUMNS = ("stage", "artifact", "why")
ROWS = [
    ("curate", Id(DIGEST), "code changed: dataprep/stages/curate.py and 3 more [see the diff]"),
    ("encode", None, "waits\tfor\ncurate"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(width: int, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard output becomes a terminal of that width (pytest's own capture is set up after fixtures)."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    return stream


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (0.04, "0.0 s"), (3.25, "3.2 s"), (59.94, "59.9 s"), (59.96, "1 m 00 s"), (245, "4 m 05 s"),
     (3599.7, "1 h 00 m"), (7800, "2 h 10 m"), (90_000, "25 h 00 m")],
)  # fmt: skip
def test_durations(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 30, "1.0 GiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes(size_bytes: int | None, words: str) -> None:
    assert size(size_bytes) == words


def test_short_ids() -> None:
    assert short(DIGEST) == "32d516ba41db"
    assert short(None) == "-"


def test_plain_rows_are_one_tabbed_line_each_with_whole_ids(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(COLUMNS, ROWS, text=("why",))
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        list(COLUMNS),
        ["curate", DIGEST, "code changed: dataprep/stages/curate.py and 3 more [see the diff]"],
        ["encode", "-", "waits for curate"],
    ]


@pytest.mark.parametrize("width", [200, 80, 60, 40, 24])
def test_a_table_fits_the_terminal_and_loses_no_word(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    terminal = terminal_of(width, monkeypatch)
    print_rows(COLUMNS, ROWS, title="Plan", text=("why",))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    words = "".join(shown.split())
    for cell in ("Plan", "curate", "32d516ba41db", "encode"):
        assert cell in words
    for word in ("code", "changed:", "dataprep/stages/curate.py", "3", "more", "[see", "the", "diff]"):
        assert word in words, "wrapped, never cut, and brackets are no markup"
    assert DIGEST not in words, "a terminal shows the first characters, which every command takes"


def test_json_is_sorted_and_times_are_utc(capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2026, 11, 21, 14, 30, tzinfo=timezone(timedelta(hours=1)))
    print_json({"b": at, "a": [Id(DIGEST), None, 1.5], "kind": ArtifactKind.CLIPS})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"a": [DIGEST, None, 1.5], "b": "2026-11-21T13:30:00.000000Z", "kind": "clips"}
    assert printed.index('"a"') < printed.index('"b"')


def test_facts_are_aligned_and_nested_values_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts(
        {"seed": 7, "filters": {"min_side": 32}, "ok": True, "message": "", "at": datetime(2026, 1, 2, tzinfo=UTC)}
    )
    assert capsys.readouterr().out.splitlines() == [
        "seed     7",
        'filters  {"min_side": 32}',
        "ok       yes",
        "message  -",
        "at       2026-01-02 00:00:00",
    ]


def test_a_lineage_tree_shows_each_thing_once() -> None:
    model, untrained, data = "c" * 64, "a" * 64, "d" * 64
    graph = LineageGraph(
        root=model,
        direction="up",
        artifacts={
            model: LineageArtifact(model, "checkpoint", 2048),
            untrained: LineageArtifact(untrained, "checkpoint", 1024),
            data: LineageArtifact(data, "dataset", 4096),
        },
        runs={r: LineageRun(r, "train", "k" * 64, "bit-exact") for r in ("first", "second")},
        edges=[
            LineageEdge("second", "output", "checkpoint", model),
            LineageEdge("second", "input", "dataset", data),
            LineageEdge("second", "input", "checkpoint", untrained),
            LineageEdge("first", "output", "checkpoint", untrained),
            LineageEdge("first", "input", "dataset", data),
        ],
    )
    assert list(tree_lines(graph)) == [
        "checkpoint cccccccccccc (2.0 KiB)",
        "└─ checkpoint: run second train",
        "   ├─ dataset: dataset dddddddddddd (4.0 KiB)",
        "   └─ checkpoint: checkpoint aaaaaaaaaaaa (1.0 KiB)",
        "      └─ checkpoint: run first train",
        "         └─ dataset: dataset dddddddddddd (4.0 KiB)",
    ]


class TestRunDisplay:
    def finished(self, status: NodeStatus, error: str | None = None) -> NodeEvent:
        outcome = NodeOutcome("train.t2i", status, "first run of train.t2i in micro", 61.0, error=error)
        return NodeEvent("finished", "train.t2i", outcome=outcome)

    def test_plain_lines_say_what_became_of_a_stage_and_why(self, capsys: pytest.CaptureFixture[str]) -> None:
        with RunDisplay() as display:
            display(NodeEvent("started", "train.t2i"))
            display(NodeEvent("note", "train.t2i", "attempt 1 failed (disk full); trying again in 2 s"))
            display(self.finished(NodeStatus.RAN))
            display(self.finished(NodeStatus.FAILED, "no space left"))
        assert capsys.readouterr().out.splitlines() == [
            "  train.t2i: attempt 1 failed (disk full); trying again in 2 s",
            "train.t2i: ran after 1 m 01 s (first run of train.t2i in micro)",
            "train.t2i: failed after 1 m 01 s (no space left)",
        ]

    def test_progress_lines_are_rare(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        display = RunDisplay()
        display(NodeEvent("started", "encode"))
        for done in range(60):
            now += 1
            state = Progress(done=done, total=60, unit="clips", eta_s=60.0 - done)
            display(NodeEvent("progress", "encode", progress=state))
        lines = capsys.readouterr().out.splitlines()
        assert lines == [f"  encode: {n} of 60 clips, {duration(60.0 - n)} left" for n in (14, 29, 44, 59)]

    def test_a_live_display_keeps_brackets_and_ends_cleanly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = terminal_of(120, monkeypatch)
        with RunDisplay() as display:
            display.tell("watch it at http://127.0.0.1:4200")
            display(NodeEvent("progress", "train.t2i", progress=Progress(done=3, total=4, unit="steps")))
            display(self.finished(NodeStatus.FAILED, "bad value [/red] in [train.t2i]"))
        shown = terminal.getvalue()
        assert "watch it at http://127.0.0.1:4200" in shown
        assert "[/red] in [train.t2i]" in shown

    def test_quiet_says_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        display = RunDisplay(quiet=True)
        display.tell("watch it")
        display(self.finished(NodeStatus.RAN))
        assert capsys.readouterr().out == ""

    def test_a_reader_that_went_away_ends_no_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Gone(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        monkeypatch.setattr(sys, "stdout", Gone())
        display = RunDisplay()
        display(self.finished(NodeStatus.RAN))
        display(self.finished(NodeStatus.RAN))
