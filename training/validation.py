"""Loss and videos on the held-out clips, between the steps of a stage.

Samples, columns, timesteps and noise follow from the dataset version and the order's sizes alone: every validation of
every stage measures the same, at any world size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from m4v.codec.interface import LatentCodec
from m4v.core.errors import ConfigError
from m4v.core.storage import Storage
from m4v.text.interface import TextFeatures
from m4v.video_io import encode_mp4
from training.config import MixtureEntry, TrainConfig
from training.engine import Engine
from training.families import Family
from training.loader import Collator
from training.metrics import StepSums
from training.objective import Terms, flow_terms
from training.order import Draw, Pack
from training.ranks import data_rank, leads
from training.samples import Samples
from training.split import held_out_rows
from training.streams import Media, streams_of

PREFIX, VIDEOS = "validation_", "validation"
_NAME = "validation"  # of the stage and the mixture entry in the keys of its random numbers
_SEED = 0  # never the run's: runs of different seeds are compared


def validation_packs(index: pa.Table, config: TrainConfig) -> list[Pack]:
    """One pack for each held-out sample that validates: all columns of the order, units going round with the samples.

    Raises ConfigError when the dataset has no held-out sample of the stage's kind.
    """
    order = config.order.model_copy(update={"mixture": (MixtureEntry(name=_NAME),)})
    samples = Samples.of_index(held_out_rows(index, order.held_out))
    groups, group = samples.groups()
    kind: Media = "image" if order.is_image_stage else "video"
    packs: list[Pack] = []
    for stream in (s for streams in streams_of(groups, order, kind) for s in streams):
        members = samples.members(group, stream.groups)[: config.validation.samples]
        for number, sample in enumerate(members):
            columns = stream.cycle[number % len(stream.cycle)]
            draws = tuple(Draw(sample, c) for c in range(len(columns)))
            packs.append(Pack(len(packs), replace(stream, batch=1), columns, draws))
    if not packs:
        raise ConfigError(
            "the dataset has no held-out sample that the stage could validate on",
            value=f"{order.held_out} clips of a million are held out",
            where=f"stage {config.name!r}",
            next_step="raise order.held_out, or set validation.every to 0",
        )
    return packs


@dataclass(frozen=True)
class Validator:
    """Validates on every rank together; `codec` opens what decodes the videos, on rank 0, which writes them to
    `storage`."""

    config: TrainConfig
    packs: Sequence[Pack]
    collate: Collator
    engine: Engine
    family: Family
    storage: Storage
    codec: Callable[[], LatentCodec]

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        index: pa.Table,
        training: Collator,
        engine: Engine,
        family: Family,
        storage: Storage,
        codec: Callable[[], LatentCodec],
    ) -> Validator:
        """The validation of a stage beside its `training` batches; raises ConfigError as `validation_packs` does."""
        collate = replace(
            training, seed=_SEED, stage=_NAME, text_drop=0.0, high_window=None, with_captions=False,
            held_out=frozenset(),
        )  # fmt: skip
        return cls(config, validation_packs(index, config), collate, engine, family, storage, codec)

    def is_due(self, step: int) -> bool:
        """Whether the state after `step` steps is validated."""
        return step % self.config.validation.every == 0 or step == self.config.steps

    def __call__(self, step: int) -> dict[str, float | None]:
        """Means over the held-out samples of the weights after `step` steps, by name; makes the videos."""
        rank, ranks = data_rank(self.config.engine, self.engine.rank, self.engine.world_size)
        sums = StepSums(self.family.names, self.engine.device)
        for first in range(0, len(self.packs), ranks):
            own = first + rank
            # Every rank makes as many forwards, or those that share the weights would wait for it.
            terms = self._terms(self.packs[min(own, len(self.packs) - 1)])
            if own < len(self.packs) and leads(self.config.engine, self.engine.rank):
                sums.add(terms)
        means = sums.reduce()
        for number in range(min(self.config.validation.videos, len(self.packs))):
            self._video(step, number)
        return {f"{PREFIX}loss": means.loss, **{PREFIX + name: value for name, value in means.named.items()}}

    def _terms(self, pack: Pack) -> Terms:
        batch = self.collate(pack).to(self.engine.device)
        found = flow_terms(self.engine.evaluate, batch)
        loss = torch.cat(found.losses).sum()
        logged = found.logged(batch, self.family.train_steps)
        return Terms.of(loss, float(loss), found.samples, logged)

    def _video(self, step: int, number: int) -> None:
        """A video of the first caption of held-out sample `number`; the empty caption guides away."""
        pack = self.packs[number]
        text, null, device = self.collate.store.text(pack.samples[0], 0), self.collate.null_text, self.engine.device
        positive, negative = (
            TextFeatures(t.embedding.float()[None], t.mask.bool()[None], t.pooled.float()[None]).to(device)
            for t in (text, null)
        )
        size = (pack.stream.t, pack.stream.h, pack.stream.w)
        sampler, constants = self.config.validation.sampler, self.collate.constants
        latents = self.family.sample(self.engine.evaluate, sampler, positive, negative, size, number, constants)
        if self.engine.rank == 0:
            decoded = np.concatenate(list(self.codec().decode_stream(x.numpy() for x in latents)))
            self.storage.write_bytes(video_path(step, number), encode_mp4(decoded, self.family.frames_per_second))


def video_path(step: int, number: int) -> str:
    """Where a validation's video lies, in the resume state and in the checkpoint."""
    return f"{VIDEOS}/step-{step:08d}-{number:02d}.mp4"


def video_paths(config: TrainConfig, steps: int) -> list[str]:
    """Names that videos of the stage's first `steps` steps may have."""
    every = config.validation.every
    due = sorted({*range(every, steps + 1, every), steps}) if every else []
    return [video_path(step, number) for step in due for number in range(config.validation.videos)]
