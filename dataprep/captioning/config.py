"""Configuration of caption clean-up and re-captioning (section `captions` of the curate stage). Torch-free."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from m4v.core.config import FrozenModel
from m4v.text.config import TextEncoderConfig

PromptName = Literal["detailed-1", "short-1"]

# Where and how fast requests go, and what they may cost: none of it is part of what is asked for.
_OPERATIONAL = frozenset(
    {
        "endpoint", "api_key_env", "timeout_s", "concurrency", "attempts", "max_backoff_s", "max_requests", "max_cost",
        "price_prompt_per_1k", "price_completion_per_1k", "max_failed",
    }
)  # fmt: skip


class RecaptionConfig(FrozenModel):
    """New captions from a vision language model behind an OpenAI-compatible endpoint.

    What is asked for (these fields are part of the stage's identity):

    - `which`: clips without a caption, every kept clip, or (`filter`) those whose captions all have under
      `min_words` words, or none. Every name in `prompts` gives one caption a clip.
    - `frames` pictures of at most `frame_side` pixels are shown, spread over the clip; with `context` also what the
      collection says of it, framed as untrusted data.
    - `combine`: the model's captions before or after those of the source, or in their place.
    - `on_failure`: a clip for which no usable answer came keeps its source captions, or goes to the quarantine.

    How (no part of the identity; `endpoint` ends before `/chat/completions`):

    - `api_key_env` names the environment variable that holds the key. The key itself is kept nowhere.
    - `timeout_s` for a whole answer, `attempts` in all at a request that the endpoint fails to answer, with at most
      `max_backoff_s` between two.
    - `max_requests` and `max_cost` (in the currency of the two prices, per 1,000 tokens) bound one stage execution
      with all its resumptions; the stage stops there and asks for a decision. Answers that are paid for are kept.
    - `max_failed`: share of clips without an answer from the endpoint past which the stage fails and may be retried.
    """

    model: str = Field(min_length=1, max_length=200)
    which: Literal["missing", "all", "filter"] = "missing"
    min_words: int = Field(8, ge=1)
    prompts: tuple[PromptName, ...] = Field(("detailed-1",), min_length=1)
    frames: int = Field(4, ge=1, le=32)
    frame_side: int = Field(512, ge=64, le=2048)
    context: bool = True
    language: Literal["en", "zh", "any"] = "en"
    max_tokens: int = Field(300, ge=16, le=4096)
    temperature: float = Field(0.0, ge=0, le=2)
    answers: int = Field(2, ge=1, le=5)  # how often an unusable answer is asked for again, the first included
    combine: Literal["first", "last", "replace"] = "first"
    on_failure: Literal["keep", "quarantine"] = "keep"

    endpoint: str = "http://127.0.0.1:8000/v1"
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    timeout_s: float = Field(120, gt=0)
    concurrency: int = Field(4, ge=1, le=256)
    attempts: int = Field(5, ge=1, le=20)
    max_backoff_s: float = Field(60, ge=0)
    max_requests: int | None = Field(None, ge=1)
    max_cost: float | None = Field(None, gt=0)
    price_prompt_per_1k: float = Field(0, ge=0)
    price_completion_per_1k: float = Field(0, ge=0)
    max_failed: float = Field(0.05, ge=0, le=1)

    @field_validator("endpoint")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("endpoint is an http or https URL such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("endpoint carries no credentials, query or fragment; a key goes where api_key_env says")
        return value.rstrip("/").removesuffix("/chat/completions")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.prompts)) != len(self.prompts):
            raise ValueError(f"prompts {list(self.prompts)} names one twice")
        if self.max_cost is not None and not (self.price_prompt_per_1k or self.price_completion_per_1k):
            raise ValueError("max_cost needs price_prompt_per_1k or price_completion_per_1k")
        return self

    def key_config(self) -> dict[str, object]:
        """What is asked for, without where and how fast."""
        return {name: value for name, value in self.canonical().items() if name not in _OPERATIONAL}


class CaptionConfig(FrozenModel):
    """Clean-up of the captions that sources give, and new ones.

    `count` and `max_tokens` (null: all slots of the encoder) bound the length; longer captions end at a sentence or
    word. Tokens are those of `text_encoder`, in a recipe that of `encode` unless stated; without one words are counted.
    `max_captions`: a clip keeps its first so many.
    """

    count: Literal["tokens", "words"] = "tokens"
    text_encoder: TextEncoderConfig | None = None
    max_tokens: int | None = Field(None, ge=4)
    max_captions: int = Field(16, ge=1)
    recaption: RecaptionConfig | None = None

    @property
    def counting(self) -> TextEncoderConfig | None:
        """The encoder whose tokens are counted; None for words."""
        return None if self.count == "words" else self.text_encoder

    @property
    def limit(self) -> int | None:
        """Longest caption, in tokens with the encoder's marks, or in words; None: no limit."""
        encoder = self.counting
        if encoder is None:
            return self.max_tokens
        return encoder.slots if self.max_tokens is None else min(self.max_tokens, encoder.slots)

    @property
    def writes_missing(self) -> bool:
        """A clip without a caption will get one."""
        return self.recaption is not None

    def key_config(self) -> dict[str, object]:
        recaption = None if self.recaption is None else self.recaption.key_config()
        return {**self.canonical(), "recaption": recaption}
