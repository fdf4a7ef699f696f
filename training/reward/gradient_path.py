"""Before a reward stage's first step: does a change of the latent reach the reward, through codec and scorers?"""

from __future__ import annotations

import torch

from m4v.codec.interface import LatentCodec
from m4v.codec.shape import CHANNELS
from m4v.core.errors import DataIntegrityError
from m4v.flow.latents import denormalise
from training.reward.rewards import Rewards

_SIDE = 8  # latent places of the probe


def check_gradient_path(codec: LatentCodec, rewards: Rewards, device: str = "cpu") -> None:
    """Decode a drawn latent behind one of context, as the objective does, and follow the reward back to it.

    A decode under `no_grad`, a detached cache or a clamp costs the gradient without any error of its own, and the
    stage would train on data alone. Raises DataIntegrityError when the gradient is lost, zero or not finite.
    """
    drawn = torch.Generator().manual_seed(0)
    latents = 0.5 * torch.randn(1, CHANNELS, 2, _SIDE, _SIDE, generator=drawn)
    estimate = latents[:, :, 1:].to(device).requires_grad_()
    with torch.enable_grad():
        whole = denormalise(torch.cat([latents[:, :, :1].to(device), estimate], dim=2), codec.constants)
        frames = codec.decode_tensor(whole, context=1)[:, :, -1]
        scored = rewards(frames, ["a probe of the gradient"])
    fault = None
    if not frames.requires_grad:
        fault = "the codec decodes without a gradient"
    elif not scored.reward.requires_grad:
        fault = "no scorer passes a gradient on"
    else:
        (gradient,) = torch.autograd.grad(scored.reward.sum(), estimate)
        if not gradient.isfinite().all():
            fault = "the gradient at the latent is not finite"
        elif not bool((gradient != 0).any()):
            fault = "the gradient at the latent is zero"
    if fault is not None:
        raise DataIntegrityError(
            f"the reward does not reach the model: {fault}", value=list(rewards.names), where="reward",
            next_step="see which codec and scorers the recipe names; a no-grad decode is the usual cause",
        )  # fmt: skip
