"""Wan's VAE as a codec, from a folder that diffusers saved to frames."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from pydantic import TypeAdapter
from tiny_wan_vae import write_tiny_wan_vae

from m4v.codec import open_codec
from m4v.codec.config import CodecConfig, WanVaeConfig
from m4v.codec.constants import LatentConstants
from m4v.codec.interface import DeviceCodec, LatentCodec
from m4v.core.errors import ConfigError, InputError
from m4v.flow.latents import denormalise, denormalise_frame, normalise

CONFIG = WanVaeConfig(weights="wan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_wan_vae(tmp_path_factory.mktemp("weights") / "wan" / "vae")


@pytest.fixture(scope="module")
def codec(folder: Path) -> LatentCodec:
    return open_codec(CONFIG, {"wan": folder})


def clip(frames: int = 13) -> np.ndarray:
    t, y, x, c = np.mgrid[0:frames, 0:32, 0:48, 0:3]
    return np.clip(128 + 90 * np.sin((x + 2 * t) / 5 + c) * np.cos(y / 7), 0, 255).astype(np.uint8)


def test_shapes_types_and_the_round_trip(codec: LatentCodec) -> None:
    latent = codec.encode(clip())
    assert (latent.shape, latent.dtype, codec.time_stride) == ((16, 4, 4, 6), np.float32, 4)
    frames = codec.decode(latent)
    assert (frames.shape, frames.dtype) == ((13, 32, 48, 3), np.uint8)
    pieces = list(codec.decode_stream(np.split(latent, 4, axis=1)))
    assert [len(piece) for piece in pieces] == [1, 4, 4, 4]
    assert np.array_equal(np.concatenate(pieces), frames)
    whole = codec.decode_tensor(torch.from_numpy(latent)[None])
    assert torch.equal((whole[0] * 255).round().to(torch.uint8).permute(1, 2, 3, 0), torch.from_numpy(frames))
    assert codec.encode(clip(1)).shape == (16, 1, 4, 6)
    assert "torchvision" not in sys.modules


def test_latents_are_those_of_diffusers(codec: LatentCodec, folder: Path) -> None:
    vae = AutoencoderKLWan.from_pretrained(folder)
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(clip()).permute(3, 0, 1, 2)[None] / 127.5 - 1).latent_dist
    assert np.array_equal(codec.encode(clip()), posterior.mean[0].numpy())
    assert codec.encode_moments(clip()).logvar is None
    moments = open_codec(WanVaeConfig(weights="wan", logvar=True), {"wan": folder}).encode_moments(clip())
    assert moments.logvar is not None
    assert np.array_equal(moments.logvar, posterior.logvar[0].numpy())
    assert isinstance(codec, DeviceCodec)
    assert torch.equal(codec.encode_uploaded(torch.from_numpy(clip()))[0], torch.from_numpy(codec.encode(clip())))


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_prefix_of_the_latent_is_the_latent_of_the_prefix(codec: LatentCodec, frames: int) -> None:
    whole, prefix = codec.encode(clip()), codec.encode(clip(frames))
    assert np.allclose(whole[:, : prefix.shape[1]], prefix, atol=1e-6)
    other = clip()
    other[frames:] = 255 - other[frames:]
    changed = codec.encode(other)
    assert np.allclose(changed[:, : prefix.shape[1]], prefix, atol=1e-6), "no latent sees a later frame"
    assert not np.allclose(changed, whole, atol=1e-3)


def test_models_see_latents_by_the_published_constants(codec: LatentCodec) -> None:
    latent = torch.from_numpy(codec.encode(clip()))[None]
    seen = normalise(latent, codec.constants)
    expected = (latent - torch.arange(16).reshape(1, 16, 1, 1, 1) / 10) / (1 + torch.arange(16) / 8).reshape(
        1, 16, 1, 1, 1
    )
    torch.testing.assert_close(seen, expected)
    torch.testing.assert_close(denormalise(seen, codec.constants), latent)
    torch.testing.assert_close(denormalise_frame(seen[:, :, 1:2], 1, codec.constants), latent[:, :, 1:2])
    assert LatentConstants.from_json(codec.constants.to_json()) == codec.constants


def test_digest_is_of_weights_and_config_not_of_places(codec: LatentCodec, folder: Path, tmp_path: Path) -> None:
    other = write_tiny_wan_vae(tmp_path / "other", seed=1)
    assert open_codec(WanVaeConfig(weights="elsewhere"), {"elsewhere": folder.parent}).digest == codec.digest
    assert open_codec(CONFIG, {"wan": other}).digest != codec.digest
    assert open_codec(WanVaeConfig(weights="wan", logvar=True), {"wan": folder}).digest != codec.digest


def test_what_it_cannot_take_is_refused(codec: LatentCodec, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"4k\+1 frames, not 12"):
        codec.encode(clip(12))
    with pytest.raises(ValueError, match="16, t, h, w"):
        codec.decode(np.zeros((4, 2, 4, 6), np.float32))
    with pytest.raises(ConfigError, match="m4v weights import"):
        open_codec(CONFIG)
    with pytest.raises(InputError, match=r"no config\.json of a Wan VAE"):
        open_codec(CONFIG, {"wan": tmp_path})
    AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(tmp_path / "four")
    with pytest.raises(ConfigError, match=r"not of Wan2\.1's sizes"):
        open_codec(CONFIG, {"wan": tmp_path / "four"})


def test_a_config_knows_its_strides_and_loads_no_library() -> None:
    found = TypeAdapter(CodecConfig).validate_python({"kind": "wan_vae", "weights": "wan"})
    assert (found, found.time_stride, found.pixel_multiple) == (CONFIG, 4, 16)
    assert set(found.canonical()) == {"kind", "weights", "dtype", "logvar"}
    code = "import sys, m4v.codec, dataprep.encode_config; print({'torch', 'diffusers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
