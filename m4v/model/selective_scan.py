"""The Mamba-1 selective scan in plain torch: one decay per channel and state place.

h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t,   y_t = C_t h_t + D x_t
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# On the meta device, where only shapes flow, one operator stands for the thousands of small ones: `m4v.flops`
# knows what it costs.
_LIBRARY = torch.library.Library("m4v", "FRAGMENT")
_LIBRARY.define("selective_scan(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c) -> Tensor")
_LIBRARY.impl("selective_scan", lambda x, dt, a, b, c: torch.empty_like(x), "Meta")


def scan_sequential(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token: the reference for tests.

    x, dt (batch, L, D); a (D, N) negative; b, c (batch, L, G, N), group g serving D / G channels.
    Returns y (batch, L, D) without the D x term, and the last state (batch, D, N).
    """
    b, c = per_channel(b, x.shape[-1]), per_channel(c, x.shape[-1])
    state, out = x.new_zeros(x.shape[0], *a.shape), []
    for t in range(x.shape[1]):
        state = torch.exp(dt[:, t, :, None] * a) * state + (dt[:, t] * x[:, t])[..., None] * b[:, t]
        out.append((state * c[:, t]).sum(dim=-1))
    return torch.stack(out, dim=1), state


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int | None = None, chunk_column: Tensor | None = None
) -> Tensor:
    """The same, all chunks side by side: 2 sqrt(L) steps in place of L. `chunk_column` as in `ssd_chunked`."""
    if x.is_meta:
        shapes: Tensor = torch.ops.m4v.selective_scan(x, dt, a, b, c)
        return shapes
    batch, length, channels = x.shape
    chunk = chunk or math.isqrt(length - 1) + 1
    chunks = -(-length // chunk)
    if chunk_column is not None and chunks * chunk != length:
        raise ValueError(f"length {length} is not a multiple of the chunk size {chunk}")
    pad = chunks * chunk - length

    def by_chunk(u: Tensor) -> Tensor:
        padded = torch.cat([u, u.new_zeros(batch, pad, *u.shape[2:])], dim=1) if pad else u
        return padded.reshape(batch, chunks, chunk, *u.shape[2:])

    x, dt, b, c = by_chunk(x), by_chunk(dt), by_chunk(b), by_chunk(c)
    decay = torch.exp(dt[..., None] * a)  # (batch, chunks, chunk, D, N)
    added = (dt * x)[..., None] * per_channel(b, channels)
    state, states = torch.zeros_like(added[:, :, 0]), []
    for t in range(chunk):
        state = decay[:, :, t] * state + added[:, :, t]
        states.append(state)
    since_start = decay.cumprod(dim=2)
    carry, carries = torch.zeros_like(state[:, 0]), []
    for k in range(chunks):
        if chunk_column is not None and k > 0 and bool(chunk_column[k] != chunk_column[k - 1]):
            carry = torch.zeros_like(carry)
        carries.append(carry)
        carry = since_start[:, k, -1] * carry + state[:, k]
    full = torch.stack(states, dim=2) + since_start * torch.stack(carries, dim=1)[:, :, None]
    y: Tensor = (full * per_channel(c, channels)).sum(dim=-1).flatten(1, 2)[:, :length]
    return y


def per_channel(u: Tensor, channels: int) -> Tensor:
    """(..., G, N) -> (..., channels, N): every channel's group."""
    return u.repeat_interleave(channels // u.shape[-2], dim=-2)
