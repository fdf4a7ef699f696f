"""The section `ablation`: what it becomes, what is shared, and what is refused in which words."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.ablation.config import AblationStageConfig
from eval.ablation.paper import TABLES
from m4v.core.errors import ConfigError
from m4v.flops_table import TABLE3, TABLE4
from pipelines.ablation.variants import Variant, variants_of
from pipelines.graph import build_graph
from pipelines.recipe import Recipe, load_recipe
from pipelines.spec import StageNode, topological_order

SMALLEST = """
extends: ablation
name: mine
ablation: {variants: [], tables: [%s]}
"""


def graph(recipe: Recipe) -> dict[str, StageNode]:
    return {node.id: node for node in topological_order(build_graph(recipe))}


def written(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "mine.yaml"
    path.write_text(text)
    return load_recipe(str(path), overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        written(folder, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("ablation")


@pytest.fixture(scope="module")
def nodes(recipe: Recipe) -> dict[str, StageNode]:
    return graph(recipe)


def by_name(recipe: Recipe) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants_of(recipe)}


def test_every_row_of_the_papers_tables_has_a_variant(recipe: Recipe) -> None:
    assert recipe.ablation is not None
    assert [table.name for table in recipe.ablation.tables] == ["table-3", "table-4", "table-5"]
    for table in recipe.ablation.tables:
        assert table.paper is not None
        assert [row.name for row in table.rows] == [row.name for row in TABLES[table.paper].rows]
        assert all(row.variant for row in table.rows)
    assert len(recipe.ablation.variants) == 13


def test_rows_are_the_architectures_that_flops_counts(recipe: Recipe) -> None:
    switches = {
        "table-3": list(TABLE3.values()),
        "table-4": [switches for switches, _ in TABLE4.values()],
    }
    variants = by_name(recipe)
    for name, expected in switches.items():
        rows = next(table for paper, table in TABLES.items() if paper == name).rows
        for row, wanted in zip(rows, expected, strict=True):
            has = variants[row.variant].model.model_dump()
            assert {key: has[key] for key in wanted} == wanted, row.name


def test_printed_figures_agree_with_themselves() -> None:
    """Averages of Table 3 are those of its four metrics, and Table 4 repeats two of them."""
    averages = {row.variant: row.figures[-1] for row in TABLES["table-3"].rows}
    for row in TABLES["table-3"].rows:
        assert sum(row.figures[:4]) / 4 == pytest.approx(row.figures[4], abs=0.006)
    repeated = {row.variant: row.figures[-1] for row in TABLES["table-4"].rows if row.variant in averages}
    assert repeated == {name: averages[name] for name in ("text-vis", "m4v")}
    for row in TABLES["table-5"].rows:
        total, quality, semantic = row.figures
        assert (4 * quality + semantic) / 5 == pytest.approx(total, abs=0.011)


def test_all_start_from_one_checkpoint_and_train_alike(nodes: dict[str, StageNode]) -> None:
    trained = [node for name, node in nodes.items() if name.startswith("train.adapt")]
    assert len(trained) == 11, "text-vis and m4v stand in two tables, the reward's rows train as theirs without it"
    assert len({node.config.digest() for node in trained}) == 2, "one config, and that with generated clips"
    assert {node.inputs["dataset"] for node in trained} == {("encode", "dataset")}
    starts = {nodes[node.inputs["checkpoint"][0]].id for node in trained}
    assert "train.attention" in starts, "full attention goes on as it is"
    converted = [nodes[name] for name in starts - {"train.attention"}]
    assert {node.inputs["checkpoint"] for node in converted} == {("train.attention", "checkpoint")}
    assert len({node.seed for node in (*trained, *converted)}) == 1


def test_what_the_recipe_does_anyway_is_not_done_twice(nodes: dict[str, StageNode]) -> None:
    five = nodes["ablation.table-5"]
    assert five.inputs["trained.m4v"] == ("train.adapt", "checkpoint")
    assert five.inputs["start.m4v"] == ("convert", "checkpoint")
    assert five.inputs["checkpoint.reward"] == ("reward", "checkpoint")
    assert five.inputs["scores.reward"] == ("evaluate.trained", "scores")
    assert five.inputs["trained.reward-generated"] == ("train.adapt.generated", "checkpoint")
    assert nodes["report"].inputs["ablation.table-5"] == ("ablation.table-5", "scores")


def test_a_table_says_what_each_row_changes(nodes: dict[str, StageNode]) -> None:
    config = nodes["ablation.table-4"].config
    assert isinstance(config, AblationStageConfig)
    assert (config.start, config.stages, config.base.name) == ("attention", ("adapt",), "Full Attn")
    changed = {row.name: {item.name: item.row for item in row.differs} for row in config.rows}
    assert changed["Full Attn"] == {}
    assert changed["Post-half"] == {"model.mixer": "post_half", "model.temporal_branch": False}
    five = nodes["ablation.table-5"].config
    assert isinstance(five, AblationStageConfig)
    assert [item.name for item in five.rows[3].differs] == ["train.adapt.order.mixture", "reward"]


def test_recipes_without_an_ablation_keep_their_form() -> None:
    for name in ("micro", "paper-d1", "m4v-768p"):
        loaded = load_recipe(name)
        assert "ablation" not in loaded.canonical()
        assert not [node for node in graph_ids(loaded) if node.startswith("ablation")]


def test_the_demo_compares_three_mixers_from_the_seed() -> None:
    ids = graph_ids(load_recipe("demo"))
    assert [i for i in ids if i.startswith("ablation")] == ["ablation.mixers"]
    assert {f"train.57f.{name}" for name in ("m4v", "interleaved", "attention")} <= set(ids)
    assert "init.m4v" not in ids, "the recipe's own start serves"
    assert not [i for i in ids if i.startswith("convert")]


def graph_ids(recipe: Recipe) -> list[str]:
    places = [f"sources.{s.name}.location=/videos" for s in recipe.sources if s.location]
    if recipe.weights:
        return []
    return [node.id for node in build_graph(load_recipe(recipe.name, places))]


def test_one_table_alone_and_its_steps(tmp_path: Path) -> None:
    mine = written(tmp_path, SMALLEST % "table-3", "ablation.steps=3")
    found = graph(mine)
    assert mine.ablation is not None
    assert {v.name for v in mine.ablation.variants} == {"zigzag", "text", "vis", "text-vis", "m4v"}
    assert found["train.adapt.m4v"].config.steps == 3  # type: ignore[attr-defined]
    assert found["train.adapt"].config.steps == 8, "the ladder's own keeps its steps"  # type: ignore[attr-defined]
    assert "ablation.table-4" not in found


def test_a_row_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    mine = written(tmp_path, SMALLEST % "table-5")
    config = graph(mine)["ablation.table-5"].config
    assert isinstance(config, AblationStageConfig)
    assert [row.left_out is not None for row in config.rows] == [False, False, True, True]
    assert "no variant 'generated'" in str(config.rows[2].left_out)


def test_from_the_seed_each_variant_has_its_own_start(tmp_path: Path) -> None:
    text = SMALLEST.replace("{variants", "{after: null, variants") % "table-3"
    found = graph(written(tmp_path, text))
    starts = {found[f"train.adapt.{name}"].inputs["checkpoint"][0] for name in ("zigzag", "text", "m4v")}
    assert starts == {"init.zigzag", "init.text", "init.m4v"}
    assert len({found[name].seed for name in starts}) == 1


def test_variants_run_as_the_stage_that_they_vary(tmp_path: Path) -> None:
    stages = "profiles.local.stages={train.adapt: {ranks: 2}, train: {ranks: 1}, generate.trained: {workers: 2}}"
    found = graph(written(tmp_path, SMALLEST % "table-3", stages))
    assert found["train.adapt.text"].resources.ranks == 2
    assert found["train.attention"].resources.ranks == 1
    assert found["generate.text"].resources.workers == 2


OWN = """
extends: ablation
name: mine
ablation:
  variants: [{name: generated, remove: true}, {name: a}, {name: b, train: {adapt: {optimizer: {lr: 0.01}}}}, %s]
  tables: [{name: rates, rows: [{name: slow, variant: a}, {name: fast, variant: b}, %s]}]
