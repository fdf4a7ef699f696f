"""Facts of a curated clip table as JSON: funnel, yields by source, scores with the rules that look at them."""

from __future__ import annotations

import json
from typing import Any

from dataprep.curate_config import CurateConfig
from dataprep.curation.table import FUNNEL
from m4v.core.artifacts import Artifact
from m4v.core.errors import DataIntegrityError
from pipelines.inspection.clip_table import ClipTable
from pipelines.inspection.quarantine import counted, held_items
from pipelines.inspection.targets import Target


def clip_facts(target: Target, table: ClipTable, config: CurateConfig | None) -> dict[str, Any]:
    """What `m4v data inspect --json` prints: keys are added and never renamed; sizes in seconds and clips.

    `rules` of a score are null where the clips were curated before hashes were kept, or by an unknown run.
    """
    known = config is not None and table.decidable
    return {
        "artifact_id": target.id,
        "run_id": target.run.run_id if target.run else None,
        "recipe": target.recipe,
        "clips": table.clips,
        "kept": int(table.kept.sum()),
        "kept_videos": int((table.kept & table.video).sum()),
        "kept_seconds": round(float(table.seconds[table.kept].sum()), 3),
        "dropped_by_rule": table.dropped_by_rule(),
        "quarantined": counted(held_items([target.artifact])),
        "funnel": read_funnel(target.artifact),
        "sources": [row.to_json() for row in table.yields()],
        "scores": [
            {**score.to_json(), "rules": score.to_json()["rules"] if known else None}
            for score in table.scores(config.filters if config else None)
        ],
        "filters": config.filters.canonical() if config else None,
        "dedup": config.dedup.canonical() if config else None,
    }


def read_funnel(artifact: Artifact) -> list[dict[str, Any]]:
    """Steps as the stage wrote them; raises DataIntegrityError when the file does not parse."""
    try:
        steps: list[dict[str, Any]] = json.loads(artifact.path(FUNNEL).read_text())
    except ValueError as error:
        raise DataIntegrityError(f"{FUNNEL} does not parse: {error}", where=f"clips {artifact.id[:12]}") from None
    return steps
