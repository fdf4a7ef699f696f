"""A workspace with ledger and launcher for tests of the executor, and a process that can be killed:
`python bench.py HOME SWITCHES [OPTIONS_JSON]` runs the small pipeline and prints notes, and last its outcomes as JSON.

Options: `count` (fields of CountConfig), `nodes` (how many of the three), `grace_s`, `slurm` (of SlurmConfig), `die_at`
("package.module:Class.method before|after N": SIGKILL of this process at the Nth such call).
"""

import contextlib
import functools
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages_for_faults import CountConfig, pipeline

from m4v.core.config import parse
from pipelines.attempt import RetryPolicy
from pipelines.execute import NodeOutcome, PipelineRun
from pipelines.launchers import LocalLauncher
from pipelines.launchers.slurm import SlurmLauncher
from pipelines.launchers.slurm_config import SlurmConfig
from pipelines.ledger import Ledger
from pipelines.outcomes import NodeEvent
from pipelines.spec import StageNode
from pipelines.workspace import Workspace

FAULTS = Path(__file__).parent
QUICK_RETRY = RetryPolicy(attempts=3, base_s=0.05, factor=2.0, max_s=0.2)


class Bench:
    """One home; `run` executes nodes as a pipeline run of its own."""

    def __init__(self, home: Path, *, grace_s: float = 10.0, lock_file: str | None = None) -> None:
        self.workspace = Workspace.open(home)
        self.ledger = Ledger.open(self.workspace.ledger_url)
        path = os.pathsep.join([str(FAULTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ["PYTHONPATH"] = path
        self.launcher = LocalLauncher(grace_s=grace_s, lock_file=lock_file)

    def new_run(self, nodes: list[StageNode], **options: Any) -> PipelineRun:
        options = {"ledger": self.ledger, "launcher": self.launcher, "retry": QUICK_RETRY, **options}
        return PipelineRun("bench", {"name": "bench"}, nodes, self.workspace, **options)

    def run(self, nodes: list[StageNode], **options: Any) -> dict[str, NodeOutcome]:
        return self.new_run(nodes, **options).run_all()


@contextlib.contextmanager
def open_bench(home: Path, **options: Any) -> Iterator[Bench]:
    before = os.environ.get("PYTHONPATH")
    bench = Bench(home, **options)
    try:
        yield bench
    finally:
        bench.ledger.close()
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


def die_at(place: str) -> None:
    """Have this process killed (not ended: killed) just before or after a call, as a power cut would."""
    reference, when, number = place.split()
    module_name, _, path = reference.partition(":")
    owner: Any = importlib.import_module(module_name)
    *owners, name = path.split(".")
    for part in owners:
        owner = getattr(owner, part)
    real, left = getattr(owner, name), [int(number)]

    @functools.wraps(real)
    def deadly(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


def nodes_of(switches: Path, options: dict[str, Any]) -> list[StageNode]:
    first = CountConfig(label="a", **options.get("count", {}))
    second = CountConfig(label="b", **{"factor": 2, **options.get("count", {})})
    return pipeline(switches, first=first, second=second)[: options.get("nodes", 3)]


def work_log(switches: Path) -> list[str]:
    path = switches / "work.log"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def tell_notes(event: NodeEvent) -> None:
    if event.kind == "note":
        print(event.text, flush=True)


def main(home: str, switches: str, options_json: str = "{}") -> None:
    options = json.loads(options_json)
    if "die_at" in options:
        die_at(options["die_at"])
    with open_bench(Path(home), grace_s=options.get("grace_s", 10.0)) as bench:
        if "slurm" in options:
            bench.launcher = SlurmLauncher(parse(SlurmConfig, options["slurm"], "options"))
        outcomes = bench.run(nodes_of(Path(switches), options), on_event=tell_notes)
    print(json.dumps({name: outcome.to_json() for name, outcome in outcomes.items()}))


def from_command_line() -> None:
    main(*sys.argv[1:])


if __name__ == "__main__":
    # A test run started in the background hands down an ignored SIGINT; a person at a terminal does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from_command_line()
