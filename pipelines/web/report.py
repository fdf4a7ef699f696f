"""Stage `report`: everything a run made, on one self-contained HTML page.

The page needs no network: videos and pictures are `data:` URIs, styles and scripts are inlined, and its
content security policy forbids anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic
from pipelines.web.config import ReportConfig
from pipelines.web.facts import RunFacts, read_facts
from pipelines.web.media import MediaBudget
from pipelines.web.render import render
from pipelines.web.sections import ablation, curation, generated, reward, training
from pipelines.web.sections import run as run_section
from pipelines.web.sections.inputs import ReportInputs

PAGE = "index.html"


@dataclass(frozen=True)
class Tile:
    """A key number at the head of the page. `tone`: good, bad or plain."""

    title: str
    value: str
    note: str
    tone: str = "plain"


def build(context: StageContext) -> str:
    """The page as HTML."""
    config = context.config(ReportConfig)
    inputs = ReportInputs.of(context)
    attached = context.request.attachments.get("facts")
    facts = read_facts(Path(attached)) if attached else RunFacts()
    media = MediaBudget(int(config.media_mib * 2**20))
    # In order of importance: what comes first gets the media budget first.
    samples = generated.gather(inputs, media, config.generated)
    data = curation.gather(inputs, facts, media, config)
    stages = training.gather(inputs, facts)
    return render(
        "report/index.html.jinja",
        config=config,
        generated=samples,
        data=data,
        stages=stages,
        reward=reward.gather(inputs, facts),
        ablations=ablation.gather(inputs),
        run=run_section.gather(facts),
        tiles=tiles(samples, data, stages),
        media=media,
        min_steps=training.MIN_STEPS,
    )


def run(context: StageContext) -> None:
    context.progress.update(0, 1, "pages")
    html = build(context).encode()
    write_atomic(context.output("report") / PAGE, html)
    context.summary("report", {"page": PAGE, "size_bytes": len(html)})
    context.progress.update(1, 1, "pages")


def tiles(samples: generated.Generated, data: curation.Curation, stages: list[training.StageCurves]) -> list[Tile]:
    """Key numbers: what the prompts got, what the data lost, what training did. Only those that there are."""
    found = [_metric_tile(row) for row in samples.metrics if row.name in (generated.COLOUR, generated.MOTION)]
    if data.candidates:
        note = f"of {data.candidates} candidates kept, {data.quarantine_count} quarantined"
        found.append(Tile("Clips", str(data.kept_count), note))
    if data.psnr_mean is not None:
        note = f"mean of {data.psnr_count} decoded clips"
        found.append(Tile("Codec PSNR", f"{data.psnr_mean:.1f} dB", note))
    steps = sum(s.steps for s in stages)
    falls = [s for s in stages if s.tells]
    if stages and not falls:
        found.append(Tile("Training", f"{steps:,} steps", f"in {len(stages)} stages, too few to judge the loss"))
    if falls:
        fell = sum(s.loss.share < 0 for s in falls if s.loss is not None)
        tone = "good" if fell == len(falls) else "bad"
        found.append(Tile("Loss fell in", f"{fell} of {len(falls)} stages", f"{steps:,} steps in all", tone))
    return found


def _metric_tile(row: generated.MetricRow) -> Tile:
    value = "–" if row.trained is None else f"{row.trained:.2f}"
    against = "" if row.untrained is None else f"untrained {row.untrained:.2f}"
    chance = "" if row.chance is None else f"chance {row.chance:g}"
    tone = {"better": "good", "worse": "bad"}.get(row.verdict, "plain")
    return Tile(row.title, value, " · ".join(t for t in (against, chance) if t), tone)
