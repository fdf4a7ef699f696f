"""Names of the tensors of Wan's own VAE and UMT5 files, to those of diffusers and transformers (torch-free)."""

from __future__ import annotations

from m4v.core.errors import DataIntegrityError

_RESIDUAL = {
    "residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}  # fmt: skip
_ENDS = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
_QUANT = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
_UP_BLOCK = 4  # three residual blocks and an upsampler make one of diffusers' up blocks

_UMT5_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_UMT5_OUTER = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}


def vae_key(original: str) -> str:
    """Key of `AutoencoderKLWan`. Raises DataIntegrityError for a name that is not Wan2.1's."""
    module, _, leaf = original.rpartition(".")
    if module in _QUANT:
        return f"{_QUANT[module]}.{leaf}"
    side, _, inner = module.partition(".")
    if side in ("encoder", "decoder") and inner in _ENDS:
        return f"{side}.{_ENDS[inner]}.{leaf}"
    group, number, rest = [*inner.split(".", 2), "", ""][:3]
    place = _vae_place(side, group, int(number)) if number.isdigit() and rest else None
    if place is None:
        raise DataIntegrityError("tensor is not part of Wan2.1's VAE", value=original)
    return f"{side}.{place}.{_RESIDUAL.get(rest, rest)}.{leaf}"


def _vae_place(side: str, group: str, number: int) -> str | None:
    if side in ("encoder", "decoder") and group == "middle":
        return "mid_block.attentions.0" if number == 1 else f"mid_block.resnets.{number // 2}"
    if (side, group) == ("encoder", "downsamples"):
        return f"down_blocks.{number}"
    if (side, group) == ("decoder", "upsamples"):
        block, part = divmod(number, _UP_BLOCK)
        return f"up_blocks.{block}." + ("upsamplers.0" if part == _UP_BLOCK - 1 else f"resnets.{part}")
    return None


def umt5_key(original: str) -> str:
    """Key of transformers' `UMT5EncoderModel`. Raises DataIntegrityError for a name that is not UMT5's."""
    module, _, leaf = original.rpartition(".")
    if module in _UMT5_OUTER:
        return f"{_UMT5_OUTER[module]}.{leaf}"
    block, number, inner = [*module.split(".", 2), "", ""][:3]
    if block != "blocks" or not number.isdigit() or inner not in _UMT5_BLOCK:
        raise DataIntegrityError("tensor is not part of Wan2.1's text encoder", value=original)
    return f"encoder.block.{number}.{_UMT5_BLOCK[inner]}.{leaf}"
