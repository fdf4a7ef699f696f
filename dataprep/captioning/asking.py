"""One caption asked for until an answer can be used or the tries are over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dataprep.captioning.answers import AnswerError, Completion, judge, read_completion
from dataprep.captioning.budget import Budget, Usage
from dataprep.captioning.client import Endpoint, EndpointError
from dataprep.captioning.config import PromptName, RecaptionConfig
from dataprep.captioning.prompts import nonce_of, request_body
from dataprep.captioning.retry import Gate


@dataclass(frozen=True)
class Question:
    """One caption of one clip. `texts`: what the collection says of it, labelled. `key`: its place in the store."""

    key: str
    clip_id: str
    prompt: PromptName
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Answer:
    """What became of a question. `problem`: why no answer could be used, None with a caption; `tries`: how many there
    were. `payer`: the stage key under which they were paid for."""

    caption: str
    flags: tuple[str, ...]
    problem: str | None
    tries: int
    usage: Usage
    payer: str

    def pack(self) -> bytes:
        return json.dumps({**vars(self), "usage": vars(self.usage)}, sort_keys=True).encode()

    @classmethod
    def unpack(cls, payload: bytes) -> Answer:
        made = json.loads(payload)
        return cls(
            made["caption"], tuple(made["flags"]), made["problem"], made["tries"], Usage(**made["usage"]), made["payer"]
        )  # fmt: skip


class Asker:
    """Asks questions from any thread. `retries` counts requests that had to be sent again."""

    def __init__(
        self, config: RecaptionConfig, endpoint: Endpoint, budget: Budget, gate: Gate, seed: int, payer: str
    ) -> None:
        self._config, self._endpoint, self._budget, self._gate = config, endpoint, budget, gate
        self._seed, self._payer = seed, payer
        self.retries = 0

    def ask(self, question: Question, pictures: Sequence[bytes]) -> Answer:
        """Raises EndpointError after the last try, BudgetError at a limit, Stopped, and what `Endpoint.ask` raises."""
        nonce = nonce_of(self._seed, question.clip_id, question.prompt)
        usage, complaint, problem = Usage(), None, ""
        for tries in range(1, self._config.answers + 1):
            body = request_body(self._config, question.prompt, nonce, pictures, question.texts, complaint)
            completion, used = self._complete(body, question.key)
            usage += used
            try:
                judged = judge(completion, question.prompt, self._config.language, nonce)
            except AnswerError as error:
                complaint, problem = error.kind, str(error)
                continue
            return Answer(judged.caption, judged.flags, None, tries, usage, self._payer)
        return Answer("", (), problem, self._config.answers, usage, self._payer)

    def _complete(self, body: dict[str, object], key: str) -> tuple[Completion, Usage]:
        used = Usage()
        for attempt in range(self._config.attempts):
            self._gate.enter()
            try:
                completion, cost = self._once(body)
            except EndpointError as error:
                used += Usage(int(error.kind != "unreachable"))
                if not error.retry or attempt + 1 == self._config.attempts:
                    raise
                self.retries += 1
                if error.wait_s is not None:
                    self._gate.pause(error.wait_s)
                self._gate.rest(attempt, key)
            else:
                return completion, used + cost
        raise AssertionError("attempts is at least 1")

    def _once(self, body: dict[str, object]) -> tuple[Completion, Usage]:
        """One request, counted whatever becomes of it."""
        self._budget.take()
        usage = Usage()
        try:
            usage = Usage(1)  # a request that got no answer is one all the same
            received = self._endpoint.ask(body)
            completion = read_completion(received, _text_chars(body))
            usage = Usage(1, completion.prompt_tokens, completion.completion_tokens)
        except EndpointError as error:
            usage = Usage(int(error.kind != "unreachable"))
            raise
        except AnswerError as error:
            raise EndpointError(error.kind, error.detail, retry=True) from None
        finally:
            self._budget.settle(usage)
        return completion, usage


def _text_chars(body: dict[str, object]) -> int:
    """Characters of text in a request, without its pictures."""
    messages: Any = body["messages"]
    parts = [part for m in messages for part in ([m] if isinstance(m["content"], str) else m["content"])]
    return sum(len(part.get("text") or part.get("content") or "") for part in parts)
