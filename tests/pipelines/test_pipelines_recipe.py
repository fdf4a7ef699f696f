"""Recipes: what is refused, in which words; overrides; extending; and the graph that a recipe becomes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from m4v.core.errors import ConfigError, ExitClass, InputError
from pipelines.graph import build_graph
from pipelines.recipe import load_recipe, shipped_recipes
from pipelines.spec import topological_order

LADDER = ["init", "train.t2i", "train.9f", "train.17f", "train.33f", "reward"]


def refusal(*overrides: str, recipe: str = "micro") -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    assert caught.value.exit_class is ExitClass.CONFIG
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_resolves_to_itself(name: str) -> None:
    recipe = load_recipe(name)
    again = type(recipe).model_validate(json.loads(json.dumps(recipe.canonical())))
    assert again.digest() == recipe.digest()
    assert recipe.name == name


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("curate.shot.detector=none", ["unknown key curate.shot", "did you mean shots"]),
        ("train.9f.step=3", ["unknown key train.1.step", "did you mean steps"]),
        ("train.9f.steps=many", ["train.1.steps", "'many'"]),
        ("seed=-1", ["seed", "-1"]),
        ("generate.frames=16", ["8k + 1", "9 or 17"]),
        ("model.width=65", ["width 65", "heads 2"]),
        ("gate.rules=[]", ["gate.rules"]),
        ("profile=cluster", ["cluster", "local"]),
        ("train.99f.steps=3", ["no such list item", "t2i, 9f, 17f, 33f"]),
        ("seed", ["a.b=c", "'seed'"]),
        ("seed.deeper=1", ["below a plain value"]),
        ("seed=[1", ["not YAML", "--set seed"]),
    ],
)
def test_a_wrong_recipe_is_one_line_with_the_fix(override: str, words: list[str]) -> None:
    message = refusal(override)
    assert all(word in message for word in words), message


def test_an_unknown_recipe_names_near_ones(tmp_path: Path) -> None:
    assert "did you mean micro" in refusal(recipe="mirco")
    assert "does not exist" in refusal(recipe=str(tmp_path / "none.yaml"))


def test_a_file_that_is_not_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: [unclosed")
    assert "not YAML" in refusal(recipe=str(path))
    path.write_text("- a\n- list\n")
    assert "mapping" in refusal(recipe=str(path))


def test_overrides_reach_list_items_by_name_and_by_number() -> None:
    by_name = load_recipe("micro", ["train.17f.steps=9", "curate.shots.trim_frames=0"])
    by_number = load_recipe("micro", ["train.2.steps=9", "curate.shots.trim_frames=0"])
    assert by_name.digest() == by_number.digest()
    assert [t.steps for t in by_name.train] == [4, 4, 9, 4]
    assert by_name.curate.shots.trim_frames == 0


def test_extending_merges_named_items_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: micro\nname: mine\ntrain:\n  - {name: 9f, steps: 7}\n")
    base, mine = load_recipe("micro"), load_recipe(str(path))
    assert [t.steps for t in mine.train] == [4, 7, 4, 4]
    assert mine.train[1].order == base.train[1].order
    assert mine.sources == base.sources


def test_extending_adds_and_removes_named_items(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: micro\nname: mine\nsources:\n  - {name: street, remove: true}\n"
        "  - {name: own, location: /data, adapter: {kind: folder}}\n"
    )
    assert [s.name for s in load_recipe(str(path)).sources] == ["shapes", "own"]


def test_recipes_may_not_extend_in_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "circle.yaml"
    path.write_text(f"extends: {path}\nname: circle\n")
    assert "circle" in refusal(recipe=str(path))


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    source = "{name: a, adapter: {kind: synthetic}}"
    path = tmp_path / "twice.yaml"
    path.write_text(f"extends: micro\nname: twice\nsources: [{source}, {source}]\n")
    with pytest.raises(ConfigError, match="one name: 'a'"):
        load_recipe(str(path))


def test_the_graph_of_a_recipe_leads_from_sources_to_the_report() -> None:
    nodes = build_graph(load_recipe("micro"))
    by_id = {n.id: n for n in nodes}
    assert [n.id for n in topological_order(nodes)][-1] == "report"
    for before, after in zip(LADDER, LADDER[1:], strict=False):
        assert by_id[after].inputs["checkpoint"] == (before, "checkpoint")
    assert by_id["curate"].inputs == {
        "source.0": ("source.shapes", "source"),
        "source.1": ("source.street", "source"),
    }
    assert by_id["gate"].upstream == ["evaluate.trained", "evaluate.untrained"]
    assert by_id["generate.untrained"].upstream == ["init"]
    assert by_id["train.9f"].resources.ranks == 2
    assert by_id["encode"].resources.ranks == 1


def test_without_a_reward_the_last_rung_is_evaluated() -> None:
    nodes = {n.id: n for n in build_graph(load_recipe("micro", ["reward=null"]))}
    assert "reward" not in nodes
    assert nodes["generate.trained"].upstream == ["train.33f"]


def test_a_missing_asset_names_the_fetch_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("M4V_ASSETS", str(tmp_path))
    with pytest.raises(InputError, match="make assets"):
        build_graph(load_recipe("micro"))


def test_planning_imports_neither_torch_nor_an_orchestrator() -> None:
    code = (
        "import sys; from pipelines.session import open_session; open_session('micro').plan();"
        "print([m for m in ('torch', 'prefect', 'ray', 'deepspeed', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
