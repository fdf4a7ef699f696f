"""Prompts of an evaluation: a list in the recipe, a shipped set by name, or a file.

They are resolved while the recipe is read, so that the stored recipe holds the words themselves and a
changed prompt file is a changed config.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from eval.vbench import i2v_prompts, v2_prompts
from eval.vbench.prompt_suite import SETS, Selection, selected
from eval.vocabulary import Facts, parse_facts
from m4v.core.canonical import digest_json
from m4v.core.config import FrozenModel
from m4v.core.errors import InputError

SEED_STRIDE = 100_000
SEED_RULE = f"seed = base_seed + {SEED_STRIDE} * prompt_index + sample_index"
_DATA = "eval.data"
_LATER_FIELDS = ("scored_as", "number", "samples")


class Prompt(FrozenModel):
    """One prompt. `facts` None means: those that `parse_facts` reads from the text.

    - scored_as: what a lengthened prompt is scored against and named by; None: the text.
    - number: what seeds and file names count by; None: its place in the list.
    - samples: videos of this prompt; None: as many as of the others.

    The last three stand in the canonical form only when they are used, so that older digests hold.
    """

    text: str = Field(min_length=1, max_length=4000)
    facts: Facts | None = None
    scored_as: str | None = Field(default=None, min_length=1, max_length=4000)
    number: int | None = Field(default=None, ge=0, lt=1_000_000)
    samples: int | None = Field(default=None, ge=1, lt=SEED_STRIDE)

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        data: dict[str, object] = handler(self)
        return {k: v for k, v in data.items() if v is not None or k not in _LATER_FIELDS}

    @property
    def stated(self) -> Facts:
        return self.facts if self.facts is not None else parse_facts(self.text)


def shipped_sets() -> list[str]:
    files = [f.name.removesuffix(".json") for f in resources.files(_DATA).iterdir() if f.name.endswith(".json")]
    return sorted([*files, *SETS, v2_prompts.SET])


def resolve_prompts(value: object) -> object:
    """What a recipe may write (set name, file path, part of a suite, list of texts or prompts) as a list of prompts.

    Raises ValueError, which the recipe reader reports with key and value.
    """
    if isinstance(value, str):
        value = _named(value)
    elif isinstance(value, Mapping):
        value = _of_suite(value)
    if not isinstance(value, list | tuple):
        return value
    entries: list[object] = [{"text": v.strip()} if isinstance(v, str) else v for v in value]
    texts = [str(e["text"] if isinstance(e, dict) else getattr(e, "text", e)) for e in entries]
    twice = sorted(t for t, count in Counter(texts).items() if count > 1)
    if twice:
        raise ValueError(f"the prompt {twice[0]!r} stands twice")
    return entries


def _of_suite(value: Mapping[str, object]) -> list[dict[str, object]]:
    try:
        if value.get("suite") == v2_prompts.SET:
            part = v2_prompts.Selection.model_validate(dict(value))
            return v2_prompts.listed(part.dimensions, part.samples)
        return selected(Selection.model_validate(dict(value)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from None


def _named(name: str) -> Sequence[object]:
    if name in SETS:
        return selected(Selection(suite="vbench", variant=SETS[name]))
    if name == i2v_prompts.SET:
        return _of_pictures()
    if name == v2_prompts.SET:
        return v2_prompts.listed(v2_prompts.V2_DIMENSIONS, {})
    path = Path(name)
    if path.suffix not in (".txt", ".json"):
        if name not in shipped_sets():
            near = difflib.get_close_matches(name, shipped_sets(), n=3)
            raise ValueError(
                f"no such prompt set; did you mean {' or '.join(near)}?"
                if near
                else f"no such prompt set; use one of {', '.join(shipped_sets())}, or a .txt or .json file"
            )
        return _from_json((resources.files(_DATA) / f"{name}.json").read_text(), name)
    if not path.is_file():
        raise ValueError("prompt file does not exist")
    if path.suffix == ".txt":
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    return _from_json(path.read_text(), name)


def _of_pictures() -> list[object]:
    """VBench-I2V's, of its data where it lies by default; not among the shipped sets."""
    try:
        entries = i2v_prompts.read_entries(i2v_prompts.default_data())
    except InputError as error:
        raise ValueError(f"{error.what}; {error.next_step}") from None
    return [{"text": text, "number": number} for text, number in {e.prompt: e.number for e in entries}.items()]


def _from_json(text: str, where: str) -> list[object]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error.msg} at line {error.lineno}") from None
    data = data.get("prompts") if isinstance(data, dict) else data
    if not isinstance(data, list):
        raise ValueError(f"{where} holds no list of prompts")
    return [{"text": e["prompt"]} if isinstance(e, dict) and "prompt" in e else e for e in data]


def _check_numbers(prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    if len(set(numbers(prompts))) != len(prompts):
        raise ValueError("two prompts have one number: number all of them, or none")
    return prompts


PromptList = Annotated[
    tuple[Prompt, ...], BeforeValidator(resolve_prompts), AfterValidator(_check_numbers), Field(min_length=1)
]


def numbers(prompts: Sequence[Prompt]) -> list[int]:
    """What seeds and file names count each prompt by."""
    return [place if p.number is None else p.number for place, p in enumerate(prompts)]


def prompt_set_digest(prompts: Iterable[Prompt | str]) -> str:
    """Identity of a prompt set: its texts in order, and where they have them what they are scored as, their numbers
    and their own counts of samples."""
    return digest_json([_identity(p) for p in prompts])


def _identity(prompt: Prompt | str) -> object:
    if isinstance(prompt, str):
        return prompt
    later = {name: getattr(prompt, name) for name in _LATER_FIELDS if getattr(prompt, name) is not None}
    return {"text": prompt.text, **later} if later else prompt.text


@cache
def _names_of_sets() -> Mapping[str, str]:
    named = {name: resolve_prompts(name) for name in shipped_sets()}
    return {
        prompt_set_digest([Prompt.model_validate(e) for e in entries]): name
        for name, entries in named.items()
        if isinstance(entries, list)
    }


def set_name(digest: str) -> str | None:
    """Name of the shipped set that has this `prompt_set_digest`; None for prompts of one's own."""
    return _names_of_sets().get(digest)


def video_seed(base_seed: int, prompt_index: int, sample_index: int) -> int:
    """The VBench team's rule (spec: eval_reward section 2), shifted by `base_seed`: no seed depends on
    batch or worker."""
    return base_seed + SEED_STRIDE * prompt_index + sample_index


def video_name(prompt_index: int, sample_index: int) -> str:
    """`videos/IIII-SSSS.mp4`: by index, since prompts collide on case-insensitive disks."""
    return f"videos/{prompt_index:04d}-{sample_index:04d}.mp4"


def jobs(prompts: Sequence[Prompt], samples_per_prompt: int) -> list[tuple[int, int]]:
    """(prompt number, sample index) of every video, in file order."""
    counts = zip(numbers(prompts), prompts, strict=True)
    return [(number, j) for number, p in sorted(counts, key=lambda pair: pair[0])
            for j in range(p.samples or samples_per_prompt)]  # fmt: skip
