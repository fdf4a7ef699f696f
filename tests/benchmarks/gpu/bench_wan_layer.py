"""A layer of Wan2.1's shape at 75,600 tokens: cuDNN attention against our MM-DiM mixer in its place, in one run.

    python tests/benchmarks/gpu/bench_wan_layer.py --out wan_layer.json
    python tests/benchmarks/gpu/bench_wan_layer.py --tiny      # a rehearsal on the CPU

720p and 81 frames: 21 x 45 x 80 tokens, batch 1, bfloat16; widths of the 14B and 1.3B models, and 480p. The layer has
norms, modulation, cross-attention to 512 text tokens and the MLP on both sides; only the self-attention differs. Ours
is the product's mixer with text at both ends of the sequence and registers, with and without its temporal branch, on
mamba-ssm's scan and on our own. First a clip of three frames must have the result and gradients of float32 on plain
torch, and a compiled layer each gradient of the eager one. `mixer` is self-attention or mixer alone. One size after
the other, eager before compiled; all rows of mamba-ssm's scan last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from kernel_choices import Choice, chosen, leave_reductions_apart, plain, take_functions_whole
from speed_clock import Bench, Row, Unavailable, bench_of, graphed, median_ms, options_of, peak_mib
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[3]))
from m4v.model.layers import rotate
from m4v.model.layout import BatchLayout, Clip, forget_layouts, rotary
from m4v.wan.config import WanConfig
from m4v.wan.mixer import WanMixContext, WanMixer, WidthNorm, clip_layout, mix_context

GATE = 2e-2  # relative norm: bfloat16 through a layer, gradients of every parameter taken together
COMPILED_GATE, FLOOR = 8e-2, 1e-3  # each gradient by itself, or a thousandth of the largest where that is more
SMALL = Clip(3, 6, 8)


class Size(NamedTuple):
    """A published model and a clip of tokens."""

    name: str
    config: WanConfig
    clip: Clip


LARGE = WanConfig(width=5120, heads=40, mlp_width=13824, blocks=1)
BASE = WanConfig(width=1536, heads=12, mlp_width=8960, blocks=1)
TINY = WanConfig(width=64, heads=2, mlp_width=96, blocks=1, text_slots=16)
SIZES = [
    Size("14B 720p", LARGE, Clip(21, 45, 80)), Size("1.3B 720p", BASE, Clip(21, 45, 80)),
    Size("14B 480p", LARGE, Clip(21, 30, 52)),
]  # fmt: skip
TINY_SIZES = [Size("tiny", TINY, Clip(3, 4, 6))]


class SelfAttention(nn.Module):
    """Wan's self-attention: norm over the whole width, rotation, no mask."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(config.width, config.width) for _ in range(4))
        self.norm_q, self.norm_k = (WidthNorm(config.width, config.norm_eps) for _ in range(2))
        self.heads = config.heads

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.to_q, self.to_k, self.to_v))
        q, k = (rotate(u, turn).to(v.dtype) for u in (self.norm_q(q), self.norm_k(k)))
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if x.dtype == torch.bfloat16 else nullcontext():
            out = F.scaled_dot_product_attention(*(u.transpose(1, 2) for u in (q, k, v)))
        return self.to_out(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """What stands around the self-attention in a Wan block; the text that a mixer carries along passes by."""

    def __init__(self, config: WanConfig, mixer: nn.Module, text: int) -> None:
        super().__init__()
        width = config.width
        self.mixer, self.text, self.heads = mixer, text, config.heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_width), nn.GELU(approximate="tanh"), nn.Linear(config.mlp_width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, prompt: Tensor, parts: Tensor, context: object) -> Tensor:
        """x (b, text + video, D), prompt (b, slots, D), modulation (b, 6, D)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts.chunk(6, dim=1)
        x = x + gate * self.mixer(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift, context)
        text, video = x[:, : self.text], x[:, self.text :]
        heads = (self.heads, -1)
        q, k, v = self.to_q(self.norm(video)), self.to_k(prompt), self.to_v(prompt)
        out = F.scaled_dot_product_attention(*(u.unflatten(-1, heads).transpose(1, 2) for u in (q, k, v)))
        video = video + self.to_out(out.transpose(1, 2).flatten(2))
        inner = F.layer_norm(video, video.shape[-1:]) * (1 + mlp_scale) + mlp_shift
        return torch.cat([text, video + mlp_gate * self.mlp(inner)], dim=1)


class Built(NamedTuple):
    """A layer, its inputs and what the mixer needs besides its hidden states."""

    layer: Layer
    x: Tensor
    prompt: Tensor
    parts: Tensor
    context: object


def built(size: Size, way: str, device: torch.device, dtype: torch.dtype) -> Built:
    """The same weights and inputs for every `dtype`, whatever the device has drawn before."""
    config, ours = size.config.model_copy(update={"temporal_branch": way == "MM-DiM"}), way != "attention"
    with torch.device("meta"):
        mixer = WanMixer(config, 0) if ours else SelfAttention(config)
        layer = Layer(config, mixer, config.sequence_text if ours else 0)
    layer.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(3)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.normal_(0, 0.02, generator=generator)
            if name.endswith("A_log"):
                parameter.uniform_(0, 2.77, generator=generator)
            elif name.endswith("dt_bias"):
                parameter.uniform_(-6.9, -2.2, generator=generator)
            elif "norm" in name and name.endswith("weight"):
                parameter.add_(1)
            if not name.endswith(("A_log", "dt_bias", ".D")):
                parameter.data = parameter.data.to(torch.bfloat16).to(dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(torch.bfloat16).to(dtype)

    slots = layer.text
    layout = clip_layout(size.clip, slots)
    x = normal(1, layout.text_tokens + layout.image_tokens, config.width)
    prompt, parts = normal(1, config.text_slots, config.width), 0.1 * normal(1, 6, config.width)
    return Built(layer, x, prompt, parts, _context(config, layout, x, ours))


def _context(config: WanConfig, layout: BatchLayout, x: Tensor, ours: bool) -> WanMixContext | Tensor:
    if ours:
        real = torch.arange(layout.text_slots, device=x.device)[None] < max(layout.text_slots // 3, 1)
        return mix_context(config, layout, real, x)
    return rotary(layout, config.axes, config.rope_theta, False, str(x.device), x.dtype == torch.float64)


def gradients(made: Built, run: Callable[..., Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The result, and gradients of the hidden states and of every parameter that has one."""
    x = made.x.detach().requires_grad_()
    out = run(x, made.prompt, made.parts, made.context)
    weight = torch.linspace(-1, 1, out.shape[-1], device=out.device, dtype=out.dtype).expand_as(out)
    found = torch.autograd.grad(out, [x, *made.layer.parameters()], weight, allow_unused=True)
    return out.detach(), [torch.zeros(1, device=x.device) if g is None else g for g in found]


