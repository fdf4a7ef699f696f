"""Cases that a schedule takes up again: those whose grace is over, and those that were stopped on the way."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from takedown_home import TakedownHome

from pipelines.cli.main import main
from pipelines.ledger import Ledger
from pipelines.takedown.due import DUE, STOPPED, open_cases
from pipelines.takedown.policy import Delete, Policy
from pipelines.takedown.verify import verify_receipt


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger.open(str(tmp_path / "ledger.sqlite")) as opened:
        yield opened


def opened(ledger: Ledger, source: str, policy: Policy, *steps: str) -> str:
    case = ledger.open_takedown(
        {"sources": [source]}, reason="r", requested_by="bob", policy=policy.recorded(), blocks={}, clips=[],
        artifacts=[],
    )  # fmt: skip
    for step in steps:
        ledger.record_step(case.takedown_id, step)
    return case.takedown_id


def test_what_is_due_and_what_was_stopped(ledger: Ledger) -> None:
    grace, over = Policy(grace_days=9), Policy(grace_days=0)
    opened(ledger, "waits", grace, "receipt")
    opened(ledger, "closed", over, "receipt", "closed")
    due = opened(ledger, "due", over, "receipt")
    stopped = opened(ledger, "stopped", grace, "replaced")
    kept = opened(ledger, "kept", Policy(delete=Delete.KEEP))
    found = open_cases(ledger)
    assert [(c.case.takedown_id, c.why) for c in found] == [(due, DUE), (stopped, STOPPED), (kept, STOPPED)]
    assert [c.selector.sources for c in found] == [("due",), ("stopped",), ("kept",)]


@pytest.mark.deep
def test_the_command_finishes_what_is_due_and_goes_on_past_what_it_cannot(
    home: TakedownHome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def m4v() -> tuple[int, list[dict[str, str]], str]:
        monkeypatch.setattr(sys, "argv", ["m4v", "--home", str(home.workspace.home), "takedown", "finish", "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), json.loads(out), err

    assert m4v() == (0, [], "")
    dataset = home.only("dataset")
    clip = home.rows(dataset)[0]["clip_id"]
    first = home.apply(clip, delete=Delete.AFTER_GRACE, grace_days=2.0)
    assert first.receipt["deletion"].startswith("due from")
    assert m4v() == (0, [], ""), "it waits for its grace"
    unknown = opened(home.ledger, "nowhere", Policy(grace_days=0), "receipt")
    monkeypatch.setattr("pipelines.takedown.policy.utc_now", lambda: first.case.requested_at.replace(year=2100))
    code, told, err = m4v()
    assert code
    assert "no clip of this source is indexed" in err
    assert [(one["takedown_id"], one["bytes"], bool(one["problem"])) for one in told] == [
        (first.case.takedown_id, "done", False), (unknown, "", True),
    ]  # fmt: skip
    assert not Path(home.ledger.artifact(dataset, "dataset").uri).exists()
    receipt = json.loads(Path(told[0]["receipt"]).read_bytes())
    assert [c.claim for c in verify_receipt(home.ledger, home.workspace, receipt) if not c.ok] == []
