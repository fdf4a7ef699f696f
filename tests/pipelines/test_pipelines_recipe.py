"""Recipes: what is refused, in which words; overrides; extending; and the graph that a recipe becomes."""

import itertools
import json
from pathlib import Path

import pytest
import yaml

from m4v.core.errors import ConfigError, ExitClass, InputError
from m4v.kernels import kernel_summary, selection
from pipelines.graph import build_graph
from pipelines.keys import probe_value
from pipelines.recipe import load_recipe, shipped_recipes
from pipelines.spec import topological_order

ROOT = Path(__file__).parents[2]

# Graphs need no footage: where assets lie elsewhere, any directory will do.
LOCATIONS = {
    name: [f"sources.{s.name}.location=/videos" for s in load_recipe(name).sources if s.location]
    for name in ("micro", "demo")
}
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
        ("train.9f.step=3", ["unknown key train.9f.step:", "did you mean steps"]),
        ("train.9f.steps=many", ["train.9f.steps: ", "'many'", "correct train.9f.steps"]),
        ("seed=-1", ["seed", "-1"]),
        ("generate.frames=16", ["8k + 1", "9 or 17"]),
        ("model.width=65", ["width 65", "heads 2"]),
        ("gate.rules=[]", ["gate.rules"]),
        ("profile=cluster", ["profile 'cluster' is not one of local"]),
        ("sources.street.adapter.inclde=[a]", ["unknown key sources.street.adapter.inclde", "did you mean include"]),
        ("sources.street.adapter.kind=folders", ["sources.street.adapter", "'folders'", "'folder'"]),
        ("sources.street.name=My Videos", ["sources.My Videos.name", "pattern"]),
        ("train=[]", ["train", "at least 1 item"]),
        ("train.99f.steps=3", ["no such list item", "t2i, 9f, 17f, 33f"]),
        ("seed", ["a.b=c", "'seed'"]),
        ("seed.deeper=1", ["below a plain value"]),
        ("seed=[1", ["not YAML", "--set seed"]),
        ("=3", ["a.b=c"]),
        ("a..b=3", ["a.b=c"]),
        ("train.9.steps=3", ["no such list item", "'9'"]),
    ],
)
def test_a_wrong_recipe_is_one_line_with_the_fix(override: str, words: list[str]) -> None:
    message = refusal(override)
    assert all(word in message for word in words), message


def test_an_unknown_recipe_names_near_ones(tmp_path: Path) -> None:
    assert "did you mean micro" in refusal(recipe="mirco")
    assert "does not exist" in refusal(recipe=str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [unclosed", ["not YAML", "line 1, column"]),
        ("name: &name [*name]", ["contains itself"]),
        ("- a\n- list\n", ["mapping", "extends: demo"]),
        ("", ["mapping"]),
        ("extends: micro\nname: x\nseed: 1\nseed: 2\n", ["'seed' stands twice", "line 4, column 1"]),
        ("extends: [micro, demo]\n", ["extends names one recipe", "['micro', 'demo']"]),
        ("extends: micor\n", ["unknown recipe: 'micor'", "did you mean micro"]),
        ("extends: micro\nname: x\n7: y\n", ["7"]),
        ("extends: micro\nname: x\nsources: [{name: tree, remove: true}]\n", ["no such item to remove: 'tree'"]),
    ],
)
def test_a_file_that_is_not_a_recipe(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = refusal(recipe=str(path))
    assert all(word in message for word in words), message
    assert "unicode string" not in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: caf\xe9".encode("latin-1"))
    assert "not UTF-8" in refusal(recipe=str(path))
    (tmp_path / "folder.yaml").mkdir()
    assert "cannot be read" in refusal(recipe=str(tmp_path / "folder.yaml"))


def test_overrides_reach_list_items_by_name_and_by_number() -> None:
    by_name = load_recipe("micro", ["train.17f.steps=9", "curate.shots.trim_frames=0"])
    by_number = load_recipe("micro", ["train.2.steps=9", "curate.shots.trim_frames=0"])
    assert by_name.digest() == by_number.digest()
    assert [t.steps for t in by_name.train] == [4, 4, 9, 4]
    assert by_name.curate.shots.trim_frames == 0


def test_an_override_of_one_stage_leaves_those_that_share_its_anchor() -> None:
    before = load_recipe("m4v-768p")
    after = load_recipe("m4v-768p", ["train.121f.engine.zero_stage=2"])
    assert {t.name: t.engine.zero_stage for t in before.train} != {t.name: t.engine.zero_stage for t in after.train}
    assert [t.name for t, u in zip(before.train, after.train, strict=True) if t != u] == ["121f"]


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


def test_a_recipe_extends_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "base.yaml").write_text("extends: micro\nname: base\nseed: 5\n")
    (tmp_path / "mine.yaml").write_text("extends: team/base.yaml\nname: mine\n")
    mine = load_recipe(str(tmp_path / "mine.yaml"))
    assert (mine.name, mine.seed, len(mine.train)) == ("mine", 5, 4)


