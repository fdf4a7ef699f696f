"""A home whose ledger has one table of an ablation, made by the real stage, three times, and other scores beside it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "eval"))
sys.path.insert(0, str(Path(__file__).parents[2] / "eval" / "ablation"))

from ablation_fixture import Variants
from evaluated_home import EvaluatedHome

from m4v.core.artifacts import Artifact, ArtifactKind
from pipelines.ledger import Ledger
from pipelines.store import ArtifactRecord
from pipelines.workspace import Workspace

HOSTILE = "<script>alert('x')</script>"
BASE = [0.4, 0.5, 0.6, 0.5, 0.4, 0.6]
ROWS = [
    {"name": "neither", "variant": "plain"},
    {"name": "Reward Learning", "variant": "better", "note": HOSTILE,
     "differs": [{"name": "reward", "baseline": None, "row": "reward"}]},
    {"name": "Generated Data", "left_out": "no collection is here"},
    {"name": "Reward Learning + Generated Data", "left_out": "no collection is here"},
]  # fmt: skip


@dataclass(frozen=True)
class AblatedHome:
    """`table`: the artifact of the table; `other`: the id of scores that are no table."""

    place: Path
    table: Artifact
    other: str


def ablated_home(root: Path) -> AblatedHome:
    values = {"plain": BASE, "better": [v + 0.1 for v in BASE]}
    _, artifact = Variants(root, values, {}).table({"name": "table-5", "paper": "table-5", "rows": ROWS})
    workspace = Workspace.open(root / "home")
    with Ledger.open(workspace.ledger_url) as ledger:
        made = EvaluatedHome(root / "home", ledger)
        facts = {"table": "table-5", "paper": "table-5", "variants": 2, "rows": 4, "left_out": 2}
        record = ArtifactRecord(
            artifact_id=artifact.id, kind=ArtifactKind.SCORES, uri=artifact.storage.uri, summary=facts,
            size_bytes=artifact.manifest.size_bytes, files=len(artifact.manifest.files),
        )  # fmt: skip
        for _ in range(3):
            made.run("ablation", "scores", record, {})
        other = made.evaluated(BASE)[1]
    return AblatedHome(root / "home", artifact, other)
