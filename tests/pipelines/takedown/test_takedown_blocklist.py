"""The block list in the stage key: absent while nothing is blocked, attached to the request, and never outrun."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bench import Bench, open_bench
from stages_for_faults import COUNT, CountConfig

from m4v.core.errors import InfrastructureError
from pipelines.ledger import Status
from pipelines.lookup import Lookup
from pipelines.spec import StageNode
from pipelines.takedown.blocklist import BlockLists

BLOCKING = replace(COUNT, takedowns=True)
CLIP = {
    "clip_id": "c" * 32, "source": "wild", "source_id": "a.mp4", "source_digest": "d" * 64, "start_us": 0,
    "end_us": 5, "media": "video",
}  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path / "home") as opened:
        yield opened


def opened(bench: Bench, name: str) -> str:
    return bench.ledger.open_takedown(
        {"clips": [name]}, reason="x", requested_by="ada", policy={}, blocks={"sources": [name]}, clips=[CLIP],
        artifacts=[],
    ).takedown_id  # fmt: skip


def node(**config: object) -> StageNode:
    return StageNode("count", BLOCKING, CountConfig(**config))  # type: ignore[arg-type]


def test_the_key_changes_with_the_list_and_only_for_stages_that_read_it(bench: Bench) -> None:
    plain = StageNode("count", COUNT, CountConfig())
    lookup = Lookup(bench.ledger, bench.launcher)
    free = lookup.record(node(), {})
    assert free == lookup.record(plain, {})  # no takedown: no trace in the key
    assert lookup.block_list(node(), free) is None
    case = opened(bench, "one")
    blocked = lookup.record(node(), {})
    assert blocked.stage_key != free.stage_key
    assert lookup.record(plain, {}) == free
    content = json.loads(lookup.block_list(node(), blocked) or b"")
    assert content["cases"] == [{"takedown_id": case, "sources": ["one"], "clips": [CLIP]}]
    # The same rows give the same key to another process; a second case another one.
    assert Lookup(bench.ledger, bench.launcher).record(node(), {}) == blocked
    opened(bench, "two")
    assert lookup.record(node(), {}).stage_key != blocked.stage_key
    assert lookup.block_list(node(), blocked) is not None
    with pytest.raises(InfrastructureError, match="not at hand"):
        BlockLists(bench.ledger).content("takedowns:0")


def test_the_list_is_attached_to_the_request(bench: Bench) -> None:
    case = opened(bench, "one")
    bench.run([node()])
    (attempt,) = bench.ledger.attempts()
    request = json.loads((Path(attempt.work_dir) / "request.json").read_text())
    assert json.loads(Path(request["attachments"]["blocked"]).read_text())["cases"][0]["takedown_id"] == case


def test_a_run_that_a_takedown_overtook_publishes_nothing(bench: Bench, tmp_path: Path) -> None:
    held = tmp_path / "hold.a"
    held.write_text("0")
    run = bench.new_run([replace(node(), locations={"switches": str(tmp_path)})])
    thread = threading.Thread(target=run.run_all)
    thread.start()
    deadline = time.monotonic() + 300
    while not bench.ledger.attempts(status=Status.RUNNING):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    opened(bench, "one")
    held.unlink()
    thread.join(300)
    assert str(run.outcomes["count"].status) == "drained"
    assert "the block list of takedowns grew while it ran" in str(run.outcomes["count"].error)
    assert bench.ledger.artifacts() == []
    assert [str(o.status) for o in bench.run([node()]).values()] == ["ran"]
