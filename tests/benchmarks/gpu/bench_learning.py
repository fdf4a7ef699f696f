"""A learning check: a small M4V is trained on drawn moving shapes and makes 57-frame videos of unseen prompts.

    python tests/benchmarks/gpu/bench_learning.py features text.safetensors     # where the text encoder's weights are
    python tests/benchmarks/gpu/bench_learning.py corpus --features text.safetensors --corpus CORPUS
    python tests/benchmarks/gpu/bench_learning.py run --features text.safetensors --corpus CORPUS --mixer mm_dim \
        --keep WORK --out OUT      # and with --mixer attention

The product's stages `init` and `train` run as they do in a pipeline (processes, shards, loader, DeepSpeed, saves):
first on the clips' first frames, then on their two leading latent frames, then on whole clips. A quarter of the
combinations of colour, shape and direction never occur in the corpus; prompts of just these are scored
(`learning_scores`), on the raw frames.

With `--keep`, a call that ends early (`--until`, exit code 40) goes on when it is made again: finished stages and
batches of videos are taken as they are, a stage that was drained resumes from its save. With `--limit-s`, training that
takes longer than was foretold ends at the step it has come to, and what is left makes as many videos as it can.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
sys.path.insert(0, str(Path(__file__).parents[3]))

from learning_corpus import COLOURS, FRAMES, SHAPES, SIDE, TEXT, FeatureTable, corpus_at, write_features
from learning_videos import say, score
from training_helpers import request

from m4v.config import ModelConfig
from m4v.core.artifacts import ArtifactKind
from m4v.core.config import FrozenModel
from m4v.core.errors import ExitClass
from m4v.core.stage import Resources
from m4v.core.storage import write_atomic
from m4v.kernels.selection import ATTENTION_VARIABLE, kernel_summary
from training.config import EngineConfig, InitConfig, OptimizerConfig, OrderConfig, TrainConfig

ROOT = Path(__file__).parents[3]
POLL_S = 1.0
TELL_S = 20.0
PARTNER_S = 120.0  # to wait for the other run, once
SHOWS_S = 110.0  # of `--limit-s`, for the videos: their kernels are compiled, too
STARTS_S = 20.0  # a training stage takes to start and to save
SLOWER = 1.2  # a step than one of the stage before, at most
LADDER = (("1f", 1, None), ("9f", 9, 0.3), ("57f", FRAMES, 1.0))  # name, frames, share of the time that is left
Input = tuple[str, ArtifactKind, str, Path]


def run_stage(name: str, config: FrozenModel, work: Path, inputs: list[Input], options: argparse.Namespace) -> Input:
    """A stage in a process of its own, from where an earlier call left it; returns its checkpoint as an input of the
    next. Leaves with 40 when it was drained."""
    attempts = attempts_of(work)
    attempt = next((a for a in attempts if (a / "result.json").exists()), None)
    if attempt is None:
        attempt, began = work / f"attempt-{len(attempts):04d}", time.perf_counter()
        code = run_attempt(name, config, attempt, inputs, options)
        if code == ExitClass.DRAINED and options.limit_s is not None and isinstance(config, TrainConfig):
            taken = len(rows_of(attempt / "metrics.jsonl"))
            say(f"{name}: the time is up; it ends with {taken} steps of {config.steps}")
            options.until = math.inf  # what follows is short
            return run_stage(name, config.model_copy(update={"steps": taken}), work, inputs, options)
        if code == ExitClass.DRAINED:
            say(f"{name}: the time is up; the same command goes on from here")
            raise SystemExit(code)
        if code != 0:
            raise SystemExit(f"{name} failed:\n{(attempt / 'output.log').read_text()[-4000:]}")
        say(f"{name}: {time.perf_counter() - began:.1f} s in all")
    result = json.loads((attempt / "result.json").read_text())["outputs"][0]
    return "checkpoint", ArtifactKind.CHECKPOINT, result["artifact_id"], Path(result["staging"])


def attempts_of(work: Path) -> list[Path]:
    return sorted(work.glob("attempt-*"))


def run_attempt(name: str, config: FrozenModel, work: Path, inputs: list[Input], options: argparse.Namespace) -> int:
    """The exit code of one process; a lone rank needs no torchrun."""
    stage = "train" if isinstance(config, TrainConfig) else "init"
    device = options.device if stage == "train" else "cpu"
    made = request(
        stage, config, work, inputs, attempt=work.name, state=work.parent / "state", device=device,
        deterministic=False, seed=options.seed,
    )  # fmt: skip
    made = made.model_copy(update={"resources": Resources(device=device, workers=options.workers)})
    (work / "request.json").write_text(made.model_dump_json())
    paths = [str(ROOT), str(ROOT / "tests" / "training"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with (work / "output.log").open("wb") as log:
        command = [sys.executable, "-m", "pipelines.stage_process", str(work / "request.json")]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            follow(process, work, name, options)
        except BaseException:  # this process is told to end: what it started ends too
            process.kill()
            raise
    return process.returncode


def follow(process: subprocess.Popen[bytes], work: Path, name: str, options: argparse.Namespace) -> None:
    """Wait for a stage, tell its loss and speed now and then, and drain it when the time is up."""
    told, asked = time.monotonic(), False
    while process.poll() is None:
        time.sleep(POLL_S)
        if not asked and time.time() - options.began > options.until and work.parent.name != "init":
            asked = True
            process.send_signal(signal.SIGTERM)
        if time.monotonic() - told >= TELL_S:
            told = time.monotonic()
            if rows := rows_of(work / "metrics.jsonl"):
                recent = rows_of(work / "timings.jsonl")[-20:]
                step = statistics.median(r["total"] for r in recent) if recent else 0.0
                wait = statistics.median(r["data"] for r in recent) if recent else 0.0
                loss = statistics.fmean(r["loss"] for r in rows[-20:])
                speed = f"{1e3 * step:.0f} ms a step, of it waiting for data {1e3 * wait:.0f}"
                say(f"{name}: step {len(rows)}, loss {loss:.4f}, {speed}")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSON-lines file that may be growing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def stage_config(name: str, frames: int, steps: int, options: argparse.Namespace) -> TrainConfig:
    whole = frames == FRAMES
    # The lowest stage decides that there is one object, and where; what shape it has shows at the middle stage.
    order = OrderConfig(
        frames=frames, min_frames=frames, tokens_per_pack=options.tokens if whole else options.tokens_first,
        packs=1, image_every=0, columns=(0, 0, 1, 1, 2),
    )  # fmt: skip
    return TrainConfig(
        name=name, steps=steps, order=order, save_every=min(steps, 400), text_drop=0.1, ema_decay=options.ema,
        optimizer=OptimizerConfig(
            lr=options.lr_whole if whole else options.lr, warmup_steps=min(50, steps // 10),
            decay="cosine" if whole else "constant",
        ),
        engine=EngineConfig(
            zero_stage=0, deterministic=False, dtype="float32" if options.device == "cpu" else "bfloat16"
        ),
    )  # fmt: skip


def agreed_steps(stage: str, step_s: float, share: float, options: argparse.Namespace) -> int:
    """Steps of a later stage, by the measured seconds of a step of the stage before: as many as its share of the time
    that is left has room for. A run and its partner take the slower one's number; what was agreed in an earlier call
    holds."""
    shared = Path(options.share)
    shared.mkdir(parents=True, exist_ok=True)
    for name in filter(None, (options.mixer, options.partner)):
        if (agreed := shared / f"{name}-{stage}-steps.json").exists():
            return int(json.loads(agreed.read_bytes()))
    mine = {"step_s": step_s, "now": time.time(), "ends": options.began + options.train_until}
    write_atomic(shared / f"{options.mixer}-{stage}.json", json.dumps(mine).encode())
    runs = [mine, *partner_speed(stage, options)]
    left = min(r["ends"] for r in runs) - max(r["now"] for r in runs)
    room = (left * share - STARTS_S) / (SLOWER * max(r["step_s"] for r in runs))
    steps = min(options.steps, max(int(room) // 25 * 25, 25))
    write_atomic(shared / f"{options.mixer}-{stage}-steps.json", json.dumps(steps).encode())
    say(f"{stage}: {len(runs)} runs take {steps} steps each; {left:.0f} s of training are left")
    return steps


def partner_speed(stage: str, options: argparse.Namespace) -> list[dict[str, float]]:
    """What the partner measured, once it is there; nothing without a partner, or when it does not come."""
    if not options.partner:
        return []
    theirs, deadline = Path(options.share) / f"{options.partner}-{stage}.json", time.monotonic() + PARTNER_S
    while not theirs.exists():
        if time.monotonic() > deadline:
            say(f"no word from {options.partner}: this run goes on alone, and steps may not be equal")
            options.partner = None
            return []
        time.sleep(POLL_S)
    return [json.loads(theirs.read_bytes())]


def measure(folder: Path) -> dict[str, Any]:
    """Of a finished stage: its steps, medians of a step and of its wait for data, losses of its last 5 %."""
    attempts = attempts_of(folder)
    timings = [row for attempt in attempts for row in rows_of(attempt / "timings.jsonl")]
    rows = rows_of(attempts[-1] / "staging" / "checkpoint" / "metrics.jsonl")
    last = rows[-max(1, len(rows) // 20) :]
    return {
        "steps": len(rows),
        "samples_a_step": rows[-1]["samples"],
        "step_s": round(statistics.median(t["total"] for t in timings), 4),
        "data_wait_s": round(statistics.median(t["data"] for t in timings), 4),
        "losses": {
            key: round(statistics.fmean(known), 4)
            for key in ("loss", "loss_low", "loss_mid", "loss_high")
            if (known := [r[key] for r in last if r.get(key) is not None])
        },
    }


def train(work: Path, features: FeatureTable, options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Corpus, initial weights and the training stages; returns the checkpoint's folder and what was measured."""
    dataset, corpus = corpus_of(options, features), Path(options.corpus)
    model = ModelConfig(
        width=options.width, heads=options.width // 64, double_blocks=options.double, single_blocks=options.single,
        text_dim=384, pooled_dim=384, text_slots=TEXT.slots, mixer=options.mixer,
    )  # fmt: skip
    last = run_stage("init", InitConfig(model=model, text_encoder=TEXT), work / "init", [], options)
    data: Input = ("dataset", ArtifactKind.DATASET, dataset, corpus)
    facts: dict[str, Any] = {}
    for name, frames, share in LADDER:
        before = list(facts.get("step_s", {}).values())
        steps = agreed_steps(name, before[-1], share, options) if share else options.steps_first
        folder = work / name
        last = run_stage(name, stage_config(name, frames, steps, options), folder, [data, last], options)
        measured = measure(folder)
        for key, value in measured.items():
            facts.setdefault(key, {})[name] = value
        say(f"{name}: {measured}")
    return last[3], facts


