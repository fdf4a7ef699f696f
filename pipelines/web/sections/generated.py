"""Generated clips, trained beside untrained, and the metrics of both with their paired difference."""

from __future__ import annotations

from dataclasses import dataclass

from eval.config import METRICS
from eval.records import GATE, SAMPLES, SCORES, GateVerdict, MetricScore, SampleSet, ScoreSet, VideoScore, read_record
from eval.stages.gate import BOOTSTRAP_SEED, MIN_PROMPTS, paired_comparison
from m4v.core.artifacts import Artifact
from pipelines.web.charts import Strip, strip
from pipelines.web.media import MediaBudget
from pipelines.web.sections.inputs import ReportInputs

COLOUR, MOTION = "local.colour_follow", "local.motion_follow"
_RESAMPLES, _CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Clip:
    """A video in the page, or the place of one that did not fit (`uri` None)."""

    label: str
    uri: str | None
    frames: int
    fps: float
    width: int
    height: int
    seed: int | None
    colour: float | None
    motion: float | None
    seen: str


@dataclass(frozen=True)
class PromptCard:
    index: int
    prompt: str
    asked: tuple[tuple[str, str], ...]
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class MetricRow:
    name: str
    title: str
    unit: str
    description: str
    trained: float | None
    untrained: float | None
    gain: float | None
    interval: tuple[float, float] | None
    chance: float | None
    higher_is_better: bool | None
    count: int
    chart: Strip | None
    prompts: int

    @property
    def verdict(self) -> str:
        """better, worse, unclear; empty for a monitor or without a pair."""
        if self.interval is None:
            return ""
        if self.prompts < MIN_PROMPTS:
            return "too few prompts to tell"
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "unclear"


@dataclass(frozen=True)
class Generated:
    cards: tuple[PromptCard, ...]
    metrics: tuple[MetricRow, ...]
    gate: GateVerdict | None
    prompts: int
    samples: SampleSet | None
    comparable: bool


def gather(inputs: ReportInputs, media: MediaBudget, shown: int) -> Generated:
    pairs = [("Trained", inputs.get("samples"), inputs.get("scores"))]
    pairs.append(("Untrained", inputs.get("samples_untrained"), inputs.get("scores_untrained")))
    sets = {label: _SampleView.open(label, samples, scores) for label, samples, scores in pairs if samples is not None}
    gate_artifact = inputs.get("gate")
    gate = read_record(GateVerdict, gate_artifact, GATE) if gate_artifact is not None else None
    trained, untrained = sets.get("Trained"), sets.get("Untrained")
    rows, comparable = metric_rows(trained.scores if trained else None, untrained.scores if untrained else None)
    lead = trained or untrained
    return Generated(
        cards=tuple(_card(i, list(sets.values()), media) for i in _prompts(lead)[:shown]),
        metrics=tuple(rows),
        gate=gate,
        prompts=lead.record.prompts if lead else 0,
        samples=lead.record if lead else None,
        comparable=comparable,
    )


@dataclass(frozen=True)
class _SampleView:
    label: str
    artifact: Artifact
    record: SampleSet
    scores: ScoreSet | None

    @classmethod
    def open(cls, label: str, samples: Artifact, scores: Artifact | None) -> _SampleView:
        record = read_record(SampleSet, samples, SAMPLES)
        return cls(label, samples, record, read_record(ScoreSet, scores, SCORES) if scores is not None else None)

    def score(self, file: str) -> VideoScore | None:
        return next((v for v in self.scores.per_video if v.file == file), None) if self.scores else None


def _prompts(view: _SampleView | None) -> list[int]:
    """Prompts in order, those whose colours and motion can be checked first."""
    if view is None:
        return []
    firsts = [v for v in view.record.videos if v.sample_index == 0]
    return [v.prompt_index for v in sorted(firsts, key=lambda v: (v.facts.empty, v.prompt_index))]


def _card(prompt_index: int, views: list[_SampleView], media: MediaBudget) -> PromptCard:
    clips: list[Clip] = []
    prompt, asked = "", dict[str, object]()
    for view in views:
        for video in view.record.videos:
            if video.prompt_index != prompt_index or video.sample_index != 0:
                continue
            prompt = prompt or video.prompt
            asked = asked or {
                "object": video.facts.object_colour, "background": video.facts.background_colour,
                "motion": video.facts.motion,
            }  # fmt: skip
            score = view.score(video.file)
            clips.append(
                Clip(
                    label=view.label, uri=media.embed(view.artifact.path(video.file)), frames=video.frames,
                    fps=video.fps, width=video.width, height=video.height, seed=video.seed,
                    colour=score.metrics.get(COLOUR) if score else None,
                    motion=score.metrics.get(MOTION) if score else None, seen=_seen(score),
                )
            )  # fmt: skip
    return PromptCard(prompt_index, prompt, tuple((k, str(v)) for k, v in asked.items() if v), tuple(clips))


def _seen(score: VideoScore | None) -> str:
    """What the metrics found in the clip, in words."""
    if score is None:
        return ""
    colours, motion = score.details.get(COLOUR, {}), score.details.get(MOTION, {})
    parts = []
    if "background_found" in colours:
        found = colours.get("object_found")
        parts.append(f"{found or 'nothing'} on {colours['background_found']}")
    right, down = motion.get("right"), motion.get("down")
    if isinstance(right, float) and isinstance(down, float):
        parts.append(_motion_words(right, down, motion.get("growth"), motion.get("turns")))
    return ", ".join(parts)


def _motion_words(right: float, down: float, growth: object, turns: object) -> str:
    if isinstance(turns, float) and abs(turns) > 0.5:
        return "goes round"
    if isinstance(growth, float) and abs(growth) > 0.25:
        return "grows" if growth > 0 else "shrinks"
    if max(abs(right), abs(down)) < 0.05:
        return "hardly moves"
    if abs(right) >= abs(down):
        return "moves right" if right > 0 else "moves left"
    return "moves down" if down > 0 else "moves up"


def metric_rows(ours: ScoreSet | None, theirs: ScoreSet | None) -> tuple[list[MetricRow], bool]:
    """Rows of a metric table. Results of different protocols stand side by side without a difference."""
    lead = ours or theirs
    if lead is None:
        return [], False
    comparable = ours is not None and theirs is not None and not ours.identity.differences(theirs.identity)
    rows = []
    order = {name: place for place, name in enumerate(dict.fromkeys((COLOUR, MOTION, *METRICS)))}
    for name, score in sorted(lead.metrics.items(), key=lambda pair: order.get(pair[0], len(order))):
        mine, other = _metric(ours, name), _metric(theirs, name)
        gain, interval, prompts = None, None, 0
        if comparable and ours and theirs and score.higher_is_better is not None:
            found = paired_comparison(
                ours, theirs, name, resamples=_RESAMPLES, confidence=_CONFIDENCE, seed=BOOTSTRAP_SEED
            )
            gain, interval, prompts = (found.gain, found.interval, found.prompts) if found else (None, None, 0)
        rows.append(
            MetricRow(
                name=name, title=score.title, unit=score.unit, description=score.description,
                trained=mine.mean if mine else None, untrained=other.mean if other else None, gain=gain,
                interval=interval, chance=score.chance, higher_is_better=score.higher_is_better, count=score.count,
                chart=strip(_values(mine), _values(other), score.chance), prompts=prompts,
            )
        )  # fmt: skip
    return rows, comparable


def _metric(scores: ScoreSet | None, name: str) -> MetricScore | None:
    return scores.metrics.get(name) if scores else None


def _values(score: MetricScore | None) -> list[float]:
    return [v for v in score.values if v is not None] if score else []
