"""Captions by a model for many clips: cached answers first, the rest asked for by a bounded number of threads.

Reproducibility. A model behind an endpoint is no pure function: server versions, batching and hardware change its
words even at temperature 0. So an answer is data: it is put into the item store the moment it was judged, under a key
of the clip's pixels and texts, model name and prompt wording, and never asked for again while that store lives. Runs,
resumptions and other recipes over the same store therefore see the same words, and the artifact records them with
model and prompt, so that nothing later depends on the endpoint. Another store may hold other words under one stage
key; artifact ids are digests of content and tell the two apart.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dataprep.captioning.asking import Answer, Asker, Question
from dataprep.captioning.budget import Budget, BudgetError, Usage
from dataprep.captioning.client import Endpoint, EndpointError
from dataprep.captioning.config import RecaptionConfig
from dataprep.captioning.frames import FramesTask, frames_of
from dataprep.captioning.retry import Gate, Stopped
from dataprep.engine import Engine
from dataprep.engines.limits import WorkLimits
from dataprep.quarantine import ItemFailure
from m4v.core.canonical import digest_json
from m4v.core.errors import ConfigError, InfrastructureError, M4VError
from m4v.core.items import ItemStore
from m4v.core.stage import StageContext

ALGORITHM = 1  # raise it when answers come to be judged or pictures to be chosen otherwise
STEP = "recaption"
_WAIT_S = 0.5
_MIN_FOR_RATE = 20  # in a handful of clips one failure is no rate
_IN_A_ROW = 8

Future = concurrent.futures.Future[Answer]


@dataclass(frozen=True)
class Request:
    """What one clip needs: its pictures, and questions about them."""

    task: FramesTask
    questions: tuple[Question, ...]


class Recaptioner:
    """Answers by the keys of their questions in `answers`, and why there is none in `failures`."""

    def __init__(self, context: StageContext, config: RecaptionConfig, work: WorkLimits) -> None:
        self._context, self._config, self._work = context, config, work
        identity = {"model": config.model, "algorithm": ALGORITHM}
        self._store = ItemStore(context.items(STEP, digest_json(identity)))
        self._gate = Gate(config.max_backoff_s)
        self.answers: dict[str, Answer] = {}
        self.failures: dict[str, str] = {}
        self.cached = 0
        self._total = self._in_a_row = self._unanswered = 0
        self._last_error: EndpointError | None = None

    def run(self, requests: Sequence[Request], open_engine: Callable[[], Engine]) -> None:
        """Fill `answers` and `failures`.

        Raises NeedsHuman at a limit of the budget, ConfigError for a request that no endpoint will take,
        InfrastructureError when it fails too often, Drained. What was answered by then is kept in every case.
        """
        missing = self._look_up(requests)
        payer = self._context.request.stage_key
        spent = sum((a.usage for a in self.answers.values() if a.payer == payer), Usage())
        self._budget = Budget(self._config, spent)
        if missing:
            with Endpoint(self._config) as endpoint:
                self._asker = Asker(self._config, endpoint, self._budget, self._gate, self._context.seed, payer)
                self._ask_all(missing, open_engine())
            self._check_rate()
        self._tick()

    def _look_up(self, requests: Sequence[Request]) -> list[Request]:
        """Take what the store holds; the rest, each question once."""
        missing, asked = [], set()
        for number, request in enumerate(requests):
            left = []
            for question in request.questions:
                if question.key in asked:
                    continue
                asked.add(question.key)
                payload = self._store.get(question.key)
                answer = None if payload is None else Answer.unpack(payload)
                if answer is None or (answer.problem is not None and answer.tries < self._config.answers):
                    left.append(question)
                else:
                    self.answers[question.key] = answer
            if left:
                missing.append(Request(request.task, tuple(left)))
            if number % 1000 == 0:
                self._context.check_drain()
        self._total, self.cached = len(asked), len(self.answers)
        return missing

    def _ask_all(self, missing: Sequence[Request], engine: Engine) -> None:
        pool = concurrent.futures.ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="recaption")
        pending: dict[Future, Question] = {}
        try:
            for question, pictures in self._shown(missing, engine):
                pending[pool.submit(self._answered, question, pictures)] = question
                while len(pending) >= 2 * self._config.concurrency:
                    self._collect(pending)
            while pending:
                self._collect(pending)
        except BaseException:
            self._gate.stop()  # what is under way ends and is kept
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _shown(self, missing: Sequence[Request], engine: Engine) -> Iterator[tuple[Question, list[bytes]]]:
        work = self._work
        shown = engine.map(
            frames_of, [request.task for request in missing],
            timeout_s=work.wall_s, cpu_s=work.cpu_s, memory_bytes=work.memory_bytes,
        )  # fmt: skip
        for request, made in zip(missing, shown, strict=True):
            for question in request.questions:
                if isinstance(made, ItemFailure):
                    self.failures[question.key] = f"no pictures: {made.reason} {made.detail}".strip()
                else:
                    yield question, made

    def _answered(self, question: Question, pictures: Sequence[bytes]) -> Answer:
        """In a thread: an answer is in the store before anybody hears of it."""
        answer = self._asker.ask(question, pictures)
        self._store.put(question.key, answer.pack())
        return answer

    def _collect(self, pending: dict[Future, Question]) -> None:
        """Take what is done, waiting half a second at most."""
        done, _ = concurrent.futures.wait(pending, _WAIT_S, concurrent.futures.FIRST_COMPLETED)
        for future in done:
            question = pending.pop(future)
            try:
                self.answers[question.key] = future.result()
                self._in_a_row = 0
            except EndpointError as error:
                self.failures[question.key] = str(error)
                self._failed(error)
            except BudgetError as error:
                raise self._budget.reached(error.field, len(self.answers), self._total) from None
        self._tick()
        self._context.check_drain()

    def _failed(self, error: EndpointError) -> None:
        self._last_error = error
        self._in_a_row += 1
        self._unanswered += 1
        if self._in_a_row >= max(_IN_A_ROW, 2 * self._config.concurrency):
            raise self._out_of_order(f"{self._in_a_row} captions in a row got no answer")

    def _check_rate(self) -> None:
        asked = self._total - self.cached
        is_rate = asked >= _MIN_FOR_RATE or self._unanswered == asked
        if is_rate and self._unanswered > self._config.max_failed * asked:
            raise self._out_of_order(f"{self._unanswered} of {asked} captions got no answer")

    def _out_of_order(self, what: str) -> M4VError:
        error = self._last_error
        kind = ConfigError if error is not None and not error.retry else InfrastructureError
        return kind(
            f"the captioning endpoint fails: {what}", value=str(error), where=self._config.endpoint,
            next_step="look at the endpoint and run again: what it has answered is kept",
        )  # fmt: skip

    def _tick(self) -> None:
        spent = self._budget.spent
        note = f"{spent.tokens} tokens, cost {spent.cost(self._config):.4g}"
        if (retries := self.retries) or self.failures:
            note += f", {retries} sent again, {len(self.failures)} failed"
        self._context.progress.update(len(self.answers) + len(self.failures), self._total, "captions", note)

    @property
    def retries(self) -> int:
        asker = getattr(self, "_asker", None)
        return asker.retries if asker is not None else 0

    def metrics(self) -> dict[str, object]:
        """Numbers of this attempt and what the stage execution has paid for, its earlier attempts included."""
        spent = self._budget.spent
        return {
            "recaption_answers": len(self.answers), "recaption_cached": self.cached,
            "recaption_failed": len(self.failures), "recaption_requests": spent.requests,
            "recaption_prompt_tokens": spent.prompt_tokens, "recaption_completion_tokens": spent.completion_tokens,
            "recaption_cost": round(spent.cost(self._config), 6), "recaption_sent_again": self.retries,
        }  # fmt: skip


__all__ = ["Recaptioner", "Request", "Stopped"]
