"""`m4v generate` refused: one line with the fix, before anything is loaded or written; safe names."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from m4v.core.artifacts import Artifact
from m4v.core.errors import ExitClass
from pipelines.generation.prompts import read_prompts, slug

RED = "a red circle moves up"
QUICK = ("--frames", "9", "--height", "64", "--width", "64", "--steps", "1", "--guidance", "2", "--device", "cpu")
M4v = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--frames", "16"), "use 9 or 17"),
        (("--height", "100"), "height: not a multiple of 64: use 64 or 128"),
        (("--steps", "many"), "--steps takes FIRST or FIRST,LATER numbers"),
        (("--steps", "0"), "one positive count per stage"),
        (("--prompts", "none.txt"), "prompts file does not exist: 'none.txt'"),
        (("--prompts", "shapes"), "no such prompt set; did you mean shapes-"),
        (("--prompts", "none.json"), "prompt file does not exist: 'none.json'"),
        (("--prompts", "empty.txt"), "holds no prompt"),
        (("--prompts", "bad.jsonl"), "line is not JSON"),
        (("--prompts", "key.jsonl"), "did you mean prompt?"),
        (("--prompt", "  "), "a prompt may not be empty"),
        (("--prompt", RED), "ask for the same video with seed 0"),
        (("--image", "none.png"), "image file does not exist: 'none.png'"),
        (("--image", "empty.txt"), "cannot be read as a picture"),
        (("--device", "gpu"), "no device has this name"),
        (("--weights", "vae"), "weights are given as NAME=DIR"),
        (("--weights", "vae=none"), "folder of the weights vae does not exist"),
        (("--out", "empty.txt"), "output folder cannot be written"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_with_the_fix(
    m4v_here: M4v, folder: str, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text(f'{{"prompt": "{RED}"}}\n{{oops\n')
    (tmp_path / "key.jsonl").write_text('{"promt": "x"}\n')
    code, out, error = m4v_here("generate", folder, "--prompt", RED, *QUICK, *arguments)
    assert code == ExitClass.CONFIG
    assert words in error
    assert error.count("\n") == 1
    assert "made" not in out
    assert not list(tmp_path.glob("generated/*.mp4"))


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("none", ExitClass.CONFIG, "no checkpoint folder and no checkpoint artifact"),
        ("./none", ExitClass.CONFIG, "checkpoint folder does not exist"),
        ("empty", ExitClass.CONFIG, "it has no config.json"),
        ("file", ExitClass.CONFIG, "a checkpoint is a folder"),
        ("bare", ExitClass.DATA_INTEGRITY, "checkpoint has no such file: 'model.safetensors'"),
        ("wrong", ExitClass.DATA_INTEGRITY, "checkpoint configuration is not valid: model.width"),
    ],
)
def test_a_checkpoint_that_is_none(
    m4v_here: M4v, checkpoint: Artifact, tmp_path: Path, name: str, code: ExitClass, words: str
) -> None:
    config = checkpoint.path("config.json").read_text()
    for folder in ("empty", "bare", "wrong"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bare" / "config.json").write_text(config)
    (tmp_path / "wrong" / "config.json").write_text(config.replace('"width": 32', '"width": -1'))
    (tmp_path / "file").write_text("")
    ended, _, error = m4v_here("generate", name, "--prompt", RED, *QUICK)
    assert (ended, error.count("\n")) == (code, 1)
    assert words in error


def test_nothing_to_say_and_no_size(m4v_here: M4v, folder: str) -> None:
    assert "give --prompt TEXT or --prompts FILE" in m4v_here("generate", folder, *QUICK)[2]
    code, _, error = m4v_here("generate", folder, "--prompt", RED, "--frames", "9")
    assert code == ExitClass.CONFIG
    assert "height, width missing" in error
    assert "--height N --width N" in error


def test_imported_weights_are_asked_for(m4v_here: M4v, checkpoint: Artifact, tmp_path: Path) -> None:
    config = json.loads(checkpoint.path("config.json").read_text())
    config["codec"] = {"kind": "causal_vae", "weights": "vae"}
    (tmp_path / "needs").mkdir()
    (tmp_path / "needs" / "config.json").write_text(json.dumps(config))
    (tmp_path / "needs" / "model.safetensors").write_bytes(checkpoint.path("model.safetensors").read_bytes())
    code, _, error = m4v_here("generate", "needs", "--prompt", RED, *QUICK)
    assert code == ExitClass.CONFIG
    assert "needs the imported weights vae. Next: give --weights vae=DIR" in error


def test_a_second_writer_is_refused(m4v_here: M4v, folder: str, tmp_path: Path) -> None:
    (tmp_path / "generated").mkdir()
    with (tmp_path / "generated" / ".generate.lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, error = m4v_here("generate", folder, "--prompt", RED, *QUICK)
    assert code == ExitClass.INFRASTRUCTURE
    assert "another m4v generate writes to this folder" in error


def test_prompts_of_an_evaluation_can_be_taken(tmp_path: Path) -> None:
    assert len(read_prompts(Path("shapes-8"))) == 8
    (tmp_path / "list.json").write_text(json.dumps([RED, {"prompt": "a blue square"}]))
    assert [line.prompt for line in read_prompts(tmp_path / "list.json")] == [RED, "a blue square"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A Red CIRCLE!", "a-red-circle"), ("schön: ein Haus", "schon-ein-haus"), ("猫", ""), ("x" * 60, "x" * 40),
     ("../../etc/passwd", "etc-passwd"),
     ("one two three four five six seven eight nine", "one-two-three-four-five-six-seven-eight")],
)  # fmt: skip
def test_names_are_safe_everywhere(text: str, expected: str) -> None:
    assert slug(text) == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model": {"kind": "wan"}}, "m4v.wan.generate.WanGenerator.open("),
        ({"_class_name": "WanTransformer3DModel"}, "m4v.wan.generate.WanGenerator.open("),
        ({"_class_name": "PyramidFluxTransformer"}, "m4v run RECIPE --until init"),
    ],
)
def test_a_folder_that_is_for_another_command_says_which(
    m4v_here: M4v, tmp_path: Path, config: dict[str, object], words: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    code, _, error = m4v_here("generate", "other", "--prompt", RED)
    assert code == ExitClass.CONFIG
    assert words in error
    assert error.count("\n") == 1
