"""Config of the stage `vbench`, and where its interpreters and weights lie; torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from eval.suites import Mode
from eval.vbench.constants import CUSTOM_DIMENSIONS, DIMENSIONS
from eval.vbench.environment import EnvironmentName, SuiteName, default_python
from eval.vbench.i2v_prompts import I2V_DIMENSIONS
from eval.vbench.long import LONG_CUSTOM_DIMENSIONS
from eval.vbench.v2_prompts import V2_DIMENSIONS, rules
from m4v.core.config import FrozenModel

TITLES: Mapping[str, str] = {
    "vbench": "VBench",
    "vbench-long": "VBench-Long",
    "vbench2": "VBench-2.0",
    "vbench-i2v": "VBench-I2V",
}
# Fields that came later, a recipe's among them, by default.
_LATER: Mapping[str, object] = {
    "static_filter": False, "suite": "vbench", "clip_to_clip": True, "long_python": None, "long_legacy_python": None,
    "vbench2_python": None, "vbench2_cache_dir": None, "i2v_python": None,
}  # fmt: skip


class Variant(NamedTuple):
    """What decides which files a dimension reads: see `VBenchConfig`."""

    suite: SuiteName = "vbench"
    static_filter: bool = False
    clip_to_clip: bool = True


class VBenchConfig(FrozenModel):
    """What VBench measures.

    - suite: `vbench` for videos below 5 s, `vbench-long` (clips of 2 and 10 s) from 5 s on; `vbench2`, VBench-2.0, has
      prompts and 18 dimensions of its own; `vbench-i2v` is for videos that begin with its pictures. Their results stand
      apart.

    - dimensions: by name; `all` of the suite; or `available`, those that this machine can measure, the rest named.
    - mode: `standard` measures a dimension on the suite's prompts for it; `custom` on every video, whatever its
      prompt, which the dimensions cannot that ask more of a prompt than its words: `all` is refused, `available` is
      of the others.
    - partial: take what videos there are; the result is marked and comparable with none.
    - published_weights: hold the weights against their published digests; false for others in the same formats, and
      the result says so.
    - allow_zero: dimensions whose score may be 0.0, which otherwise is a failure (a detector that fails scores 0.0).
    - failures: what becomes of the others when a dimension fails (a crash, the time limit, memory). `stop`: they are
      kept, the stage ends, and the same command goes on with what is missing. `record`: the scores are published, and
      the dimension stands in them with its reason.
    - static_filter: of temporal flickering's videos only those that VBench's own filter (RAFT) finds near-static, at
      most 5 of a prompt's 25: the published protocol. `vbench-long` filters clips, at most 5 of a prompt.
    - clip_to_clip: of `vbench-long`, compare clips with each other in subject and background consistency, as its
      published protocol does (DINOv2 and DreamSim); without it both are of the inside of clips alone.
    - limit_s: seconds that one dimension may take; in no key.

    Fields that came later stand in the canonical form only where they are used.
    """

    suite: SuiteName = "vbench"

    dimensions: Literal["available", "all"] | tuple[str, ...] = "all"
    mode: Mode = "standard"
    partial: bool = False
    published_weights: bool = True
    allow_zero: tuple[str, ...] = ()
    failures: Literal["stop", "record"] = "stop"
    static_filter: bool = False
    clip_to_clip: bool = True
    limit_s: float = Field(default=6 * 3600.0, gt=0)

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {k: v for k, v in handler(self).items() if k not in _LATER or v != _LATER[k]}

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in (*self.wanted, *self.allow_zero):
            if name not in self.known:
                raise ValueError(f"{TITLES[self.suite]} has no dimension {name!r}; there are {', '.join(self.known)}")
        if not self.wanted:
            raise ValueError("dimensions: name at least one")
        if self.suite in ("vbench2", "vbench-i2v") and (self.mode == "custom" or self.static_filter):
            raise ValueError(
                f"mode, static_filter: {TITLES[self.suite]} is measured on its own prompts, and has no filter; leave "
                + ("--static-filter (static_filter) out" if self.static_filter else "mode out")
            )
        if self.mode == "custom" and (wrong := [name for name in self.wanted if name not in self.of_own_prompts]):
            raise ValueError(
                f"dimensions: mode custom cannot measure {', '.join(wrong)}, which read the suite's own prompts alone; "
                f"say dimensions: [{', '.join(self.of_own_prompts)}] or some of them, or mode: standard"
            )
        if self.suite != "vbench-long" and not self.clip_to_clip:
            raise ValueError(
                f"clip_to_clip: {TITLES[self.suite]} has no clips; leave it out, or use suite: vbench-long"
            )
        if self.static_filter and self.mode != "standard":
            raise ValueError("static_filter: VBench filters the suite's own prompts; use mode standard, or no filter")
        return self

    @property
    def known(self) -> tuple[str, ...]:
        """Dimensions of the suite, in the published order."""
        return {"vbench2": V2_DIMENSIONS, "vbench-i2v": I2V_DIMENSIONS}.get(self.suite, DIMENSIONS)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Dimensions by name, in the published order."""
        if isinstance(self.dimensions, str):
            return self.of_own_prompts if (self.mode, self.dimensions) == ("custom", "available") else self.known
        return tuple(d for d in self.known if d in self.dimensions) + tuple(
            d for d in self.dimensions if d not in self.known
        )

    @property
    def of_own_prompts(self) -> tuple[str, ...]:
        """Dimensions that mode custom can measure."""
        return CUSTOM_DIMENSIONS if self.suite == "vbench" else LONG_CUSTOM_DIMENSIONS

    @property
    def gpu_only(self) -> tuple[str, ...]:
        """Of the wanted dimensions, those whose code says `cuda`."""
        return tuple(d for d in self.wanted if d not in rules().on_a_cpu) if self.suite == "vbench2" else ()

    @property
    def variant(self) -> Variant:
        return Variant(self.suite, self.static_filter, self.clip_to_clip)

    def key_config(self) -> dict[str, object]:
        return {name: value for name, value in self.canonical().items() if name != "limit_s"}


