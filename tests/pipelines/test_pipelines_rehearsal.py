"""Rehearsals: two steps at real sizes under a name of their own, with stand-ins for what is not here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataprep.sources.config import SyntheticConfig
from pipelines import rehearsal
from pipelines.recipe import load_recipe
from pipelines.rehearsal import rehearse
from pipelines.session import open_session


def test_a_rehearsal_of_micro_is_micro_with_two_steps() -> None:
    made = rehearse(load_recipe("micro"))
    assert made.notes == ()
    recipe, real = made.recipe, load_recipe("micro")
    assert recipe.name == "micro-rehearse"
    assert {t.steps for t in recipe.train} | {recipe.reward.steps if recipe.reward else 0} == {2}
    assert [t.order.packs for t in recipe.train] == [t.order.packs for t in real.train]
    assert recipe.model == real.model
    assert recipe.encode == real.encode


def test_what_is_not_here_is_stood_in_for_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(rehearsal, "gpus_here", lambda: 2)
    real = load_recipe("m4v-768p")
    made = rehearse(real)
    recipe = made.recipe
    assert {s.adapter.kind for s in recipe.sources} == {"synthetic"}
    assert [s.name for s in recipe.sources] == [s.name for s in real.sources]
    assert len({s.adapter.seed for s in recipe.sources if isinstance(s.adapter, SyntheticConfig)}) == len(real.sources)
    assert recipe.weights == ()
    assert recipe.init is None
    assert (recipe.encode.codec.kind, recipe.encode.buckets) == ("dct", real.encode.buckets)
    assert (recipe.model.width, recipe.model.text_dim, recipe.model.text_slots) == (1920, 384, 128)
    assert recipe.active_profile.resources("train").ranks == 2
    # Of the real size, and few of them: the real run has 128 over 8 GPUs, and 256.
    assert {t.order.packs for t in recipe.train} == {2 * rehearsal.PACKS}
    assert {(t.order.frames, t.order.tokens_per_pack) for t in recipe.train} == {
        (t.order.frames, t.order.tokens_per_pack) for t in real.train
    }
    assert "train.57f takes 2 packs of the real size on each GPU, not 16" in made.notes
    assert (recipe.encode.reconstructions, real.encode.reconstructions) == (1, 6)
    assert len(made.notes) == 5 + 3 + 2 + 1 + len(real.train) + 1
    assert any("drawn clips" in note for note in made.notes)


def test_wan_is_rehearsed_in_latents_of_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(rehearsal, "gpus_here", lambda: 1)
    real = load_recipe("m4v-wan")
    recipe = rehearse(real).recipe
    assert (recipe.encode.codec.kind, recipe.encode.codec.time_stride) == ("dct", 4)
    assert recipe.encode.buckets == real.encode.buckets
    assert (recipe.model.text_dim, recipe.model.text_slots) == (384, 512)
    assert recipe.generate.sampler.canonical()["steps"] == 2


def test_shared_forwards_are_rehearsed_on_fewer_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_WEIGHTS", str(tmp_path))
    real = load_recipe("m4v-wan")
    shared = tuple(
        stage.model_copy(update={"engine": stage.engine.model_copy(update={"sequence_parallel": 4})})
        for stage in real.train
    )
    for gpus, size, packs in ((8, 4, 4), (2, 2, 2), (1, 1, 2)):  # two packs for each group that shares its forwards
        monkeypatch.setattr(rehearsal, "gpus_here", lambda n=gpus: n)
        made = rehearse(real.model_copy(update={"train": shared})).recipe.train
        assert {(stage.engine.sequence_parallel, stage.order.packs) for stage in made} == {(size, packs)}


def test_a_rehearsal_has_keys_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_HOME", str(tmp_path))
    keys = [
        {node.id: node.config.digest() for node in open_session("micro", rehearse=how).nodes} for how in (True, False)
    ]
    different = {node for node in keys[0] if keys[0][node] != keys[1][node]}
    assert {node for node in different if node.startswith("train.")} == {
        "train.t2i",
        "train.9f",
        "train.17f",
        "train.33f",
    }
    assert "init" not in different


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 4), ("2", 1), ("0,3", 2), ("", 0), ("1,-1,2", 1), ("GPU-a,GPU-b", 2)]
)
def test_only_gpus_that_cuda_may_use_count(
    visible: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text('#!/bin/sh\nfor n in 0 1 2 3; do echo "GPU $n: some name (UUID: GPU-$n)"; done\n')
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert rehearsal.gpus_here() == count
