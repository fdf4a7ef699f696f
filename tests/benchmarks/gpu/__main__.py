"""Correctness gates and benchmarks of a GPU machine in one call, within a budget of seconds, the most wanted first.

    python -m tests.benchmarks.gpu --list
    python -m tests.benchmarks.gpu --suite first --budget-s 540 --out results
    python -m tests.benchmarks.gpu --suite first --tiny --out results       # a rehearsal on the CPU

Each job is a process of its own with a limit of its own; one that fails does not stop the next. A benchmark whose gate
did not pass is skipped. Results hold state.json, results.json (each benchmark's own JSON by name), logs.tar.gz and
summary.txt, which is printed last; a call with the same folder goes on where the one before stopped. The commit is that
of the checkout, of M4V_BENCH_COMMIT, or of the file .carry/COMMIT. Exit code 1: something failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]

from suite_processes import Gpu, gpus_here  # noqa: E402
from suite_runner import TINY_GPU_GIB, Runner  # noqa: E402
from suites import SUITES, jobs_of  # noqa: E402

from pipelines.processes import become_subreaper, descendants, send  # noqa: E402


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="suites and their jobs")
    parser.add_argument("--suite", nargs="+", choices=list(SUITES), help="one after the other in one budget")
    parser.add_argument("--only", nargs="+", default=[], help="jobs whose name holds one of these, and their gates")
    parser.add_argument("--budget-s", type=float, default=540, help="of the whole call")
    parser.add_argument("--out", type=Path, help="folder of results")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the CPU")
    parser.add_argument("--despite-gates", action="store_true", help="benchmarks run although their gate failed")
    parser.add_argument("--spread", action="store_true", help="jobs of one GPU run on all GPUs at the same time")
    options = parser.parse_args()
    if not options.list and (options.suite is None or options.out is None):
        parser.error("--suite and --out are needed, or --list")
    return options


def listed() -> str:
    lines = []
    for suite, jobs in SUITES.items():
        lines.append(f"{suite}:")
        for job in jobs:
            more = f"at most {job.most_s:.0f} s"
            more += f", behind {', '.join(job.gates)}" if job.gates else ""
            more += ", all GPUs" if job.gpus < 0 else ""
            more += f", needs {job.needs}" if job.needs else ""
            lines.append(f"  {job.name:22} {more}")
    return "\n".join(lines)


def main() -> int:
    options = parsed()
    if options.list:
        print(listed())
        return 0
    gpus = [Gpu("", TINY_GPU_GIB)] if options.tiny else gpus_here()
    if not gpus:
        print("no GPU here; --tiny rehearses on the CPU", file=sys.stderr)
        return 10
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # results are kept and no process is left then, too
    become_subreaper()
    jobs = jobs_of(options.suite, options.only)
    runner = Runner(
        jobs, options.out, options.budget_s, gpus, tiny=options.tiny, despite_gates=options.despite_gates,
        spread=options.spread,
    )  # fmt: skip
    try:
        return 0 if runner.run() else 1
    finally:
        for process in descendants(os.getpid()):  # none is left, unless a job started one in its last moment
            send(process, signal.SIGKILL)
        print("\n" + runner.table(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
