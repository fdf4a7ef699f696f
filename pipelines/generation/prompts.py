"""What is to be generated: prompts from the command line or a file, and the videos (jobs) they ask for."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from eval.prompts import PromptList
from m4v.core.config import FrozenModel, parse
from m4v.core.errors import ConfigError, InputError

MAX_SEED = 2**53 - 1  # the largest integer that JSON carries exactly
_SLUG_CHARS = 40


class PromptLine(FrozenModel):
    """One line of a JSONL prompts file. What is left out comes from the command line."""

    prompt: str = Field(max_length=4000)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    negative: str | None = Field(None, max_length=4000)
    image: str | None = None

    @field_validator("prompt")
    @classmethod
    def _said(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("a prompt may not be empty")
        return prompt.strip()


@dataclass(frozen=True)
class Job:
    """One video. `index` is that of its prompt, from 0; `negative` None means the sampler's own."""

    index: int
    prompt: str
    seed: int
    negative: str | None = None
    image: Path | None = None

    @property
    def name(self) -> str:
        """`0003-a-red-circle-s7.mp4`: index and seed make it unique, also where A and a are one letter."""
        return "-".join(filter(None, [f"{self.index:04d}", slug(self.prompt), f"s{self.seed}"])) + ".mp4"


def slug(text: str) -> str:
    """Lower-case ASCII words of `text` joined by hyphens, cut at a word; empty for a text without any."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = "-".join(re.findall(r"[a-z0-9]+", plain))
    if len(words) <= _SLUG_CHARS:
        return words
    cut = words[: _SLUG_CHARS + 1]
    return (cut.rpartition("-")[0] or cut[:_SLUG_CHARS]).strip("-")


def read_prompts(path: Path) -> list[PromptLine]:
    """A text file with one prompt a line, JSONL (by its suffix, or a first line that begins with a brace), or what an
    evaluation takes: a `.json` list or the name of a shipped set.

    Blank lines are passed over; `image` paths are relative to the file. Raises InputError for a file that is
    missing, empty or not UTF-8, ConfigError naming the line of a wrong one.
    """
    if path.suffix == ".json" or not (path.suffix or path.exists()):
        return _prompt_set(str(path))
    if not path.is_file():
        raise InputError(
            "prompts file does not exist", value=str(path), next_step="give --prompts FILE or --prompt TEXT"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"prompts file is not UTF-8 text ({error.reason})", value=str(path)) from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError("prompts file holds no prompt", value=str(path), next_step="write one prompt a line")
    if path.suffix != ".jsonl" and not numbered[0][1].startswith("{"):
        return [parse(PromptLine, {"prompt": line}, f"{path}, line {number}") for number, line in numbered]
    return [_from_json(path, number, line) for number, line in numbered]


def _prompt_set(name: str) -> list[PromptLine]:
    try:
        entries = TypeAdapter(PromptList).validate_python(name)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise InputError(said, value=name, next_step="give --prompts FILE or --prompt TEXT") from None
    return [PromptLine(prompt=entry.text) for entry in entries]


def _from_json(path: Path, number: int, line: str) -> PromptLine:
    where = f"{path}, line {number}"
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"line is not JSON: {error.msg}", value=line[:80], where=where, next_step='write {"prompt": "…"} a line'
        ) from None
    if not isinstance(data, dict):
        raise ConfigError("line is no JSON object", value=line[:80], where=where, next_step='write {"prompt": "…"}')
    found = parse(PromptLine, data, where)
    if found.image is None:
        return found
    return found.model_copy(update={"image": str(path.parent / found.image)})


def jobs_of(
    lines: Sequence[PromptLine], *, seed: int = 0, samples: int = 1, negative: str | None = None,
    image: Path | None = None,
) -> list[Job]:  # fmt: skip
    """`samples` videos a prompt, with the seeds s, s + 1, …; s is the line's own seed, else `seed`.

    Seeds do not depend on the prompt's place, so an order changes no video. Raises InputError for no prompt, an image
    that is missing or a video that is asked for twice.
    """
    if not lines:
        raise InputError("nothing to generate", next_step="give --prompt TEXT or --prompts FILE")
    jobs = []
    for index, line in enumerate(lines):
        picture = Path(line.image) if line.image is not None else image
        first = seed if line.seed is None else line.seed
        own = line.negative if line.negative is not None else negative
        jobs += [Job(index, line.prompt, first + n, own, picture) for n in range(samples)]
    _check_images({job.image for job in jobs if job.image is not None})
    _check_once(jobs)
    return jobs


def _check_images(images: Iterable[Path]) -> None:
    for image in sorted(images):
        if not image.is_file():
            raise InputError("image file does not exist", value=str(image), next_step="correct the path of the image")


def _check_once(jobs: Sequence[Job]) -> None:
    seen: dict[tuple[str, int, str | None, Path | None], int] = {}
    for job in jobs:
        key = (job.prompt, job.seed, job.negative, job.image)
        if seen.setdefault(key, job.index) != job.index:
            raise InputError(
                f"prompts {seen[key]} and {job.index} (counted from 0) ask for the same video with seed {job.seed}",
                value=job.prompt, next_step="remove one of them or give it another seed",
            )  # fmt: skip
