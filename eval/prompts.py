"""Prompts of an evaluation: a list in the recipe, a shipped set by name, or a file.

They are resolved while the recipe is read, so that the stored recipe holds the words themselves and a
changed prompt file is a changed config.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from eval.vocabulary import Facts, parse_facts
from m4v.core.canonical import digest_json
from m4v.core.config import FrozenModel

SEED_STRIDE = 100_000
SEED_RULE = f"seed = base_seed + {SEED_STRIDE} * prompt_index + sample_index"
_DATA = "eval.data"


class Prompt(FrozenModel):
    """One prompt. `facts` None means: those that `parse_facts` reads from the text."""

    text: str = Field(min_length=1, max_length=4000)
    facts: Facts | None = None

    @property
    def stated(self) -> Facts:
        return self.facts if self.facts is not None else parse_facts(self.text)


def shipped_sets() -> list[str]:
    return sorted(f.name.removesuffix(".json") for f in resources.files(_DATA).iterdir() if f.name.endswith(".json"))


def resolve_prompts(value: object) -> object:
    """What a recipe may write (set name, file path, list of texts or prompts) as a list of prompts.

    Raises ValueError, which the recipe reader reports with key and value.
    """
    if isinstance(value, str):
        value = _named(value)
    if not isinstance(value, list | tuple):
        return value
    entries: list[object] = [{"text": v.strip()} if isinstance(v, str) else v for v in value]
    texts = [str(e["text"] if isinstance(e, dict) else getattr(e, "text", e)) for e in entries]
    twice = sorted({t for t in texts if texts.count(t) > 1})
    if twice:
        raise ValueError(f"the prompt {twice[0]!r} stands twice")
    return entries


def _named(name: str) -> list[object]:
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


def _from_json(text: str, where: str) -> list[object]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error.msg} at line {error.lineno}") from None
    data = data.get("prompts") if isinstance(data, dict) else data
    if not isinstance(data, list):
        raise ValueError(f"{where} holds no list of prompts")
    return [{"text": e["prompt"]} if isinstance(e, dict) and "prompt" in e else e for e in data]


PromptList = Annotated[tuple[Prompt, ...], BeforeValidator(resolve_prompts), Field(min_length=1)]


def prompt_set_digest(prompts: Iterable[Prompt | str]) -> str:
    """Identity of a prompt set: its texts in order."""
    return digest_json([p if isinstance(p, str) else p.text for p in prompts])


def video_seed(base_seed: int, prompt_index: int, sample_index: int) -> int:
    """The VBench team's rule (spec: eval_reward section 2), shifted by `base_seed`: no seed depends on
    batch or worker."""
    return base_seed + SEED_STRIDE * prompt_index + sample_index


def video_name(prompt_index: int, sample_index: int) -> str:
    """`videos/IIII-SSSS.mp4`: by index, since prompts collide on case-insensitive disks."""
    return f"videos/{prompt_index:04d}-{sample_index:04d}.mp4"


def jobs(prompts: Sequence[Prompt], samples_per_prompt: int) -> list[tuple[int, int]]:
    """(prompt index, sample index) of every video, in file order."""
    return [(i, j) for i in range(len(prompts)) for j in range(samples_per_prompt)]
