"""Fast paths against their float64 definitions at odd sizes, gradients included.

1 to 31 latent frames, grids of 4, 12, 20 patches (multiples of 4 but not of 8), 1 to 128 text tokens and the empty
prompt in 128 static slots.
"""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mixer_cases import column, mixer_case, model_config, random_model, tables_of, temporal_case
from torch import Tensor

from m4v.kernels.blocks import attend_blocks
from m4v.model import M4VTransformer
from m4v.model.attention import AttentionContext, attend, attention_blocks, attention_masks
from m4v.model.layout import BatchLayout
from m4v.model.recomposition import compose, decompose
from m4v.model.reference import attention_reference

SLOTS = 128
QUICK = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
FRAMES, STAGES, SEEDS = st.integers(1, 31), st.integers(0, 2), st.integers(0, 99)
EDGES = st.sampled_from([4, 12, 20])
WORDS = st.integers(0, SLOTS)
LONG, EMPTY, WHOLE = (0, 31, 4, 12), (2, 2, 4, 4), (1, 7, 12, 4)  # stage, frames, height, width


def one_column(stage: int, frames: int, height: int, width: int, slots: int = SLOTS) -> BatchLayout:
    return BatchLayout((column(stage, frames, height, width),), slots)


def prompt(words: int, slots: int = SLOTS, columns: int = 1) -> Tensor:
    """Text mask (1, C, slots) of a prompt with so many tokens."""
    return (torch.arange(slots) < words).expand(1, columns, -1).clone()


SIZES = st.tuples(STAGES, FRAMES, EDGES, EDGES).filter(lambda s: one_column(*s).image_tokens <= 500)


@pytest.mark.parametrize("ssm", ["ssd", "mamba1"])
@settings(QUICK, max_examples=8)
@given(SIZES, WORDS, st.integers(0, 7), st.sampled_from([8, 32, 64]), SEEDS)
@example(LONG, 1, 3, 32, 0)
@example(EMPTY, 0, 1, 8, 1)
@example(WHOLE, SLOTS, 6, 64, 2)
def test_mixer(ssm: str, size: tuple[int, ...], words: int, path: int, chunk: int, seed: int) -> None:
    """128 static slots equal dropping the pads: the definition never sees them."""
    config = model_config(ssm=ssm, text_slots=SLOTS, state_size=8 if ssm == "mamba1" else None, chunk_size=chunk)
    mixer_case(one_column(*size), config, path, seed, prompt(words))


@settings(QUICK, max_examples=10)
@given(SIZES, SEEDS)
@example(LONG, 0)
@example((2, 31, 4, 20), 1)
def test_temporal_branch(size: tuple[int, ...], seed: int) -> None:
    temporal_case(one_column(*size), model_config(), seed)


def attention_inputs(sizes: list[tuple[int, ...]], words: int, seed: int) -> tuple[BatchLayout, Tensor, list[Tensor]]:
    """Layout, text mask, and q, k, v with the weight of each output, which is zero at text pads."""
    layout = BatchLayout(tuple(column(*size) for size in sizes), SLOTS)
    valid, generator = prompt(words, columns=len(sizes)), torch.Generator().manual_seed(seed)
    shape = (1, layout.text_tokens + layout.image_tokens, 2, 16)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4)]
    tensors[3] = tensors[3].flatten(2)
    tensors[3][:, : layout.text_tokens] *= valid.flatten(1)[..., None]
    return layout, valid, tensors