"""


def test_a_table_of_ones_own_may_vary_the_training(tmp_path: Path) -> None:
    text = OWN % ("{name: c, model: {scan: raster}}", "{name: raster, variant: c}, {name: later, left_out: no time}")
    config = graph(written(tmp_path, text))["ablation.rates"].config
    assert isinstance(config, AblationStageConfig)
    assert [[(d.name, d.baseline, d.row) for d in row.differs] for row in config.rows] == [
        [], [("train.adapt.optimizer.lr", 0.001, 0.01)], [("model.scan", "serpentine", "raster")], [],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "row", "words"),
    [
        ("{name: c, model: {scna: raster}}", "{name: c, variant: c}", ["scna", "did you mean scan"]),
        ("{name: c, model: {width: 128}}", "{name: c, variant: c}", ["width", "mixers, not in sizes"]),
        ("{name: c, train: {adpt: {steps: 2}}}", "{name: c, variant: c}", ["'adpt'", "use one of adapt"]),
        ("{name: c, train: {adapt: {stepz: 2}}}", "{name: c, variant: c}", ["stepz", "did you mean steps"]),
        ("{name: c, train: {adapt: {name: x}}}", "{name: c, variant: c}", ["keys the order of its data"]),
        ("{name: c}", "{name: c, variant: c}", ["'slow' and 'c' are one model trained alike"]),
        ("{name: c, reward: true}", "{name: d, variant: d}", ["no variant 'd'"]),
        ("{name: c, reward: true}", "{name: d, left_out: later}", ["no table shows 'c'"]),
        ("{name: a, reward: true}", "{name: d, left_out: later}", ["two list items have one name: 'a'"]),
        ("{name: c, reward: true}", "{name: slow, variant: c}", ["the row 'slow' stands twice"]),
        ("{name: c, reward: true}", "{name: d, variant: c, left_out: later}", ["name its variant, or say in left_out"]),
    ],
)
def test_a_wrong_variant_is_one_line_with_the_fix(tmp_path: Path, variant: str, row: str, words: list[str]) -> None:
    message = refusal(tmp_path, OWN % (variant, row))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("tables", "override", "words"),
    [
        ("table-2", "seed=7", ["no 'table-2'", "table-3, table-4, table-5"]),
        ("table-3", "ablation.after=t9", ["no training stage 't9'", "attention, adapt"]),
        ("table-3", "ablation.stages=[t9]", ["no training stage 't9'"]),
        ("table-3", "attention_until=adapt", []),
        ("table-3", "attention_until=null", ["only a checkpoint that mixes with attention is converted"]),
        ("table-4", "model.single_blocks=2", ["'Pre-half' and 'Interleaved' are one model"]),
        ("table-5", "reward=null", ["ablation.variants.reward", "no reward section"]),
        ("table-3", "ablation.vbench=true", ["no evaluation.vbench"]),
        ("{name: x, paper: table-3, rows: [{name: none, left_out: later}]}", "seed=7", ["no row has a variant"]),
    ],
)
def test_a_recipe_that_does_not_fit_its_tables(
    tmp_path: Path, tables: str, override: str, words: list[str]
) -> None:  # fmt: skip
    if not words:
        assert "train.adapt.text" in graph(written(tmp_path, SMALLEST % tables, override))
        return
    message = refusal(tmp_path, SMALLEST % tables, override)
    assert all(word in message for word in words), message


def test_a_row_of_the_paper_is_what_the_paper_says(tmp_path: Path) -> None:
    text = """
