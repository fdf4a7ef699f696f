"""Which latent codec a dataset and a model use. Torch-free; `m4v.codec.open_codec` makes the codec."""

from __future__ import annotations

from typing import Literal

from m4v.core.config import FrozenModel


class DctCodecConfig(FrozenModel):
    """Training-free causal transform codec (`m4v/codec/dct.py`).

    `smoothing`: decode each block from itself and its eight neighbours (conditional mean under a
    Gauss-Markov picture), which removes block edges; without it, decode by the transposed transform.
    """

    kind: Literal["dct"] = "dct"
    smoothing: bool = True


# Becomes a union tagged by `kind` when a learned codec joins.
CodecConfig = DctCodecConfig
