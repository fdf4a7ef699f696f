"""Every fast path against its definition in float64, gradients included, over random layouts."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixer_cases import column, masks, mixer_case, model_config, random_model, tables_of, temporal_case

from m4v.model.layout import BatchLayout, Clip, Column, frame_types
from m4v.model.recomposition import compose, decompose
from m4v.model.reference import mixer_reference
from m4v.model.selective_scan import scan_sequential, selective_scan
from m4v.model.ssd import ssd_chunked, ssd_sequential, summed_prefixes
from m4v.model.tables import register_types

QUICK = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def layouts(draw: st.DrawFn) -> BatchLayout:
    columns = []
    for _ in range(draw(st.integers(1, 3))):
        stage, unit = draw(st.integers(0, 2)), draw(st.integers(1, 5))
        height, width = 4 * draw(st.integers(1, 2)), 4 * draw(st.integers(1, 3))
        found = column(stage, unit, height, width)
        if unit == 1 and draw(st.booleans()):  # full-sequence training: every frame noisy
            found = Column(stage, (found.clips[-1]._replace(frames=draw(st.integers(2, 3))),))
        columns.append(found)
    return BatchLayout(tuple(columns), draw(st.integers(1, 6)))


@pytest.mark.parametrize("length", [8, 24, 56])
def test_ssd_equals_the_recurrence(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    shapes = {"x": (2, length, 3, 5), "dt": (2, length, 3), "a": (3,), "b": (2, length, 3, 4), "c": (2, length, 3, 4)}
    inputs = {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}
    inputs["dt"], inputs["a"] = inputs["dt"].exp(), -inputs["a"].exp()
    weight = torch.randn(2, length, 3, 5, generator=generator, dtype=torch.float64)
    results = []
    for form in (lambda i: ssd_sequential(**i), lambda i: ssd_chunked(**i, chunk=8)):
        leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
        y = form(leaves)
        (y * weight).sum().backward()
        results.append([y.detach(), *(v.grad for v in leaves.values())])
    for fast, exact in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(fast, exact, rtol=1e-10, atol=1e-12)


def test_ssd_in_float32_is_near_the_recurrence() -> None:
    generator = torch.Generator().manual_seed(1)
    x, b, c = (torch.randn(1, 320, 2, 16, generator=generator) for _ in range(3))
    dt, a = torch.rand(1, 320, 2, generator=generator), -torch.tensor([0.1, 16.0])
    exact = ssd_sequential(*(u.double() for u in (x, dt, a, b, c)))
    torch.testing.assert_close(ssd_chunked(x, dt, a, b, c, 32).double(), exact, rtol=1e-4, atol=2e-4)


def test_ssd_survives_huge_steps() -> None:
    x, b, c = (torch.ones(1, 64, 1, 4) for _ in range(3))
    dt = torch.full((1, 64, 1), 500.0, requires_grad=True)
    y = ssd_chunked(x, dt, torch.tensor([-16.0]), b, c, 32)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(dt.grad).all()


def test_ssd_with_zero_decay_is_unnormalised_linear_attention() -> None:
    """The duality the attention-to-Mamba initialisation rests on: C is the query, B the key, x the value."""
    q, k, v = (torch.randn(1, 40, 2, 8, dtype=torch.float64) for _ in range(3))
    y = ssd_chunked(v, torch.ones(1, 40, 2).double(), torch.zeros(2).double(), k, q, 8)
    scores = torch.einsum("blhn,bmhn->bhlm", q, k).tril()
    torch.testing.assert_close(y, torch.einsum("bhlm,bmhp->blhp", scores, v))


@pytest.mark.parametrize("kind", ["ssd", "mamba1"])
def test_states_do_not_leak_between_columns(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, b, c = (torch.randn(1, 24, 2, 4, generator=generator).double() for _ in range(3))
    dt, owner = torch.rand(1, 24, 2, generator=generator).double(), torch.tensor([0, 0, 1])
    if kind == "ssd":
        a = -torch.ones(2).double()
        together = ssd_chunked(x, dt, a, b, c, 8, owner)
        apart = [ssd_sequential(*(u[:, s] for u in (x, dt)), a, b[:, s], c[:, s]) for s in (slice(16), slice(16, 24))]
    else:
        a, flat, step = -torch.rand(8, 4, generator=generator).double(), x.flatten(2), dt.repeat_interleave(4, dim=2)
        together = selective_scan(flat, step, a, b, c, 8, owner)
        apart = [scan_sequential(flat[:, s], step[:, s], a, b[:, s], c[:, s])[0] for s in (slice(16), slice(16, 24))]
    torch.testing.assert_close(together, torch.cat(apart, dim=1))


@QUICK
@given(layouts(), st.integers(0, 7), st.integers(0, 99), st.booleans(), st.booleans())
def test_recomposition_round_trip(layout: BatchLayout, path: int, seed: int, registers: bool, closing: bool) -> None:
    config = model_config(registers=registers, text_recomposition=closing, text_slots=layout.text_slots)
    valid = masks(layout, 2, seed)
    tables = tables_of(layout, valid, path, config)
    x = torch.randn(2, tables.extent, 3, dtype=torch.float64)
    composed = compose(x, tables)
    back = decompose(composed, tables)
    text = layout.text_tokens
    copies = 2.0 if closing else 1.0
    assert torch.equal(back[:, text:], x[:, text : tables.tokens])
    assert torch.equal(back[:, :text], x[:, :text] * valid.flatten(1)[..., None] * copies)
    # Pads are zero, and each token stands exactly where a sequence with the pads dropped would have it.
    assert int((composed.abs().sum(dim=-1) > 0).sum()) == int(valid.sum() * copies + 2 * (tables.extent - text))


@QUICK
@given(layouts(), st.integers(0, 7), st.integers(0, 99))
def test_recomposition_directions_are_adjoint(layout: BatchLayout, path: int, seed: int) -> None:
    config = model_config(text_slots=layout.text_slots)
    tables = tables_of(layout, masks(layout, 2, seed), path, config)
    x = torch.randn(2, tables.extent, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, tables.length, 2, dtype=torch.float64, requires_grad=True)
    (compose(x, tables) * y.detach()).sum().backward()
    weight = torch.randn(2, tables.tokens, 2, dtype=torch.float64)
    (decompose(y, tables) * weight).sum().backward()
    torch.testing.assert_close((x.grad * x).sum(), (compose(x, tables) * y).sum())
    torch.testing.assert_close((y.grad * y).sum(), (decompose(y, tables) * weight).sum())


def sandwich(slots: int, valid: list[int], **changes: object) -> list[float]:
    """The composed sequence of one 2 x 2 frame, text tokens 1, 2, ..., image 101..., register 900."""
    layout = BatchLayout((Column(0, (Clip(1, 2, 2),)),), slots)
    mask = torch.zeros(1, 1, slots, dtype=torch.bool)
    mask[0, 0, valid] = True
    tables = tables_of(layout, mask, 1, model_config(text_slots=slots, **changes))
    numbers = [*range(1, slots + 1), *range(101, 105), 900]
    return compose(torch.tensor(numbers[: tables.extent]).double()[None, :, None], tables)[0, :, 0].tolist()


def test_text_sandwich() -> None:
    vertical = [900, 101, 103, 104, 102]  # block 1 scans by path a: down first, then back up
    assert sandwich(3, [0, 1])[:11] == [0, 1, 2, *vertical, 1, 2, 0]
    assert sandwich(3, [])[:11] == [0, 0, 0, *vertical, 0, 0, 0]
    assert sandwich(3, [0, 2])[:11] == [0, 1, 3, *vertical, 1, 3, 0]
    assert sandwich(2, [0, 1], text_recomposition=False)[:8] == [1, 2, *vertical, 0]
    assert sandwich(2, [0, 1], registers=False)[:8] == [1, 2, *vertical[1:], 1, 2]
    assert sandwich(1, [0], scan="raster")[:7] == [1, 900, 101, 103, 102, 104, 1]


@settings(QUICK, max_examples=6)
@given(layouts(), st.integers(0, 7), st.integers(0, 99))
def test_mixer_equals_its_definition(layout: BatchLayout, path: int, seed: int) -> None:
    mixer_case(layout, model_config(text_slots=layout.text_slots), path, seed)


def test_convolution_does_not_reach_over_a_column_that_fills_its_chunks() -> None:
    layout = BatchLayout((column(0, 1), column(0, 1)), 3)  # 3 + (1 register + 1 token) + 3 = one chunk of 8
    mixer_case(layout, model_config(text_slots=3), 0, 0, torch.ones(2, 2, 3, dtype=torch.bool))


def test_every_block_scans_its_own_path() -> None:
    config = model_config(single_blocks=9)
    model, layout = random_model(config), BatchLayout((column(1, 3), column(2, 2)), 5)
    valid, seen = torch.ones(1, 2, 5, dtype=torch.bool), []
    for block in model.single_transformer_blocks:
        block.mamba.register_forward_hook(lambda mixer, given, out: seen.append((mixer, given[0], out)))
    shape = lambda clip: (1, 4, clip.frames, 2 * clip.height, 2 * clip.width)  # noqa: E731
    columns = [[torch.randn(shape(clip)).double() for clip in c.clips] for c in layout.columns]
    text = torch.randn(2, 5, 8).double(), valid[0], torch.randn(2, 6).double()
    with torch.no_grad():
        model(columns, torch.tensor([300.0, 700.0]).double(), *text, [1, 2])
        assert len(seen) == 9
        for number, (mixer, x, out) in enumerate(seen):
            torch.testing.assert_close(out, mixer_reference(mixer, x, layout, valid, number), rtol=1e-8, atol=1e-10)


def test_register_types_are_the_resolutions() -> None:
    assert frame_types(column(2, 5)).tolist() == [0, 0, 1, 2, 2]
    assert frame_types(column(1, 3)).tolist() == [0, 1, 1]
    assert [frame_types(column(stage, 1)).tolist() for stage in range(3)] == [[0], [1], [2]]
    assert register_types(BatchLayout((column(1, 2), column(0, 1)), 1), "cpu").tolist() == [[0, 1, 0]] * 2 + [[1, 0, 0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"ssm": "mamba1", "state_size": 8},
        {"registers": False},
        {"text_recomposition": False},
        {"rope_on_ssm": False},
        {"scan": "raster", "conv_width": 3, "chunk_size": 16},
    ],
    ids=lambda c: "-".join(c),
)
def test_mixer_variants_equal_their_definition(changes: dict[str, object]) -> None:
    layout = BatchLayout((column(1, 3), column(2, 2)), 5)
    mixer_case(layout, model_config(**changes), 3, 1)


@settings(QUICK, max_examples=10)
@given(layouts(), st.integers(0, 99))
def test_temporal_branch_equals_its_definition(layout: BatchLayout, seed: int) -> None:
    temporal_case(layout, model_config(), seed)


def test_temporal_branch_ignores_later_frames() -> None:
    branch = random_model(model_config()).single_transformer_blocks[0].temporal
    layout = BatchLayout((column(2, 4),), 1)
    x = torch.randn(1, layout.image_tokens, 32, dtype=torch.float64)
    changed = x.clone()
    changed[:, -16:] += 1.0  # the noisy frame, 4 x 4 tokens
    before, after = branch(x, layout), branch(changed, layout)
    assert torch.equal(before[:, :-16], after[:, :-16])
    assert (before[:, -16:] != after[:, -16:]).any()


@pytest.mark.parametrize("length", [1, 2, 129])
def test_summed_prefixes_are_a_running_sum(length):
    x = torch.randn(3, 2, length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    assert torch.allclose(summed_prefixes(x), x.cumsum(-1), rtol=0, atol=1e-12)
