"""Attention, the MM-DiM mixer and the temporal branch by their definitions: slow, unpadded, one sample at a time.

Every fast path is tested against these, in float64, with gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from m4v.model.layers import rotate
from m4v.model.layout import BatchLayout, Clip, Column, frame_types, image_ids
from m4v.model.mamba import MambaMixer
from m4v.model.scan import LAYER_ORDER, scan_order
from m4v.model.selective_scan import scan_sequential
from m4v.model.ssd import ssd_sequential
from m4v.model.temporal import TemporalBranch


def attention_reference(q: Tensor, k: Tensor, v: Tensor, layout: BatchLayout, valid: Tensor, causal: bool) -> Tensor:
    """Attention of packed tokens (b, text + image, H, size) -> (b, text + image, H size), text pads left out.

    Each column attends over its own text and image; if `causal`, to what is not later (text has time 0).
    `valid` (b, C, slots) bool; the result is zero at text pads.
    """
    slots, rows = layout.text_slots, []
    for row in range(q.shape[0]):
        texts, images, begin = [], [], layout.text_tokens
        for number, column in enumerate(layout.columns):
            keep = valid[row, number]
            text = number * slots + keep.nonzero()[:, 0]
            place = torch.cat([text, torch.arange(begin, begin + column.tokens)])
            time = torch.cat([torch.zeros(len(text)), torch.from_numpy(image_ids(column)[:, 0])])
            scores = torch.einsum("qhc,khc->hqk", q[row, place], k[row, place]) / q.shape[-1] ** 0.5
            if causal:
                scores = scores.masked_fill(time[:, None] < time, float("-inf"))
            mixed = torch.einsum("hqk,khc->qhc", scores.softmax(dim=-1), v[row, place]).flatten(1)
            texts.append(mixed.new_zeros(slots, mixed.shape[1]).masked_scatter(keep[:, None], mixed[: len(text)]))
            images.append(mixed[len(text) :])
            begin += column.tokens
        rows.append(torch.cat([*texts, *images]))
    return torch.stack(rows)


def mixer_reference(mixer: MambaMixer, x: Tensor, layout: BatchLayout, valid: Tensor, path: int) -> Tensor:
    """`MambaMixer.forward` on packed tokens x (b, text + image, D); text pads are left out of the sequence.

    `valid` (b, C, slots) bool; the result is zero at text pads.
    """
    slots, rows = layout.text_slots, []
    for row in range(x.shape[0]):
        texts, images, begin = [], [], layout.text_tokens
        for number, column in enumerate(layout.columns):
            keep = valid[row, number]
            text = x[row, number * slots : (number + 1) * slots]
            image = x[row, begin : begin + column.tokens]
            mixed_text, mixed_image = _mix_column(mixer, text[keep], image, column, path)
            texts.append(torch.zeros_like(text).masked_scatter(keep[:, None], mixed_text))
            images.append(mixed_image)
            begin += column.tokens
        rows.append(torch.cat([*texts, *images]))
    return torch.stack(rows)


def _mix_column(mixer: MambaMixer, text: Tensor, image: Tensor, column: Column, path: int) -> tuple[Tensor, Tensor]:
    config, words = mixer.config, len(text)
    ids = torch.from_numpy(image_ids(column)).double()
    tokens, places, origin = list(text), [torch.zeros(3).double()] * words, []
    begin, frame = 0, 0
    types = frame_types(column)
    for clip in column.clips:
        order = scan_order(LAYER_ORDER[path % len(LAYER_ORDER)], clip.height, clip.width, config.scan)
        for _ in range(clip.frames):
            if mixer.registers is not None:
                tokens.append(mixer.registers[int(types[frame])])
                places.append(torch.tensor([float(frame), 0, 0]).double())
                origin.append(-1)
            for cell in order:
                tokens.append(image[begin + cell])
                places.append(ids[begin + cell])
                origin.append(int(begin + cell))
            begin, frame = begin + clip.height * clip.width, frame + 1
    if config.text_recomposition:
        tokens, places = tokens + list(text), places + [torch.zeros(3).double()] * words
    y = _state_space(mixer, torch.stack(tokens), torch.stack(places))
    visual = y[words : words + len(origin)]
    back = [origin.index(i) for i in range(len(image))]
    out_text = y[:words] + (y[words + len(origin) :] if config.text_recomposition else 0)
    gate = F.silu(mixer.to_z(torch.cat([text, image])))
    return out_text * gate[:words], visual[back] * gate[words:]


def _state_space(mixer: MambaMixer, sequence: Tensor, places: Tensor) -> Tensor:
    """(N, D) tokens in their order to (N, D), before the gate."""
    config, heads = mixer.config, (mixer.config.heads, mixer.config.head_dim)
    c = mixer.norm_c(mixer.to_c(sequence).unflatten(-1, heads))
    b = mixer.norm_b(mixer.to_b(sequence).unflatten(-1, heads))
    if config.rope_on_ssm:
        turn = _turns(places, config.axes, config.rope_theta)
        c, b = rotate(c[None], turn)[0], rotate(b[None], turn)[0]
    projected: Tensor = mixer.to_x(sequence)
    taps = mixer.conv.weight
    width = taps.shape[1]
    x = []
    for t in range(len(projected)):
        window = [projected[t - j] * taps[:, width - 1 - j] for j in range(min(width, t + 1))]
        x.append(F.silu(sum(window, start=mixer.conv.bias)))
    values, dt = torch.stack(x), F.softplus(mixer.to_dt(sequence) + mixer.dt_bias)
    a = -mixer.A_log.exp()
    if config.ssm == "ssd":
        value_heads: Tensor = values.unflatten(-1, heads)
        mixed = ssd_sequential(value_heads[None], dt[None], a, b[None], c[None])[0]
        return (mixed + mixer.D[:, None] * value_heads).flatten(1)
    groups = (-1, config.ssm_state)
    b, c = b.flatten(1).unflatten(-1, groups), c.flatten(1).unflatten(-1, groups)
    scanned: Tensor = scan_sequential(values[None], dt[None], a, b[None], c[None])[0][0] + mixer.D * values
    return scanned


def _turns(places: Tensor, axes: tuple[int, int, int], theta: float) -> Tensor:
    angles = [
        places[:, axis, None] * theta ** (-torch.arange(0, size, 2).double() / size)
        for axis, size in enumerate(axes)
        if size
    ]
    angle = torch.cat(angles, dim=1)
    return torch.polar(torch.ones_like(angle), angle)


def temporal_reference(branch: TemporalBranch, image: Tensor, layout: BatchLayout) -> Tensor:
    """`TemporalBranch.forward` on image tokens (b, tokens, D)."""
    rows = []
    for row in image:
        parts, begin = [], 0
        for column in layout.columns:
            parts.append(_mix_frames(branch, row[begin : begin + column.tokens], column))
            begin += column.tokens
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def _frames(image: Tensor, column: Column) -> list[tuple[Clip, Tensor]]:
    """Each frame's clip and its tokens as a grid (h, w, D)."""
    found, begin = [], 0
    for clip in column.clips:
        for _ in range(clip.frames):
            size = clip.height * clip.width
            found.append((clip, image[begin : begin + size].reshape(clip.height, clip.width, -1)))
            begin += size
    return found