def corpus_of(options: argparse.Namespace, features: FeatureTable) -> str:
    """Artifact id of the corpus, which is made unless it is there."""
    began, folder = time.perf_counter(), Path(options.corpus)
    made = corpus_at(folder, features, options.clips, options.side)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20
    say(f"corpus: {options.clips} clips a combination, {size:.0f} MiB, {time.perf_counter() - began:.1f} s")
    return made


def choose_kernels(options: argparse.Namespace) -> None:
    """Dense attention suits some hundred tokens a sample, and nothing is compiled for it. The environment has the last
    word."""
    if options.device == "cuda":
        os.environ.setdefault(ATTENTION_VARIABLE, "dense")
    say(f"kernels: {kernel_summary(options.device)}")


def run(options: argparse.Namespace) -> None:
    began = time.perf_counter()
    choose_kernels(options)
    if options.limit_s is not None:
        options.train_until = options.limit_s - SHOWS_S
        options.until = options.train_until
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    features = FeatureTable(options.features)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Path(options.keep or folder)
        work.mkdir(parents=True, exist_ok=True)
        options.corpus = options.corpus or str(work / "corpus")
        checkpoint, facts = train(work, features, options)
        say(f"trained after {time.perf_counter() - began:.0f} s")
        facts |= score(work, checkpoint, features, options)
    facts |= {"options": {k: str(v) for k, v in vars(options).items() if k != "main"}, "words": [COLOURS, SHAPES]}
    facts["wall_s"] = time.perf_counter() - began
    (out / f"learning-{options.mixer.replace('_', '')}.json").write_text(json.dumps(facts, indent=1))
    say(f"{options.mixer}: all done in {facts['wall_s']:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    make = verbs.add_parser("features")
    make.add_argument("path", type=Path)
    make.set_defaults(main=lambda o: say(f"{write_features(o.path)} texts"))
    go, draw = verbs.add_parser("run"), verbs.add_parser("corpus")
    for verb in (go, draw):
        verb.add_argument("--features", type=Path, required=True)
        verb.add_argument(
            "--corpus", help="its folder, which runs share; of the run's own without", required=verb is draw
        )
        verb.add_argument("--clips", type=int, default=12, help="of each combination of words")
        verb.add_argument("--side", type=int, default=SIDE)
    draw.set_defaults(main=lambda o: corpus_of(o, FeatureTable(o.features)))
    go.add_argument("--mixer", choices=("mm_dim", "attention"), default="mm_dim")
    go.add_argument("--out", required=True)
    go.add_argument("--keep", help="folder for corpus, states and checkpoints; a temporary one without")
    for name, kind, default in (
        # Steps are few in the first stage, by whose speed the others are told, and at most so many in each of those.
        # Packs are small because each sample takes a core 0.7 ms to read and to draw noise for, most of it in the
        # interpreter: a step of 240 samples waits for these about as long as for its kernels.
        ("--steps-first", int, 400), ("--steps", int, 2000), ("--lr", float, 1.2e-3), ("--lr-whole", float, 1e-3),
        ("--ema", float, 0.98), ("--width", int, 512), ("--double", int, 1), ("--single", int, 5),
        ("--tokens", int, 15_000), ("--tokens-first", int, 9_000),
        ("--samples", int, 2), ("--every", int, 1), ("--batch", int, 84), ("--sampler-steps", int, 10),
        ("--guidance", float, 2.0), ("--workers", int, 4), ("--seed", int, 7),
    ):  # fmt: skip
        go.add_argument(name, type=kind, default=default)
    go.add_argument("--device", default="cuda")
    go.add_argument("--partner", help="mixer of a run beside this one: both take the steps the slower has time for")
    go.add_argument("--share", default="shared", help="folder that both runs see, empty at first")
    go.add_argument("--train-until", type=float, default=410.0, help="seconds from the start to the end of training")
    go.add_argument("--limit-s", type=float, help="seconds in which all is over; it sets when training ends")
    go.add_argument("--until", type=float, default=1e9, help="seconds from the start at which training is drained")
    go.set_defaults(main=run)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # `timeout` leaves no process either
    options.began = time.time()
    options.main(options)


if __name__ == "__main__":
    main()
