"""Impact against brute force on random ledgers, on both databases."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from clip_material import TestClip, write_table
from fastapi.testclient import TestClient
from impact_world import World
from ledger_scenario import Scenario, artifact

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from m4v.core.storage import Storage
from pipelines.exposure import clip_exposure, summarise
from pipelines.impact import Impact, checkpoints, impact
from pipelines.membership import ClipSelector, parse_selector
from pipelines.takedown.affected import affected_by
from pipelines.web.app import create_app
from pipelines.workspace import Workspace


@pytest.fixture(params=[1, 2])
def world(request: pytest.FixtureRequest, scenario: Scenario, tmp_path: Path) -> World:
    return World(scenario, tmp_path, random.Random(request.param)).build(checkpoints=14, products=24)


def check(world: World, found: Impact) -> None:
    """Everything that an impact says, against the world's own reckoning."""
    clips = {c.clip_id for c in found.clips}
    holders = {h.artifact_id: set(h.clip_ids) for h in found.holders if h.kind != "source"}
    assert holders == {a: ids & clips for a, ids in world.members.items() if ids & clips}
    verdicts = {c: v for c in world.states if (v := world.verdict(c, clips))}
    assert {c.artifact_id: str(c.verdict) for c in found.checkpoints} == verdicts
    for one in found.checkpoints:
        steps, line = world.steps(one.artifact_id, clips), world.line(one.artifact_id)[1:]
        ends = (steps[0], steps[-1]) if steps else (None, None)
        assert (one.uses, one.first_step, one.last_step) == (len(steps), *ends)
        assert one.inherited == sum(len(world.steps(c, clips)) for c in line)
        assert one.through == next((c for c in line if world.steps(c, clips)), None)
    products = {p: v for p in world.made if (v := world.product_verdict(p, clips))}
    assert {p.artifact_id: str(p.verdict) for p in found.products} == products
    assert [(c.name, c.artifact_id) for c in found.channels] == sorted(
        (m for m in world.moves if m[1] in verdicts), key=lambda m: m[0]
    )
    now = dict(world.moves)
    assert {c.name for c in found.channels if c.current} == {n for n, a in now.items() if a in verdicts}


def test_every_clip_alone_and_many_at_once(world: World) -> None:
    held = sorted(set().union(*world.members.values()))
    seen: set[str] = set()
    for clip in held:
        found = impact(world.ledger, ClipSelector(clips=(clip,)))
        check(world, found)
        seen |= {str(c.verdict) for c in found.checkpoints}
    assert seen == {"saw", "descends", "contains"}, "the world is too small to show every class"
    check(world, impact(world.ledger, parse_selector(["source:web"])))


def test_of_many_uses_only_the_verdict_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for terms in (["source:web"], ["source:open", "source:a/b"]):
        counted = impact(world.ledger, parse_selector(terms))
        monkeypatch.setattr(checkpoints, "MOST_DRAWS", 0)
        noticed = impact(world.ledger, parse_selector(terms))
        monkeypatch.undo()
        assert noticed.verdicts == counted.verdicts
        assert [c.through for c in noticed.checkpoints] == [c.through for c in counted.checkpoints]
        assert {c.uses for c in noticed.checkpoints if c.verdict == "saw"} == {None}


def test_exposure_of_a_checkpoint_says_the_same(world: World) -> None:
    held = sorted(set().union(*world.members.values()))
    for checkpoint in list(world.states)[1:6]:
        for clip in held[::5]:
            # The clip itself, not those that overlap it: the selector adds them.
            verdicts = {v.clip.clip_id: v for v in clip_exposure(
                world.ledger, checkpoint, ClipSelector(clips=(clip,)), with_steps=True
            )}  # fmt: skip
            found = verdicts[clip]
            assert found.verdict == world.verdict(checkpoint, {clip})
            assert [list(s.steps or ()) for s in found.stages] == [
                world.steps(c, {clip}) for c in world.line(checkpoint)
            ]
        own = summarise(world.ledger, checkpoint)[0]
        every = world.steps(checkpoint, set(world.clips))
        assert own.samples == len(every)
        assert own.distinct == sum(1 for c in world.clips if world.steps(checkpoint, {c}))


def test_tables_that_dropped_the_clips_are_told_apart(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A takedown withdraws them, with the reports on them, and the page names them."""
    kept, gone = TestClip("web", "a"), TestClip("web", "b", kept=False)
    ledger, table = scenario.ledger, write_table(tmp_path / "table", [kept, gone])
    shown = artifact("page", ArtifactKind.REPORT)
    ledger.index_members(table.artifact_id, table.kind, Storage(table.uri))
    scenario.run("curate", {"clips": table}, stage="curate")
    scenario.run("preview", {"report": shown}, {"clips": table}, stage="preview")
    for clip in (kept, gone):
        selector = ClipSelector(clips=(clip.clip_id,))
        found = impact(ledger, selector)
        withdrawn = affected_by(ledger, Workspace.open(tmp_path / "home"), selector, measure=False).withdrawals()
        assert set(found.artifact_ids) == {a for a, *_ in withdrawn} == {table.artifact_id, shown.artifact_id}
    assert found.counts()["clip_tables_dropped"] == 1
    assert found.holders == ()
    assert found.to_json()["dropped"] == [
        {"artifact_id": table.artifact_id, "clip_ids": (gone.clip_id,), "reports": (shown.artifact_id,)}
    ]
    monkeypatch.setenv("M4V_LEDGER", scenario.url)
    with TestClient(create_app(Workspace.open(tmp_path / "home"))) as client:
        page = client.get("/impact", params={"q": gone.clip_id}).text
    assert "list some as dropped" in page
    assert f"/artifacts/{table.artifact_id}" in page
    assert "shown in 1 report" in page


def test_impact_is_json_and_unknown_clips_are_refused(world: World) -> None:
    clip = sorted(set().union(*world.members.values()))[0]
    found = impact(world.ledger, ClipSelector(clips=(clip,)))
    data = found.to_json()
    assert data["counts"]["checkpoint"] == len(data["checkpoints"]) == len(found.checkpoints)
    assert set(found.artifact_ids) >= {h["artifact_id"] for h in data["holders"]}
    with pytest.raises(InputError, match="no clip of this id"):
        impact(world.ledger, ClipSelector(clips=("f" * 32,)))


def test_a_dataset_recorded_before_the_index_gets_its_timetables_later(scenario: Scenario, tmp_path: Path) -> None:
    world = World(scenario, tmp_path, random.Random(4))
    indexing = scenario.ledger.index_members
    scenario.ledger.index_members = lambda *_: 0  # type: ignore[method-assign]
    world.build(checkpoints=4, products=0)
    scenario.ledger.index_members = indexing  # type: ignore[method-assign]
    assert scenario.ledger.orders_without_plan()
    trained = next(c for c, s in world.states.items() if s.dataset_id)
    with pytest.raises(InputError, match="clip index has no such dataset"):
        summarise(world.ledger, trained)
