"""The loop of a step: when it reads what the device computed, and whom it names."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from training.clock import StepClock
from training.config import EngineConfig, GuardConfig, OptimizerConfig, OrderConfig, TrainConfig
from training.engine import init_process_group
from training.guard import Guard
from training.objective import Logged, Terms
from training.order import StepSize
from training.stepping import Outcome, Stepper, settled_heap

CONFIG = TrainConfig(
    name="looped", steps=2, order=OrderConfig(packs=3), optimizer=OptimizerConfig(lr=0.1, warmup_steps=0),
    engine=EngineConfig(), save_every=1, guard=GuardConfig(not_finite="skip"),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    init_process_group(0, 1, 60)
    yield
    distributed.destroy_process_group()


class Descent:
    """An engine that learns one number."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, events: list[str]) -> None:
        self.weight, self.events = torch.ones((), requires_grad=True), events

    def backward(self, loss: Tensor) -> None:
        self.events.append("backward")
        loss.backward()

    def step(self, lr: float, accept: Callable[[float], bool]) -> float:
        assert self.weight.grad is not None
        norm = abs(float(self.weight.grad))
        if accept(norm):
            self.weight.data -= lr * self.weight.grad
        self.weight.grad = None
        return norm


class Product:
    """The loss of a pack is its number times the engine's."""

    names = ("loss_low",)

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def __call__(self, engine: Descent, batch: Any, size: StepSize) -> Terms:
        self.events.append("forward")
        loss = engine.weight * batch.number
        value = loss.detach()

        def read() -> tuple[float, Logged]:
            self.events.append("read")
            return float(value), {"loss_low": (float(value), 1)}

        return Terms(loss, 1, read)


def taken(*numbers: float) -> tuple[Outcome, list[str], float]:
    events: list[str] = []
    engine, size = Descent(events), StepSize(samples=len(numbers), tokens=9, high=0)
    order: Any = SimpleNamespace(step_size=lambda step: size, media=lambda step: "video")
    settings: Any = (CONFIG, order, Product(events), engine, None, Guard(CONFIG.guard), {}, lambda: None)
    batches: Any = [SimpleNamespace(number=n, pack=SimpleNamespace(samples=[f"clip {n}"])) for n in numbers]
    outcome = Stepper(*settings).take(0, batches, StepClock(engine.device), drain=False)
    return outcome, events, float(engine.weight.detach())


def test_numbers_are_read_once_and_behind_the_last_pack() -> None:
    outcome, events, weight = taken(1.0, 2.0, 6.0)
    assert events == ["forward", "backward"] * 3 + ["read"] * 3
    assert (outcome.row["loss"], outcome.row["loss_low"], outcome.row["samples"]) == (3.0, 3.0, 3)
    assert outcome.broken == ()
    assert weight == pytest.approx(1 - 0.1 * 3)


def test_samples_of_packs_that_are_not_finite_are_named_in_their_order() -> None:
    outcome, events, weight = taken(math.inf, 2.0, math.nan)
    assert outcome.broken == ("clip inf", "clip nan")
    assert (outcome.row["loss"], outcome.row["skipped"]) == (None, "loss is not finite")
    assert events.count("backward") == 3
    assert weight == 1


def test_terms_behind_a_backward_pass_hold_no_graph() -> None:
    x = torch.ones((), requires_grad=True)
    terms = Terms.of(x * 2, 2.0, 1, {"loss_low": (2.0, 1)}).after_backward()
    assert terms.loss.grad_fn is None
    assert (terms.flow, terms.logged) == (2.0, {"loss_low": (2.0, 1)})


def test_what_is_there_before_a_loop_is_the_collectors_again_behind_it() -> None:
    @settled_heap()
    def loop() -> int:
        return gc.get_freeze_count()

    before = gc.get_freeze_count()
    assert loop() > 1000
    with pytest.raises(RuntimeError), settled_heap():
        raise RuntimeError
    assert gc.get_freeze_count() <= before
