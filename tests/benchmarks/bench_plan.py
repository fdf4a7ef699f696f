"""`m4v plan` of a hundred stages against an interpreter that only imports the command line: CPU seconds, whole process.

    python -m tests.benchmarks.bench_plan --repeats 5

Prints medians and their ratio; the sides take turns. No claim: it is one process on one core.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def hundred_stages(path: Path) -> Path:
    """`micro` with a ladder so long that the pipeline has a hundred stages."""
    micro = yaml.safe_load((ROOT / "pipelines" / "recipes" / "micro.yaml").read_text())
    last = micro["train"][-1]
    micro["train"] += [{**last, "name": f"again{n}", "steps": 4 + n} for n in range(84)]
    micro["name"] = "hundred"
    path.write_text(yaml.safe_dump(micro))
    return path


def cpu_s(command: list[str], home: Path) -> float:
    """Seconds of user and system time of the finished child."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env={**os.environ, "M4V_HOME": str(home)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        recipe = hundred_stages(Path(folder) / "hundred.yaml")
        run = "from pipelines.cli.main import main; import sys; sys.argv = {}; main()"
        sides = {
            "plan of 100 stages": [sys.executable, "-c", run.format(["m4v", "plan", str(recipe), "--json"])],
            "import alone": [sys.executable, "-c", "import pipelines.cli.main"],
        }
        for command in sides.values():
            cpu_s(command, Path(folder) / "home")  # compiles what is new, makes the ledger
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, command in sides.items():
                times[name].append(cpu_s(command, Path(folder) / "home"))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name}: {value:.2f} CPU s (median of {repeats})")
    print(f"ratio: {medians['plan of 100 stages'] / medians['import alone']:.2f}")


if __name__ == "__main__":
    main()
