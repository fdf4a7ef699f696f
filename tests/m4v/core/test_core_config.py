"""Frozen configuration: identity, refusals with near names, and errors a user can act on."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from m4v.core.canonical import canonical_json
from m4v.core.config import FrozenModel, parse
from m4v.core.errors import (
    ConfigError,
    DataIntegrityError,
    Drained,
    ExitClass,
    GateRefused,
    InfrastructureError,
    InputError,
    M4VError,
    NeedsHuman,
    worst_of,
)


class Shots(FrozenModel):
    threshold: float = Field(0.5, ge=0, le=1)
    detector: Literal["transnet", "histogram"] = "transnet"


class Bucket(FrozenModel):
    kind: Literal["bucket"] = "bucket"
    frames: int
    sizes: tuple[tuple[int, int], ...] = ()


class Single(FrozenModel):
    kind: Literal["single"] = "single"
    colour: str = "rgb"


class Curation(FrozenModel):
    name: str
    shots: Shots = Shots(threshold=0.5)
    maybe: Shots | None = None
    buckets: tuple[Bucket | Single, ...] = ()
    by_name: dict[str, Shots] = {}
    extra: dict[str, object] = {}
    seed: int = 0


def test_a_valid_mapping_parses_and_is_frozen() -> None:
    config = parse(Curation, {"name": "x", "buckets": [{"frames": 9, "sizes": [[64, 64]]}]}, "recipe demo")
    assert config.buckets == (Bucket(frames=9, sizes=((64, 64),)),)
    with pytest.raises(ValidationError):
        config.name = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "what", "next_step"),
    [
        ({"nam": "x"}, "unknown key nam", "did you mean name"),
        ({"name": "x", "shots": {"treshold": 0.1}}, "unknown key shots.treshold", "did you mean threshold?"),
        ({"name": "x", "maybe": {"detectr": "a"}}, "unknown key maybe.detectr", "did you mean detector?"),
        ({"name": "x", "by_name": {"a": {"thresh": 1}}}, "unknown key by_name.a.thresh", "did you mean threshold?"),
        ({"name": "x", "shots": {"zzz": 1}}, "unknown key shots.zzz", "known keys: detector, threshold"),
        ({}, "name: Field required", "add name"),
        ({"name": "x", "shots": {"threshold": 2}}, "less than or equal to 1", "correct shots.threshold"),
        ({"name": "x", "shots": {"detector": "magic"}}, "'transnet' or 'histogram'", "correct shots.detector"),
        ({"name": 7}, "valid string", "correct name"),
        ({"name": "x", "shots": {"threshold": math.nan}}, "greater than or equal|finite", "correct shots.threshold"),
        ({"name": "x", "shots": []}, "valid dictionary", "correct shots"),
    ],
)
def test_refusals_say_what_and_the_fix(data: dict[str, object], what: str, next_step: str) -> None:
    with pytest.raises(ConfigError, match=what) as refused:
        parse(Curation, data, "recipe demo")
    error = refused.value
    assert (error.where, error.exit_class) == ("recipe demo", ExitClass.CONFIG)
    assert error.next_step is not None
    assert next_step in error.next_step
    assert str(error).count("\n") == 0


def test_further_mistakes_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"\(and 2 more\)"):
        parse(Curation, {"nam": "x", "sots": {}}, "recipe")


def test_a_name_inside_a_union_is_near_its_own_kind() -> None:
    with pytest.raises(ConfigError) as refused:
        parse(Curation, {"name": "x", "buckets": [{"kind": "bucket", "frames": 9, "size": []}]}, "recipe")
    assert refused.value.next_step is not None
    assert "sizes" in refused.value.next_step


def test_equal_configs_have_one_digest_however_written() -> None:
    a = parse(Curation, {"name": "x", "shots": {"threshold": 1, "detector": "transnet"}, "seed": 3}, "a")
    b = Curation(seed=3, shots=Shots(detector="transnet", threshold=1.0), name="x")
    assert a.digest() == b.digest()
    assert a.digest() != Curation(name="x", seed=4, shots=a.shots).digest()
    assert parse(Curation, a.canonical(), "stored") == a, "what is stored with a run reads back"


@given(st.floats(0, 1), st.integers(0, 2**53), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_digest_survives_the_request_file(threshold: float, seed: int, name: str) -> None:
    config = Curation(name=name, seed=seed, shots=Shots(threshold=threshold))
    again = Curation.model_validate_json(canonical_json(config.canonical()))
    assert again.digest() == config.digest()


def test_values_without_a_canonical_form_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="value has no canonical form"):
        Curation(name="x", seed=2**63 + 1).digest()


class TestErrors:
    def test_exit_classes_are_frozen(self) -> None:
        """DESIGN section 3 calls these numbers frozen: schedulers and scripts hold on to them."""
        assert {e.name: e.value for e in ExitClass} == {
            "OK": 0, "BUG": 1, "USAGE": 2, "CONFIG": 10, "DATA_INTEGRITY": 20, "INFRASTRUCTURE": 30,
            "DRAINED": 40, "NEEDS_HUMAN": 50, "GATE_REFUSED": 60,
        }  # fmt: skip

    def test_each_family_has_its_class(self) -> None:
        classes = {t: t.exit_class.value for t in
                   (M4VError, ConfigError, InputError, DataIntegrityError, InfrastructureError, Drained, NeedsHuman,
                    GateRefused)}  # fmt: skip
        assert list(classes.values()) == [1, 10, 10, 20, 30, 40, 50, 60]

    def test_a_message_has_its_four_parts(self) -> None:
        error = InputError("file does not exist", value="a.mp4", where="source x", next_step="check the path")
        assert str(error) == "file does not exist: 'a.mp4' (in source x). Next: check the path"
        assert str(InputError("it failed")) == "it failed"
        assert str(InputError("wrong", value=0)) == "wrong: 0"

    def test_a_huge_value_is_cut(self) -> None:
        assert len(str(InputError("wrong", value="x" * 10_000))) < 400

    @pytest.mark.parametrize(
        ("classes", "worst"),
        [
            ([0, 0], 0), ([], 1), ([0, 1], 1), ([0, 30], 30), ([30, 40], 40), ([40, 10], 10), ([10, 20, 30, 40], 20),
            ([1, 30], 30), ([50, 20, 10, 40, 30, 0], 50),
        ],
    )  # fmt: skip
    def test_a_gang_of_ranks_ends_as_its_worst(self, classes: list[int], worst: int) -> None:
        assert worst_of([ExitClass(c) for c in classes]) == worst
