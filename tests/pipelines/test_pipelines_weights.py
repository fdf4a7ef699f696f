"""Imported weights in a recipe: what is refused, where they enter the graph and the keys, and an import, an init
from it, a changed folder and a damaged file in the ledger."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from published_weights import CONFIG, ENTRY, FOLDER, MODEL, write_published

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ConfigError, DataIntegrityError, ExitClass, InputError
from m4v.core.stage import Resources
from m4v.weights.config import WeightsConfig
from pipelines.cli.lineage import tree_lines
from pipelines.environment import Target
from pipelines.execute import PipelineRun
from pipelines.graph import build_graph, weights_node
from pipelines.keys import changes, key_record, summarise
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger
from pipelines.lookup import Lookup, known_record
from pipelines.outcomes import NodeOutcome, NodeStatus
from pipelines.plan import Plan, make_plan
from pipelines.recipe import Recipe, load_recipe
from pipelines.spec import StageNode, topological_order
from pipelines.workspace import Workspace

NO_FOOTAGE = "sources.street.location=/videos"
DIT = f"{{name: dit, entry: {ENTRY}, location: /weights}}"
VAE = "{name: vae, entry: pyramidflow-vae, location: /weights}"
TEXT = "{name: text, entry: pyramidflow-text, location: /weights}"
WAN = "{name: wan, entry: wan2.1-t2v-1.3b, location: /weights}"
START = ("init.weights=dit", "init.convert=attention_to_mamba")
ENCODERS = (
    "encode.codec={kind: causal_vae, weights: vae}",
    "encode.text_encoder={kind: t5_clip, weights: text, slots: 24, embedding_dim: 384, pooled_dim: 384}",
)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("micro", [NO_FOOTAGE, *overrides])


def test_a_recipe_can_train_on_latents_of_wans_vae() -> None:
    stages = [f"train.{name}.order.time_stride=4" for name in ("t2i", "9f", "17f", "33f")]
    found = recipe(
        f"weights=[{WAN}]", "encode.codec={kind: wan_vae, weights: wan}", *stages, "reward.order.time_stride=4",
        "encode.buckets.frames=[13, 33]", "train.9f.order.frames=13",
    )  # fmt: skip
    assert [stage.order.latents for stage in found.train] == [1, 4, 5, 9]
    assert found.encode.codec.time_stride == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (START, ["init.weights", "no weights called 'dit'", "there are none"]),
        ([f"weights=[{DIT}]", "init.weights=dti", START[1]], ["no weights called 'dti'", "did you mean dit"]),
        ([f"weights=[{DIT}, {VAE}]", *START], ["nothing uses 'vae'", "encode.codec.weights", "remove it"]),
        (
            [f"weights=[{DIT}]", "init.weights=dit"],
            ["mixer is 'mm_dim'", "init.convert to attention_to_mamba"],
        ),
        ([f"weights=[{DIT}]", *START, "model.mixer=attention"], ["nothing is converted", "set init.convert to none"]),
        ([f"weights=[{TEXT}]", "init.weights=text", START[1]], ["'text' is pyramidflow-text", ENTRY]),
        ([f"weights=[{DIT}]", "encode.codec={kind: causal_vae, weights: dit}"], ["encode.codec", "pyramidflow-vae"]),
        (
            ["model.latent_channels=4"],
            ["latent_channels is 4", "codec (dct) gives 16: set model.latent_channels to 16"],
        ),
        (
            [f"weights=[{VAE}]", "encode.codec={kind: wan_vae, weights: vae}"],
            ["'vae' is pyramidflow-vae", "use one of wan2.1-vae, wan2.1-t2v-1.3b,"],
        ),
        (
            [f"weights=[{WAN}]", "encode.codec={kind: wan_vae, weights: wan}"],
            ["4 frames a latent and the stage counts 8: set order.time_stride to 4"],
        ),
        (
            [f"weights=[{WAN}]", "encode.codec={kind: wan_vae, weights: wan}", "encode.buckets.frames=[9, 15]"],
            ["encode", "takes 4k+1 frames, not 15: use 13 or 17"],
        ),
        (
            [f"weights=[{WAN}]", "encode.codec={kind: wan_vae, weights: wan}", "encode.buckets.sizes=[[48, 80]]"],
            ["encode.buckets: the pyramid model", "multiples of 64, not [48, 80]"],
        ),
        (
            ["encodings=[{name: small, buckets: {frames: [9, 13], sizes: [[64, 64]]}, stages: [t2i]}]"],
            ["codec dct takes 8k+1 frames, not 13: use 9 or 17"],
        ),
        (["model.text_slots=16"], ["model.text_slots is 16", "set model.text_slots to 24"]),
        (["encode.text_encoder={slots: 32}"], ["model.text_slots is 24", "set model.text_slots to 32"]),
        ([f"weights=[{DIT}, {DIT}]", *START], ["weights: the name 'dit' stands twice"]),
        (["weights=[{name: dit, entry: pyramidflow-dit}]"], ["weights.dit.entry", "did you mean pyramidflow-dit-768p"]),
        (["weights=[{name: raft, entry: vbench-raft}]"], ["used in place and never imported"]),
        (["weights=[{name: My Weights, entry: pyramidflow-vae}]"], ["pattern"]),
        ([f"weights=[{DIT}]", "init={weight: dit}"], ["unknown key init.weight", "did you mean weights"]),
    ],
)
def test_wrong_weights_are_one_line_with_the_fix(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(*overrides)
    message = caught.value.message
    assert all(word in message for word in words), message
    assert "\n" not in message


def weights_inputs(nodes: list[StageNode]) -> dict[str, list[str]]:
    """Of each node that reads imported weights: their input names."""
    names = {node.id: [name for name in node.inputs if name.startswith("weights.")] for node in nodes}
    return {node_id: found for node_id, found in names.items() if found}


def test_stages_read_exactly_the_weights_that_their_config_names() -> None:
    nodes = build_graph(recipe(f"weights=[{DIT}, {VAE}, {TEXT}]", *START, *ENCODERS))
    assert len(topological_order(nodes)) == len(nodes)
    assert weights_inputs(nodes) == {
        "encode": ["weights.vae", "weights.text"],
        "init": ["weights.dit", "weights.vae", "weights.text"],
        "reward": ["weights.vae"],
        "generate.trained": ["weights.vae", "weights.text"],
        "generate.untrained": ["weights.vae", "weights.text"],
    }
    assert all(
        node.inputs[name] == (name, "weights") for node in nodes for name in weights_inputs(nodes).get(node.id, ())
    )
    assert weights_inputs(build_graph(recipe())) == {}


def test_an_import_is_one_for_every_recipe_and_its_place_is_in_no_key() -> None:
    target = Target(device="cpu", architecture="x86_64", lock_file=None)
    first = build_graph(recipe(f"weights=[{DIT}]", *START))
    second = build_graph(recipe(f"weights=[{DIT.replace('/weights', '/elsewhere')}]", *START, "seed=99"))
    third = weights_node(WeightsConfig(name="dit", entry=ENTRY), None)
    found = [next(n for n in nodes if n.id == "weights.dit") for nodes in (first, second, [third])]
    assert [n.locations for n in found] == [{"dit": "/weights"}, {"dit": "/elsewhere"}, {}]
    assert len({key_record(n, {}, target, "probe").stage_key for n in found}) == 1


def test_a_relative_place_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = WeightsConfig(name="dit", entry=ENTRY)
    assert weights_node(config, "models/pyramid").locations == {"dit": str(tmp_path / "models/pyramid")}
    assert weights_node(config, "s3://bucket/models").locations == {"dit": "s3://bucket/models"}


def test_generate_s_key_holds_the_packaged_text_encoder_that_the_checkpoint_names() -> None:
    node = next(n for n in build_graph(recipe()) if n.id == "generate.trained")
    target = Target(device="cpu", architecture="x86_64", lock_file=None)
    assert set(node.weights) == {"minilm", "minilm/config", "minilm/tokenizer"}
    before = key_record(node, {"checkpoint": "0" * 64}, target)
    other = replace(node, weights={**node.weights, "minilm": "f" * 64})
    assert (
        summarise(changes(before, key_record(other, {"checkpoint": "0" * 64}, target)))
        == f"weights minilm: {node.weights['minilm'][:12]} -> ffffffffffff"
    )
    imported = build_graph(recipe(f"weights=[{VAE}, {TEXT}]", *ENCODERS))
    assert all(not n.weights for n in imported), "imported weights are inputs, not packaged files"


def test_sizes_other_than_the_weights_end_the_plan_before_any_work(published: Path) -> None:
    weights = f"weights=[{DIT.replace('/weights', str(published))}]"
    with pytest.raises(ConfigError) as caught:
        build_graph(recipe(weights, *START))
    message = caught.value.message
    assert "model.mlp_ratio does not fit the imported weights 'dit', which have 4: 2 (in init)" in message
    assert "set model.mlp_ratio to 4" in message
    assert build_graph(recipe(weights, *START, "model.mlp_ratio=4"))
    (published / FOLDER / CONFIG).write_text("{}")
    with pytest.raises(DataIntegrityError, match="config lacks a size"):
        build_graph(recipe(weights, *START))


# The ledger


class Home:
    """A home, and a recipe that starts from the transformer published at `folder`."""

    def __init__(self, root: Path) -> None:
        self.folder = write_published(root / "published")
        self.workspace = Workspace.open(root / "home")
        self.ledger, self.launcher = Ledger.open(self.workspace.ledger_url), LocalLauncher()
        chosen = load_recipe("micro", [
            NO_FOOTAGE, f"weights=[{DIT.replace('/weights', str(self.folder))}]", *START, "model.mlp_ratio=4",
        ])  # fmt: skip
        self.nodes = [n for n in build_graph(chosen) if n.id in ("weights.dit", "init")]

    def run(self) -> dict[str, NodeOutcome]:
        return self.new_run().run_all()

    def new_run(self) -> PipelineRun:
        return PipelineRun("tiny", {}, self.nodes, self.workspace, ledger=self.ledger, launcher=self.launcher)

    def plan(self) -> Plan:
        return make_plan("tiny", self.nodes, Lookup(self.ledger, self.launcher))

    def weights(self) -> list[str]:
        return [row.artifact_id for row in self.ledger.artifacts(kind=ArtifactKind.WEIGHTS, limit=None)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    made = Home(tmp_path_factory.mktemp("weights"))
    yield made
    made.ledger.close()


def test_import_and_init_run_once_and_lineage_names_the_weights(home: Home) -> None:
    outcomes = home.run()
    assert {o.status for o in outcomes.values()} == {NodeStatus.RAN}, outcomes
    imported, checkpoint = outcomes["weights.dit"].outputs["weights"], outcomes["init"].outputs["checkpoint"]
    assert imported.kind is ArtifactKind.WEIGHTS
    text = "\n".join(tree_lines(home.ledger.lineage_up(checkpoint.artifact_id)))
    assert f"weights.dit: weights {imported.artifact_id[:12]}" in text
    assert checkpoint.artifact_id in home.ledger.lineage_down(imported.artifact_id).artifacts
    row = home.ledger.artifact(imported.artifact_id)
    assert (row.summary["entry"], row.summary["licence"], row.summary["name"]) == (ENTRY, "Apache-2.0", "dit")
    assert home.ledger.artifact(checkpoint.artifact_id).summary["weights"] == imported.artifact_id
    record = known_record(home.ledger.run(str(outcomes["init"].run_id)))
    assert record.inputs == {"weights.dit": imported.artifact_id}


def test_the_same_files_are_cache_hits(home: Home) -> None:
    assert home.plan().all_hits
    assert {o.status for o in home.run().values()} == {NodeStatus.HIT}


def test_a_folder_in_another_place_is_a_hit_too(home: Home, tmp_path: Path) -> None:
    shutil.copytree(home.folder, tmp_path / "moved")
    moved = [replace(n, locations={"dit": str(tmp_path / "moved")} if n.locations else {}) for n in home.nodes]
    assert make_plan("tiny", moved, Lookup(home.ledger, home.launcher)).all_hits


def pinned(home: Home, artifact_id: str, **changes: object) -> list[StageNode]:
    node = weights_node(WeightsConfig(name="dit", entry=ENTRY).model_copy(update=changes), f"artifact:{artifact_id}")
    return [node, *(n for n in home.nodes if n.id == "init")]


def test_an_import_of_the_ledger_needs_its_files_no_more(home: Home) -> None:
    identity, lookup = home.weights()[0], Lookup(home.ledger, home.launcher)
    assert make_plan("tiny", pinned(home, identity[:12]), lookup).all_hits
    run = PipelineRun(
        "tiny", {}, pinned(home, identity), home.workspace, ledger=home.ledger, launcher=home.launcher
    )  # fmt: skip
    assert {o.status for o in run.run_all().values()} == {NodeStatus.HIT}
    with pytest.raises(ConfigError, match=rf"another entry than the recipe's: '{ENTRY}'.*import of pyramidflow-vae"):
        make_plan("tiny", pinned(home, identity, entry="pyramidflow-vae"), lookup)
    with pytest.raises(InputError, match="ffff"):
        make_plan("tiny", pinned(home, "f" * 64), lookup)
    shutil.move(home.ledger.artifact(identity).uri, home.folder / "away")
    with pytest.raises(InputError, match=r"cannot be used.*is gone or damaged"):
        make_plan("tiny", pinned(home, identity), lookup)
    shutil.move(home.folder / "away", home.ledger.artifact(identity).uri)


def test_a_damaged_file_ends_with_20_and_publishes_nothing(home: Home) -> None:
    file = home.folder / FOLDER / MODEL
    whole, before = file.read_bytes(), home.weights()
    file.write_bytes(whole[:-1000])
    run = home.new_run()
    outcomes = run.run_all()
    file.write_bytes(whole)
    assert (outcomes["weights.dit"].status, outcomes["init"].status) == (NodeStatus.FAILED, NodeStatus.BLOCKED)
    assert run.exit_class is ExitClass.DATA_INTEGRITY
    assert MODEL in str(outcomes["weights.dit"].error)
    assert home.weights() == before
    assert home.plan().all_hits, "the file is as it was"


def test_changed_bytes_are_told_by_the_plan_and_run_again(home: Home) -> None:
    before = home.weights()
    write_published(home.folder, seed=2)
    steps = {step.node_id: step for step in home.plan().steps}
    assert re.fullmatch("files outside the store: [0-9a-f]{12} -> [0-9a-f]{12}", steps["weights.dit"].reason)
    assert steps["init"].reason == "hit if output of weights.dit is unchanged"
    outcomes = home.run()
    assert {o.status for o in outcomes.values()} == {NodeStatus.RAN}
    (new,) = set(home.weights()) - set(before)
    assert re.fullmatch(f"input weights.dit: [0-9a-f]{{12}} -> {new[:12]}", outcomes["init"].reason)
    assert len(home.weights()) == len(before) + 1


def test_a_missing_file_ends_the_plan_with_its_name_and_how_to_get_it(home: Home, tmp_path: Path) -> None:
    moved = [replace(n, locations={"dit": str(tmp_path)} if n.locations else {}) for n in home.nodes]
    with pytest.raises(InputError) as caught:
        make_plan("tiny", moved, Lookup(home.ledger, home.launcher))
    message = caught.value.message
    assert all(word in message for word in (f"{FOLDER}/{CONFIG}", f"m4v weights check {ENTRY}", "hf download"))
    assert "\n" not in message
    assert json.loads((home.folder / FOLDER / CONFIG).read_text())["num_layers"] == 1


def test_resources_of_the_import_are_the_profile_s() -> None:
    chosen = recipe(f"weights=[{DIT}]", *START, "profiles.local.stages.weights={threads: 3}")
    node = next(n for n in build_graph(chosen) if n.id == "weights.dit")
    assert node.resources == Resources(ranks=1, threads=3, workers=1)