def error(size: Size, way: str, device: torch.device, choice: Choice) -> float:
    """Of bfloat16 with the kernels chosen against float32 on plain torch, on a short clip."""
    small, kind = size._replace(clip=SMALL), torch.bfloat16 if device.type == "cuda" else torch.float32
    with chosen(choice):
        out, found = gradients(made := built(small, way, device, kind), made.layer)
    with chosen(plain()):
        right, exact = gradients(made := built(small, way, device, torch.float32), made.layer)
    own, true = (torch.cat([g.float().flatten() for g in all_]) for all_ in (found, exact))
    return max(float((a.float() - b).norm() / b.norm()) for a, b in ((out, right), (own, true)))


def compiled_layer(made: Built) -> Callable[..., Tensor]:
    """The layer through torch.compile, static shapes; without a GPU it is only traced."""
    take_functions_whole()
    leave_reductions_apart()
    backend = "inductor" if made.x.is_cuda else "aot_eager"
    run: Callable[..., Tensor] = torch.compile(made.layer, dynamic=False, backend=backend)
    return run


def compiled_error(made: Built, run: Callable[..., Tensor]) -> float:
    """The worst of the result and of each gradient against the eager layer. Raises ValueError where one is lost."""
    (right, exact), (out, found) = gradients(made, made.layer), gradients(made, run)
    norms = [float(e.double().norm()) for e in exact]
    worst = float((out - right).double().norm() / right.double().norm())
    for number, (one, other, norm) in enumerate(zip(found, exact, norms, strict=True)):
        if one.shape != other.shape:
            raise ValueError(f"gradient {number} is there on one side alone")
        worst = max(worst, float((one - other).double().norm()) / max(norm, FLOOR * max(norms)))
    return worst


