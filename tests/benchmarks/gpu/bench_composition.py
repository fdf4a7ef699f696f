"""Re-composition and its inverse at 768p: our kernels against torch, by index/cat/slice and by the product's gathers.

    python tests/benchmarks/gpu/bench_composition.py --out composition.json
    TRITON_INTERPRET=1 python tests/benchmarks/gpu/bench_composition.py --tiny      # a rehearsal without a GPU

Composition: projections of text, image and registers to what the scan reads (norm and rotation of C and B, softplus of
dt, both text copies, pads). Inverse: the scan's output to packed tokens times SiLU(z). bfloat16, batch 1. A side is
measured only where its outputs and gradients agree with float64. `gbs` is what has to be read and written once, over
the graph's time; `copy_gbs` that of a plain copy of the same stream in the same run.
`convolved` rows: c, b, step sizes and the convolved x without gradients, by both of our forms, whose bits are equal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from block_inputs import Case
from speed_clock import Bench, Row, bench_of, graphed, median_ms, options_of, peak_mib, said
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[3]))
from m4v.kernels.selection import TRITON, interpreted, version_of
from m4v.model.layers import NORM_EPS, rotate
from m4v.model.layout import BatchLayout, rotary
from m4v.model.recomposition import Recomposition, compose, decompose, recomposition, text_order
from m4v.model.scan import LAYER_ORDER, scan_order
from m4v.model.tables import composition_table

CASES = ((241, 2), (241, 1), (241, 0), (121, 2), (121, 1), (121, 0), (57, 2), (57, 1), (57, 0))  # frames, stage
GATE, PATH, CHUNK, GAP = 4 * 2**-9, 1, 32, 3
Both = Callable[["Scene", Sequence[Tensor]], list[Tensor]]


class Scene(NamedTuple):
    """One layout with its tables; all but the text's order is the same for every batch."""

    layout: BatchLayout
    tables: Recomposition
    turn: Tensor
    heads: int
    size: int

    @property
    def width(self) -> int:
        return self.heads * self.size


def scene_of(case: Case, device: torch.device, dtype: torch.dtype) -> Scene:
    config, name = case.base, str(device)
    layout = BatchLayout((case.setting.column(),), config.text_slots)
    valid = torch.arange(config.text_slots, device=device)[None, None] < config.text_slots * 2 // 3
    table = composition_table(layout, PATH, "serpentine", True, True, CHUNK, GAP, name)
    tables = recomposition(table, text_order(valid), layout.text_tokens + layout.image_tokens, dtype)
    turn = rotary(layout, config.axes, config.rope_theta, True, name, dtype == torch.float64)
    return Scene(layout, tables, turn, config.heads, config.head_dim)


