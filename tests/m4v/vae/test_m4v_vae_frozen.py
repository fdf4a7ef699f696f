"""Gradients through a frozen decoder: those that torch finds when the weights could learn, for less memory."""

import pytest
import torch
from tiny_vae import THIN, tiny_vae

from m4v.vae import frozen
from m4v.vae.convolution import CausalConv3d


def gradient(vae, context, recompute, order=torch.contiguous_format):
    vae = vae.to(memory_format=order)
    drawn = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 16, 3, 2, 2, generator=drawn, dtype=torch.float64).requires_grad_()
    frames = vae.decode_after(latents, context, window=2, recompute=recompute)
    weight = torch.randn(frames.shape, generator=drawn, dtype=torch.float64)
    (found,) = torch.autograd.grad((frames * weight).sum(), latents)
    return frames.detach(), found


@pytest.mark.parametrize(("context", "recompute", "at_once"), [(0, False, 2**29), (1, True, 1)])
def test_gradients_are_those_of_weights_that_could_learn(monkeypatch, context, recompute, at_once):
    monkeypatch.setattr(frozen, "PIECE_ELEMENTS", at_once)
    vae = tiny_vae(config=THIN).double()
    frames, expected = gradient(vae.requires_grad_(), context, recompute)
    for order in (torch.contiguous_format, torch.channels_last_3d):
        same, found = gradient(vae.requires_grad_(False), context, recompute, order)
        torch.testing.assert_close(same, frames, atol=1e-12, rtol=0)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    assert expected[:, :, context:].abs().amax() > 0


def test_a_frozen_convolution_keeps_no_input():
    kept = []

    def keep(x):
        kept.append(x)
        return x

    conv = CausalConv3d(4, 4).requires_grad_(False)
    x = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        conv(x)
    assert kept == []
