"""The cost page's rule: a figure stands there only when a benchmark's JSON holds it."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "gpu"))

from cost_page import MISSING, block_rows, figure, forward_rows, generation_rows, page, read, step_rows

FACTS = {"device": "a GPU", "torch": "2", "commit": "c", "date": "d"}


def written(folder: Path, name: str, rows: list[dict[str, object]], facts: dict[str, str] = FACTS) -> Path:
    path = folder / f"{name}-{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps({"benchmark": name, "facts": facts, "rows": rows}))
    return path


def test_nothing_measured_says_so() -> None:
    assert block_rows({}) == [[MISSING] * 7]
    assert forward_rows({}) == [[MISSING] * 5]
    assert all(cell == MISSING for row in step_rows({}) for cell in row[3:])
    for row in generation_rows({}):
        assert [row[2], row[5]] in (["296", "812"], ["226", "613"])  # the paper's own
        assert {*row[3:5], *row[6:]} == {MISSING}


def test_figures_come_from_measured_rows_alone(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"form": "M4V, ours", "kind": "summed", "frames": 241, "seconds": 70.04, "state": "measured"},
        {"form": "M4V, auto", "kind": "summed", "frames": 241, "seconds": 80.0, "state": "stopped after 9 s"},
    ]
    found = read([written(tmp_path, "generation", rows[:1]), written(tmp_path, "generation", rows[1:])])
    by_form = {row[1]: row for row in generation_rows(found)}
    assert by_form["M4V, ours"][3:8] == [MISSING, MISSING, "613", "70.0", MISSING]
    assert by_form["M4V, auto"][6] == MISSING
    assert figure(found, "generation", {"form": "M4V, ours"}, "peak GiB") == MISSING


def test_forwards_stand_by_latent_frame_and_stage() -> None:
    held = {"M4V, ours": {"units": [1, 4, 16], "ms": [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [40.26, 50.0, 60.0]]}}
    (row,) = forward_rows({"generation": {"forwards": held}})
    nothing = " / ".join([MISSING] * 3)
    assert row == ["M4V, ours", "1.0 / 2.0 / 3.0", nothing, "40.3 / 50.0 / 60.0", nothing]


def test_rows_of_another_commit_are_named(tmp_path: Path) -> None:
    later = FACTS | {"commit": "e", "date": "f"}
    files = [written(tmp_path, "generation", [], facts) for facts in (FACTS, later, later)]
    assert "- generation: a GPU, torch 2, commit c, d; what that run lacks: commit e, f\n" in page(read(files))
    assert "- generation: a GPU, torch 2, commit c, d\n" in page(read(files[:1]))


def test_files_of_two_devices_are_not_joined(tmp_path: Path) -> None:
    one = written(tmp_path, "step", [])
    other = written(tmp_path, "step", [], FACTS | {"device": "another GPU"})
    with pytest.raises(SystemExit, match="another device"):
        read([one, other])