def leaves_of(scene: Scene, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Projections c, b, x, dt, z; the scan's output y; norm weights and dt's bias."""
    generator = torch.Generator(device).manual_seed(3)
    rows, width = scene.tables.extent, scene.width
    shapes = [(1, rows, width)] * 3 + [(1, rows, scene.heads), (1, rows, width), (1, scene.tables.length, width)]
    made = [torch.randn(s, generator=generator, device=device).to(dtype).requires_grad_() for s in shapes]
    vectors = [torch.randn(n, generator=generator, device=device) for n in (scene.size, scene.size, scene.heads)]
    return made + [u.requires_grad_() for u in vectors]


def ours(scene: Scene, leaves: Sequence[Tensor]) -> list[Tensor]:
    from m4v.kernels.composition import compose as compose_all
    from m4v.kernels.mixing import mix

    c, b, x, dt, z, y, weight_c, weight_b, bias = leaves
    r = scene.tables
    tables = (r.source, r.real, r.first, r.second, r.valid)
    made = compose_all(c, b, x, dt, weight_c, weight_b, scene.turn, bias, *tables, NORM_EPS, True)
    nothing = z[..., :0]  # no MLP beside the mixer
    return [*made, mix(y, z, None, None, None, nothing, *tables, None, None, None, r.tokens, scene.width)]


def gathers(scene: Scene, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The product in plain torch."""
    made = [compose(u, scene.tables) for u in _prepared(scene, leaves)]
    z, y = leaves[4:6]
    return [*made, decompose(y, scene.tables) * F.silu(z[:, : scene.tables.tokens])]


def slices(scene: Scene, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Frame by frame: slices are indexed in scan order and concatenated; the inverse the same way round."""
    z, y = leaves[4:6]
    orders = _orders(scene.layout, str(y.device))
    made = [_sliced(scene, u, orders) for u in _prepared(scene, leaves)]
    return [*made, _unsliced(scene, y, orders) * F.silu(z[:, : scene.tables.tokens])]


def _prepared(scene: Scene, leaves: Sequence[Tensor]) -> list[Tensor]:
    c, b, x, dt, _, _, weight_c, weight_b, bias = leaves
    heads = [F.rms_norm(u.unflatten(-1, (scene.heads, scene.size)), (scene.size,), w.to(u.dtype), NORM_EPS)
             for u, w in ((c, weight_c), (b, weight_b))]  # fmt: skip
    turned = [rotate(u, scene.turn).flatten(2) for u in heads]
    return [*turned, x, F.softplus(dt.to(bias.dtype) + bias)]


@lru_cache
def _orders(layout: BatchLayout, device: str) -> list[tuple[Tensor, Tensor]]:
    """Scan order of each frame's tokens, and its inverse."""
    letter, (column,) = LAYER_ORDER[PATH], layout.columns
    known = {}
    for clip in column.clips:
        order = torch.tensor(scan_order(letter, clip.height, clip.width), device=device)
        known[clip.height, clip.width] = order, order.argsort()
    return [known[c.height, c.width] for c in column.clips for _ in range(c.frames)]


def _sliced(scene: Scene, u: Tensor, orders: list[tuple[Tensor, Tensor]]) -> Tensor:
    r, text = scene.tables, scene.layout.text_tokens
    count, place, parts = text * 2 // 3, text, []
    for number, (order, _) in enumerate(orders):
        parts += [u[:, r.tokens + number : r.tokens + number + 1], u[:, place : place + len(order)][:, order]]
        place += len(order)
    used = u[:, :count]
    out = torch.cat([u.new_zeros(1, text - count, u.shape[2]), used, *parts, used], dim=1)
    return F.pad(out, (0, 0, 0, r.length - out.shape[1]))


def _unsliced(scene: Scene, y: Tensor, orders: list[tuple[Tensor, Tensor]]) -> Tensor:
    text = scene.layout.text_tokens
    count, place, parts = text * 2 // 3, text, []
    for _, inverse in orders:
        parts.append(y[:, place + 1 : place + 1 + len(inverse)][:, inverse])
        place += 1 + len(inverse)
    both = y[:, text - count : text] + y[:, place : place + count]
    return torch.cat([both, y.new_zeros(1, text - count, y.shape[2]), *parts], dim=1)


SIDES: dict[str, Both] = {"ours": ours, "gathers": gathers, "index/cat/slice": slices}


def given_gradients(outs: Sequence[Tensor], real: Tensor) -> list[Tensor]:
    """Random gradients of a side's outputs, made once: a CUDA graph's capture allows no generator."""
    generator = torch.Generator(real.device).manual_seed(5)
    grads = [torch.randn(u.shape, generator=generator, device=u.device).to(u.dtype) for u in outs]
    # Gradients that reach a pad's slot are the scan's alone, and zero.
    return [*(g * real.to(g.dtype) for g in grads[:4]), *grads[4:]]


def gradients(side: Both, scene: Scene, leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    outs = side(scene, leaves)
    return [*outs, *torch.autograd.grad(outs, leaves, grads)]


def gate(side: Both, scene: Scene, exact: Scene, leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> float:
    """Largest relative error of an output or gradient. Raises ValueError where it is too large."""
    found = gradients(side, scene, leaves, grads)
    precise = [u.detach().double().requires_grad_() for u in leaves]
    expected = gradients(gathers, exact, precise, [g.double() for g in grads])
    errors = [float((f.double() - e).norm() / e.norm()) for f, e in zip(found, expected, strict=True)]
    if not max(errors) < GATE:
        raise ValueError(f"wrong: result {errors.index(max(errors))} is off by {max(errors):.1e} from float64")
    return max(errors)


def measured(bench: Bench, side: Both, case: Case) -> Row:
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    row = bench.found
    scene, exact = (scene_of(case, bench.device, kind) for kind in (dtype, torch.float64))
    leaves = leaves_of(scene, bench.device, dtype)
    with torch.no_grad():
        grads = given_gradients(side(scene, leaves), scene.tables.real)
    row["error"] = gate(side, scene, exact, leaves, grads)

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return side(scene, leaves)

    def both() -> list[Tensor]:
        return gradients(side, scene, leaves, grads)

    once = scene.tables.length * scene.width * leaves[0].element_size() * 9  # c, b, x twice, y, z and the result
    for name, call, passes in (("forward", forward, 1), ("both", both, 0)):
        row[f"{name}_eager_ms"] = median_ms(call, bench.device, bench.repeats)
        row[f"{name}_mib"] = peak_mib(call, bench.device)
        if bench.device.type == "cuda":
            row[f"{name}_graph_ms"] = median_ms(graphed(call, bench.device), bench.device, bench.repeats)
            if passes:
                row["gbs"] = once / row[f"{name}_graph_ms"] / 1e6
    row["copy_gbs"] = copy_rate(bench, scene.tables.length * scene.width * 3, leaves[0].dtype)
    return row


def convolved(bench: Bench, case: Case) -> Row:
    """Composition and convolution one after the other, and with a convolution that gathers its rows."""
    from m4v.kernels.composition import compose as compose_all
    from m4v.kernels.composition import compose_convolved
    from m4v.kernels.convolution import convolve_silu

    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    scene = scene_of(case, bench.device, dtype)
    c, b, x, dt, _, _, weight_c, weight_b, bias = (u.detach() for u in leaves_of(scene, bench.device, dtype))
    generator = torch.Generator(bench.device).manual_seed(7)
    shapes, r = ((scene.width, 4), (scene.width,)), scene.tables
    taps = [torch.randn(s, generator=generator, device=bench.device).to(dtype) for s in shapes]
    read = (c, b, x, dt, weight_c, weight_b, scene.turn, bias)

    def written() -> list[Tensor]:
        made = compose_all(*read, r.source, r.real, r.first, r.second, r.valid, NORM_EPS, True)
        return [*made[:2], convolve_silu(made[2], *taps), made[3]]

    def gathered() -> list[Tensor]:
        return list(compose_convolved(*read, r.source, r.real, NORM_EPS, True, *taps))

    with torch.no_grad():
        if not all(map(torch.equal, written(), gathered())):
            raise ValueError("wrong: the gathering convolution has other bits")
        for name, call in (("written", written), ("gathered", gathered)):
            bench.found[f"{name}_eager_ms"] = median_ms(call, bench.device, bench.repeats)
            if bench.device.type == "cuda":
                bench.found[f"{name}_graph_ms"] = median_ms(graphed(call, bench.device), bench.device, bench.repeats)
    return bench.found


def copy_rate(bench: Bench, elements: int, dtype: torch.dtype) -> float:
    given = torch.ones(elements, dtype=dtype, device=bench.device)
    taken = torch.empty_like(given)
    ms = median_ms(lambda: taken.copy_(given), bench.device, bench.repeats)
    return 2 * elements * given.element_size() / ms / 1e6


def main() -> None:
    options = options_of(__doc__, 300.0).parse_args()
    bench = bench_of("composition", options)
    for case in [Case(25, 1, True)] if options.tiny else [Case(*c) for c in CASES]:
        for name, side in SIDES.items():
            row: Row = {"case": case.name, "tokens": case.tokens, "side": name}
            bench.case(row, lambda s=side, c=case: measured(bench, s, c))  # type: ignore[misc]
    for tokens in dict.fromkeys(row["tokens"] for row in bench.rows):
        rows = {row["side"]: row for row in bench.rows if row["tokens"] == tokens}
        for key in ("forward_graph_ms", "both_graph_ms", "forward_eager_ms", "both_eager_ms"):
            if all(key in row for row in rows.values()):
                bench.extra[f"{key} {tokens}"] = {n: rows[n][key] / rows["ours"][key] for n in SIDES if n != "ours"}
    if version_of(TRITON) is not None and (bench.device.type == "cuda" or interpreted()):
        for case in [Case(25, 1, True)] if options.tiny else [Case(*c) for c in CASES[::3]]:
            row = {"case": case.name, "tokens": case.tokens, "side": "convolved"}
            bench.case(row, lambda c=case: convolved(bench, c))  # type: ignore[misc]
    bench.write()
    bench.table(["case", "tokens", "side", "state", "written_graph_ms", "gathered_graph_ms", "forward_graph_ms",
                 "both_graph_ms", "forward_eager_ms", "both_eager_ms", "gbs", "copy_gbs", "error"])  # fmt: skip
    for name, found in bench.extra.items():
        print("times ours,", name, {side: said(value) for side, value in found.items()})


if __name__ == "__main__":
    main()
