"""Flow matching plus reward for models of whole clips (paper, section 4.1): the one-step estimate of every frame is
decoded, and the reward is the mean of the frames' scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from m4v.codec.interface import LatentCodec
from m4v.flow.latents import denormalise
from m4v.flow.loss import VelocityModel, predict
from m4v.flow.packing import PackedColumn
from training.config import RewardTermConfig
from training.engine import Engine
from training.families import Family
from training.loader import Batch
from training.objective import Logged, Terms, add_to, flow_terms
from training.order import StepSize
from training.reward.appearance import Appearance
from training.reward.frames import contrast, frame_difference, grid_energy, saturation, similarity
from training.reward.rewards import Rewards
from training.reward.watch import FRAME_NAMES, REWARD

_AT_ONCE = 8  # frames whose scorers' activations are held together


class WholeVideoObjective:
    """`flow loss - weight * mean reward` over the step's samples. Those count nothing whose caption was dropped or
    whose noise level is outside `noise_window`: near 0 the reward has no gradient, near 1 the estimate is a blur.

    Clips are decoded one at a time, each as a whole; `last_latents` and `context_latents` are the pyramid's."""

    needs_captions = True
    high_window: tuple[float, float] | None = None  # levels are the family's own: the flow loss stays what it was

    def __init__(self, config: RewardTermConfig, family: Family, codec: LatentCodec, rewards: Rewards) -> None:
        self._config, self._codec, self._rewards = config, codec, rewards
        self._train_steps = family.train_steps
        shown = ("reward_gradient", "flow_gradient", "clipped", *FRAME_NAMES)
        self.names = (*family.names, REWARD, *rewards.names, *shown)

    @property
    def appearance(self) -> Appearance:
        return Appearance(self._codec, self._rewards)

    @property
    def scorers(self) -> tuple[str, ...]:
        """Metric names of all scorers, those held out of the loss too."""
        return self._rewards.names

    def __call__(self, engine: Engine, batch: Batch, size: StepSize) -> Terms:
        flow = flow_terms(engine, batch)
        loss = flow_sum = torch.cat(flow.losses).sum()
        logged = flow.logged(batch, self._train_steps)
        vectors: list[Tensor] = []
        for c, column in enumerate(batch.columns):
            velocity = flow.predictions[c]
            for row in self._scored_rows(batch, c, column):
                caption = batch.captions[row * len(batch.columns) + c]
                gradient = self._gradient(column, velocity.detach(), row, caption, logged, vectors)
                loss = loss - self._config.weight * (gradient * velocity[row]).sum()
                error = velocity[row].detach() - column.target[row]
                for name, pull in (
                    ("reward_gradient", self._config.weight * gradient),
                    ("flow_gradient", 2 * error / error.numel()),
                ):
                    add_to(logged, name, pull.flatten().norm()[None])
        if vectors:
            add_to(logged, FRAME_NAMES[-1], similarity(torch.stack(vectors)))
        return Terms.of(loss, float(flow_sum.detach()), flow.samples, logged)

    def _scored_rows(self, batch: Batch, c: int, column: PackedColumn) -> list[int]:
        low, high = self._config.noise_window
        levels, columns = column.sigma.flatten().tolist(), len(batch.columns)
        return [row for row in batch.trained(c) if low <= levels[row] <= high and not batch.dropped[row * columns + c]]

    def _gradient(
        self,
        column: PackedColumn,
        prediction: Tensor,
        row: int,
        caption: str,
        logged: Logged,
        vectors: list[Tensor],
    ) -> Tensor:
        """d(reward)/dv of one clip, (c, t, h, w). The frames' gradient is taken part by part, then sent on through the
        codec once."""
        velocity = prediction[row : row + 1].requires_grad_()
        with torch.enable_grad():
            video = self._video(column, velocity, row)
        frames = video.detach()[0].movedim(1, 0)
        pull, scores, features = self._scores(frames, caption)
        (gradient,) = torch.autograd.grad(video, velocity, pull.movedim(0, 1)[None])
        vectors.append(normalize(features, dim=0))
        for name, value in scores.items():
            add_to(logged, name, value[None])
        add_to(logged, "clipped", ((frames <= 0) | (frames >= 1)).float().mean()[None])
        looks = (saturation(frames).mean(), contrast(frames).mean(), grid_energy(frames).mean())
        for name, value in zip(FRAME_NAMES, looks, strict=False):
            add_to(logged, name, value[None])
        add_to(logged, FRAME_NAMES[3], frame_difference(video.detach()))
        return gradient[0]

    def _video(self, column: PackedColumn, velocity: Tensor, row: int) -> Tensor:
        """Pixel frames (1, 3, T, H, W) of the estimate of sample `row`, of which `velocity` (1, …) is."""
        sigma = column.sigma[row].to(velocity.dtype)
        estimate = column.clips[-1][row : row + 1] - sigma * velocity
        return self._codec.decode_tensor(denormalise(estimate, self._codec.constants))

    @torch.no_grad()
    def scores(self, model: VelocityModel, batch: Batch) -> dict[str, Tensor]:
        """Each scorer's scores (n,) of the batch's estimates, by metric name: as a step has them, of `model`."""
        predictions = predict(model, batch.columns, batch.text, batch.text_mask, batch.pooled)
        found: list[dict[str, Tensor]] = []
        for c, column in enumerate(batch.columns):
            for row in self._scored_rows(batch, c, column):
                video = self._video(column, predictions[c][row : row + 1], row)
                caption = batch.captions[row * len(batch.columns) + c]
                found.append(self._scores(video[0].movedim(1, 0), caption)[1])
        return {name: torch.stack([scores[name] for scores in found]) for name in self._rewards.names if found}

    def _scores(self, frames: Tensor, caption: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Of frames (T, 3, H, W): gradient of their mean reward, mean scores by name, mean vector (d,)."""
        pulls, sums, features = [], dict[str, Tensor](), []
        for part in frames.split(_AT_ONCE):
            leaf = part.contiguous().requires_grad_()
            with torch.enable_grad():
                scored = self._rewards(leaf, [caption] * len(part))
                (pull,) = torch.autograd.grad(scored.reward.sum(), leaf)
            pulls.append(pull / len(frames))
            for name, value in {REWARD: scored.reward.detach(), **scored.by_scorer}.items():
                sums[name] = sums.get(name, 0.0) + value.double().sum() / len(frames)
            features.append(scored.features)
        return torch.cat(pulls), sums, torch.cat(features).float().mean(dim=0)
