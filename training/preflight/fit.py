"""Refuses a stage that cannot fit its GPUs, and names the nearest setting that does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from m4v.core.errors import ConfigError
from training.preflight.estimate import Estimate, Setup, estimate, work_of
from training.preflight.gpus import GIB, GPUS
from training.preflight.memory import MODES
from training.preflight.sequence import check_shared, sizes_to_share

MOST_DOUBLINGS = 6
LEAST_TOKENS = 256


def check_fits(setup: Setup) -> Estimate | None:
    """The estimate; raises ConfigError with the nearest setting that fits when the GPUs do not hold it, and when ranks
    shall share forwards that cannot."""
    if (work := work_of(setup)) is not None:
        check_shared(setup.model, setup.train, setup.ranks, work, setup.stage)
    found = estimate(setup)
    if found is None or found.fits or setup.gpu is None:
        return found
    largest = max(found.memory._asdict().items(), key=lambda part: part[1])
    raise ConfigError(
        f"stage {setup.stage} does not fit {setup.gpu.name}: a GPU would need {_gib(found.memory_bytes)} and has "
        f"{_gib(setup.gpu.memory_bytes)}; most of it, {_gib(largest[1])}, are {largest[0]}",
        value=f"ZeRO {found.zero_stage}, checkpointing {found.checkpointing}, {setup.ranks} GPUs, packs of up to "
        f"{found.largest_pack_tokens:,} tokens",
        where=setup.stage,
        next_step=suggestion(setup),
    )  # fmt: skip


def suggestion(setup: Setup) -> str:
    """The first change that makes the stage fit, in order of what it costs."""
    for words, changed in _changes(setup):
        found = estimate(changed)
        if found is not None and found.fits:
            return f"{words} ({_gib(found.memory_bytes)} a GPU)"
    return "take a smaller model or larger GPUs: neither sharding nor smaller packs suffice"


def advice(setup: Setup) -> str | None:
    """What ZeRO-2 would gain where ZeRO-3 gathers for each pass and the memory is there; None where it is not."""
    if setup.gpu is None or setup.ranks == 1 or setup.train.engine.zero_stage != 3:
        return None
    found = estimate(_with(setup, engine={"zero_stage": 2}))
    if found is None or not found.fits:
        return None
    engine = setup.train.engine
    if engine.keeps_whole(found.parameters):
        return None  # it receives the weights once a step, too
    passes = 2 if engine.checkpointing == "none" else 3  # weights are gathered for each
    width = 2 if engine.dtype == "bfloat16" and engine.backend == "deepspeed" else 4
    saved = width * found.parameters * (passes * found.packs_per_rank - 1)
    return f"engine.zero_stage: 2 fits too ({_gib(found.memory_bytes)} a GPU) and receives {_gib(saved)} less a step"


def _changes(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Settings from the cheapest to the dearest: less kept, more sharded, both, smaller packs, shared forwards,
    more GPUs."""
    engine = setup.train.engine
    modes = MODES[MODES.index(engine.checkpointing) :]
    for zero in range(engine.zero_stage, 4):
        for mode in modes:
            if (zero, mode) != (engine.zero_stage, engine.checkpointing):
                words = [f"engine.zero_stage: {zero}"] if zero != engine.zero_stage else []
                words += [f"engine.checkpointing: {mode}"] if mode != engine.checkpointing else []
                yield "set " + " and ".join(words), _with(setup, engine={"zero_stage": zero, "checkpointing": mode})
    least = {"zero_stage": 3, "checkpointing": "block"}
    tokens = setup.train.order.tokens_per_pack
    for _ in range(MOST_DOUBLINGS):
        tokens //= 2
        if tokens < LEAST_TOKENS:
            break
        words_ = f"set engine.zero_stage: 3, engine.checkpointing: block and order.tokens_per_pack: {tokens}"
        yield words_, _with(setup, engine=least, order={"tokens_per_pack": tokens})
    for shared in sizes_to_share(setup.model, setup.train, setup.ranks, work_of(setup)):
        words_ = f"set engine.zero_stage: 3, engine.checkpointing: block and engine.sequence_parallel: {shared}"
        yield words_, _with(setup, engine={**least, "sequence_parallel": shared})
    for doublings in range(1, MOST_DOUBLINGS + 1):
        ranks = setup.ranks << doublings
        packs = max(setup.train.order.packs, ranks)
        packs += -packs % ranks
        also = f", order.packs: {packs}" if packs != setup.train.order.packs else ""
        changed = replace(_with(setup, engine=least, order={"packs": packs}), ranks=ranks)
        yield f"set engine.zero_stage: 3, engine.checkpointing: block and take {ranks} GPUs{also}", changed
    for gpu in sorted(GPUS.values(), key=lambda g: g.memory_bytes):
        if setup.gpu is not None and gpu.memory_bytes > setup.gpu.memory_bytes:
            yield f"take GPUs of type {gpu.name}", replace(_with(setup, engine=least), gpu=gpu)


def _with(setup: Setup, **sections: dict[str, object]) -> Setup:
    changed = {name: getattr(setup.train, name).model_copy(update=values) for name, values in sections.items()}
    return replace(setup, train=setup.train.model_copy(update=changed))


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
