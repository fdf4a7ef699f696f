"""What cannot be shared among ranks. Torch-free, so that planning can ask."""

from __future__ import annotations

from m4v.core.errors import ConfigError

SETTING = "engine.sequence_parallel"


def check_sequence(size: int, heads: int, frames: int | None = None) -> None:
    """Raise ConfigError when `size` ranks cannot share a model of `heads` heads, on clips of `frames` latent frames.

    Attention deals out whole heads (as evenly as they go, not necessarily equally many), the rest whole frames.
    """
    most = heads if frames is None else min(heads, frames)
    if size <= most:
        return
    few = f"the attention of {heads} heads" if heads == most else f"clips of {frames} latent frames"
    raise ConfigError(
        f"{size} ranks cannot share {few}: each needs one", value=size, where=SETTING,
        next_step=f"set {SETTING} to at most {most}",
    )  # fmt: skip