class Places(NamedTuple):
    """Where interpreters and weights lie on this machine; none of it is in a key."""

    core_python: Path
    legacy_python: Path
    cache_dir: Path
    torch_home: Path
    hf_home: Path
    long_python: Path
    long_legacy_python: Path
    vbench2_python: Path
    vbench2_cache_dir: Path
    i2v_python: Path

    def python(self, name: EnvironmentName) -> Path:
        """The interpreter of an environment."""
        return {
            "core": self.core_python, "legacy": self.legacy_python, "long": self.long_python,
            "long-legacy": self.long_legacy_python, "vbench2": self.vbench2_python,
            "i2v": self.i2v_python,
        }[name]  # fmt: skip

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Places:
        """What a recipe names, else the variable that VBench or its libraries read, else their default."""

        def place(name: str, variable: str | None, default: Path) -> Path:
            path = given.get(name) or (os.environ.get(variable) if variable else None)
            return Path(path).expanduser().absolute() if path else default

        cache = Path.home() / ".cache"
        return cls(
            core_python=place("core_python", None, default_python("core")),
            legacy_python=place("legacy_python", None, default_python("legacy")),
            cache_dir=place("cache_dir", "VBENCH_CACHE_DIR", cache / "vbench"),
            torch_home=place("torch_home", "TORCH_HOME", cache / "torch"),
            hf_home=place("hf_home", "HF_HOME", cache / "huggingface"),
            long_python=place("long_python", None, default_python("long")),
            long_legacy_python=place("long_legacy_python", None, default_python("long-legacy")),
            vbench2_python=place("vbench2_python", None, default_python("vbench2")),
            i2v_python=place("i2v_python", None, default_python("i2v")),
            vbench2_cache_dir=place("vbench2_cache_dir", "VBENCH2_CACHE_DIR", cache / "vbench2"),
        )
