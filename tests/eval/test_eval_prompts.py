"""Prompts: how a recipe may name them, the facts in them, seeds and file names."""

import json
from collections import Counter
from pathlib import Path

import pytest

from eval.config import EvaluateConfig, GenerateConfig, weights_of
from eval.prompts import prompt_set_digest, shipped_sets, video_name, video_seed
from eval.vocabulary import Facts, Motion, parse_facts
from m4v.core.config import parse
from m4v.core.errors import ConfigError

SIZE = {"frames": 9, "height": 64, "width": 64}


def config(**values: object) -> GenerateConfig:
    return parse(GenerateConfig, {**SIZE, **values}, "recipe test")


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("a red circle moves from left to right on a blue background",
         Facts(object_colour="red", background_colour="blue", shape="circle", motion=Motion.RIGHT)),
        ("A gray square stays still on a White background.",
         Facts(object_colour="grey", background_colour="white", shape="square", motion=Motion.STILL)),
        ("a yellow star rises, the background is black",
         Facts(object_colour="yellow", background_colour="black", shape="star", motion=Motion.UP)),
        ("the camera pans left over a green triangle",
         Facts(object_colour="green", shape="triangle", motion=Motion.RIGHT, camera=True)),
        ("a blue circle grows", Facts(object_colour="blue", shape="circle", motion=Motion.GROW)),
        ("the camera zooms out", Facts(motion=Motion.SHRINK, camera=True)),
        ("a rabbit stands in a meadow", Facts()),
        ("a redbrick squared wall", Facts()),
        ("a girl in a red dress by the sea", Facts()),
    ],
)  # fmt: skip
def test_facts_of_a_caption(text: str, facts: Facts) -> None:
    assert parse_facts(text) == facts


def test_list_file_and_shipped_set(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\n  two \n")
    (tmp_path / "p.json").write_text(json.dumps([{"text": "one", "facts": {"motion": "up"}}, "two"]))
    assert [p.text for p in config(prompts=str(tmp_path / "p.txt")).prompts] == ["one", "two"]
    from_json = config(prompts=str(tmp_path / "p.json")).prompts
    assert [p.stated.motion for p in from_json] == [Motion.UP, None]
    assert config(prompts=["one", "two"]) == config(prompts=str(tmp_path / "p.txt"))
    for name in shipped_sets():
        assert config(prompts=name).prompts
    assert all(p.stated.object_colour and p.stated.motion for p in config(prompts="shapes-8").prompts)


def test_resolved_config_holds_the_words() -> None:
    resolved = config(prompts="shapes-8")
    assert parse(GenerateConfig, resolved.canonical(), "again") == resolved
    assert config(prompts=["one"]).digest() != config(prompts=["one more"]).digest()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": "shape-8"}, "did you mean shapes-8"),
        ({"prompts": "missing.txt"}, "does not exist"),
        ({"prompts": ["a", "a"]}, "stands twice"),
        ({"prompts": []}, "at least 1"),
        ({"prompts": [""]}, "at least 1"),
        ({"prompts": ["a"], "frames": 10}, "use 9 or 17"),
        ({"prompts": ["a"], "width": 100}, "multiple of 64"),
        ({"prompts": ["a"], "promts": 1}, "did you mean prompts"),
    ],
)
def test_wrong_recipes_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**values)


def test_broken_prompt_file(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("[1,")
    with pytest.raises(ConfigError, match="is not JSON"):
        config(prompts=str(tmp_path / "p.json"))


def test_seed_rule_names_and_digest() -> None:
    assert video_seed(0, 3, 2) == 300_002
    assert video_seed(7, 0, 0) == 7
    assert video_name(943, 4) == "videos/0943-0004.mp4"
    assert prompt_set_digest(["a", "b"]) != prompt_set_digest(["b", "a"])
    prompts = config(prompts=["a", "b"]).prompts
    assert prompt_set_digest(prompts) == prompt_set_digest(["a", "b"])


def test_evaluate_config_and_its_weights() -> None:
    assert len(weights_of(EvaluateConfig())) >= 3
    assert weights_of(EvaluateConfig(metrics=("local.flicker",))) == {}
    for wrong, message in (
        (["local.flickr"], "no metric is called"),
        ([], "at least one"),
        (["local.motion"] * 2, "once each"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(EvaluateConfig, {"metrics": wrong}, "recipe")


@pytest.mark.parametrize("name", ["shapes-8", "shapes-24"])
def test_shape_sets_are_balanced(name: str) -> None:
    """No fact can be guessed from another: else a model that ignores half the prompt scores well."""
    facts = [p.stated for p in config(prompts=name).prompts]
    for field, words in (("object_colour", 4), ("background_colour", 2), ("shape", 2)):
        counts = Counter(getattr(f, field) for f in facts)
        assert len(counts) == words
        assert len(set(counts.values())) == 1, (field, counts)
    motions = Counter(f.motion for f in facts)
    assert set(motions) == {Motion.RIGHT, Motion.LEFT, Motion.STILL}
    assert max(motions.values()) - min(motions.values()) <= 1
