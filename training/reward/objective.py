"""Flow matching plus reward: the one-step clean estimate of a high-stage frame is decoded and scored.

The reward's gradient is taken at the predicted velocity and sent on through the model together with the flow
loss's: one backward pass, and the two gradients can be compared (eval_reward: report their ratio).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from m4v.codec.interface import LatentCodec
from m4v.flow.estimate import clean_estimate
from m4v.flow.latents import denormalise
from m4v.flow.loss import VelocityModel, predict
from m4v.flow.packing import PackedColumn
from m4v.flow.schedule import PyramidSchedule
from training.config import RewardTermConfig
from training.engine import Engine
from training.loader import Batch
from training.objective import FLOW_NAMES, Logged, Terms, add_to, flow_terms
from training.order import StepSize
from training.reward.appearance import Appearance
from training.reward.frames import contrast, frame_difference, grid_energy, saturation, similarity
from training.reward.rewards import Rewards, Scored
from training.reward.watch import FRAME_NAMES, REWARD
from training.template import HIGH, Column


@dataclass(frozen=True)
class ScoredColumn:
    """A column's pull on its velocity: d(reward sum)/dv (b, …), zero where a sample is not scored, and numbers
    for the metrics."""

    gradient: Tensor
    logged: Logged


class RewardObjective:
    """`flow loss - weight * mean reward` over the step's high-stage samples (paper, section 3.5)."""

    needs_captions = True

    def __init__(
        self, config: RewardTermConfig, schedule: PyramidSchedule, codec: LatentCodec, rewards: Rewards
    ) -> None:
        self._config, self._schedule, self._codec, self._rewards = config, schedule, codec, rewards
        self.high_window: tuple[float, float] | None = config.noise_window
        shown = ("reward_gradient", "flow_gradient", "clipped", *FRAME_NAMES)
        self.names = (*FLOW_NAMES, REWARD, *rewards.names, *shown)

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
        logged = flow.logged(batch, self._schedule.config.train_steps)
        for c, column in enumerate(batch.pack.columns):
            scored = self._scored(batch, c, column, flow.predictions[c])
            if scored is not None:
                # The mean is over the template's count of high-stage samples, whatever was dropped or where.
                share = self._config.weight * size.samples / size.high
                pull = share * scored.gradient
                loss = loss - (pull * flow.predictions[c]).sum()
                error = flow.predictions[c].detach() - batch.columns[c].target
                gradients = (pull, 2 * error / error[0].numel())
                for name, gradient in zip(("reward_gradient", "flow_gradient"), gradients, strict=True):
                    add_to(logged, name, gradient[flow.trained[c]].flatten(1).norm(dim=1))
                for name, (total, count) in scored.logged.items():
                    before = logged.get(name, (0.0, 0))
                    logged[name] = (before[0] + total, before[1] + count)
        return Terms.of(loss, float(flow_sum.detach()), flow.samples, logged)

    def _scored(self, batch: Batch, c: int, column: Column, prediction: Tensor) -> ScoredColumn | None:
        """None for columns that carry no reward: lower stages, frames before the clip's final latents, and
        batches whose every caption was dropped."""
        rows = self._scored_rows(batch, c, column)
        if not rows:
            return None
        velocity = prediction.detach().requires_grad_()
        with torch.enable_grad():
            video, scored = self._judged(batch, c, column, rows, velocity)
            (gradient,) = torch.autograd.grad(scored.reward.sum(), velocity)
        return ScoredColumn(gradient, self._watched(video.detach(), scored))

    @torch.no_grad()
    def scores(self, model: VelocityModel, batch: Batch) -> dict[str, Tensor]:
        """Each scorer's scores (n,) of the batch's estimates, by metric name: as a step has them, of `model`."""
        predictions = predict(model, batch.columns, batch.text, batch.text_mask, batch.pooled)
        found = []
        for c, column in enumerate(batch.pack.columns):
            # One at a time, whatever the batch: a decode of several at full size does not fit beside the model.
            for row in self._scored_rows(batch, c, column):
                found.append(self._judged(batch, c, column, [row], predictions[c])[1].by_scorer)
        return {name: torch.cat([scored[name] for scored in found]) for name in self._rewards.names if found}

    def _scored_rows(self, batch: Batch, c: int, column: Column) -> list[int]:
        """Samples of a column that carry a reward."""
        if column.stage != HIGH or column.unit <= batch.pack.stream.t - self._config.last_latents:
            return []
        return [i for i in range(len(batch.latents[c])) if not batch.dropped[self._row(batch, i, c)]]

    def _judged(self, batch: Batch, c: int, column: Column, rows: list[int], velocity: Tensor) -> tuple[Tensor, Scored]:
        """Decoded estimates of `rows` of a column, and what the scorers say of their last frames."""
        captions = [batch.captions[self._row(batch, i, c)] for i in rows]
        video = self._decode(batch.latents[c][rows], column.unit, _take(batch.columns[c], rows), velocity[rows])
        return video, self._rewards(video[:, :, -1], captions)

    @staticmethod
    def _watched(video: Tensor, scored: Scored) -> Logged:
        """The scores, those that are held out of the loss too, and what the frames look like."""
        logged: Logged = {}
        add_to(logged, REWARD, scored.reward.detach())
        frames = video[:, :, -1]
        for name, scores in scored.by_scorer.items():
            add_to(logged, name, scores)
        add_to(logged, "clipped", ((frames <= 0) | (frames >= 1)).float().flatten(1).mean(dim=1))
        looks = (saturation(frames), contrast(frames), grid_energy(frames), frame_difference(video))
        for name, values in zip(FRAME_NAMES, (*looks, similarity(scored.features)), strict=True):
            add_to(logged, name, values)
        return logged

    @staticmethod
    def _row(batch: Batch, sample: int, column: int) -> int:
        return sample * len(batch.pack.columns) + column

    def _decode(self, clean: Tensor, unit: int, column: PackedColumn, velocity: Tensor) -> Tensor:
        """Pixel frames (b, 3, T, H, W) of the estimate of latent `unit`, of which the last is scored, decoded after the
        first latent and the clean ones just before it (the codec is causal and treats the first latent apart)."""
        estimate = clean_estimate(self._schedule, column, velocity)
        begin = max(1, unit - 1 - self._config.context_latents)
        before = [clean[:, :, :1], clean[:, :, begin : unit - 1]] if unit > 1 else []
        latents = denormalise(torch.cat([*before, estimate], dim=2), self._codec.constants)
        return self._codec.decode_tensor(latents, context=latents.shape[2] - 1)


def _take(column: PackedColumn, rows: list[int]) -> PackedColumn:
    return PackedColumn(
        column.stage,
        [clip[rows] for clip in column.clips],
        column.timestep[rows],
        column.target[rows],
        column.sigma[rows],
        column.noise[rows],
    )
