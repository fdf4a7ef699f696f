"""What every score must show before it is trusted with a reward: a sound value and a sound gradient."""

from __future__ import annotations

import torch

from m4v.core.errors import DataIntegrityError
from m4v.scores.interface import Scorer


def self_test(scorer: Scorer, device: torch.device | str = "cpu", tolerance: float = 1e-4) -> None:
    """Score drawn pictures: finite, a finite gradient that is not zero, the same alone and in a batch.

    Raises DataIntegrityError when one does not hold.
    """
    ramp = torch.linspace(0, 1, 96, device=device)
    picture = torch.stack([ramp.expand(64, 96), ramp.flip(0).expand(64, 96), torch.full((64, 96), 0.3).to(ramp)])
    frames = torch.stack([picture, 1 - picture]).requires_grad_()
    text = scorer.text_features(["a colourful gradient"]).to(device).expand(2, -1)
    scores = scorer.score(frames, text)
    fault = None
    if not scores.requires_grad:
        fault = "no gradient reaches the frames"
    else:
        (gradient,) = torch.autograd.grad(scores.sum(), frames)
        alone = scorer.score(frames[:1].detach(), text[:1]).detach()
        if not scores.isfinite().all():
            fault = "scores are not finite"
        elif not gradient.isfinite().all():
            fault = "the gradient is not finite"
        elif not bool((gradient.abs().amax(dim=(1, 2, 3)) > 0).all()):
            fault = "the gradient is zero"
        elif not torch.allclose(alone, scores[:1].detach(), atol=tolerance):
            fault = "a frame's score changes with the frames beside it"
    if fault is not None:
        raise DataIntegrityError(
            f"score failed its self-test: {fault}", value=scores.tolist(), where=scorer.name,
            next_step="m4v artifacts verify, or python -m dataprep.assets verify",
        )  # fmt: skip
