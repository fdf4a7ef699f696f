"""Model card of a checkpoint in Markdown: what it is, what it learned from, how it does, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from eval.records import MetricScore
from m4v.core.artifacts import MANIFEST, ArtifactKind
from m4v.core.storage import Storage
from pipelines.channels.gates import gate_verdicts
from pipelines.exports.dataset_facts import DatasetFacts, dataset_facts
from pipelines.exports.ids import producer
from pipelines.exports.markdown import code, section, table, text
from pipelines.exports.reading import artifact_of, document, text_lines
from pipelines.inspection.leaderboard import interval, read_scores
from pipelines.ledger import ArtifactRow, Ledger, RunRow
from pipelines.ledger.types import iso

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SHORT = 12


@dataclass(frozen=True)
class LineStep:
    """A checkpoint of the training line with the run that made it. `steps` are its own stage's."""

    checkpoint: ArtifactRow
    run: RunRow | None
    stage: str
    steps: int
    samples_seen: int | None
    dataset_id: str | None


def model_card(ledger: Ledger, identity: str) -> str:
    """The card; raises InputError for another kind of artifact. What the store no longer has is said to be gone."""
    checkpoint = artifact_of(ledger, identity, ArtifactKind.CHECKPOINT)
    line = training_line(ledger, checkpoint)
    datasets = _datasets(ledger, line)
    title = line[-1].stage if line else "untrained"
    return "\n".join(
        (
            f"# Checkpoint {checkpoint.artifact_id[:SHORT]} ({text(title)})\n",
            _what(checkpoint, line),
            _status(ledger, checkpoint, line),
            _data(datasets),
            _training(line),
            _evaluation(ledger, checkpoint),
            _limits(datasets),
            _provenance(ledger, checkpoint, line),
        )
    )


def training_line(ledger: Ledger, checkpoint: ArtifactRow) -> list[LineStep]:
    """The checkpoint and those it started from, first stage first."""
    line: list[LineStep] = []
    seen: set[str] = set()
    row: ArtifactRow | None = checkpoint
    while row is not None and row.artifact_id not in seen:
        seen.add(row.artifact_id)
        runs = ledger.producers(row.artifact_id)
        run = runs[0] if runs else None
        ports = {p.kind: p.artifact_id for p in run.inputs} if run else {}
        line.append(
            LineStep(
                checkpoint=row,
                run=run,
                stage=str(row.summary.get("stage") or (run.stage if run else "imported")),
                steps=int(row.summary.get("step", 0)),
                samples_seen=_samples_seen(row),
                dataset_id=ports.get(ArtifactKind.DATASET),
            )
        )
        before = ports.get(ArtifactKind.CHECKPOINT)
        row = ledger.artifact(before, ArtifactKind.CHECKPOINT) if before else None
    return line[::-1]


def _samples_seen(row: ArtifactRow) -> int | None:
    """Samples drawn by this stage's steps, as each step recorded them; None when that record is not there."""
    steps = int(row.summary.get("step", 0))
    drawn = {int(r["step"]): int(r["samples"]) for r in text_lines(row, METRICS) if "samples" in r}
    return sum(drawn[n] for n in range(steps)) if all(n in drawn for n in range(steps)) else None


def _datasets(ledger: Ledger, line: Iterable[LineStep]) -> dict[str, DatasetFacts | None]:
    """Facts of every dataset version of the line; None where its bytes are gone."""
    found: dict[str, DatasetFacts | None] = {}
    for step in line:
        if step.dataset_id is not None and step.dataset_id not in found:
            row = ledger.artifact(step.dataset_id, ArtifactKind.DATASET)
            present = Storage(row.uri).exists(MANIFEST)
            found[step.dataset_id] = dataset_facts(ledger, row) if present else None
    return found


def _what(checkpoint: ArtifactRow, line: list[LineStep]) -> str:
    config = document(checkpoint, CONFIG) or {}
    model = config.get("model") or {}
    parameters = next((s.checkpoint.summary["parameters"] for s in line if "parameters" in s.checkpoint.summary), None)
    weights = config.get("weights") or {}
    rows = [
        ("identity", code(checkpoint.artifact_id)),
        ("recorded", text(iso(checkpoint.recorded_at))),
        ("size", text(f"{checkpoint.size_bytes} bytes in {checkpoint.files} files")),
        ("parameters", text(parameters)),
        ("mixer", text(model.get("mixer"))),
        ("blocks", text(f"{model.get('double_blocks', '–')} double, {model.get('single_blocks', '–')} single")),
        ("width", text(model.get("width"))),
        ("codec", text((config.get("codec") or {}).get("kind"))),
        ("text encoder", text((config.get("text_encoder") or {}).get("kind"))),
        ("weights averaged (EMA)", text("yes" if config.get("ema") else "no")),
        ("imported weights", ", ".join(f"{text(k)} {code(v)}" for k, v in sorted(weights.items())) or text("none")),
    ]
    said = "A text-to-video model: a denoiser of video latents conditioned on text, sampled by pyramid flow matching."
    gone = "" if config else "The checkpoint's files are no longer in the store; what only they say is missing here."
    return section("What it is", said, gone, table(("fact", "value"), [(k, v) for k, v in rows]))


