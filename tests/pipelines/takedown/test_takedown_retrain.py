"""The command of a retrain plan works in any directory, and a case is worked on by one process at a time."""

import sys
from pathlib import Path

import pytest
from takedown_home import ADA

sys.path.insert(0, str(Path(__file__).parents[1] / "ledger"))

from ledger_scenario import artifact

from m4v.core.errors import InfrastructureError
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger
from pipelines.membership import ClipSelector
from pipelines.recipe import load_recipe
from pipelines.rerun_folders import close_folder, open_folder
from pipelines.takedown.apply import TakedownRun
from pipelines.takedown.policy import Policy
from pipelines.takedown.retrain import _command
from pipelines.takedown.unfinished import delete_verified
from pipelines.workspace import Workspace


def test_the_command_names_no_place_of_this_machine(tmp_path: Path) -> None:
    shipped, changed = load_recipe("micro"), load_recipe("micro", ["encode.shards.samples=3"])
    with Ledger.open(str(tmp_path / "ledger.sqlite")) as ledger:
        same, other = (ledger.begin_pipeline_run("micro", recipe.canonical()) for recipe in (shipped, changed))
        assert _command(ledger.pipeline_run(same)) == "m4v run micro"
        assert _command(ledger.pipeline_run(other)) == f"m4v runs rerun {other}"


def test_two_processes_do_not_work_on_one_case(tmp_path: Path) -> None:
    selector, policy = ClipSelector(sources=("web",)), Policy()
    workspace = Workspace.open(tmp_path / "home")
    with Ledger.open(workspace.ledger_url) as ledger:
        case = ledger.open_takedown(
            selector.canonical(), reason="r", requested_by="bob", policy=policy.recorded(), blocks={}, clips=[],
            artifacts=[],
        )  # fmt: skip
        claim = ledger.claim(f"takedown {case.takedown_id}", "takedown by bob")
        run = TakedownRun(ledger, workspace, LocalLauncher(), ADA)
        with pytest.raises(InfrastructureError, match="another process is at work on this case: takedown by bob"):
            run.apply(selector, "r", policy)
        ledger.release(claim)


def test_verifications_that_read_the_clips_are_waited_for_and_what_they_kept_goes(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "home")
    with Ledger.open(workspace.ledger_url) as ledger:
        gone, other = artifact("gone"), artifact("other")
        for record in (gone, other):
            ledger.import_artifact(record)
        ledger.open_takedown(
            {"sources": ["web"]}, reason="r", requested_by="bob", policy={}, blocks={}, clips=[],
            artifacts=[(gone.artifact_id, "dataset", "holds a clip")],
        )  # fmt: skip
        for name, record in (("reads it", gone), ("reads another", other)):
            open_folder(workspace.home, name, [(record.artifact_id, "dataset")])
        with pytest.raises(InfrastructureError, match="reads the clips"):
            delete_verified(ledger, workspace)
        folder = workspace.home / "rerun" / "reads it"
        (folder / "000-train").mkdir()
        close_folder(folder, keep=True)
        assert delete_verified(ledger, workspace) == [folder]
        assert [path.name for path in folder.parent.iterdir()] == ["reads another"]
