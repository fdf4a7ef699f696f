"""Wan2.1's text encoder and VAE from the authors' own key layout to that of transformers and diffusers.

The transformer needs nothing here: `m4v.wan` reads both layouts. Names of the text encoder are those of
github.com/Wan-Video/Wan2.1, wan/modules/t5.py; diffusers itself knows the VAE's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from m4v.core.errors import DataIntegrityError
from m4v.weights.tensors import TensorInfo

_OUTER = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_BLOCK = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def text_encoder_key(original: str) -> str:
    """Name in transformers' UMT5 encoder; one that is not Wan's comes back as it is."""
    if original in _OUTER:
        return _OUTER[original]
    head, _, rest = original.partition(".")
    number, _, leaf = rest.partition(".")
    module, _, parameter = leaf.rpartition(".")
    if head != "blocks" or module not in _BLOCK:
        return original
    return f"encoder.block.{number}.{_BLOCK[module]}.{parameter}"


def text_encoder_config(tensors: Mapping[str, TensorInfo], where: str) -> dict[str, object]:
    """`config.json` of the UMT5 encoder whose tensors (by transformers' names) these are; sizes are read off
    the shapes. Raises DataIntegrityError when one of them is not there."""
    first = "encoder.block.0.layer.{}.weight"
    needed = ("shared.weight", *(first.format(leaf) for leaf in (
        "0.SelfAttention.relative_attention_bias", "0.SelfAttention.q", "1.DenseReluDense.wi_1")))  # fmt: skip
    if missing := [name for name in needed if name not in tensors or len(tensors[name].shape) != 2]:
        raise DataIntegrityError("file is not Wan's text encoder: it lacks a tensor", value=missing[0], where=where)
    table, bias, query, wide = (tensors[name].shape for name in needed)
    blocks = {name.split(".")[2] for name in tensors if name.startswith("encoder.block.")}
    return {
        "architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": table[0], "d_model": table[1],
        "d_kv": query[0] // max(1, bias[1]), "d_ff": wide[0], "num_heads": bias[1], "num_layers": len(blocks),
        "relative_attention_num_buckets": bias[0], "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu", "is_gated_act": True, "dense_act_fn": "gelu_new", "dropout_rate": 0.1,
        "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    }  # fmt: skip


def vae_keys(original: Iterable[str], where: str) -> dict[str, str]:
    """Original name -> diffusers' name. Raises DataIntegrityError for names that diffusers cannot take."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    try:
        # The library moves values from name to name; names as values show which went where.
        moved: dict[str, str] = convert_wan_vae_to_diffusers({name: name for name in original})
    except (ValueError, IndexError, KeyError) as error:
        raise DataIntegrityError(f"file is not Wan's VAE ({type(error).__name__}: {error})", where=where) from None
    return {name: key for key, name in moved.items()}


def vae_config() -> dict[str, object]:
    """`config.json` of Wan2.1's VAE, whose values are the defaults of diffusers' class."""
    import torch
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        config = AutoencoderKLWan().config
    return {"_class_name": "AutoencoderKLWan", **{k: v for k, v in config.items() if not k.startswith("_")}}
