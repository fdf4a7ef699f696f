"""Rehearsals: two steps at real sizes under a name of their own, with stand-ins for what is not here."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    assert recipe.weights == ()
    assert recipe.init is None
    assert (recipe.encode.codec.kind, recipe.encode.buckets) == ("dct", real.encode.buckets)
    assert (recipe.model.width, recipe.model.text_dim, recipe.model.text_slots) == (1920, 384, 128)
    assert recipe.active_profile.resources("train").ranks == 2
    # As many packs for each GPU as in the real run: 128 over 8.
    assert {t.order.packs for t in recipe.train if t.order.frames < 241} == {2 * 128 // 8}
    assert len(made.notes) == 5 + 3 + 2 + 1
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
