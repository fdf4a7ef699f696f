"""What requests cost, and the limits past which none is sent."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from dataprep.captioning.config import RecaptionConfig
from m4v.core.errors import NeedsHuman

_FIRST_GUESS_PER_PICTURE = 1500  # prompt tokens, until the endpoint has said what a request counts


@dataclass(frozen=True)
class Usage:
    """Requests and tokens that were paid for."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests, self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )  # fmt: skip

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def cost(self, config: RecaptionConfig) -> float:
        """In the currency of the config's prices."""
        prompt, completion = config.price_prompt_per_1k, config.price_completion_per_1k
        return (self.prompt_tokens * prompt + self.completion_tokens * completion) / 1000


class BudgetError(Exception):
    """A limit would be passed; `field` is the limit's name."""

    def __init__(self, field: str) -> None:
        self.field = field
        super().__init__(field)


class Budget:
    """Counts for all threads. Requests under way are held at the dearest that one has been so far."""

    def __init__(self, config: RecaptionConfig, spent: Usage) -> None:
        self._config, self._lock = config, threading.Lock()
        self.spent, self._open = spent, 0
        self._dearest = config.frames * _FIRST_GUESS_PER_PICTURE

    def take(self) -> None:
        """Before a request; raises BudgetError when it may pass a limit."""
        config = self._config
        with self._lock:
            requests = self.spent.requests + self._open + 1
            if config.max_requests is not None and requests > config.max_requests:
                raise BudgetError("max_requests")
            if config.max_cost is not None:
                held = Usage(0, self._dearest * (self._open + 1), config.max_tokens * (self._open + 1))
                if (self.spent + held).cost(config) > config.max_cost:
                    raise BudgetError("max_cost")
            self._open += 1

    def settle(self, usage: Usage) -> None:
        """After a request that `take` let through."""
        with self._lock:
            self._open -= 1
            if usage.prompt_tokens and self.spent.prompt_tokens == 0:
                self._dearest = 0  # a first true figure in the place of the guess
            self._dearest = max(self._dearest, usage.prompt_tokens)
            self.spent += usage

    def reached(self, field: str, done: int, total: int) -> NeedsHuman:
        spent, cost = self.spent, self.spent.cost(self._config)
        return NeedsHuman(
            f"re-captioning stopped at its limit {field} with {done} of {total} captions written",
            value=f"{spent.requests} requests, {spent.tokens} tokens, cost {cost:.4g}",
            where="curate.captions.recaption",
            next_step=f"raise captions.recaption.{field} and run again: what is written is kept and not paid for twice",
        )
