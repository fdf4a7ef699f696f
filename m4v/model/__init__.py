"""The M4V transformer: dual-stream MM-DiT blocks, then single-stream MM-DiM (or attention) blocks.

`build_model(config, seed)` makes an initialised model; `M4VTransformer(config)` on the meta device makes shapes.
"""

from m4v.model.initialise import build_model, initialise
from m4v.model.transformer import M4VTransformer

__all__ = ["M4VTransformer", "build_model", "initialise"]
