"""Clips that a data order holds out of training are drawn by its arithmetic and seen by no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from m4v.core.ids import clip_id
from pipelines.exposure.uses import ClipUses
from pipelines.ledger.courses import Course
from pipelines.ledger.exposures import StateRow
from pipelines.ledger.sample_ranks import SamplePlace
from training.config import OrderConfig
from training.samples import SampleGroup
from training.sampling import SamplingPlan
from training.split import is_held_out

HELD_OUT = 400_000
GROUP = SampleGroup("shapes", "video", 3, 8, 8, 40)
ROW = StateRow("c", "57f", "dataset", "order", 5, 50, None)


def uses_of(clips: list[str], held_out: int) -> ClipUses:
    """Uses of clips with a sample each, which are the first of their group."""

    def held(dataset_id: str) -> Iterator[SamplePlace]:
        return (SamplePlace(dataset_id, clip, f"s{n}", GROUP.key) for n, clip in enumerate(clips))

    no_ledger: Any = None
    uses = ClipUses(no_ledger, held, lambda sample, _: int(sample.sample_id[1:]))
    order = OrderConfig(frames=17, tokens_per_pack=80, image_every=0, held_out=held_out)
    plan = SamplingPlan.of([GROUP], order, "57f")
    uses._plans["order"] = SamplingPlan.from_json(plan.to_json())
    return uses


def test_a_held_out_clip_has_no_uses_and_the_others_keep_theirs() -> None:
    clips = [clip_id("shapes", str(n), 0, 1_000_000) for n in range(12)]
    out = [c for c in clips if is_held_out(c, HELD_OUT)]
    assert 0 < len(out) < len(clips)
    plain, split = uses_of(clips, 0), uses_of(clips, HELD_OUT)
    for clip in clips:
        before, after = plain.steps(ROW, clip), split.steps(ROW, clip)
        assert before
        assert after == ([] if clip in out else before)
    course = Course("57f", "dataset", "order", 5)
    assert uses_of(out, HELD_OUT).first_step(course, 50, 0) == float("inf")
    assert uses_of(out, 0).first_step(course, 50, 0) < 50
    assert uses_of(out, HELD_OUT).of_course(course).first_of([50]) is None
    assert uses_of(out, 0).of_course(course).first_of([50]) == 50


def test_an_order_that_holds_nothing_out_keeps_its_id_and_its_plan() -> None:
    assert "held_out" not in OrderConfig().canonical()
    assert OrderConfig(held_out=1).canonical()["held_out"] == 1
    plan = SamplingPlan.of([GROUP], OrderConfig(frames=17), "57f")
    assert "held_out" not in plan.to_json()
