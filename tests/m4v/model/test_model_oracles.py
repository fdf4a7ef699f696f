"""Transformer, scan paths and selective scan against numbers made with the reference implementations."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from m4v.config import ModelConfig
from m4v.model import M4VTransformer, build_model
from m4v.model.layout import BatchLayout, Clip, Column, frame_mask, image_ids, rotary
from m4v.model.mamba import CausalConv
from m4v.model.scan import LAYER_ORDER, scan_order
from m4v.model.selective_scan import scan_sequential, selective_scan

TINY = ModelConfig(
    width=32, heads=2, double_blocks=2, single_blocks=2, latent_channels=4, text_dim=24, pooled_dim=20, text_slots=6,
    rope_axes=(4, 6, 6), mixer="attention",
)  # fmt: skip
FLUX = {"atol": 2e-5, "rtol": 1e-4}


def folder(oracles: Path) -> Path:
    return oracles / "pyramidflow"


def tiny_model(oracles: Path, config: ModelConfig = TINY) -> M4VTransformer:
    with torch.device("meta"):
        model = M4VTransformer(config)
    model.load_state_dict(load_file(folder(oracles) / "flux_tiny/state_dict.safetensors"), assign=True)
    return model


def run_case(model: M4VTransformer, case: dict[str, Tensor]) -> Tensor:
    clips = [case[k] for k in sorted(case) if k.startswith("in.sample.0.")]
    (out,) = model(
        [clips], case["in.timestep_ratio"], case["in.encoder_hidden_states"], case["in.encoder_attention_mask"],
        case["in.pooled_projections"],
    )  # fmt: skip
    return out


def test_sizes_of_the_tiny_model(oracles: Path, oracle_error: Callable[..., None]) -> None:
    """The constructor arguments of the reference, its tensors, and the token counts it reports."""
    stored = json.loads((folder(oracles) / "flux_tiny/config.json").read_text())
    assert stored["num_attention_heads"] * stored["attention_head_dim"] == TINY.width
    assert stored["in_channels"] == TINY.latent_channels * TINY.patch**2
    mine = (
        TINY.heads, TINY.double_blocks, TINY.single_blocks, TINY.text_dim, TINY.pooled_dim, list(TINY.axes),
        TINY.use_temporal_causal,
    )  # fmt: skip
    assert mine == tuple(
        stored[key]
        for key in (
            "num_attention_heads", "num_layers", "num_single_layers", "joint_attention_dim", "pooled_projection_dim",
            "axes_dims_rope", "use_temporal_causal",
        )
    )  # fmt: skip
    oracle_error("flux_tiny/config.json", 0, "exact")
    assert sum(p.numel() for p in tiny_model(oracles).parameters()) == 122_256  # every key fits, or loading raises
    oracle_error("flux_tiny/state_dict.safetensors", 0, "exact")
    for name, facts in json.loads((folder(oracles) / "flux_tiny/cases.json").read_text()).items():
        case = load_file(folder(oracles) / f"flux_tiny/{name_of_inputs(name)}.safetensors")
        column = column_of(case)
        last = column.clips[-1]
        assert [column.tokens] == facts["hidden_length"]
        assert ([last.frames], [last.height], [last.width]) == (facts["temps"], facts["heights"], facts["widths"])
        assert [last.frames * last.height * last.width] == facts["trainable_tokens"]
        assert [list(run_case(tiny_model(oracles), case).shape)] == facts["out_shapes"]
    oracle_error("flux_tiny/cases.json", 0, "exact")


def name_of_inputs(case: str) -> str:
    """The file with a case's inputs: the one without the causal mask repeats those of `ar`."""
    return f"case_{case.removesuffix('_noncausal')}"


