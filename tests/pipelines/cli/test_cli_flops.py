"""`m4v flops`: the documented JSON, tables for people, recipes' models, wrong usage."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from m4v.core.errors import ExitClass
from pipelines.cli.main import main

ROW = {
    "name", "params", "params_b", "paper_params_b", "tflops_121", "tflops_241", "paper_121", "paper_241",
    "residual_121", "residual_241", "counted_121", "counted_241", "forward_121", "forward_241",
}  # fmt: skip
FORWARD = {"frames", "stage", "tokens", "visible", "tflops", "counted", "forward"}
TABLE4_CPU_S = 20
M4v = Callable[..., tuple[int, str, str]]


@pytest.fixture
def m4v(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> M4v:
    monkeypatch.setenv("M4V_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["m4v", "flops", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_table4_json(m4v: M4v) -> None:
    begun = time.process_time()
    code, out, _ = m4v("--table4", "--json")
    assert time.process_time() - begun < TABLE4_CPU_S, "processor time, so that a busy machine does not matter"
    printed = json.loads(out)
    assert code == ExitClass.OK
    assert printed["table"] == 4
    for key in ("rows", "rows_ssd"):
        assert len(printed[key]) == 7
        assert all(set(row) - {"note"} >= ROW for row in printed[key])
    assert all(abs(row[f"residual_{frames}"]) <= 0.05 for row in printed["rows"] for frames in (121, 241))
    assert printed["rows"][-1]["params"] != printed["rows_ssd"][-1]["params"]


def test_tables_for_people(m4v: M4v) -> None:
    lines = m4v("--table3")[1].splitlines()
    assert lines[0].split("\t") == ["ssm", "frames", "model", "params B", "tflops", "counted", "forward"]
    assert len(lines) == 1 + 2 * 2 * 5
    assert lines[-1].startswith("ssd\t241\tText+Vis+Temp\t2.209\t29.53\t")


def test_the_models_of_recipes(m4v: M4v) -> None:
    code, out, _ = m4v("micro", "--json")
    assert code == ExitClass.OK
    printed = json.loads(out)
    assert sum(printed["parts"].values()) == printed["params"]
    assert [f["stage"] for f in printed["forwards"]] == ["low", "mid", "high"]
    assert all(set(f) >= FORWARD for f in printed["forwards"])
    attention = json.loads(m4v("micro", "--set", "model.mixer=attention", "--json")[1])
    assert attention["params"] < printed["params"]
    lines = m4v("micro")[1].splitlines()
    assert lines[0].split("\t") == ["frames", "stage", "tokens", "visible", "tflops", "counted", "forward"]
    assert len(lines) == 4


def test_parts_of_the_full_model_add_up(m4v: M4v) -> None:
    lines = [line.split("\t") for line in m4v("--parts")[1].splitlines()]
    counts = [int(line[1].replace(",", "")) for line in lines[1:]]
    assert sum(counts[:-1]) == counts[-1] == 2_209_282_544
    assert lines[-1] == ["all", "2,209,282,544", "100.0%"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--table4", "--parts"), "exclude each other"),
        (("micro", "--table4"), "take no recipe"),
        (("--set", "model.heads=2"), "name one"),
    ],
)
def test_wrong_usage_is_one_line(m4v: M4v, arguments: tuple[str, ...], words: str) -> None:
    code, out, error = m4v(*arguments)
    assert code == ExitClass.USAGE
    assert out == ""
    assert words in error
    assert error.count("\n") == 1
