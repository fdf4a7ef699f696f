"""Keys and shapes that a component must hold: those of the model that the product builds from its config.

Models are built on the meta device, so even the largest costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from m4v.core.errors import DataIntegrityError, M4VError
from m4v.weights.components import Kind
from m4v.weights.pyramidflow import model_config

Shapes = dict[str, tuple[int, ...]]
Config = Mapping[str, object]


@dataclass(frozen=True)
class Expected:
    """`shapes` by our key; `optional` ones may be absent (tied weights, buffers that are made anew); published
    keys under an `ignored` prefix belong to parts that the product does not use. `rename`: published key ->
    key of `shapes`."""

    shapes: Shapes
    optional: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    rename: Callable[[str], str] = str


def expected(kind: Kind, config: Config, where: str) -> Expected | None:
    """What a component of `kind` with this published config must hold; None where only the format is known.

    Raises DataIntegrityError (or ConfigError, from a model's own config) when no model fits the config.
    """
    builder = _BUILDERS.get(kind)
    if builder is None:
        return None
    try:
        return builder(config, where)
    except M4VError:
        raise
    except Exception as error:  # each library has its own kind for a config that it does not take
        reason = " ".join(str(error).split())
        raise DataIntegrityError(f"no model can be built from the config ({reason})", where=where) from error


def _shapes(model: nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _pyramidflow_dit(config: Config, where: str) -> Expected:
    from m4v.model.transformer import M4VTransformer

    with torch.device("meta"):
        return Expected(_shapes(M4VTransformer(model_config(config, where))))


def _pyramidflow_vae(config: Config, where: str) -> Expected:
    from m4v.vae.autoencoder import CausalVideoVae
    from m4v.vae.config import parse_vae_config

    with torch.device("meta"):
        return Expected(_shapes(CausalVideoVae(parse_vae_config(config, where))))


def _clip_text(config: Config, where: str) -> Expected:
    from transformers import CLIPTextConfig, CLIPTextModel

    _check_type(config, ("clip_text_model",), where)
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**config))
    prefix = "text_model."  # published files have it; newer classes drop it
    shapes = {prefix + key.removeprefix(prefix): shape for key, shape in _shapes(model).items()}
    ids = f"{prefix}embeddings.position_ids"
    return Expected({**shapes, ids: (1, model.config.max_position_embeddings)}, frozenset({ids}))


def _t5(config: Config, where: str) -> Expected:
    from transformers import T5Config, T5EncoderModel

    _check_type(config, ("t5",), where)
    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**config))
    return _tied(_shapes(model))


def _umt5(config: Config, where: str) -> Expected:
    from transformers import UMT5Config, UMT5EncoderModel

    _check_type(config, ("umt5",), where)
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**config))
    return _tied(_shapes(model))


def _tied(shapes: Shapes) -> Expected:
    """An encoder of the T5 family: the token table stands once or under both of its names."""
    return Expected(shapes, frozenset({"encoder.embed_tokens.weight"}), ("decoder.", "lm_head."))


def _wan_transformer(config: Config, where: str) -> Expected:
    from m4v.wan.initialise import empty_wan
    from m4v.wan.keys import to_diffusers
    from m4v.wan.published_config import published_config

    shapes = {key: tuple(value.shape) for key, value in empty_wan(published_config(config, where)).state_dict().items()}
    original = "dim" in config
    return Expected(shapes, rename=to_diffusers if original else str)


def _wan_vae(config: Config, where: str) -> Expected:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        return Expected(_shapes(AutoencoderKLWan.from_config(dict(config))))


def _check_type(config: Config, known: tuple[str, ...], where: str) -> None:
    kind = config.get("model_type")
    if kind not in known:
        raise DataIntegrityError(f"config is not of a {' or '.join(known)} model", value=kind, where=where)


_BUILDERS: Mapping[Kind, Callable[[Config, str], Expected]] = {
    "pyramidflow_dit": _pyramidflow_dit,
    "pyramidflow_vae": _pyramidflow_vae,
    "clip_text": _clip_text,
    "t5": _t5,
    "umt5": _umt5,
    "wan_transformer": _wan_transformer,
    "wan_vae": _wan_vae,
}