def column_of(case: dict[str, Tensor]) -> Column:
    clips = [case[k] for k in sorted(case) if k.startswith("in.sample.0.")]
    return Column(0, tuple(Clip(c.shape[2], c.shape[3] // 2, c.shape[4] // 2) for c in clips))


@pytest.mark.parametrize("name", ["case_image", "case_ar"])
@torch.no_grad()
def test_transformer(oracles: Path, oracle_close: Callable[..., None], name: str) -> None:
    case, model = load_file(folder(oracles) / f"flux_tiny/{name}.safetensors"), tiny_model(oracles)

    def check(found: Tensor, key: str) -> None:
        oracle_close(f"flux_tiny/{name}.safetensors", found, case[key], **FLUX)

    seen: dict[str, Tensor] = {}
    for number, block in enumerate(model.transformer_blocks):
        block.register_forward_hook(lambda _m, _i, out, n=number: seen.update({f"double{n}": out}))
    for number, block in enumerate(model.single_transformer_blocks):
        block.register_forward_hook(lambda _m, _i, out, n=number: seen.update({f"single{n}": out}))
    model.time_text_embed.register_forward_hook(lambda _m, _i, out: seen.update(temb=out))
    out = run_case(model, case)
    check(seen["temb"], "mid.temb")
    for number in range(2):
        image, text = seen[f"double{number}"]
        check(image, f"mid.double{number}.hidden")
        check(text, f"mid.double{number}.encoder")
        check(seen[f"single{number}"], f"mid.single{number}")
    check(out, "out.0")


@torch.no_grad()
def test_transformer_without_causal_mask(oracles: Path, oracle_close: Callable[..., None]) -> None:
    inputs = load_file(folder(oracles) / "flux_tiny/case_ar.safetensors")
    expected = load_file(folder(oracles) / "flux_tiny/case_ar_noncausal.safetensors")
    model = tiny_model(oracles, TINY.model_copy(update={"use_temporal_causal": False}))
    oracle_close("flux_tiny/case_ar_noncausal.safetensors", run_case(model, inputs), expected["out.0"], **FLUX)
    allowed = allowed_pairs(inputs, column_of(inputs), causal=False)
    assert torch.equal(allowed, expected["mid.attention_mask.0"])


def allowed_pairs(case: dict[str, Tensor], column: Column, causal: bool) -> Tensor:
    """(b, 1, L, L): who may see whom over [text, image], pads of the text included."""
    mask = frame_mask(column, 6, causal, "cpu")
    valid = F.pad(case["in.encoder_attention_mask"].bool(), (0, column.tokens), value=True)
    allowed = valid[:, :, None] == valid[:, None, :]
    return (allowed if mask is None else allowed & mask)[:, None]


@pytest.mark.parametrize("name", ["case_image", "case_ar"])
def test_positions_rotation_and_mask(oracles: Path, oracle_close: Callable[..., None], name: str) -> None:
    case = load_file(folder(oracles) / f"flux_tiny/{name}.safetensors")
    column = column_of(case)
    ids = torch.from_numpy(image_ids(column))
    torch.testing.assert_close(ids.expand(2, -1, -1), case["mid.image_ids.0"], rtol=0, atol=0)
    turn = rotary(BatchLayout((column,), 6), (4, 6, 6), 10000.0, False, "cpu", False)
    matrix = case["mid.rope.0"][0, :, 0]  # (L, pairs, 2, 2): [[cos, -sin], [sin, cos]]
    for found, part in ((turn.real, 0), (turn.imag, 1)):
        oracle_close(f"flux_tiny/{name}.safetensors", found, matrix[..., part, 0], atol=1e-6, rtol=1e-6)
    assert torch.equal(allowed_pairs(case, column, causal=True), case["mid.attention_mask.0"])


def test_keys_and_shapes_of_the_published_checkpoint(oracles: Path, oracle_error: Callable[..., None]) -> None:
    published = json.loads((folder(oracles) / "full_shapes/flux_miniflux_keys.json").read_text())
    keys = next(v for v in published.values() if isinstance(v, dict) and "proj_out.weight" in v)
    with torch.device("meta"):
        model = M4VTransformer(ModelConfig(mixer="attention"))
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert found == {key: list(shape) for key, shape in keys.items()}
    assert sum(p.numel() for p in model.parameters()) == 1_972_059_200
    oracle_error("full_shapes/flux_miniflux_keys.json", 0, "exact")


def test_initial_statistics(oracles: Path, oracle_error: Callable[..., None]) -> None:
    stats = json.loads((folder(oracles) / "flux_tiny/init_stats.json").read_text())
    model = build_model(TINY, seed=0)
    worst = 0.0
    for name, parameter in model.named_parameters():
        expected = stats.get(name)
        assert expected is not None, name
        assert bool((parameter == 0).all()) == expected["all_zero"], name
        if parameter.numel() >= 256 and not expected["all_zero"]:
            worst = max(worst, deviation(parameter, expected["std"]))
            assert worst <= 0.15, name
        if parameter.dim() == 1:
            assert float(parameter.detach().mean()) == pytest.approx(expected["mean"], abs=1e-6), name
    oracle_error("flux_tiny/init_stats.json", worst, "std within 15 %")


def deviation(parameter: Tensor, expected: float) -> float:
    """Relative difference of the standard deviation."""
    return abs(float(parameter.detach().std()) / expected - 1)


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_initial_statistics_of_mamba(oracles: Path, oracle_error: Callable[..., None], kind: str) -> None:
    """What starts fresh beside the copied projections starts as in Mamba-in-Llama."""
    facts = json.loads((folder(oracles) / "mamba_extra/meta.json").read_text())[kind]
    sizes, stats = facts["kwargs"], facts["init_stats"]
    config = TINY.model_copy(
        update={"mixer": "mm_dim", "ssm": "mamba1", "state_size": sizes["d_state"], "dt_rank": facts["dt_rank"]}
    )
    assert (config.width, config.conv_width) == (sizes["d_inner"], sizes["d_conv"])
    mixer = build_model(config, seed=0).single_transformer_blocks[0].mamba
    assert mixer.A_log.shape == tuple(stats["A_log"]["shape"])
    torch.testing.assert_close(mixer.D, torch.full_like(mixer.D, stats["D"]["mean"]))
    pairs = {"A_log": mixer.A_log, "conv1d.weight": mixer.conv.weight, "dt_proj.bias": mixer.dt_bias}
    worst = max(deviation(parameter, stats[name]["std"]) for name, parameter in pairs.items())
    oracle_error("mamba_extra/meta.json", worst, "std within 15 %")
    assert worst <= 0.15


def test_scan_paths_on_rectangles(oracles: Path, oracle_error: Callable[..., None]) -> None:
    stored = json.loads((folder(oracles) / "scan_paths/m4v_rectangular_proposed.json").read_text())["paths"]
    assert len(stored) >= 2
    for grid, kinds in stored.items():
        height, width = map(int, grid.split("x"))
        for kind in ("serpentine", "raster"):
            for letter, order in kinds[kind].items():
                assert scan_order(letter, height, width, kind).tolist() == order, (grid, kind, letter)
    oracle_error("scan_paths/m4v_rectangular_proposed.json", 0, "exact")


def test_scan_paths_are_those_of_zigma(oracles: Path, oracle_error: Callable[..., None]) -> None:
    stored = json.loads((folder(oracles) / "scan_paths/zigma_square.json").read_text())
    assert list(LAYER_ORDER) == stored["paper_letters_in_upstream_order"]
    assert set(stored["paths"]) == {"2", "3", "4", "6"}
    for size, paths in stored["paths"].items():
        assert [scan_order(letter, int(size), int(size)).tolist() for letter in LAYER_ORDER] == paths
    oracle_error("scan_paths/zigma_square.json", 0, "exact")


def scan_inputs(case: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fixture layout (b, D, L) and (b, G, N, L) to ours (b, L, D) and (b, L, G, N)."""
    b, c = case["in.B"], case["in.C"]
    if b.dim() == 3:
        b, c = b[:, None], c[:, None]
    inputs = {"u": case["in.u"], "delta": case["in.delta"], "A": case["in.A"], "B": b, "C": c, "D": case["in.D"]}
    inputs |= {k.removeprefix("in."): v for k, v in case.items() if k in ("in.z", "in.delta_bias")}
    return {key: value.clone().requires_grad_() for key, value in inputs.items()}


def run_scan(inputs: dict[str, Tensor], form: str) -> Tensor:
    x, dt = inputs["u"].transpose(1, 2), inputs["delta"].transpose(1, 2)
    dt = F.softplus(dt + inputs.get("delta_bias", torch.zeros(1)))
    b, c = inputs["B"].permute(0, 3, 1, 2), inputs["C"].permute(0, 3, 1, 2)
    if form == "sequential":
        y = scan_sequential(x, dt, inputs["A"], b, c)[0]
    else:
        y = selective_scan(x, dt, inputs["A"], b, c, chunk=None if form == "auto" else int(form))
    y = (y + inputs["D"] * x).transpose(1, 2)
    return y * F.silu(inputs["z"]) if "z" in inputs else y


@pytest.mark.parametrize("form", ["sequential", "auto", "8", "32"])
@pytest.mark.parametrize("name", ["grouped", "shared"])
def test_selective_scan(oracles: Path, oracle_close: Callable[..., None], name: str, form: str) -> None:
    file = f"mamba_extra/selective_scan_{name}.safetensors"
    case = load_file(folder(oracles) / file)
    inputs = scan_inputs(case)
    y = run_scan(inputs, form)
    oracle_close(file, y, case["out.y"], atol=1e-5, rtol=1e-4)
    if "in.grad_y" in case:
        y.backward(case["in.grad_y"])
        for key, tensor in inputs.items():
            oracle_close(file, tensor.grad, case[f"grad.{key}"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_mixer_of_mamba_in_llama(oracles: Path, oracle_close: Callable[..., None], kind: str) -> None:
    """Our convolution and scan, wired as that mixer is, give its output."""
    file = f"mamba_extra/mamba_in_llama_{kind}.safetensors"
    case = load_file(folder(oracles) / file)
    w = {key.removeprefix("state."): value for key, value in case.items() if key.startswith("state.")}
    hidden, state = case["in.x"], w["A_log"].shape[1]
    repeat = w["conv1d.bias"].shape[0] // w["in_proj_x.weight"].shape[0]

    def grouped(u: Tensor) -> Tensor:
        return u.unflatten(-1, (-1, state))

    conv = CausalConv(w["conv1d.bias"].shape[0], w["conv1d.weight"].shape[-1])
    conv.load_state_dict({"weight": w["conv1d.weight"][:, 0], "bias": w["conv1d.bias"]})
    x = grouped(hidden @ w["in_proj_x.weight"].T).repeat_interleave(repeat, dim=2).flatten(2)
    x = conv(x)  # with its SiLU
    b = grouped(hidden @ w["B_proj.weight"].T).repeat_interleave(repeat, dim=2)
    c = grouped(hidden @ w["C_proj.weight"].T)
    # That code adds the bias in the projection and once more in the scan.
    dt = F.softplus(hidden @ w["dt_proj_down.weight"].T @ w["dt_proj.weight"].T + 2 * w["dt_proj.bias"])
    y = selective_scan(x, dt, -w["A_log"].exp(), b, c) + w["D"] * x
    y = y * F.silu(hidden @ w["in_proj_z.weight"].T)
    oracle_close(file, y @ w["out_proj.weight"].T, case["out.y"], atol=1e-5, rtol=1e-4)
