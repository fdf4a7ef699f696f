"""Training curves on pages: steps that took no update are told, not drawn; videos of a checkpoint are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, write_manifest
from m4v.core.errors import DataIntegrityError
from pipelines.web.sections.training import loss_chart, losses_of, other_charts, read_metrics, skipped_steps

ROWS = [
    {"step": 0, "loss": 2.0, "validation_loss": 3.0},
    {"step": 1, "loss": None, "grad_norm": None, "skipped": "loss is not finite"},
    {"step": 2, "loss": 900.0, "skipped": "loss 900 is 450.0 times the usual 2"},
    {"step": 3, "loss": 1.5, "validation_loss": 2.5},
]


def checkpoint_with(folder: Path, lines: str) -> Artifact:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(lines)
    manifest = build_manifest(folder, ArtifactKind.CHECKPOINT, {})
    write_manifest(folder, manifest)
    return Artifact(str(folder), manifest.artifact_id, ArtifactKind.CHECKPOINT, folder.parent / "cache")


def test_steps_without_an_update_are_told_and_not_drawn(tmp_path: Path) -> None:
    rows = read_metrics(checkpoint_with(tmp_path / "a", "\n".join(map(json.dumps, ROWS))))
    assert losses_of(rows) == [(0.0, 2.0), (3.0, 1.5)]
    assert skipped_steps(rows) == ((1, "loss is not finite"), (2, "loss 900 is 450.0 times the usual 2"))
    assert loss_chart("x", rows) is not None
    assert [(name, change.first, change.last) for name, _, change in other_charts("x", rows)] == [
        ("validation_loss", 3.0, 2.5)
    ]


def test_a_stage_without_any_update_has_no_curve() -> None:
    assert loss_chart("x", [dict(ROWS[1])]) is None


def test_a_row_without_a_loss_does_not_parse(tmp_path: Path) -> None:
    with pytest.raises(DataIntegrityError, match="line 2 does not parse"):
        read_metrics(checkpoint_with(tmp_path / "b", json.dumps(ROWS[0]) + '\n{"step": 1}'))
