"""Small real stages for tests of the executor: they keep state, count their work and can misbehave on request.

`count` writes one line an item and saves its place after each; `total` adds up the lines of `count`s.
Misbehaviour is asked for through files in `locations["switches"]`, which is not in the stage key.
"""

import os
import signal
import time
from pathlib import Path

from m4v.core.artifacts import ArtifactKind
from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError, InfrastructureError, NeedsHuman
from m4v.core.items import ItemStore
from m4v.core.stage import Resources, StageContext
from m4v.core.storage import write_atomic
from pipelines.spec import InputSpec, StageNode, StageSpec
from training.heartbeat import Pulse


class CountConfig(FrozenModel):
    items: int = 3
    factor: int = 1
    label: str = "a"
    seconds_an_item: float = 0.0


class TotalConfig(FrozenModel):
    round_to: int = 1


class GateConfig(FrozenModel):
    at_least: int = 0


def switch(context: StageContext, name: str) -> bool:
    """Whether a misbehaviour is on; a switch that holds a number is on that many times."""
    directory = context.request.locations.get("switches")
    path = Path(directory, name) if directory else None
    if path is None or not path.exists():
        return False
    left = path.read_text().strip()
    if left.isdigit():
        if int(left) == 0:
            return False
        path.write_text(str(int(left) - 1))
    return True


def log_work(context: StageContext, text: str) -> None:
    """One line a piece of work, outside every artifact: shows what was done twice or never."""
    directory = context.request.locations.get("switches")
    if directory:
        with Path(directory, "work.log").open("a") as stream:
            stream.write(f"{text}\n")


def hold(context: StageContext, label: str, item: int) -> None:
    """Wait while the switch `hold.LABEL` names this item or one before it; a drain ends the wait."""
    directory = context.request.locations.get("switches")
    deadline = time.monotonic() + 300
    while directory:
        try:
            held = int(Path(directory, f"hold.{label}").read_text()) <= item
        except FileNotFoundError:
            return
        if not held:
            return
        context.check_drain()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def misbehave(context: StageContext) -> None:
    if switch(context, "infrastructure"):
        raise InfrastructureError("the network is away", value="switch")
    if switch(context, "integrity"):
        raise DataIntegrityError("bytes are wrong", value="switch")
    if switch(context, "human"):
        raise NeedsHuman("somebody must look", value="switch")
    if switch(context, "bug"):
        raise ZeroDivisionError("a bug")
    for name in ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM"):
        if switch(context, name):
            if name == "SIGTERM":
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(5)


def count(context: StageContext) -> None:
    config = context.config(CountConfig)
    state = ItemStore(context.state)
    misbehave(context)
    lines = []
    for item in range(config.items):
        line = state.get(f"{item:08d}")
        if line is None:
            context.check_drain()
            hold(context, config.label, item)
            log_work(context, f"{config.label} {item}")
            time.sleep(config.seconds_an_item)
            line = f"{config.label} {item} {config.factor * item + context.seed}\n".encode()
            state.put(f"{item:08d}", line)
        lines.append(line)
        context.progress.update(item + 1, config.items, "lines")
    output = context.output("lines")
    (output / "lines.txt").write_bytes(b"".join(lines))
    (output / "deep").mkdir()
    (output / "deep" / "label.txt").write_text(config.label)
    context.summary("lines", {"items": config.items})
    context.metrics({"items": config.items})


def total(context: StageContext) -> None:
    config = context.config(TotalConfig)
    misbehave(context)
    values = [
        int(line.split()[2])
        for artifact in context.input_list("part")
        for line in artifact.path("lines.txt").read_text().splitlines()
    ]
    rounded = sum(values) // config.round_to * config.round_to
    (context.output("sum") / "sum.txt").write_text(f"{rounded}\n")


def gate(context: StageContext) -> None:
    import json

    value = int(context.input("sum").path("sum.txt").read_text())
    passed = value >= context.config(GateConfig).at_least
    (context.output("scores") / "gate.json").write_text(json.dumps({"passed": passed}))


def report(context: StageContext) -> None:
    facts = Path(context.request.attachments["facts"]).read_text()
    (context.output("report") / "index.html").write_text(f"<pre>{facts}</pre>")


