"""Our Mamba-2 scan in a process of its own, since a wrong address ends every later call of its process.

    python tests/gpu/ssd_probe.py rules SIZE STATE TYPE      # torch's rules for operators
    python tests/gpu/ssd_probe.py kernels SIZE STATE TYPE    # each kernel of both passes against float64, one by one

`kernels` says for each launch shape which kernel goes wrong, and in which tokens: errors of states before and of
gradients behind each chunk, then of the gradients by chunk and 16 tokens. Exit status 1 where one is wrong.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")  # an error is raised by the launch that made it
sys.path += [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import torch
from test_gpu_ssd import BATCH, DEVICE, INTERPRETED, TOLERANCE, exact, inputs_of, normal, owners
from torch import Tensor
from torch.nn import functional as F
from triton_interpreter import mend

from m4v.kernels import ssd_operators
from m4v.kernels.ssd_configs import CONFIGS, SsdConfig, default_config
from m4v.kernels.ssd_forward import _chunk_states

CUTS = [30, 70, 150]


def rules(size: int, state: int, kind: torch.dtype) -> int:
    x, dt, a, b, c, skip, bias = (u.requires_grad_() for u in inputs_of(5, kind, size, state, 1))
    column = torch.zeros(BATCH, 5, dtype=torch.int32, device=DEVICE)
    torch.library.opcheck(ssd_operators._forward.library, (x, dt, a, b, c, skip, column, bias, True, 0))
    torch.library.opcheck(ssd_operators._forward.library, (x, dt, a, b, c, skip, None, None, False, 0))
    return 0


def states_of(inputs: list[Tensor], dy: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """States before each chunk and gradients behind it (b, chunks, H, N, P), by the recurrence in float64."""
    x, dt, a, b, c, _, bias = (u.double() for u in inputs)
    dt, column = F.softplus(dt + bias), owners(CUTS)
    assert column is not None
    length, decay = x.shape[1], (dt * a).exp()
    inner = x.new_zeros(x.shape[0], x.shape[2], b.shape[-1], x.shape[-1])
    before, behind, state, slope = [], [], inner, inner
    for t in range(length):
        if t % chunk == 0:
            before.append(state)
        keep = decay[:, t, :, None, None] * float(t == 0 or column[0, t] == column[0, t - 1])
        state = state * keep + (b[:, t, :, :, None] * x[:, t, :, None]) * dt[:, t, :, None, None]
    for t in reversed(range(length)):
        if t == length - 1 or (t + 1) % chunk == 0:
            behind.insert(0, slope)
        keep = decay[:, t, :, None, None] * float(t == 0 or column[0, t] == column[0, t - 1])
        slope = (slope + c[:, t, :, :, None] * dy.double()[:, t, :, None]) * keep
    return torch.stack(before, 1), torch.stack(behind, 1)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-3))


def launches(number: int) -> dict[str, SsdConfig]:
    """What the default is compared with: other warps, since layouts of products depend on them."""
    chosen = CONFIGS[number]
    return {"default": chosen, "gradients with 4 warps": replace(chosen, gradients_warps=4)}


def kernels(size: int, state: int, kind: torch.dtype) -> int:
    inputs, column, wrong = inputs_of(CUTS[-1], kind, size, state), owners(CUTS), 0
    assert column is not None
    column = column.contiguous()
    x, dt, a, b, c, skip, bias = inputs
    dy = normal(9, *x.shape).to(kind)
    precise = [u.double().requires_grad_() for u in inputs]
    y = exact(precise, CUTS, True)
    expected = dict(zip(("x", "dt", "a", "b", "c"), torch.autograd.grad(y, precise[:5], dy.double()), strict=True))
    default = default_config(size, state, kind == torch.float32)
    for name, config in launches(default).items():
        number, ssd_operators.CONFIGS = len(CONFIGS), (*CONFIGS, config)
        before, behind = states_of(inputs, dy, config.chunk)
        try:
            found_y, states, decay = ssd_operators._forward(x, dt, a, b, c, skip, column, bias, True, number)
            errors = {"y": off(found_y, y.detach()), "states": off(states, before)}
            print(f"{name}: forward {errors}", flush=True)
            local = torch.full_like(states, float("nan"), dtype=torch.float32)
            common = ssd_operators._common(x, b, column, bias, True, config)
            _chunk_states[(x.shape[2], decay.shape[1], x.shape[0])](
                c, dy, dt, bias, a, column, local, decay, x.shape[1], x.shape[2], decay.shape[1],
                *ssd_operators._strides(c, dy), reverse=True, num_warps=config.states_warps, **common,
            )  # fmt: skip
            gradients = ssd_operators._passed(local, decay, x.dtype, True, config)
            errors["gradients"] = off(gradients, behind)
            print(f"{name}: gradients behind chunks, by chunk", [
                f"{off(gradients[:, i], behind[:, i]):.1e}" for i in range(decay.shape[1])
            ], flush=True)  # fmt: skip
            runs = [
                ssd_operators._backward(dy, x, dt, a, b, c, skip, column, bias, states, decay, True, number)
                for _ in range(3)
            ]
        except Exception as reason:  # the CUDA error is sticky: nothing after it means anything
            print(f"{name}: {type(reason).__name__}: {str(reason).splitlines()[0]}", flush=True)
            return 1
        same = [torch.equal(u, v) for run in runs for u, v in zip(run, runs[0], strict=True)]
        print(f"{name}: repeats its bits: {all(same)}", flush=True)
        dx, d_dt, db, dc, partial = runs[0]
        for key, value in (("x", dx), ("dt", d_dt), ("b", db), ("c", dc)):
            errors[key] = off(value, expected[key])
            spans = [f"{off(u, v):.0e}" for u, v in zip(value.split(16, 1), expected[key].split(16, 1), strict=True)]
            print(f"{name}: {key} {errors[key]:.1e}, by 16 tokens", *spans, flush=True)
        errors["a"] = off(partial[0].sum((0, 1)), expected["a"])
        print(f"{name}: a {errors['a']:.1e}", flush=True)
        wrong += any(not error < TOLERANCE[kind] for error in errors.values())
    return int(wrong > 0)


if __name__ == "__main__":
    if INTERPRETED:
        mend()
    what, size, state, kind = sys.argv[1:]
    sys.exit({"rules": rules, "kernels": kernels}[what](int(size), int(state), getattr(torch, kind)))
