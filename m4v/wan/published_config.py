"""`config.json` of Wan2.1's text-to-video transformer in both published forms (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from m4v.checkpoint_files import read_json_object
from m4v.core.config import parse
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.wan.config import WanConfig
from m4v.wan.keys import Layout

# Their name -> ours, for the sizes that a config must give.
_DIFFUSERS = {
    "attention_head_dim": None, "num_attention_heads": "heads", "num_layers": "blocks", "ffn_dim": "mlp_width",
    "in_channels": "latent_channels", "text_dim": "text_dim", "freq_dim": "frequency_dim",
    "cross_attn_norm": "cross_attention_norm", "eps": "norm_eps", "rope_max_seq_len": "rope_limit",
}  # fmt: skip
_ORIGINAL = {
    "dim": "width", "num_heads": "heads", "num_layers": "blocks", "ffn_dim": "mlp_width", "in_dim": "latent_channels",
    "text_dim": "text_dim", "freq_dim": "frequency_dim", "cross_attn_norm": "cross_attention_norm",
    "eps": "norm_eps", "text_len": "text_slots",
}  # fmt: skip
# What only another model of the family would say otherwise; the first value is the text-to-video model's.
_FIXED: dict[str, tuple[object, ...]] = {
    "patch_size": ([1, 2, 2],), "model_type": ("t2v",), "window_size": ([-1, -1],),
    "qk_norm": ("rms_norm_across_heads", True), "image_dim": (None,), "added_kv_proj_dim": (None,),
    "pos_embed_seq_len": (None,),
}  # fmt: skip
_CLASSES = ("WanTransformer3DModel", "WanModel")
_NEEDED = {"WanTransformer3DModel": ("attention_head_dim", "num_attention_heads", "num_layers", "ffn_dim"),
           "WanModel": ("dim", "num_heads", "num_layers", "ffn_dim")}  # fmt: skip


def read_published_config(path: Path) -> WanConfig:
    """The sizes of a published transformer, with `mixer: attention`.

    Raises InputError if there is no such file, DataIntegrityError naming the key that is missing, unknown or
    belongs to another model of the family (image to video, Wan2.2).
    """
    if not path.is_file():
        raise InputError("folder has no config.json of a Wan transformer", where=str(path.parent))
    return published_config(read_json_object(path), str(path))


def published_config(data: Mapping[str, object], where: str) -> WanConfig:
    """`read_published_config` of parsed JSON."""
    kind = data.get("_class_name", "WanModel" if "dim" in data else "WanTransformer3DModel")
    if kind not in _CLASSES:
        raise DataIntegrityError("config is of another model, not Wan's transformer", value=kind, where=where)
    names = _ORIGINAL if kind == "WanModel" else _DIFFUSERS
    fields: dict[str, object] = {"mixer": "attention"}
    for key, value in data.items():
        if key.startswith("_"):
            continue
        if key in ("out_channels", "out_dim"):
            _check_out(key, value, data, where)
        elif key in _FIXED:
            if value not in _FIXED[key]:
                raise DataIntegrityError(
                    f"{key} is not that of Wan2.1's text-to-video model ({_FIXED[key][0]})", value=value, where=where
                )
        elif key not in names:
            raise DataIntegrityError("config has a key that is not Wan2.1's", value=key, where=where)
        elif (ours := names[key]) is not None:
            fields[ours] = value
    if missing := [key for key in _NEEDED[str(kind)] if key not in data]:
        raise DataIntegrityError("config lacks a size", value=missing, where=where)
    if kind == "WanTransformer3DModel":
        fields["width"] = _product(data, ("attention_head_dim", "num_attention_heads"), where)
    try:
        return parse(WanConfig, fields, where)
    except ConfigError as error:
        ours, _, rest = error.what.partition(":")
        theirs = next((key for key, name in names.items() if name == ours), ours)
        raise DataIntegrityError(f"config is not valid: {theirs}:{rest}", value=error.value, where=where) from None


def published_fields(config: WanConfig, layout: Layout) -> dict[str, object]:
    """`config.json` of the attention model in a published form; the inverse of `published_config`."""
    names = _ORIGINAL if layout == "original" else _DIFFUSERS
    fields: dict[str, object] = {key: getattr(config, ours) for key, ours in names.items() if ours is not None}
    if layout == "original":
        return {"_class_name": "WanModel", "model_type": "t2v", **fields, "out_dim": config.latent_channels}
    fixed = {key: _FIXED[key][0] for key in ("patch_size", "qk_norm", "image_dim", "added_kv_proj_dim")}
    sizes = {"attention_head_dim": config.head_dim, "out_channels": config.latent_channels}
    return {"_class_name": "WanTransformer3DModel", **fixed, **fields, **sizes}


def _product(data: Mapping[str, object], keys: tuple[str, ...], where: str) -> int:
    product = 1
    for key in keys:
        value = data[key]
        if not isinstance(value, int):
            raise DataIntegrityError(f"config is not valid: {key} is no whole number", value=value, where=where)
        product *= value
    return product


def _check_out(key: str, value: object, data: Mapping[str, object], where: str) -> None:
    inputs = data.get("in_channels", data.get("in_dim", 16))
    if value not in (None, inputs):
        raise DataIntegrityError(f"{key} differs from the {inputs} input channels", value=value, where=where)