def _status(ledger: Ledger, checkpoint: ArtifactRow, line: list[LineStep]) -> str:
    channels = _channels(ledger, checkpoint.artifact_id)
    verdicts = gate_verdicts(ledger, checkpoint.artifact_id)
    gates = [
        (
            code(v.artifact_id[:SHORT]),
            text("passed" if v.passed else "refused"),
            text(v.rules),
            text("; ".join(v.reasons)),
        )
        for v in verdicts
    ]
    return section(
        "Status",
        f"Channels that name it now: {', '.join(map(code, channels)) or 'none'}.",
        _takedown_state(ledger, line),
        table(("gate", "verdict", "rules", "why not"), gates) if gates else "No gate has judged it.",
    )


def _channels(ledger: Ledger, artifact_id: str) -> list[str]:
    newest = {row.name: row for row in reversed(ledger.channel_history())}
    return sorted(name for name in newest if (row := ledger.channel(name)) and row.artifact_id == artifact_id)


def _takedown_state(ledger: Ledger, line: list[LineStep]) -> str:
    """Takedown cases that took the checkpoint, its line or its data out of use."""
    held = [(s.checkpoint.artifact_id, ArtifactKind.CHECKPOINT) for s in line]
    held += [(s.dataset_id, ArtifactKind.DATASET) for s in line if s.dataset_id]
    found = [w for i, k in dict.fromkeys(held) if (w := ledger.withdrawal(i, k))]
    if not found:
        return "Takedown: neither it, nor what it started from, nor its data is withdrawn."
    rows = [(text(w.kind), code(w.artifact_id[:SHORT]), code(w.takedown_id), text(w.reason)) for w in found]
    return "Takedown: **withdrawn by a case**.\n\n" + table(("what", "artifact", "case", "reason"), rows)


def _data(datasets: dict[str, DatasetFacts | None]) -> str:
    parts: list[str] = []
    for artifact_id, facts in datasets.items():
        head = f"Dataset version {code(artifact_id)}"
        if facts is None:
            parts.append(f"{head}: its bytes are no longer in the store.")
            continue
        parts.append(
            f"{head}: {facts.samples} samples ({facts.videos} videos, {facts.images} images), {facts.tokens} tokens, "
            f"{facts.shards} shards."
        )
        rows = [(text(s.name), text(s.kind), text(s.samples), text(s.licence), text(s.terms)) for s in facts.sources]
        parts.append(table(("source", "kind", "samples", "licence of the source", "terms"), rows))
        parts.append(table(("licence", "samples"), [(text(n), text(c)) for n, c in facts.licences.items()]))
        parts.append("\n".join(f"- {text(step)}" for step in facts.preprocessing))
    return section("Data", *(parts or ["It was not trained, so there is none."]))


def _training(line: list[LineStep]) -> str:
    rows = []
    for step in line:
        run = step.run
        made = (text(step.stage), text(step.steps), text(step.samples_seen), code(step.checkpoint.artifact_id[:SHORT]))
        data = code(step.dataset_id[:SHORT]) if step.dataset_id else text(None)
        ran = (text(run.seed), text(run.exactness), code(run.run_id)) if run else (text(None),) * 3
        rows.append((*made, data, *ran))
    total = sum(step.samples_seen or 0 for step in line)
    steps = sum(step.steps for step in line)
    columns = ("stage", "steps", "samples drawn", "checkpoint", "dataset", "seed", "exactness", "run")
    partly = "at least " if any(step.samples_seen is None for step in line) else ""
    said = f"In all {steps} steps and {partly}{total} samples drawn, repeats counted."
    told = "Which step saw which clip follows from these facts: `m4v lineage exposure`."
    return section("Training", table(columns, rows), f"{said} {told}")


