"""Structured state-space duality in plain torch: the chunked form and the sequential definition.

h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t,   y_t = C_t h_t        (one scalar decay per head; Mamba-2)
"""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_sequential(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence, token by token: the reference for tests, in any float type.

    x (batch, L, H, P), dt (batch, L, H), a (H,) negative, b and c (batch, L, H, N) -> (batch, L, H, P).
    """
    batch, length, heads, size = x.shape
    state = x.new_zeros(batch, heads, b.shape[-1], size)
    out = []
    for t in range(length):
        decay = torch.exp(dt[:, t] * a)[..., None, None]
        state = decay * state + (dt[:, t, :, None] * b[:, t])[..., None] * x[:, t, :, None, :]
        out.append((c[:, t, :, :, None] * state).sum(dim=-2))
    return torch.stack(out, dim=1)


def ssd_chunked(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int, chunk_column: Tensor | None = None
) -> Tensor:
    """The same in chunks of `chunk` tokens (L must be a multiple): quadratic inside, linear between.

    `chunk_column` (L / chunk,) names the sequence of each chunk: states pass only between chunks of the same
    one, so independent sequences of whole chunks may lie behind each other. Only decays <= 1 are
    exponentiated, so no length or step size can overflow.
    """
    batch, length, heads, _ = x.shape
    chunks = length // chunk
    if chunks * chunk != length:
        raise ValueError(f"length {length} is not a multiple of the chunk size {chunk}")

    def by_chunk(u: Tensor) -> Tensor:  # (batch, L, H, F) -> (batch, chunks, H, chunk, F)
        return u.reshape(batch, chunks, chunk, *u.shape[2:]).transpose(2, 3)

    step = by_chunk(dt)  # (batch, chunks, H, chunk)
    total = running_sum(step * a[:, None])
    ahead = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(ahead, float("-inf")).exp()
    inputs, keys, queries = by_chunk(x) * step[..., None], by_chunk(b), by_chunk(c)
    inside = (queries @ keys.transpose(-1, -2) * decay) @ inputs
    to_end = (total[..., -1:] - total).exp()[..., None]
    states = (keys * to_end).transpose(-1, -2) @ inputs  # (batch, chunks, H, N, P)
    incoming = _pass_states(states, total[..., -1], chunk_column)
    carried = (queries * total.exp()[..., None]) @ incoming
    y: Tensor = (inside + carried).transpose(2, 3).reshape(batch, length, heads, -1)
    return y


def _pass_states(states: Tensor, chunk_decay: Tensor, chunk_column: Tensor | None) -> Tensor:
    """State at the start of each chunk: earlier chunks' states, decayed by the log decays between."""
    chunks = states.shape[1]
    until = running_sum(chunk_decay.transpose(1, 2))  # (batch, H, chunks)
    before = until - chunk_decay.transpose(1, 2)
    blocked = torch.ones(chunks, chunks, dtype=torch.bool, device=states.device).triu()
    if chunk_column is not None:
        # The table is the CPU's: the copy goes into the device's queue, and the program does not wait for it.
        blocked = blocked | (chunk_column[:, None] != chunk_column[None, :]).to(blocked.device, non_blocking=True)
    weight = (before[..., :, None] - until[..., None, :]).masked_fill(blocked, float("-inf")).exp()
    passed = weight @ states.transpose(1, 2).flatten(-2)
    incoming: Tensor = passed.reshape(*passed.shape[:-1], *states.shape[-2:]).transpose(1, 2)
    return incoming


def running_sum(x: Tensor) -> Tensor:
    """Cumulative sum over the last axis. torch's own is refused on CUDA in deterministic mode, so there each sum is
    taken by itself: as much memory as the decays between any two tokens take anyway."""
    if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return x.cumsum(dim=-1)
    return summed_prefixes(x)


def summed_prefixes(x: Tensor) -> Tensor:
    """Cumulative sum over the last axis (n): n sums of n terms, in the same order in every run."""
    length = x.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    return x[..., None, :].masked_fill(later, 0.0).sum(-1)