def test_recipes_may_not_extend_in_a_circle(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("extends: second.yaml\n")
    second.write_text("extends: first.yaml\n")
    message = refusal(recipe=str(first))
    assert "circle" in message
    assert f"{first} -> {second} -> {first}" in message


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
    for before, after in itertools.pairwise(LADDER):
        assert by_id[after].inputs["checkpoint"] == (before, "checkpoint")
    assert by_id["curate"].inputs == {
        "source.0": ("source.shapes", "source"),
        "source.1": ("source.street", "source"),
    }
    assert by_id["gate"].upstream == ["evaluate.trained", "evaluate.untrained"]
    assert by_id["generate.untrained"].upstream == ["init"]
    assert {i for i, node in by_id.items() if node.resources.ranks == 2} == {"train.t2i", "reward"}
    assert {node.resources.ranks for node in nodes} == {1, 2}


def test_without_a_reward_the_last_rung_is_evaluated() -> None:
    nodes = {n.id: n for n in build_graph(load_recipe("micro", ["reward=null"]))}
    assert "reward" not in nodes
    assert nodes["generate.trained"].upstream == ["train.33f"]


@pytest.mark.parametrize("recipe", ["micro", "demo"])
def test_every_edge_comes_from_an_earlier_node_of_that_kind(recipe: str) -> None:
    nodes = topological_order(build_graph(load_recipe(recipe, [*LOCATIONS[recipe]])))
    made: dict[str, dict[str, str]] = {}
    for node in nodes:
        for name, (source, output) in node.inputs.items():
            declared = node.spec.input_spec(name)
            assert declared is not None
            assert declared.kind in (None, made[source][output])
        made[node.id] = {output: str(kind) for output, kind in node.spec.outputs.items()}
    read = {(source, output) for node in nodes for source, output in node.inputs.values()}
    ends = {node.id for node in nodes if not any((node.id, output) in read for output in made[node.id])}
    assert ends == {"report"}, "nothing is made that nobody reads"


def test_the_demo_goes_the_way_of_the_product() -> None:
    ids = [n.id for n in build_graph(load_recipe("demo", LOCATIONS["demo"]))]
    ladder = ["init", "train.t2i", "train.57f", "train.121f", "train.241f", "reward"]
    assert [i for i in ids if i in ladder] == ladder
    assert {f"source.{s}" for s in ("film", "trailer", "street", "photos", "shapes")} <= set(ids)


def test_a_missing_asset_names_the_fetch_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("M4V_ASSETS", str(tmp_path))
    with pytest.raises(InputError, match="make assets"):
        build_graph(load_recipe("micro"))


def test_a_missing_directory_names_its_source_and_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: micro\nname: mine\nsources: [{{name: street, location: {tmp_path / 'none'}}}]\n")
    nodes = {n.id: n for n in build_graph(load_recipe(str(path)))}
    with pytest.raises(InputError) as caught:
        probe_value(nodes["source.street"])
    message = str(caught.value)
    assert all(w in message for w in (str(tmp_path / "none"), "source street", "--set sources.street.location="))


@pytest.mark.parametrize("name", ["m4v-768p", "m4v-wan", "paper-d1", "cluster"])
def test_profiles_of_clusters_state_the_kernels_of_the_trainer_image(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = dict(line.split("==") for line in (ROOT / "infra/images/gpu.txt").read_text().split() if "==" in line)
    monkeypatch.setattr(selection, "_versions", dict(pins))
    for variable in (selection.SCAN_VARIABLE, selection.ATTENTION_VARIABLE, selection.GLUE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    path = "infra/slurm/profile.yaml" if name == "cluster" else f"pipelines/recipes/{name}.yaml"
    (profile,) = (
        each["slurm"] for each in yaml.safe_load((ROOT / path).read_text())["profiles"].values() if "slurm" in each
    )
    assert profile["kernels"] == kernel_summary("cuda")