def _evaluation(ledger: Ledger, checkpoint: ArtifactRow) -> str:
    parts = []
    with TemporaryDirectory(prefix="m4v-card-") as cache:
        for samples in _made_from(ledger, checkpoint.artifact_id, ArtifactKind.SAMPLES):
            for scores in _made_from(ledger, samples.artifact_id, ArtifactKind.SCORES):
                parts.append(_scores(scores, Path(cache)))
    return section("Evaluation", *(parts or ["No evaluation of it is recorded."]))


def _made_from(ledger: Ledger, artifact_id: str, kind: ArtifactKind) -> list[ArtifactRow]:
    ports = [p.artifact_id for run in ledger.consumers(artifact_id) for p in run.outputs if p.kind is kind]
    return [ledger.artifact(i, kind) for i in dict.fromkeys(ports)]


def _scores(row: ArtifactRow, cache: Path) -> str:
    if not Storage(row.uri).exists(MANIFEST):
        return f"Scores {code(row.artifact_id)}: their bytes are no longer in the store."
    record = read_scores(row, cache)
    prompts = [video.prompt_index for video in record.per_video]
    identity = record.identity
    rows = [_metric(name, metric, prompts) for name, metric in sorted(record.metrics.items())]
    columns = ("metric", "mean", "95 % interval", "videos", "prompts", "chance", "better", "what it says")
    said = (
        f"Scores {code(row.artifact_id[:SHORT])}: videos: {len(record.per_video)}, {identity.width}×{identity.height}, "
        f"{identity.frames} frames at {identity.fps:g} fps; prompt set {code(identity.prompt_set[:SHORT])}. Intervals "
        "are bootstraps over prompts; too few prompts have none."
    )
    return f"{said}\n\n{table(columns, rows)}"


def _metric(name: str, metric: MetricScore, prompts: list[int]) -> tuple[str, ...]:
    bounds, count = interval(metric, prompts, name)
    better = {True: "higher", False: "lower", None: "–"}[metric.higher_is_better]
    spread = f"{bounds[0]:.4g} to {bounds[1]:.4g}" if bounds else "–"
    return (
        text(metric.title), text(metric.mean), text(spread), text(metric.count), text(count), text(metric.chance),
        text(better), text(metric.description),
    )  # fmt: skip


def _limits(datasets: dict[str, DatasetFacts | None]) -> str:
    sizes = sorted({bucket for facts in datasets.values() if facts for bucket in facts.buckets})
    lines = [
        "It makes videos and images of the sizes it was trained on; others were never seen in training.",
        f"Sizes in its data: {'; '.join(sizes)}." if sizes else "",
        "Scores hold for the prompts, sizes and sampler they were taken with, and for nothing else.",
        "Neither its data nor its output was assessed for personal data, bias or harm by this pipeline.",
    ]
    return section("Limits", "\n".join(f"- {text(line)}" for line in lines if line))


def _provenance(ledger: Ledger, checkpoint: ArtifactRow, line: list[LineStep]) -> str:
    run = line[-1].run if line else None
    rows: list[tuple[str, str]] = []
    if run is not None:
        state = run.environment.get("code")
        commit = state.get("commit") if isinstance(state, dict) else None
        dirty = " with uncommitted changes" if isinstance(state, dict) and state.get("dirty") else ""
        rows = [
            ("run", code(run.run_id)),
            ("stage key", code(run.stage_key)),
            ("code", code(run.code_digest)),
            ("commit", f"{code(commit)}{dirty}" if commit else text("not recorded")),
            ("config", code(run.config_digest)),
            ("lock file", code(run.key_record.get("lock_digest") or "none")),
            ("numerics", code(json.dumps(run.environment.get("numerics"), sort_keys=True))),
        ]
    graph = ledger.lineage_up(checkpoint.artifact_id)
    kinds = ", ".join(
        f"{sum(a.kind == k for a in graph.artifacts.values())} {k}" for k in _kinds(graph.artifacts.values())
    )
    identity = checkpoint.artifact_id[:SHORT]
    commands = (
        f"- `m4v lineage up {identity}`: everything it was made from ({text(kinds)}, {len(graph.runs)} runs)\n"
        f"- `m4v artifacts verify {identity}`: its bytes are what they were\n"
        f"- `m4v lineage export {identity} --format slsa`: provenance for signing"
    )
    body = table(("fact", "value"), rows) if rows else "It was imported; no run made it."
    return section("Provenance", body, commands, f"Written by {code(producer())} from the ledger.")


def _kinds(artifacts: Iterable[object]) -> list[str]:
    return sorted({str(getattr(a, "kind", "")) for a in artifacts})