@settings(QUICK, max_examples=10)
@given(st.lists(SIZES, min_size=1, max_size=2), WORDS, st.booleans(), SEEDS)
@example([LONG, EMPTY], 0, True, 0)
@example([WHOLE], SLOTS, True, 1)
def test_attention(sizes: list[tuple[int, ...]], words: int, causal: bool, seed: int) -> None:
    layout, valid, (*inputs, weight) = attention_inputs(sizes, words, seed)

    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        masks = attention_masks(layout, valid, causal, q.dtype)
        return attend(q, k, v, AttentionContext(layout, torch.empty(0), masks))

    results = []
    for form in (fast, lambda *u: attention_reference(*u, layout, valid, causal)):
        leaves = [u.clone().requires_grad_() for u in inputs]
        out = form(*leaves)
        (out * weight).sum().backward()
        results.append([out.detach() * (weight != 0), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
@settings(QUICK, max_examples=4)
@given(st.lists(SIZES, min_size=1, max_size=2), WORDS, st.booleans(), SEEDS)
@example([LONG, EMPTY], 0, True, 0)
def test_block_sparse_attention(sizes: list[tuple[int, ...]], words: int, causal: bool, seed: int) -> None:
    """Outputs; its gradients need a CUDA device, and are compared there (tests/gpu)."""
    layout, valid, (q, k, v, weight) = attention_inputs(sizes, words, seed)
    found = attend_blocks(q, k, v, attention_blocks(layout, valid, causal), compiled=False)
    expected = attention_reference(q, k, v, layout, valid, causal)
    torch.testing.assert_close(found * (weight != 0), expected, rtol=1e-9, atol=1e-11)


@settings(QUICK, max_examples=15)
@given(SIZES, WORDS, st.integers(0, 7), SEEDS)
@example(LONG, 0, 0, 0)
def test_recomposition(size: tuple[int, ...], words: int, path: int, seed: int) -> None:
    """Every token once (text: in both copies), pads zero, the way back exact, both directions adjoint."""
    layout, config = one_column(*size), model_config(text_slots=SLOTS)
    valid = prompt(words)
    tables = tables_of(layout, valid, path, config)
    torch.manual_seed(seed)
    x = torch.randn(1, tables.extent, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, tables.length, 2, dtype=torch.float64, requires_grad=True)
    composed, back = compose(x, tables), decompose(y, tables)
    assert int((composed != 0).any(dim=-1).sum()) == 2 * words + tables.extent - SLOTS
    there_and_back = decompose(composed.detach(), tables)
    assert torch.equal(there_and_back[:, SLOTS:], x[:, SLOTS : tables.tokens])
    assert torch.equal(there_and_back[:, :SLOTS], 2 * x[:, :SLOTS] * valid.flatten(1)[..., None])
    weight = torch.randn_like(back)
    ((composed * y.detach()).sum() + (back * weight).sum()).backward()
    torch.testing.assert_close((x.grad * x).sum(), (composed * y).sum())
    torch.testing.assert_close((y.grad * y).sum(), (back * weight).sum())


def whole_model(config_of: dict[str, object], slots: int) -> M4VTransformer:
    return random_model(model_config(**config_of, text_slots=slots), seed=3)


@pytest.mark.parametrize(
    "changes",
    [{}, {"ssm": "mamba1", "state_size": 8}, {"mixer": "parallel"}, {"mixer": "attention"}],
    ids=["ssd", "mamba1", "parallel", "attention"],
)
@settings(QUICK, max_examples=3)
@given(st.integers(1, SLOTS), SEEDS)
@example(1, 0)
@example(SLOTS, 1)
def test_static_slots_equal_dropped_pads_in_the_whole_model(changes: dict[str, object], words: int, seed: int) -> None:
    """Outputs and the gradients of inputs and parameters; whatever stands in the pads."""
    shape, results = (1, 4, 1, 8, 24), []
    torch.manual_seed(seed)
    clips = [torch.randn(1, 4, 3, 2, 6), torch.randn(1, 4, 1, 4, 12), torch.randn(shape), torch.randn(shape)]
    text, pooled, weight = torch.randn(1, SLOTS, 8).double(), torch.randn(1, 6).double(), torch.randn(shape).double()
    for slots in (words, SLOTS):
        model = whole_model(changes, slots)
        leaves = [clip.double().requires_grad_() for clip in clips]
        given_text = text[:, :slots].clone().requires_grad_()
        mask = torch.arange(slots)[None] < words
        (out,) = model([leaves], torch.tensor([300.0]).double(), given_text, mask, pooled, [2])
        (out * weight).sum().backward()
        parameters = {name: p.grad for name, p in model.named_parameters()}
        results.append([out.detach(), given_text.grad[:, :words], *(c.grad for c in leaves), *parameters.values()])
    for dropped, static in zip(*results, strict=True):
        torch.testing.assert_close(static, dropped, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("ssm", ["ssd", "mamba1"])
def test_an_empty_prompt_says_nothing(ssm: str) -> None:
    """Without a valid token the outputs do not depend on the text at all, nor on the number of slots."""
    changes = {"ssm": ssm, "state_size": 8 if ssm == "mamba1" else None}
    torch.manual_seed(0)
    clip, pooled, outputs = torch.randn(1, 4, 1, 8, 24).double(), torch.randn(1, 6).double(), []
    for slots in (1, 5, SLOTS):
        text = torch.randn(1, slots, 8, dtype=torch.float64, requires_grad=True)
        model = whole_model(changes, slots)
        (out,) = model([[clip]], torch.tensor([300.0]).double(), text, torch.zeros(1, slots), pooled, [2])
        out.square().sum().backward()
        assert out.isfinite().all()
        assert (text.grad == 0).all()
        outputs.append(out.detach())
    for out in outputs[1:]:
        torch.testing.assert_close(out, outputs[0], rtol=1e-9, atol=1e-11)
