"""The command line itself: the frozen list of verbs, help, exit codes, one-line errors, quick plans."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from m4v.core.errors import ExitClass
from pipelines.cli.main import EXIT_CODES, build_app

# DESIGN §4: names that scripts call, so none may go or change; those of LATER issues are not built yet.
FROZEN = {
    "demo": (), "plan": (), "run": (), "generate": (), "flops": (), "deploy": (), "serve": (), "reconcile": (),
    "doctor": (),
    "runs": ("list", "show", "logs", "diff", "rerun", "drain", "cancel", "approve"),
    "artifacts": ("list", "show", "verify", "pin", "gc"),
    "lineage": ("up", "down", "exposure", "export"),
    "takedown": ("impact", "apply"),
    "channels": ("list", "promote", "rollback"),
    "ledger": ("verify", "backup"),
    "data": ("sources", "inspect", "preview", "quarantine"),
    "evaluate": ("run", "totals", "setup", "leaderboard"),
    "study": ("create", "serve", "results"),
    "weights": ("list", "check", "import"),
}  # fmt: skip
# Beside DESIGN's: what reads, and what puts back or brings up to date something that a frozen verb made.
ADDED = {
    "takedown list", "takedown show", "takedown receipt", "takedown verify", "takedown plan", "ledger sinks",
    "ledger deliver", "ledger index", "artifacts unpin",
    "takedown finish", "channels gates", "artifacts relocate",
    "study invite",  # hands out and revokes the links of participants
    "evaluate reward",  # reads what a reward stage changed, by the checkpoints before and after it
    "evaluate ablation",  # reads the tables that a recipe's ablation made
    "evaluate import",  # videos of other systems as samples
    "data export", "data import",  # datasets to and from other trainers
}  # fmt: skip
READS = (
    "plan", "doctor", "runs list", "runs show", "runs diff", "artifacts list", "artifacts show", "artifacts verify",
    "lineage up", "lineage down", "lineage exposure", "channels list", "channels gates", "takedown impact",
    "takedown list", "takedown show", "takedown verify", "takedown plan", "ledger verify", "ledger sinks", "flops",
    "data sources", "data inspect", "data quarantine", "weights list", "weights check", "evaluate totals",
    "evaluate leaderboard", "evaluate ablation", "evaluate reward",
)  # fmt: skip

M4v = Callable[..., tuple[int, str, str]]


def commands() -> Iterator[tuple[str, Any]]:
    root: Any = get_command(build_app())
    for name, command in root.commands.items():
        below = getattr(command, "commands", None)
        if below is None:
            yield name, command
        else:
            yield from ((f"{name} {verb}", leaf) for verb, leaf in below.items())


def test_verbs_are_those_of_the_design() -> None:
    frozen = {" ".join(filter(None, [name, verb])) for name, verbs in FROZEN.items() for verb in verbs or ("",)}
    found = {name for name, _ in commands()}
    assert found >= frozen, f"{sorted(frozen - found)} are gone or renamed: scripts would break."
    assert found - frozen == ADDED, "a verb beside DESIGN §4 is named in ADDED, with what it is for"


@pytest.mark.parametrize("verb", READS)
def test_every_read_verb_speaks_json(verb: str) -> None:
    command = dict(commands())[verb]
    assert "--json" in {option for parameter in command.params for option in parameter.opts}


def test_every_verb_argument_and_option_has_a_help_text() -> None:
    silent = [
        f"{name} {parameter.opts[0]}"
        for name, command in commands()
        for parameter in command.params
        if not (getattr(parameter, "help", None) or "").strip()
    ]
    assert silent == []
    assert [name for name, command in commands() if not (command.help or "").strip()] == []


def test_exit_codes_in_help_are_the_exit_classes() -> None:
    for code in ExitClass:
        assert f" {code.value} " in EXIT_CODES


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("paln", "micro"), "Did you mean 'plan'?"),
        (("plan",), "Missing argument"),
        (("plan", "micro", "--sett", "seed=1"), "--set"),
        (("plan", "micro", "demo"), "demo"),
        (("artifacts", "list", "--limit", "0"), "--limit"),
        (("runs", "nope"), "No such command 'nope'"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(m4v: M4v, arguments: tuple[str, ...], words: str) -> None:
    code, out, error = m4v(*arguments)
    assert code == ExitClass.USAGE
    assert out == ""
    assert error.startswith("m4v: ")
    assert words in error
    assert error.count("\n") == 1


def test_without_arguments_there_is_help(m4v: M4v) -> None:
    code, out, error = m4v()
    assert code == ExitClass.USAGE
    assert "artifacts" in out + error
    code, out, _ = m4v("--help")
    assert code == ExitClass.OK
    assert "60 the gate refused" in " ".join(out.split())


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("extends: micro\nname: x\ncurate: {shots: {detectr: none}}\n",
         ["unknown key curate.shots.detectr: 'none'", "(in recipe ", "Next: did you mean detector?"]),
        ("extends: micro\nname: x\nsources: [{name: street, location: /no/such/videos}]\n",
         ["directory does not exist: '/no/such/videos'", "source street", "--set sources.street.location=DIRECTORY"]),
        ("extends: micro\nname: x\ntrain: [{name: t2i, steps: many}]\n",
         ["train.t2i.steps", "'many'", "Next: correct train.t2i.steps"]),
        ("extends: micro\nname: x\nseed: 1\nseed: 2\n", ["'seed' stands twice", "line 4"]),
    ],
)  # fmt: skip
def test_a_broken_recipe_is_one_line_with_the_fix_and_code_10(
    m4v: M4v, tmp_path: Path, recipe: str, words: list[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(recipe)
    for verb in (("plan",), ("run", "--no-prefect"), ("doctor", "--recipe")):
        code, out, error = m4v(*verb, str(path))
        assert code == ExitClass.CONFIG
        said = out if verb[0] == "doctor" else error
        assert all(word in said for word in words), said
        assert error.count("\n") == (0 if verb[0] == "doctor" else 1)


def test_unknown_ids_and_stages_name_what_there_is(m4v: M4v) -> None:
    assert "m4v artifacts list" in m4v("artifacts", "show", "feed")[2]
    assert "m4v runs list" in m4v("runs", "show", "nobody")[2]
    code, _, error = m4v("plan", "micro", "--until", "trian.t2i")
    assert code == ExitClass.CONFIG
    assert "train.t2i" in error


def test_a_home_that_cannot_be_made_is_told(m4v: M4v, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, error = m4v("--home", str(tmp_path / "file" / "home"), "runs", "list")
    assert code == ExitClass.CONFIG
    assert "set M4V_HOME or --home" in error


_PLAN = """
import sys
from pipelines.cli.main import main
sys.argv = ["m4v", "plan", "micro"]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = {"torch", "prefect", "ray", "deepspeed", "transformers", "cv2", "decord", "fastapi", "jinja2", "duckdb", "s3fs"}
print("loaded:", sorted(heavy & set(sys.modules)))
"""


def test_a_plan_is_quick_and_loads_neither_torch_nor_prefect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_HOME", str(tmp_path))
    m4v_plan = [sys.executable, "-c", _PLAN]
    subprocess.run(m4v_plan, capture_output=True, check=True)  # compiles what is new, makes the ledger
    done = subprocess.run(m4v_plan, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_reader_that_goes_away_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_HOME", str(tmp_path))
    command = f"{sys.executable} -m pipelines.cli.main plan micro | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
