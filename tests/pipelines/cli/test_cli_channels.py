"""`m4v channels`, `m4v runs approve` and `m4v artifacts pin|unpin|gc` on the console entry point."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "channels"))

from channel_house import House

from m4v.core.errors import ExitClass
from m4v.core.storage import Storage
from pipelines.ledger import Ledger
from pipelines.store import ArtifactStore

M4v = Callable[..., tuple[int, str, str]]


@pytest.fixture
def house(m4v: M4v, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("M4V_ACTOR", "ada")
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        yield House(ledger, ArtifactStore(str(home / "store")), tmp_path / "staging")


def settings(house: House, text: str) -> None:
    (Path(house.store.uri).parent / "settings.yaml").write_text(text)


def test_promote_list_and_roll_back(house: House, m4v: M4v) -> None:
    ids = []
    for name in ("one", "two"):
        checkpoint = house.checkpoint(name)
        house.judge(checkpoint, True)
        ids.append(checkpoint.artifact_id)
        code, out, _ = m4v("channels", "promote", checkpoint.artifact_id[:12], "--to", "staging", "--reason", name)
        assert (code, out) == (0, f"staging names {checkpoint.artifact_id[:12]} now (entry {len(ids)})\n")
    code, out, _ = m4v("channels", "list")
    assert code == 0
    assert out.splitlines()[1].split("\t")[:3] == ["staging", ids[1], "2"]
    code, out, _ = m4v("channels", "rollback", "staging")
    assert (code, out) == (0, f"staging names {ids[0][:12]} again (entry 3, as in entry 1)\n")
    (shown,) = json.loads(m4v("channels", "list", "staging", "--json")[1])
    assert [e["artifact_id"] for e in shown["history"]] == [ids[0], ids[1], ids[0]]
    assert shown["current"]["facts"]["action"] == "rollback"
    code, _, err = m4v("channels", "promote", ids[1], "--to", "staging", "--expect", ids[1])
    assert code == ExitClass.CONFIG
    assert "not what --expect says" in err


def test_a_refused_gate_exits_60_with_its_reasons(house: House, m4v: M4v) -> None:
    checkpoint = house.checkpoint("bad")
    house.judge(checkpoint, False, reasons=("local.flicker of 0.9 is above the maximum of 0.2",))
    code, out, err = m4v("channels", "promote", checkpoint.artifact_id, "--to", "staging")
    assert (code, out) == (ExitClass.GATE_REFUSED, "")
    assert "local.flicker of 0.9 is above the maximum of 0.2" in err
    assert err.count("\n") == 1
    code, out, _ = m4v("channels", "promote", checkpoint.artifact_id, "--to", "staging", "--override", "demo", "--json")
    assert code == 0
    assert json.loads(out)["entry"]["facts"]["override"] == "demo"


def test_gates_prints_the_digests_that_pin_a_channel(house: House, m4v: M4v) -> None:
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, False, rules="strict", reasons=("too dark",))
    (strict,) = json.loads(m4v("channels", "gates", checkpoint.artifact_id[:12], "--json")[1])
    settings(house, f"channels: {{production: {{gate: {{rules: {strict['gate']['rules'][:20]}}}}}}}\n")
    house.judge(checkpoint, True, rules="lax")
    code, out, _ = m4v("channels", "gates", checkpoint.artifact_id)
    lax, first = out.splitlines()[1:]
    assert code == 0
    assert "passed" in lax
    assert "production" not in lax
    assert first.split("\t")[1:3] == ["refused", strict["gate"]["rules"]]
    assert first.split("\t")[-2:] == ["production", "too dark"]
    assert m4v("channels", "promote", checkpoint.artifact_id, "--to", "staging")[0] == 0
    code, _, err = m4v("channels", "promote", checkpoint.artifact_id, "--to", "production")
    assert code == ExitClass.GATE_REFUSED
    assert "too dark" in err


def test_approvals_by_roles(house: House, m4v: M4v, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(
        house, "access: {roles: {ada: operator, bo: approver, cy: approver}}\nchannels: {production: {approvals: 2}}\n"
    )
    checkpoint = house.checkpoint("one")
    house.judge(checkpoint, True)
    code, out, _ = m4v("channels", "promote", checkpoint.artifact_id, "--to", "production", "--json")
    assert code == ExitClass.NEEDS_HUMAN
    request = json.loads(out)["request"]["request_id"]
    assert "waiting for approval" not in m4v("channels", "list", "staging")[1]
    assert request in m4v("channels", "list")[1]
    code, _, err = m4v("runs", "approve", request)
    assert code == ExitClass.NEEDS_HUMAN
    assert "ada is an operator" in err
    monkeypatch.setenv("M4V_ACTOR", "bo")
    assert "1 of 2 (bo) approvals; the promotion to production still waits" in m4v("runs", "approve", request)[1]
    monkeypatch.setenv("M4V_ACTOR", "cy")
    code, out, _ = m4v("runs", "approve", request, "--json")
    assert (code, json.loads(out)["status"]) == (0, "promoted")
    assert json.loads(m4v("channels", "list", "--json")[1])[0]["current"]["artifact_id"] == checkpoint.artifact_id
    assert m4v("runs", "approve", "zzzz")[0] == ExitClass.CONFIG


def test_gc_shows_why_and_deletes_only_with_apply(house: House, m4v: M4v) -> None:
    settings(house, "retention: {runs: 0, grace_hours: 0}\n")
    pinned, loose = house.checkpoint("pinned"), house.checkpoint("loose")
    assert m4v("artifacts", "pin", pinned.artifact_id, "--reason", "paper")[0] == 0
    code, out, _ = m4v("artifacts", "gc")
    assert code == 0
    assert f"{pinned.artifact_id}\tcheckpoint\t12 B\tstays\tpinned by ada: paper" in out
    assert f"{loose.artifact_id}\tcheckpoint" in out
    assert "nothing was changed; --apply deletes it" in out
    assert Storage(loose.uri).exists()
    report = json.loads(m4v("artifacts", "gc", "--apply", "--json")[1])
    assert report["deleted"] == [loose.artifact_id]
    assert report["freed_bytes"] > report["unreachable_bytes"] == loose.size_bytes, "its manifest too"
    assert not Storage(loose.uri).exists()
    code, out, _ = m4v("artifacts", "show", loose.artifact_id)
    assert code == 0
    assert "Its bytes were deleted" in out
    shown = json.loads(m4v("artifacts", "show", loose.artifact_id, "--json")[1])
    assert (shown["deletion"]["by"], shown["deletion"]["policy"], shown["manifest"]) == ("ada", "unreachable", None)
    assert m4v("artifacts", "verify")[0] == 0, "what was deleted on purpose is not damaged"
    assert "deleted" in m4v("artifacts", "list")[1]
    assert m4v("artifacts", "unpin", pinned.artifact_id)[0] == 0
    assert json.loads(m4v("artifacts", "gc", "--json")[1])["unreachable_bytes"] == pinned.size_bytes
    assert m4v("ledger", "verify")[0] == 0


def test_only_an_admin_deletes(house: House, m4v: M4v) -> None:
    settings(house, "access: {roles: {ada: approver}}\n")
    assert m4v("artifacts", "gc")[0] == 0
    code, _, err = m4v("artifacts", "gc", "--apply")
    assert code == ExitClass.NEEDS_HUMAN
    assert "to delete artifacts takes the role admin" in err
