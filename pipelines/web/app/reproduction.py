"""Can it be reproduced: what executing a run again has shown, for the pages of runs."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.ledger import Ledger
from pipelines.ledger.verifications import VerificationRow


@dataclass(frozen=True)
class StageProof:
    """A stage of a pipeline run with its newest verdict; None while nobody executed it again."""

    node_id: str
    run_id: str
    newest: VerificationRow | None


@dataclass(frozen=True)
class Reproduction:
    """`whole`: verdicts on the run itself, newest first; `stages` are those of a pipeline run."""

    identity: str
    whole: tuple[VerificationRow, ...]
    stages: tuple[StageProof, ...] = ()

    @property
    def proved(self) -> int:
        """Stages whose newest verdict is *identical*."""
        return sum(stage.newest is not None and stage.newest.verdict == "identical" for stage in self.stages)


def of_stage_run(ledger: Ledger, run_id: str) -> Reproduction:
    return Reproduction(run_id, tuple(reversed(ledger.verifications(run_id))))


def of_pipeline_run(ledger: Ledger, pipeline_run_id: str) -> Reproduction:
    stages = []
    for node in ledger.nodes(pipeline_run_id):
        if node.run_id is not None:
            found = ledger.verifications(node.run_id)
            stages.append(StageProof(node.node_id, node.run_id, found[-1] if found else None))
    whole = tuple(reversed(ledger.verifications(pipeline_run_id)))
    return Reproduction(pipeline_run_id, whole, tuple(stages))