def gang(context: StageContext) -> None:
    """Every rank writes its own file; rank 0 waits for all of them."""
    misbehave_rank = context.request.locations.get("bad_rank")
    if misbehave_rank == str(context.rank):
        misbehave(context)
    write_atomic(
        context.output("lines") / f"rank{context.rank}.txt", f"{context.rank} of {context.world_size}\n".encode()
    )
    config = context.config(CountConfig)
    for _ in range(config.items):
        log_work(context, f"rank {context.rank} {os.getpid()}")
        context.check_drain()
        time.sleep(config.seconds_an_item)
    deadline = time.monotonic() + 300
    while len(list(context.output("lines").glob("rank*.txt"))) < context.world_size:
        context.check_drain()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def beating(context: StageContext) -> None:
    """Steps with a heartbeat; switched to `hang`, rank 0 stops in the middle as if another rank never answered."""
    pulse = Pulse(context.work_dir, context.rank, 0)
    for step in range(context.config(CountConfig).items):
        pulse.finished(step, 0.01)
        time.sleep(0.01)
        if step == 3 and switch(context, "hang"):
            pulse.enter("validation")
            pulse.enter("step")
            wait_for_nobody()
    pulse.close()
    (context.output("lines") / "lines.txt").write_text("done\n")


def wait_for_nobody() -> None:
    time.sleep(3600)


def folder_probe(config: FrozenModel, locations: dict[str, str]) -> str:
    return ",".join(sorted(p.name for p in Path(locations["folder"]).iterdir()))


MODULE = "stages_for_faults"
COUNT = StageSpec(
    name="count", version=1, function=f"{MODULE}:count", config_model=f"{MODULE}:CountConfig",
    outputs={"lines": ArtifactKind.SOURCE},
)  # fmt: skip
WATCH = StageSpec(
    name="watch", version=1, function=f"{MODULE}:count", config_model=f"{MODULE}:CountConfig",
    outputs={"lines": ArtifactKind.SOURCE}, probe=f"{MODULE}:folder_probe",
)  # fmt: skip
TOTAL = StageSpec(
    name="total", version=1, function=f"{MODULE}:total", config_model=f"{MODULE}:TotalConfig",
    inputs={"part": InputSpec(ArtifactKind.SOURCE, many=True)}, outputs={"sum": ArtifactKind.CLIPS},
)  # fmt: skip
GATE = StageSpec(
    name="gate", version=1, function=f"{MODULE}:gate", config_model=f"{MODULE}:GateConfig",
    inputs={"sum": InputSpec(ArtifactKind.CLIPS)}, outputs={"scores": ArtifactKind.SCORES},
)  # fmt: skip
REPORT = StageSpec(
    name="report", version=1, function=f"{MODULE}:report", config_model=f"{MODULE}:TotalConfig",
    inputs={"*": InputSpec(None)}, outputs={"report": ArtifactKind.REPORT},
)  # fmt: skip
BEATING = StageSpec(
    name="beating", version=1, function=f"{MODULE}:beating", config_model=f"{MODULE}:CountConfig",
    outputs={"lines": ArtifactKind.SOURCE},
)  # fmt: skip
GANG = StageSpec(
    name="gang", version=1, function=f"{MODULE}:gang", config_model=f"{MODULE}:CountConfig",
    outputs={"lines": ArtifactKind.SOURCE}, numeric=True, distributed=True,
)  # fmt: skip


def pipeline(switches: Path | None = None, **changed: object) -> list[StageNode]:
    """Two counts and their total. Keywords: `first` and `second` (CountConfig), `total`, `seed`."""
    locations = {"switches": str(switches)} if switches else {}
    seed = int(str(changed.get("seed", 0)))
    first = changed.get("first", CountConfig(label="a"))
    second = changed.get("second", CountConfig(label="b", factor=2))
    rounding = changed.get("total", TotalConfig())
    assert isinstance(first, CountConfig)
    assert isinstance(second, CountConfig)
    assert isinstance(rounding, TotalConfig)
    return [
        StageNode("count.a", COUNT, first, {}, seed, Resources(), locations),
        StageNode("count.b", COUNT, second, {}, seed, Resources(), locations),
        StageNode(
            "total", TOTAL, rounding, {"part.0": ("count.a", "lines"), "part.1": ("count.b", "lines")}, seed,
            Resources(), locations,
        ),
    ]  # fmt: skip
