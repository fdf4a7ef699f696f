"""`m4v run RECIPE --rehearse` on one GPU within a limit of seconds: time and memory of every stage from the ledger.

    python tests/benchmarks/gpu/bench_rehearse.py --limit-s 540 --folder /dev/shm/rehearse --json rehearse.json \
        --spare /tmp/rehearse

The command itself runs, without Prefect, in a home of its own. Stages that do not wait for one another are asked for
by commands side by side (each has `--until`): collections beside one another, initial weights beside the data, the
untrained model's video and the long encoding beside the first training stage. Whatever a stage needs and another
command makes, it waits for. When time is up the commands are drained; the JSON is written all along. `--assets`: an
archive of `rehearsal_assets.py`, where the packaged weights are not.

Averages of weights are left out where the folder has no room for every stage's (`--ema`), and where that is not enough
the state of the stage that runs lies in `--spare`: the JSON says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[3]))

from rehearsal_assets import draw

from m4v.core.storage import write_atomic
from m4v.kernels.selection import kernel_summary
from pipelines.launchers import LOG
from pipelines.ledger import Ledger, RunRow, Status
from pipelines.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[3]
CLI = (sys.executable, "-m", "pipelines.cli.main")
DRAIN_S = 12.0  # before the limit
TELL_S = 5.0
BYTES_WITH_EMA, BYTES_WITHOUT = 155e9, 92e9  # of m4v-768p: a checkpoint each stage and the state of one


class Lane:
    """Commands that run one after the other."""

    def __init__(self, name: str, targets: Sequence[str | None], words: Sequence[str], folder: Path) -> None:
        self.name, self._targets, self._words, self._folder = name, list(targets), words, folder
        self.process: subprocess.Popen[bytes] | None = None
        self.codes: dict[str, int] = {}
        self._target = ""

    def look(self) -> bool:
        """Start the next command when the last has ended; whether there is something to wait for. A command that failed
        ends its lane, but for the whole run, which does all that can be done."""
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return True
            self.codes[self._target], self.process = code, None
            if code != 0:
                self._targets = [target for target in self._targets if target is None]
        if not self._targets:
            return False
        target = self._targets.pop(0)
        self._target = target or "all"
        words = [*CLI, "run", *self._words, *(("--until", target) if target else ())]
        print(f"{self.name}: m4v {' '.join(words[3:])}", flush=True)
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return True

    def stop(self, number: int) -> None:
        self._targets = []
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def lanes_of(recipe: Recipe, words: Sequence[str], folder: Path) -> list[Lane]:
    first, last = f"train.{recipe.train[0].name}", f"train.{recipe.train[-1].name}"
    ladder = [first, last, *(["reward"] if recipe.reward is not None else []), None]
    return [
        Lane("ladder", ladder, words, folder),
        Lane("weights", ["init", "evaluate.untrained"], words, folder),
        Lane("data", ["encode"], words, folder),
        # Of drawn collections each takes as long as a training stage.
        *(Lane(f"source-{entry.name}", [f"source.{entry.name}"], words, folder) for entry in recipe.sources[1:]),
    ]


def without_ema(recipe: Recipe) -> list[str]:
    places = [f"train.{stage.name}" for stage in recipe.train] + (["reward"] if recipe.reward is not None else [])
    return [word for place in places for word in ("--set", f"{place}.ema_decay=0")]


def found(home: Path, lanes: Sequence[Lane], facts: dict[str, Any], began: float) -> dict[str, Any]:
    """What the ledger knows: a row for each node, with the outcome of its last attempt."""
    rows: dict[str, dict[str, Any]] = {}
    if (home / "ledger.db").exists():
        ledger = Ledger.open(f"sqlite:///{home / 'ledger.db'}")
        for attempt in reversed(ledger.attempts(limit=None)):
            row = rows[attempt.node_id or attempt.stage] = {
                "state": str(attempt.status.value), "seconds": attempt.duration_s, "exit": attempt.exit_class,
                "began_s": round(attempt.started_at.timestamp() - began, 1),
            }  # fmt: skip
            if attempt.message:
                row["message"] = attempt.message
            if attempt.run_id is not None:
                row |= measured(ledger.run(attempt.run_id), ledger)
            else:
                row |= {"progress": attempt.progress} if attempt.progress else {}
            row["times"] = timings(Path(attempt.work_dir))
    done = sum(row["state"] == Status.SUCCEEDED for row in rows.values())
    codes = {lane.name: lane.codes for lane in lanes}
    return {**facts, "wall_s": round(time.time() - began, 1), "done": done, "exits": codes, "stages": rows}


def measured(run: RunRow, ledger: Ledger) -> dict[str, Any]:
    sizes = {port.name: ledger.artifact(port.artifact_id).size_bytes for port in run.outputs}
    return {**{key: value for key, value in run.metrics.items() if isinstance(value, int | float)}, "bytes": sizes}


def timings(work: Path) -> list[dict[str, Any]]:
    """Parts of each step of a training stage, seconds; its memory, bytes."""
    path = work / "timings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rehearse(options: argparse.Namespace) -> dict[str, Any]:
    began = time.time()
    home, logs = options.folder / "home", options.folder / "logs"
    for folder in (options.folder, options.spare):
        shutil.rmtree(folder, ignore_errors=True)
    logs.mkdir(parents=True)
    os.environ["M4V_HOME"] = str(home)
    if options.assets is not None and options.assets.exists():
        draw(options.assets, options.folder / "assets")
        os.environ["M4V_ASSETS"] = str(options.folder / "assets")
    recipe = load_recipe(options.recipe)
    room = shutil.disk_usage(options.folder).free
    ema = options.ema == "yes" or (options.ema == "auto" and (options.recipe != "m4v-768p" or room > BYTES_WITH_EMA))
    spared = options.tiny or (options.recipe == "m4v-768p" and room < BYTES_WITHOUT)
    if spared:  # resume state is written once, read once and deleted
        for folder in (home / "store", options.spare):
            folder.mkdir(parents=True)
        (home / "store" / "state").symlink_to(options.spare)
    facts: dict[str, Any] = {
        "recipe": options.recipe, "ema": ema, "room_gib": round(room / 2**30, 1), "state_elsewhere": spared,
        "goal": len(recipe.train),
        "kernels": kernel_summary(options.device),
        "drawn_assets": options.assets is not None,
    }  # fmt: skip
    words = [options.recipe, "--rehearse", "--no-prefect", *([] if ema else without_ema(recipe))]
    # This machine's packages are those it has, which the ledger records, and not a lock file's.
    words += ["--set", f"profiles.{recipe.profile}.lock_file=null"]
    words += [word for override in options.set for word in ("--set", override)]
    lanes = lanes_of(recipe, words, logs)
    told, busy, stopped = 0.0, True, False
    while busy:
        busy = sum(lane.look() for lane in lanes) > 0  # every lane is looked after
        left = options.limit_s - (time.time() - began)
        if left < DRAIN_S and not stopped:
            stopped = True
            for lane in lanes:
                lane.stop(signal.SIGTERM)
        if left < DRAIN_S / 3:
            for lane in lanes:
                lane.stop(signal.SIGKILL)
            break
        if time.time() - told > TELL_S:
            told = time.time()
            write_atomic(options.json, json.dumps(found(home, lanes, facts, began), indent=1).encode())
        time.sleep(0.2)
    result = found(home, lanes, {**facts, "stopped": stopped}, began)
    write_atomic(options.json, json.dumps(result, indent=1).encode())
    for log in sorted(logs.iterdir()):
        print(f"--- {log.name}\n{log.read_text()[-20_000:]}", flush=True)
    for log in sorted(home.glob(f"work/**/{LOG}"))[-40:]:
        print(f"--- {log.relative_to(home)}\n{log.read_text(errors='replace')[-3000:]}", flush=True)
    for folder in (options.folder, options.spare):
        shutil.rmtree(folder, ignore_errors=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="m4v-768p")
    parser.add_argument("--limit-s", type=float, default=540.0)
    parser.add_argument("--folder", type=Path, required=True, help="made anew, and deleted at the end")
    parser.add_argument("--spare", type=Path, required=True, help="the same, on another disk")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--assets", type=Path, help="archive of rehearsal_assets.py")
    parser.add_argument("--ema", choices=("auto", "yes", "no"), default="auto", help="averages of weights")
    parser.add_argument("--set", action="append", default=[], help="overrides, as of m4v")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.recipe, options.device = "micro", "cpu"
    result = rehearse(options)
    trained = [name for name in result["stages"] if name.startswith("train.")]
    for name, row in result["stages"].items():
        print(f"{name:24} {row['state']:10} {row['seconds']} s  peak {row.get('gpu_peak_bytes', 0) / 2**30:.1f} GiB")
    whole = sum(result["stages"][name]["state"] == Status.SUCCEEDED for name in trained)
    return 0 if whole == result["goal"] else 1


if __name__ == "__main__":
    sys.exit(main())
