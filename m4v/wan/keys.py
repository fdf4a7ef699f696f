"""Names of the tensors: Wan's original layout and diffusers', both directions (torch-free)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from m4v.core.errors import DataIntegrityError

Layout = Literal["diffusers", "original"]

_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
# diffusers -> original
_BLOCK = {
    **{f"attn1.{theirs}": f"self_attn.{original}" for theirs, original in _ATTENTION.items()},
    **{f"attn2.{theirs}": f"cross_attn.{original}" for theirs, original in _ATTENTION.items()},
    "norm2": "norm3",  # diffusers numbers the norms in the order of use, Wan does not
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_OUTER = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
_BLOCK_BACK = {original: theirs for theirs, original in _BLOCK.items()}
_OUTER_BACK = {original: theirs for theirs, original in _OUTER.items()}
_TABLE = "scale_shift_table"


def layout_of(keys: Iterable[str]) -> Layout | None:
    """Which layout the names are in; None if neither."""
    for key in keys:
        if key.startswith("condition_embedder."):
            return "diffusers"
        if key.startswith(("time_embedding.", "text_embedding.", "head.")):
            return "original"
    return None


def to_original(key: str) -> str:
    """Original name of a diffusers key of the attention model. Raises DataIntegrityError if it has none."""
    block, inner = _split(key)
    if inner == _TABLE:
        return f"{block}modulation" if block else "head.modulation"
    return block + _renamed(inner, _BLOCK if block else _OUTER, key)


def to_diffusers(key: str) -> str:
    """diffusers key of an original name. Raises DataIntegrityError if it has none."""
    block, inner = _split(key)
    if inner == ("modulation" if block else "head.modulation"):
        return block + _TABLE
    return block + _renamed(inner, _BLOCK_BACK if block else _OUTER_BACK, key)


def _split(key: str) -> tuple[str, str]:
    """`blocks.7.` and the rest, or nothing and the key."""
    parts = key.split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdigit():
        return f"blocks.{parts[1]}.", parts[2]
    return "", key


def _renamed(inner: str, names: dict[str, str], key: str) -> str:
    module, _, parameter = inner.rpartition(".")
    if module not in names or parameter not in ("weight", "bias"):
        raise DataIntegrityError("tensor is not part of Wan's text-to-video model", value=key)
    return f"{names[module]}.{parameter}"
