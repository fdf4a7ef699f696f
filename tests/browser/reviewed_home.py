"""A copy of a finished micro run with what reviewers ask about: a second run, two channels, a repeated run, a clip
taken down. Everything by the real verbs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from m4v.core.errors import ExitClass
from pipelines.access import Actor, Role
from pipelines.channels import promote
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger
from pipelines.membership import ClipSelector, parse_selector
from pipelines.rerun import Allowed, Verifier
from pipelines.session import open_session
from pipelines.settings import load_settings
from pipelines.store import ArtifactStore
from pipelines.takedown.apply import TakedownRun
from pipelines.takedown.policy import Delete, Policy
from pipelines.workspace import Workspace

SETTINGS = """
access:
  user_header: X-User
  roles: {ann: operator, bob: approver, cyd: admin}
"""
TAKEN = "shapes/clip-000003.mp4"  # source and source id of the clip that is taken down
ASKED = "shapes/clip-000001.mp4"  # of the clip that the reviewer asks about


@dataclass(frozen=True)
class ReviewedHome:
    """`checkpoint` is what channel `production` names, of run `first`; `second` differs in its gate alone."""

    home: Path
    first: str
    second: str
    checkpoint: str
    takedown: str
    clip: str
    repeated: str


def build(micro_home: Path, home: Path) -> ReviewedHome:
    """Takes seconds: of the second run only the gate is new, and only the gate is executed again."""
    shutil.copytree(micro_home, home, symlinks=True)
    (home / "settings.yaml").write_text(SETTINGS)
    workspace = Workspace.open(home)
    with Ledger.open(workspace.ledger_url) as ledger:
        for record in ArtifactStore(workspace.store_uri).list():
            ledger.import_artifact(record)  # the copied bytes are where the ledger looks for them
        first = ledger.pipeline_runs()[0].pipeline_run_id
        gate = next(n for n in ledger.nodes(first) if n.node_id == "gate")
        reward = next(n for n in ledger.nodes(first) if n.node_id == "reward")
        assert gate.run_id is not None
        assert reward.run_id is not None
        checkpoint = ledger.run(reward.run_id).outputs[0].artifact_id
        second = _second_run(home)
        Verifier(workspace, ledger, LocalLauncher, Allowed(False, False)).verify(gate.run_id)
        promote(
            ledger, load_settings(workspace), Actor("ann", Role.OPERATOR), checkpoint, "production", reason="passed"
        )
        clip = ledger.find_clips(parse_selector([f"source:{ASKED}"]))[0].clip_id
        taken = ClipSelector(sources=(TAKEN,))
        case = TakedownRun(ledger, workspace, LocalLauncher(), Actor("bob", Role.APPROVER)).apply(
            taken, "its owner asked for it", Policy(delete=Delete.KEEP)
        )
    return ReviewedHome(home, first, second, checkpoint, case.case.takedown_id, clip, gate.run_id)


def _second_run(home: Path) -> str:
    session = open_session("micro", ("gate.confidence=0.9",), str(home))
    run = session.new_run("gate")
    run.run_all()
    assert run.finish() is ExitClass.OK
    session.ledger.close()
    return run.id
