"""How a sampler gives its work to a GPU (torch-free). None of it changes a bit of a video, so no stage key names it."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple, get_args

from m4v.core.errors import ConfigError

GRAPHS_VARIABLE, OVERLAP_VARIABLE = "M4V_GRAPHS", "M4V_OVERLAP"
Word = Literal["auto", "off", "on"]
# What `auto` means on a GPU: both have passed tests/gpu/test_gpu_sampling.py and make a video sooner (H200).
GRAPHS_BY_DEFAULT = True
OVERLAP_BY_DEFAULT = True


class Launches(NamedTuple):
    """`graphs`: small forwards are recorded and launched as one. `overlap`: a frame is decoded, on a stream of its
    own, and taken by the caller while the next one is being made, from the second video of a size on."""

    graphs: bool
    overlap: bool

    @property
    def summary(self) -> str:
        """In a few words, for logs and records."""
        return f"graphs {'on' if self.graphs else 'off'}, overlap {'on' if self.overlap else 'off'}"


def launches(device: str) -> Launches:
    """What `M4V_GRAPHS` and `M4V_OVERLAP` say; nothing of it on a CPU. Raises ConfigError for another word."""
    graphs, overlap = _word(GRAPHS_VARIABLE), _word(OVERLAP_VARIABLE)
    if device != "cuda":
        return Launches(graphs=False, overlap=False)
    return Launches(
        graphs=graphs == "on" or (graphs == "auto" and GRAPHS_BY_DEFAULT),
        overlap=overlap == "on" or (overlap == "auto" and OVERLAP_BY_DEFAULT),
    )


def _word(variable: str) -> Word:
    value = os.environ.get(variable) or "auto"
    for word in get_args(Word):
        if value == word:
            return word  # type: ignore[no-any-return]
    raise ConfigError(
        "no such way to launch", value=value, where=f"the environment variable {variable}",
        next_step=f"set it to one of {', '.join(get_args(Word))}",
    )  # fmt: skip
