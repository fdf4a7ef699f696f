"""Impact says which artifacts it knows nothing of."""

import random
from pathlib import Path

from impact_world import World
from ledger_scenario import Scenario, artifact

from pipelines.impact import impact
from pipelines.membership import ClipSelector


def test_artifacts_out_of_the_index_are_told(scenario: Scenario, tmp_path: Path) -> None:
    world = World(scenario, tmp_path, random.Random(7)).build(checkpoints=1, products=0)
    clip = ClipSelector(clips=(sorted(set().union(*world.members.values()))[0],))
    before = impact(world.ledger, clip)
    late = artifact("recorded, but not indexed")
    world.ledger.import_artifact(late)
    after = impact(world.ledger, clip)
    assert set(after.unindexed) - set(before.unindexed) == {late.artifact_id}
    assert after.to_json()["unindexed"] == list(after.unindexed)
