"""The models that imported components are for, built on the meta device for their keys and shapes.

`m4v.weights.expected` loads this module by name; see there why.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from m4v.core.errors import DataIntegrityError
from m4v.shapes_only import shapes_only
from m4v.weights.expected import Expected, Shapes
from m4v.weights.pyramidflow import model_config

Config = Mapping[str, object]


def _shapes(model: nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def pyramidflow_dit(config: Config, where: str) -> Expected:
    from m4v.model.transformer import M4VTransformer

    with shapes_only():
        return Expected(_shapes(M4VTransformer(model_config(config, where))))


def pyramidflow_vae(config: Config, where: str) -> Expected:
    from m4v.vae.autoencoder import CausalVideoVae
    from m4v.vae.config import parse_vae_config

    with shapes_only():
        return Expected(_shapes(CausalVideoVae(parse_vae_config(config, where))))


def clip_text(config: Config, where: str) -> Expected:
    from transformers import CLIPTextConfig, CLIPTextModel

    _check_type(config, ("clip_text_model",), where)
    with shapes_only():
        model = CLIPTextModel(CLIPTextConfig(**config))
    prefix = "text_model."  # published files have it; newer classes drop it
    shapes = {prefix + key.removeprefix(prefix): shape for key, shape in _shapes(model).items()}
    ids = f"{prefix}embeddings.position_ids"
    return Expected({**shapes, ids: (1, model.config.max_position_embeddings)}, frozenset({ids}))


def t5(config: Config, where: str) -> Expected:
    from transformers import T5Config, T5EncoderModel

    _check_type(config, ("t5",), where)
    with shapes_only():
        model = T5EncoderModel(T5Config(**config))
    return _tied(_shapes(model))


def umt5(config: Config, where: str) -> Expected:
    from transformers import UMT5Config, UMT5EncoderModel

    _check_type(config, ("umt5",), where)
    with shapes_only():
        model = UMT5EncoderModel(UMT5Config(**config))
    return _tied(_shapes(model))


def _tied(shapes: Shapes) -> Expected:
    """An encoder of the T5 family: the token table stands once or under both of its names."""
    return Expected(shapes, frozenset({"encoder.embed_tokens.weight"}), ("decoder.", "lm_head."))


def wan_transformer(config: Config, where: str) -> Expected:
    from m4v.wan.initialise import empty_wan
    from m4v.wan.keys import to_diffusers
    from m4v.wan.published_config import published_config

    shapes = {key: tuple(value.shape) for key, value in empty_wan(published_config(config, where)).state_dict().items()}
    original = "dim" in config
    return Expected(shapes, rename=to_diffusers if original else str)


def wan_vae(config: Config, where: str) -> Expected:
    from diffusers import AutoencoderKLWan

    with shapes_only():
        return Expected(_shapes(AutoencoderKLWan.from_config(dict(config))))


def _check_type(config: Config, known: tuple[str, ...], where: str) -> None:
    kind = config.get("model_type")
    if kind not in known:
        raise DataIntegrityError(f"config is not of a {' or '.join(known)} model", value=kind, where=where)