def measure(bench: Bench, size: Size, way: str, choice: Choice, compiled: bool) -> Row:
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    device, row = bench.device, bench.found
    row["error"] = error(size, way, device, choice)
    if not row["error"] <= GATE:
        return row | {"state": f"refused: error {row['error']:.1e} above {GATE:.1e}"}
    made = built(size, way, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    row["parameters_m"] = sum(p.numel() for p in made.layer.parameters()) / 1e6
    run = compiled_layer(made) if compiled else made.layer
    if compiled:
        with chosen(choice):
            row["against_eager"] = compiled_error(made, run)
        if not row["against_eager"] <= COMPILED_GATE:
            return row | {"state": f"refused: {row['against_eager']:.1e} from eager"}
    return row | timed(bench, made, run, choice, compiled)


def timed(bench: Bench, made: Built, run: Callable[..., Tensor], choice: Choice, compiled: bool) -> Row:
    device, row = bench.device, bench.found

    def forward() -> Tensor:
        with torch.no_grad():
            return run(made.x, made.prompt, made.parts, made.context)

    def mixer() -> Tensor:
        with torch.no_grad():
            return made.layer.mixer(made.x, made.context)

    def both() -> object:
        return gradients(made, run)

    with chosen(choice):
        calls = {"forward": forward, "both": both} if compiled else {"mixer": mixer, "forward": forward, "both": both}
        for name, call in calls.items():
            row[f"{name}_ms"] = median_ms(call, device, bench.repeats, warm=2)
            row[f"{name}_gib"] = peak_mib(call, device) / 1024
        try:
            row["forward_graph_ms"] = median_ms(graphed(forward, device), device, bench.repeats)
        except Unavailable:
            pass
        except RuntimeError as reason:
            row["forward_graph"] = f"not captured: {str(reason).splitlines()[0][:100]}"
    return row


def rows_of(tiny: bool) -> list[tuple[Size, str, str, Choice, bool]]:
    """Size, way, name of the kernels, their choice, compiled or not: the most telling first."""
    stock, own = {**plain(), "scan": "mamba_ssm"}, {**plain(), "scan": "triton", "glue": "triton"}
    scans = [("torch", plain())] if tiny else [("ours", own), ("mamba-ssm", stock)]
    ways = [("attention", "cuDNN", plain())]
    ways += [(way, name, choice) for name, choice in scans for way in ("MM-DiM", "MM-DiM, no temporal branch")]
    made = [(s, *way, c) for s in (TINY_SIZES if tiny else SIZES) for c in (False, True) for way in ways]
    return sorted(made, key=lambda row: row[2] == "mamba-ssm")


def main() -> None:
    options = options_of(__doc__, 500).parse_args()
    bench = bench_of("wan_layer", options)
    for size, way, kernels, choice, compiled in rows_of(options.tiny):
        about = {"size": size.name, "tokens": size.clip.frames * size.clip.height * size.clip.width}
        about |= {"way": way, "kernels": kernels, "glue": "compiled" if compiled else "eager"}
        bench.case(about, lambda w=way, c=choice, s=size, k=compiled: measure(bench, s, w, c, k), most_s=110)
        forget_layouts()
    bench.table(
        ("size", "way", "kernels", "glue", "mixer_ms", "forward_ms", "forward_graph_ms", "both_ms", "forward_gib",
         "both_gib", "error", "against_eager", "state")
    )  # fmt: skip


if __name__ == "__main__":
    main()