extends: ablation
name: mine
ablation:
  variants: [{name: generated, remove: true}, {name: a}, {name: b, model: {registers: false}}]
  tables:
    - name: mine
      paper: table-3
      rows: [{name: none, variant: a}, {name: Text, variant: b}%s]
"""
    others = "".join(f", {{name: {name}, left_out: later}}" for name in ("Vis", "Text + Vis", "Text + Vis + Temp"))
    message = refusal(tmp_path, text % others)
    assert "row 'none' is a model whose text_recomposition is False, and that of variant 'a' is True" in message
    assert "has a row 'Vis'" in refusal(tmp_path, text % "")


def test_settings_at_the_papers_size_are_recipes() -> None:
    """Those that the recipe's comment names, as they stand there."""
    text = (resources.files("pipelines.recipes") / "ablation.yaml").read_text()
    comment = "\n".join(line.removeprefix("# ").removeprefix("#") for line in text.splitlines() if line[:1] == "#")
    blocks = re.findall(r"(?m)(?:^  .*\n|^ *\n)+", comment)
    found: list[Any] = [yaml.safe_load(block) for block in blocks if block.strip()]
    assert [data["name"] for data in found] == ["paper-ablation", "paper-training"]


@pytest.mark.parametrize("name", ["paper-ablation", "paper-training"])
def test_settings_at_the_papers_size_load(tmp_path: Path, name: str) -> None:
    text = (resources.files("pipelines.recipes") / "ablation.yaml").read_text()
    comment = "\n".join(line.removeprefix("# ").removeprefix("#") for line in text.splitlines() if line[:1] == "#")
    block = next(b for b in re.findall(r"(?m)(?:^  .*\n|^ *\n)+", comment) if f"name: {name}\n" in b)
    loaded = written(tmp_path, block)
    variants = by_name(loaded)
    assert all(stage.steps in (20000, 30000) for variant in variants.values() for stage in variant.stages)
    assert {"m4v"} < set(variants)


def test_variants_are_sampled_on_prompts_of_their_own_where_they_are_asked_for(tmp_path: Path, recipe: Recipe) -> None:
    assert recipe.ablation is not None
    assert not {"prompts", "frames"} & set(recipe.ablation.canonical())
    mine = written(tmp_path, SMALLEST % "table-3", "ablation.frames=17", "ablation.prompts=shapes-24")
    nodes = graph(mine)
    sampled = [nodes[f"generate.{name}"].config for name in ("zigzag", "text")]
    assert [(c.frames, len(c.prompts)) for c in sampled] == [(17, 24)] * 2  # type: ignore[attr-defined]
    assert nodes["generate.trained"].config == graph(recipe)["generate.trained"].config
    assert "8k + 1" in refusal(tmp_path, SMALLEST % "table-3", "ablation.frames=16")
