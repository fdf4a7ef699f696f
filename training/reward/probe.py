"""What the model itself answers at every save of a reward stage, held against the answers of the model it started from:
velocity on fixed samples, noise and timesteps, videos of one prompt over seeds (eval_reward, hacking watch), and the
scorers' own scores of clips that the stage does not train on.

Nothing is drawn from the run's seed, and nothing of it depends on the number of ranks, which share the work. The start
model's answers are written to the stage's state before its first step, so that they outlive it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pyarrow as pa
import torch
from torch import Tensor, distributed
from torch.nn.functional import normalize

from m4v.config import AnySampler, SamplerConfig
from m4v.core.storage import Storage
from m4v.text.interface import TextFeatures
from m4v.wan_flow_config import WanSamplerConfig
from training.config import RewardConfig, TrainConfig
from training.engine import Engine
from training.families import Family
from training.families.pyramid import PyramidFamily
from training.loader import Collator, Text
from training.objective import Objective, flow_terms
from training.order import Pack
from training.reward.appearance import Judging
from training.reward.frames import similarity
from training.reward.held_out import held_out_levels
from training.reward.probe_samples import Prompt, probe_packs, probe_prompts, scored_packs
from training.reward.start_answers import StartAnswers, read_start, write_start
from training.reward.watch import DRIFT, ERROR, PROBE_LOSS, SEEDS

LIKENESS = "seed_similarity"  # the mean over prompts itself, beside its change
_NAME, _SEED = "watch", 0  # never the run's: what is drawn is the same for every run
_STEPS = 4  # of the sampler in each pyramid stage, where the config names none
_WAN_STEPS = 8
_TINY = 1e-9
T = TypeVar("T")


@dataclass
class Probe:
    """Of one rank; `prepare` before the first step of an attempt, then call it after every step that is saved."""

    config: RewardConfig
    packs: Sequence[Pack]
    prompts: Sequence[Prompt]
    scored: Sequence[Pack]
    collate: Collator
    engine: Engine
    family: Family
    goal: Judging
    state: Storage
    start: StartAnswers | None = field(default=None, init=False)

    @classmethod
    def of(
        cls,
        config: RewardConfig,
        index: pa.Table,
        training: Collator,
        engine: Engine,
        family: Family,
        goal: Judging,
        state: Storage,
    ) -> Probe:
        """The probe of a stage beside its `training` batches."""
        collate = replace(
            training, seed=_SEED, stage=_NAME, text_drop=0.0, high_window=None, with_captions=False,
            held_out=frozenset(),
        )  # fmt: skip
        wanted = config.watch.probe
        return cls(
            config, probe_packs(index, config.order, wanted.samples),
            probe_prompts(index, config.order, collate.store, wanted.prompts, wanted.latents),
            scored_packs(index, config.order, config.reward.last_latents, wanted.scored, wanted.draws),
            collate, engine, family, goal, state,
        )  # fmt: skip

    def is_due(self, step: int) -> bool:
        """Whether the state after `step` steps is asked."""
        return step % self.config.save_every == 0

    def prepare(self, step: int) -> None:
        """Have the start model's answers: at step 0 its own are taken down, later they are read. Raises
        DataIntegrityError when they are gone or damaged."""
        if step == 0:
            self.start = StartAnswers(self._velocities(), self._likeness(), self._scores())
            if self.engine.rank == 0:
                write_start(self.state, self.start)
            if self.engine.world_size > 1:
                distributed.barrier()  # no rank takes a step, and so no save begins, before they are there
        else:
            self.start = read_start(self.state, len(self.packs), len(self.prompts), len(self.scored))

    def __call__(self) -> dict[str, object]:
        """Changes since the start model with their standard errors, by name; equal on all ranks."""
        assert self.start is not None, "prepare comes first"
        found: dict[str, object] = {}
        if self.packs:
            drifts, rises = zip(*self._shared(len(self.packs), self._drift), strict=True)
            found |= _level(DRIFT, drifts) | _level(PROBE_LOSS, rises)
        if self.prompts:
            now, before = self._likeness(), self.start.likeness
            # A share of the way that was left to 1, prompt by prompt.
            shares = [(b - a) / max(1 - a, _TINY) for a, b in zip(before, now, strict=True)]
            found |= {LIKENESS: statistics.fmean(now), **_level(SEEDS, shares)}
        if self.scored:
            found |= held_out_levels(self.goal.scorers, self.start.scores, self._scores())
        return found

    def _scores(self) -> list[list[float]]:
        """Mean scores of each scored clip's estimates, in the order of the scorers; NaN of a clip whose draws all carry
        no reward."""
        collate = replace(self.collate, high_window=self.goal.high_window, with_captions=True)

        def work(number: int) -> list[float]:
            found = self.goal.scores(self.engine.evaluate, collate(self.scored[number]).to(self.engine.device))
            return [float(found[name].double().mean()) if found else math.nan for name in self.goal.scorers]

        return self._shared(len(self.scored), work)

    def _drift(self, number: int) -> tuple[float, float]:
        """Of a sample: distance of the velocity from the start's as a share of the true one's norm, and rise of the
        flow loss as a share of the start's."""
        assert self.start is not None
        now, targets = self._velocity(number)
        before = self.start.velocities[number]
        away = sum(float((a - b).double().square().sum()) for a, b in zip(now, before, strict=True))
        norm = sum(float(t.double().square().sum()) for t in targets)
        losses = [
            statistics.fmean(float((v - t).double().square().mean()) for v, t in zip(answer, targets, strict=True))
            for answer in (before, now)
        ]
        return math.sqrt(away / max(norm, _TINY)), losses[1] / max(losses[0], _TINY) - 1

    def _velocities(self) -> list[list[Tensor]]:
        return self._shared(len(self.packs), lambda number: self._velocity(number)[0])

    def _velocity(self, number: int) -> tuple[list[Tensor], list[Tensor]]:
        """Predicted and true velocities of a sample, float32 on the CPU, a column each."""
        batch = self.collate(self.packs[number]).to(self.engine.device)
        predictions = flow_terms(self.engine.evaluate, batch).predictions
        # Contiguous as they are when read back: the order of a sum over them follows how they lie.
        found = [p.float().cpu().contiguous() for p in predictions]
        return found, [c.target.float().cpu().contiguous() for c in batch.columns]

    def _likeness(self) -> list[float]:
        """Mean cosine between the videos of each prompt over its seeds."""
        seeds = self.config.watch.probe.seeds
        vectors = self._shared(len(self.prompts) * seeds, lambda number: self._video(*divmod(number, seeds)))
        return [
            float(similarity(normalize(torch.stack(vectors[first : first + seeds]).double(), dim=1)).mean())
            for first in range(0, len(vectors), seeds)
        ]

    def _video(self, number: int, seed: int) -> Tensor:
        """Unit vector (d,) of a prompt's video from a seed."""
        prompt, collate, device = self.prompts[number], self.collate, self.engine.device
        positive, negative = (_features(t).to(device) for t in (prompt.text, collate.null_text))
        sampler = self.config.watch.probe.sampler or short_sampler(self.family)
        size = (prompt.size.t, prompt.size.h, prompt.size.w)
        constants = collate.constants
        latents = self.family.sample(self.engine.evaluate, sampler, positive, negative, size, seed, constants)
        return self.goal.appearance(latents, device)

    def _shared(self, count: int, work: Callable[[int], T]) -> list[T]:
        """`work` of 0 to `count` - 1, of which every rank does as many: those that share the weights would wait for the
        others. What is beyond the last is done for that alone."""
        rank, ranks = self.engine.rank, self.engine.world_size
        rounds = math.ceil(count / ranks)
        mine = [work(min(turn * ranks + rank, count - 1)) for turn in range(rounds)]
        if ranks == 1:
            return mine
        gathered: list[list[T]] = [[]] * ranks
        distributed.all_gather_object(gathered, mine)
        return [gathered[number % ranks][number // ranks] for number in range(count)]


def open_probe(
    config: TrainConfig,
    index: pa.Table,
    training: Collator,
    engine: Engine,
    family: Family,
    objective: Objective,
    state: Storage,
    step: int,
) -> Probe | None:
    """The probe of a reward stage after `step` steps, prepared; other stages have none."""
    if not isinstance(config, RewardConfig) or not isinstance(objective, Judging):
        return None
    probe = Probe.of(config, index, training, engine, family, objective, state)
    probe.prepare(step)
    return probe


def short_sampler(family: Family) -> AnySampler:
    """A sampler of few steps, with the guidance that videos are made with."""
    if not isinstance(family, PyramidFamily):
        return WanSamplerConfig(steps=_WAN_STEPS)
    steps = (_STEPS,) * family.schedule.stages
    return SamplerConfig(steps_first=steps, steps_later=steps, guidance_first=4.0, guidance_later=4.0)


def _features(text: Text) -> TextFeatures:
    return TextFeatures(text.embedding.float()[None], text.mask.bool()[None], text.pooled.float()[None])


def _level(name: str, values: Sequence[float]) -> dict[str, object]:
    """Mean and standard error; of a single value there is none, and it counts as exact."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {name: statistics.fmean(values), name + ERROR: error}