def _mix_frames(branch: TemporalBranch, image: Tensor, column: Column) -> Tensor:
    low_h, _ = column.lowest
    noisy_from = column.frames - column.clips[-1].frames
    pieces: list[tuple[int, Tensor]] = []
    frames = _frames(image, column)
    for time, (clip, grid) in enumerate(frames):
        f = clip.height // low_h
        cut = [grid[r::f, s::f] for r in range(f) for s in range(f)]
        pieces += [(time, p) for p in cut] if time >= noisy_from else [(time, torch.stack(cut).mean(dim=0))]
    mixed = _attend_pieces(branch, pieces)
    out, index = [], 0
    for time, (clip, grid) in enumerate(frames):
        f, full = clip.height // low_h, torch.zeros_like(grid)
        for r in range(f):
            for s in range(f):
                full[r::f, s::f] = mixed[index]
                index += time >= noisy_from
        index += time < noisy_from
        out.append(full.flatten(0, 1))
    return torch.cat(out) * branch.scale


def _attend_pieces(branch: TemporalBranch, pieces: list[tuple[int, Tensor]]) -> list[Tensor]:
    heads = branch.heads
    q = [branch.norm_q(branch.to_q(p).unflatten(-1, heads)) for _, p in pieces]
    k = [branch.norm_k(branch.to_k(p).unflatten(-1, heads)) for _, p in pieces]
    v = [branch.to_v(p).unflatten(-1, heads) for _, p in pieces]
    places = pieces[0][1].shape[0] * pieces[0][1].shape[1]
    out = []
    for i, (time, _) in enumerate(pieces):
        seen = [j for j, (other, _) in enumerate(pieces) if other <= time]
        scores = torch.stack([(q[i] * k[j]).sum(dim=(0, 1, 3)) for j in seen]) / (heads[1] * places) ** 0.5
        weights = scores.softmax(dim=0)  # (seen, heads)
        mixed = sum(w[:, None] * v[j] for w, j in zip(weights, seen, strict=True))
        out.append(torch.as_tensor(mixed).flatten(-2))
    return out
