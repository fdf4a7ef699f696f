"""Rows for RESULTS.md from what the driver keeps: figures with their goals, command, commit, date, hardware.

    python tests/benchmarks/gpu/result_rows.py RESULTS/results.json [--only step generation]

What a row says about its figures is for a person to write; rows of failed cases are counted, not shown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from headlines import figures, measured_rows
from suites import SUITES, Job

NOBODY = "unknown"


def command_of(job: Job) -> str:
    """As a person would call it: without the places that the driver fills in."""
    following = [*job.words[1:], ""]
    words = [
        w
        for w, after in zip(job.words, following, strict=True)
        if "{" not in w and not ("{" in after and w[:2] == "--")
    ]
    quoted = [f'"{word}"' if " " in word else word for word in words]
    return " ".join([*(f"{name}={value}" for name, value in job.settings), "python", *quoted])


def rows(found: dict[str, Any], state: dict[str, Any], only: Sequence[str]) -> Iterator[str]:
    """One row a job that has figures, in the order of the file."""
    jobs = {job.name: job for suite in SUITES.values() for job in suite}
    facts = {name: held.get("facts", {}) for name, held in found.items()}
    known = next((f for f in facts.values() if f), {})  # of one machine and day
    for name, held in found.items():
        if only and not any(part in name for part in only):
            continue
        told = [str(figure) for figure in figures(name, held)]
        if counted := measured_rows(held):
            told.append(f"{counted[0]} of {counted[1]} rows measured")
        if not told or name not in jobs:
            continue
        own = facts[name] or known
        commit = state.get("jobs", {}).get(name, {}).get("commit") or own.get("commit", NOBODY)
        cells = [name, "; ".join(told), f"`{command_of(jobs[name])}`", commit, own.get("date", NOBODY)]
        yield f"| {' | '.join([*cells, own.get('device', NOBODY)])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json; state.json is read beside it")
    parser.add_argument("--only", nargs="+", default=[], help="jobs whose name holds one of these")
    options = parser.parse_args()
    state = options.results.with_name("state.json")
    held = json.loads(state.read_text()) if state.exists() else {}
    for row in rows(json.loads(options.results.read_text()), held, options.only):
        print(row)


if __name__ == "__main__":
    main()
