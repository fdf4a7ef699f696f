"""Answers of a model, judged before they become captions: form, length, language, refusals, leaked instructions."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from typing import Any, NamedTuple

from dataprep.captioning.clean import CUT, Words, shorten
from dataprep.captioning.config import PromptName
from dataprep.captioning.prompts import LANGUAGES, addresses_a_model, system_text
from dataprep.sources.text import clean_caption, repairs

MAX_CONTENT_CHARS = 8000
_MOST_WORDS: dict[PromptName, int] = {"detailed-1": 180, "short-1": 50}
_FEWEST_WORDS = 4
_CHARS_PER_TOKEN = 4  # for endpoints that do not say what an answer cost
_LEAK_WORDS = 6
_LOOP_WORDS, _LOOP_TIMES = 6, 4

_FENCE = re.compile(r"^```[a-z]*\s*|\s*```$", re.IGNORECASE)
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_PARTIAL = re.compile(r'"caption"\s*:\s*"((?:[^"\\]|\\.)*)')
_SENTENCE = re.compile(r"[.!?。！？][\"'”’)]*(?=\s|$)|[。！？]")
_REFUSAL = re.compile(
    r"^\W*(?:i['’]?m\s+(?:sorry|afraid|unable)|(?:i\s+)?apologi[sz]e|sorry\b|unfortunately,?\s+i\b|as\s+an?\s+(?:ai|language)\b)"
    r"|\bi\s+(?:can(?:['’]t|not)|am\s+(?:unable|not\s+able)|won['’]t|will\s+not)\b.{0,60}"
    r"\b(?:help|assist|describe|provide|comply|fulfil|identify|view|see|process|continue)"
    r"|\bas\s+an?\s+(?:ai|language)\s+(?:language\s+)?(?:model|assistant)\b|^\W*(?:抱歉|对不起|很抱歉|我无法|作为)",
    re.IGNORECASE | re.DOTALL,
)
_MARKUP = re.compile(r"https?://|www\.|\]\(|</?[a-zA-Z][^>]*>|```|^\s*[#*-]\s|\{\s*\"", re.MULTILINE)
_ENGLISH = frozenset(
    {
        "a", "an", "the", "of", "in", "on", "and", "with", "is", "are", "to", "at", "by", "its", "it", "as", "for",
        "from", "while", "that", "his", "her", "their", "into", "over", "under", "near",
    }
)  # fmt: skip
_MIN_ENGLISH, _MIN_SCRIPT = 0.12, 0.9


class AnswerError(Exception):
    """This answer is of no use. `kind` is one word of: malformed, empty, refused, too_long, too_short, repeats,
    leak, markup, language; `endpoint`: what came is no completion at all, so that asking again may help."""

    def __init__(self, kind: str, detail: str = "", *, endpoint: bool = False) -> None:
        self.kind, self.detail, self.endpoint = kind, detail, endpoint
        super().__init__(kind, detail)

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Completion(NamedTuple):
    """A completion as the endpoint gave it. `measured`: the endpoint said how many tokens it counted."""

    content: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    measured: bool


class Judged(NamedTuple):
    """A usable caption; `flags` say what was repaired."""

    caption: str
    flags: tuple[str, ...]


def read_completion(body: bytes, asked_chars: int) -> Completion:
    """Raises AnswerError with `endpoint` for bytes that are no chat completion. `asked_chars` of text were sent."""
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        start = body[:40].decode("utf-8", "replace").strip()
        raise AnswerError("malformed", f"the body is not JSON but {start!r}", endpoint=True) from None
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
        raise AnswerError("malformed", "the body has no list of choices", endpoint=True)
    content, finish = _content(answer["choices"])
    usage = answer.get("usage")
    counts = [usage.get(k) if isinstance(usage, dict) else None for k in ("prompt_tokens", "completion_tokens")]
    measured = all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts)
    prompt, completion = counts if measured else (asked_chars // _CHARS_PER_TOKEN, len(content) // _CHARS_PER_TOKEN)
    return Completion(content, finish, int(prompt or 0), int(completion or 0), measured)


def _content(choices: list[Any]) -> tuple[str, str]:
    """Text and finish reason of the first choice; both empty when there is none."""
    choice: dict[str, Any] = choices[0] if choices and isinstance(choices[0], dict) else {}
    said = choice.get("message")
    message: dict[str, Any] = said if isinstance(said, dict) else {}
    finish = choice.get("finish_reason")
    if message.get("refusal"):
        return "", "content_filter"
    content = message.get("content")
    if isinstance(content, list):  # parts
        content = "".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
    return content if isinstance(content, str) else "", finish if isinstance(finish, str) else ""


def judge(completion: Completion, prompt: PromptName, language: str, nonce: str) -> Judged:
    """The caption of a completion; raises AnswerError with the reason when it must not be used."""
    content = _THOUGHTS.sub("", completion.content).strip()
    if completion.finish == "content_filter":
        raise AnswerError("refused", "by the endpoint's filter")
    if not content:
        raise AnswerError("empty")
    if nonce in content:
        raise AnswerError("leak", "it holds the code of the data block")
    if len(content) > MAX_CONTENT_CHARS:
        raise AnswerError("too_long", f"{len(content)} characters")
    if _REFUSAL.search(content[:400]):
        raise AnswerError("refused")
    raw = _caption_in(content, completion.finish)
    plain = clean_caption(raw, MAX_CONTENT_CHARS)
    if plain.problem is not None:
        raise AnswerError("empty" if plain.problem == "missing_caption" else "malformed")
    _check(raw, plain.text, prompt, language)
    text, _ = shorten(plain.text, Words(), _MOST_WORDS[prompt])
    if not text:
        raise AnswerError("too_long", "no words to end at")
    cut = text != plain.text or completion.finish == "length"
    return Judged(text, (*repairs(raw), CUT) if cut else repairs(raw))


def _caption_in(content: str, finish: str) -> str:
    """The value of `caption`; of an answer that was cut off, its whole sentences."""
    try:
        answer = json.loads(_FENCE.sub("", content))
    except (ValueError, RecursionError):
        if finish != "length":
            raise AnswerError("malformed", "it is not the JSON object that was asked for") from None
        return _whole_sentences(content)
    if not isinstance(answer, dict) or not isinstance(answer.get("caption"), str):
        raise AnswerError("malformed", "it has no text `caption`")
    if set(answer) != {"caption"}:
        raise AnswerError("malformed", "it has other keys beside `caption`")
    return str(answer["caption"])


def _whole_sentences(content: str) -> str:
    found = _PARTIAL.search(content)
    text = str(json.loads(f'"{found[1]}"', strict=False)) if found else ""
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    if not ends:
        raise AnswerError("too_long", "cut off by max_tokens before a sentence ended")
    return text[: ends[-1]]


def _check(raw: str, text: str, prompt: PromptName, language: str) -> None:
    if _REFUSAL.search(text[:400]):
        raise AnswerError("refused")
    if _MARKUP.search(raw):
        raise AnswerError("markup", "it holds links or markup")
    if addresses_a_model(text) or _quotes(text, system_text(prompt, language, "")):
        raise AnswerError("leak", "it repeats instructions")
    if not _in_language(text, language):
        raise AnswerError("language", f"it is not in {LANGUAGES[language]}")
    words = text.lower().split()
    if language != "zh" and len(words) < _FEWEST_WORDS:
        raise AnswerError("too_short", f"{len(words)} words")
    runs = Counter(tuple(words[i : i + _LOOP_WORDS]) for i in range(len(words) - _LOOP_WORDS + 1))
    if runs and max(runs.values()) >= _LOOP_TIMES:
        raise AnswerError("repeats", "it says one thing again and again")


def _quotes(text: str, instructions: str) -> bool:
    """Does `text` share a run of words with the instructions?"""
    said, given = (re.findall(r"\w+", t.lower()) for t in (text, instructions))
    known = {tuple(given[i : i + _LEAK_WORDS]) for i in range(len(given) - _LEAK_WORDS + 1)}
    return any(tuple(said[i : i + _LEAK_WORDS]) in known for i in range(len(said) - _LEAK_WORDS + 1))


def _in_language(text: str, language: str) -> bool:
    """By script, and for English by its function words. A test of plausibility, no language identification."""
    letters = [c for c in text if c.isalpha()]
    if language == "any":
        return True
    script = {"en": "LATIN", "zh": "CJK"}[language]
    own = sum(unicodedata.name(c, "").startswith(script) for c in letters)
    if language == "zh":
        return own >= len(letters) / 2 > 0
    words = re.findall(r"[a-z']+", text.lower())
    common = sum(word in _ENGLISH for word in words)
    return own >= _MIN_SCRIPT * len(letters) > 0 and (len(words) < 10 or common >= _MIN_ENGLISH * len(words))
