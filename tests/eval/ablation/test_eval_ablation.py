"""Stage `ablation`: cells and their differences, what is common, what is not compared, and the exports."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from ablation_fixture import GOOD, MONITOR, NOISE, SMALL, Variants

from eval.ablation.export import as_csv, as_markdown
from eval.ablation.models import common, count, mixer_tflops, shapes_of
from eval.ablation.records import CSV, MARKDOWN, AblationTable
from m4v.config import ModelConfig
from m4v.core.artifacts import Artifact
from m4v.model import build_model
from m4v.model.convert import attention_to_mamba

BASE = [0.4, 0.5, 0.6, 0.5, 0.4, 0.6]
VALUES = {"plain": BASE, "better": [v + 0.1 for v in BASE], "noisy": [0.6, 0.3, 0.8, 0.3, 0.6, 0.4], "other": BASE}
MODELS = {"plain": {"registers": False}, "better": {"registers": True}}
ROWS = [
    {"name": "none", "variant": "plain"},
    {"name": "Vis", "variant": "better", "note": "with registers", "differs": [
        {"name": "model.registers", "baseline": False, "row": True}]},
    {"name": "Text", "variant": "noisy"},
    {"name": "Text + Vis", "variant": "other"},
    {"name": "Text + Vis + Temp", "left_out": "no GPU is here"},
]  # fmt: skip
Made = tuple[AblationTable, Artifact, Variants]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    variants = Variants(tmp_path_factory.mktemp("variants"), VALUES, MODELS)
    variants.score("other", BASE, variants.inputs["checkpoint.other"].id, fps=24.0)
    variants.trained_on("other", order={"frames": 9})
    table, artifact = variants.table({"paper": "table-3", "rows": ROWS})
    return table, artifact, variants


def test_differences_are_paired_by_prompt_against_the_baseline_row(made: Made) -> None:
    none, vis, noisy, *_ = made[0].rows
    assert none.cells[GOOD].value == pytest.approx(np.mean(BASE))
    assert none.cells[GOOD].gain is None
    assert vis.cells[GOOD].gain == pytest.approx(0.1)
    assert vis.cells[GOOD].gain_interval == (0.1, 0.1), "every prompt gains alike, however far prompts lie apart"
    assert vis.cells[NOISE].gain == pytest.approx(0.1), "less is better"
    assert (vis.cells[GOOD].verdict, noisy.cells[GOOD].verdict) == ("better", "unclear")
    assert vis.cells[MONITOR].gain is None, "a monitor has no better direction"
    low, high = vis.cells[GOOD].interval or (0, 0)
    assert low < (vis.cells[GOOD].value or 0) < high
    assert made[0].comparisons == 4


def test_what_is_measured_otherwise_is_shown_and_not_subtracted(made: Made) -> None:
    other = made[0].rows[3]
    assert other.not_compared == "fps differ between the two"
    assert other.cells[GOOD].value == pytest.approx(np.mean(BASE))
    assert all(cell.gain is None for cell in other.cells.values())


def test_losses_are_compared_only_where_the_data_are_the_same(made: Made) -> None:
    none, vis, _, other, _ = made[0].rows
    assert none.loss == pytest.approx((0.82 + 0.81) / 2)
    assert (none.loss_gain, none.steps) == (None, 20)
    assert vis.loss_gain == pytest.approx(0.1)
    assert (vis.same_data, other.same_data, other.loss_gain) == (True, False, None)


def test_what_was_not_run_is_told(made: Made) -> None:
    last = made[0].rows[4]
    assert (last.variant, last.left_out, last.cells) == (None, "no GPU is here", {})


def test_where_variants_come_from(made: Made) -> None:
    table, _, variants = made
    assert table.start_from == variants.shared
    assert table.rows[1].checkpoint == variants.inputs["checkpoint.better"].id
    assert table.rows[1].start == variants.inputs["start.better"].id
    assert table.rows[1].scores == (variants.inputs["scores.better"].id,)
    plain, better = (ModelConfig.model_validate({**SMALL, **MODELS[name]}) for name in ("plain", "better"))
    assert table.rows[0].parameters == count(shapes_of(plain))
    assert table.rows[1].parameters == count(shapes_of(better)) == count(shapes_of(plain)) + 4 * 3 * 32
    assert table.rows[1].shared == table.rows[0].parameters, "registers are all that it has more"
    assert table.rows[1].tflops == mixer_tflops(better, 9, 64, 64)


def test_parameters_in_common_start_from_equal_values() -> None:
    """From one attention checkpoint, and from one seed."""
    attention = ModelConfig.model_validate({**SMALL, "mixer": "attention"})
    plain = attention.model_copy(update={"mixer": "interleaved", "registers": False, "text_recomposition": False})
    whole = attention.model_copy(update={"mixer": "mm_dim", "temporal_branch": True})
    trained = build_model(attention, 1).state_dict()
    for states in (
        [attention_to_mamba(trained, config, 7) for config in (plain, whole)],
        [build_model(config, 7).state_dict() for config in (plain, whole)],
    ):
        shared = common(shapes_of(plain), shapes_of(whole))
        assert 0.5 < count(shared) / count(shapes_of(plain)) < 1
        assert all(torch.equal(states[0][name], states[1][name]) for name in shared)


def test_same_inputs_give_the_same_bytes(made: Made) -> None:
    _, artifact, variants = made
    assert variants.table({"paper": "table-3", "rows": ROWS})[1].id == artifact.id


def test_csv_holds_every_figure_of_ours_and_none_of_the_papers(made: Made) -> None:
    table, artifact, _ = made
    text = artifact.path(CSV).read_text()
    assert text == as_csv(table)
    rows = list(csv.DictReader(io.StringIO(text)))
    (found,) = [row for row in rows if (row["row"], row["metric"]) == ("Vis", GOOD)]
    assert (float(found["gain"]), found["baseline"], found["prompts"]) == (pytest.approx(0.1), "none", "6")
    assert [row["metric"] for row in rows if row["row"] == "Text + Vis + Temp"] == [""]
    assert "93.28" not in text


def test_markdown_has_the_papers_figures_in_a_table_of_their_own(made: Made) -> None:
    table, artifact, _ = made
    text = artifact.path(MARKDOWN).read_text()
    assert text == as_markdown(table)
    ours, _, printed = text.partition("## As printed: M4V paper, Table 3")
    assert "| Vis |" in ours
    assert "(+0.1000, +0.1000 to +0.1000, better)" in ours
    assert "not run: no GPU is here" in ours
    assert "- Text + Vis: not compared, fps differ between the two" in ours
    assert "one training each" in ours
    assert "of 4 differences about 0.2 would leave 0 out" in ours
    assert "| none | 93.28 | 46.60 | 63.16 | 19.77 | 55.70 |" in printed
    assert "93.28" not in ours


def test_another_row_may_be_the_baseline(made: Made) -> None:
    table, _ = made[2].table({"rows": ROWS, "baseline": "Vis", "confidence": 0.9})
    assert table.rows[0].cells[GOOD].gain == pytest.approx(-0.1)
    assert table.rows[0].cells[GOOD].verdict == "worse"
    assert (table.baseline, table.paper) == ("Vis", None)
