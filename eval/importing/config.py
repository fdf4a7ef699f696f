"""Config of the stage `import_videos`; torch-free."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from eval.prompts import SEED_STRIDE, PromptList
from m4v.core.config import FrozenModel


class ImportVideosConfig(FrozenModel):
    """What is taken from a folder of another system's videos.

    - system: its name as pages show it. source: an address or words; licence: its words. Both are kept with the videos.
    - state: digest of the folder when the import was asked for (`collection_state`): another one is another import.
    - prompts, samples_per_prompt: every video that must be there.
    - names: how files are called. `prompt`: `PROMPT-SAMPLE.mp4`, the prompt as it is scored, as VBench has it;
      `prompt180`: of its first 180 characters, as VBench-2.0 has it; `index`: `0012-0003.mp4`, the prompt's number and
      the sample's; `map`: as `files` says.
    - files: prompt by file name. A prompt's files are its samples in the order of their names.
    - bad: what becomes of the import when a video is missing, does not decode or is none of the protocol's. `refuse`:
      there is none. `quarantine`: prompts with such a video are left out whole and named, since a score over what
      happens to be there is comparable with nothing.
    """

    system: str = Field(pattern=r"^[\w][\w .+()-]{0,59}$")
    source: str = Field(min_length=1, max_length=1000)
    licence: str = Field(min_length=1, max_length=1000)
    state: str = Field(pattern=r"^[0-9a-f]{64}$")
    prompts: PromptList
    samples_per_prompt: int = Field(default=1, ge=1, lt=SEED_STRIDE)
    names: Literal["prompt", "prompt180", "index", "map"] = "prompt"
    files: dict[str, str] = {}
    bad: Literal["refuse", "quarantine"] = "refuse"

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {name: value for name, value in handler(self).items() if name != "files" or value}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.names == "map") != bool(self.files):
            raise ValueError("files: given with `names: map`, and only there")
        return self
