"""The causal VAE as a codec, from a folder of weights to frames."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tiny_vae import TINY, tiny_vae, write_tiny_vae

from m4v.codec import open_codec
from m4v.codec.config import CausalVaeConfig, CodecConfig, DctCodecConfig
from m4v.core.errors import ConfigError, InputError
from m4v.core.rng import generator
from m4v.vae.weights import save_vae

CONFIG = CausalVaeConfig(weights="vae", encode_window=8, decode_window=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_vae(tmp_path_factory.mktemp("weights") / "vae")


@pytest.fixture(scope="module")
def codec(folder):
    return open_codec(CONFIG, {"vae": folder})


def _clip(frames: int = 17, height: int = 32, width: int = 48) -> np.ndarray:
    """Coloured stripes that move, with noise."""
    t, y, x, c = np.mgrid[0:frames, 0:height, 0:width, 0:3]
    noise = generator(0, "vae codec test").normal(0, 10, (frames, height, width, 3))
    return np.clip(128 + 90 * np.sin((x + 2 * t) / 5 + c) * np.cos(y / 7) + noise, 0, 255).astype(np.uint8)


def test_shapes_types_and_the_round_trip(codec):
    latent = codec.encode(_clip())
    assert (latent.shape, latent.dtype) == ((16, 3, 4, 6), np.float32)
    assert float(latent.std()) > 0.01
    frames = codec.decode(latent)
    assert (frames.shape, frames.dtype) == ((17, 32, 48, 3), np.uint8)
    assert float(frames.std()) > 1
    image = codec.encode(_clip(1))
    assert image.shape == (16, 1, 4, 6)
    assert codec.decode(image).shape == (1, 32, 48, 3)


def test_latents_are_the_posterior_mean_of_the_pixels(codec, folder):
    clip = _clip()
    video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = tiny_vae().encode(video)
    assert np.allclose(codec.encode(clip), posterior.mean[0].numpy(), atol=1e-5)
    moments = open_codec(CONFIG.model_copy(update={"logvar": True}), {"vae": folder}).encode_moments(clip)
    assert np.array_equal(moments.mean, codec.encode(clip))
    assert moments.logvar is not None
    assert np.allclose(moments.logvar, posterior.logvar[0].numpy(), atol=1e-5)
    assert codec.encode_moments(clip).logvar is None


@pytest.mark.parametrize("frames", [1, 9])
def test_prefix_of_the_latent_is_the_latent_of_the_prefix(codec, frames):
    clip = _clip()
    whole, prefix = codec.encode(clip), codec.encode(clip[:frames])
    assert np.allclose(whole[:, : prefix.shape[1]], prefix, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"decode_window": 2}, {"tile": 32}])
def test_stream_gives_the_bytes_of_decode(folder, how):
    codec = open_codec(CONFIG.model_copy(update=how), {"vae": folder})
    latent = generator(1, "latent").normal(0, 1, (16, 5, 5, 6)).astype(np.float32)
    pieces = list(codec.decode_stream(np.split(latent, 5, axis=1)))
    assert [len(p) for p in pieces] == ([17, 16] if "decode_window" in how else [9, 8, 8, 8])
    assert np.array_equal(np.concatenate(pieces), codec.decode(latent))
    tensors = codec.decode_stream(torch.from_numpy(latent).split(2, dim=1))
    assert np.array_equal(np.concatenate(list(tensors)), codec.decode(latent))


def test_decode_tensor_matches_decode(codec):
    latents = torch.from_numpy(generator(2, "latent").normal(0, 1, (2, 16, 3, 3, 4))).float()
    video = codec.decode_tensor(latents)
    assert video.shape == (2, 3, 17, 24, 32)
    assert 0 <= float(video.min()) <= float(video.max()) <= 1
    for row, latent in zip(video, latents, strict=True):
        frames = (row * 255).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
        # Rounding of a batch may differ from that of its rows in the last bit.
        assert np.abs(frames.astype(int) - codec.decode(latent.numpy())).max() <= 1


@pytest.mark.parametrize("context", [0, 2])
def test_gradient_of_decode_tensor(codec, context):
    """Against finite differences; and the last frame is that of the whole."""
    latents = torch.from_numpy(generator(3, "latent").normal(0, 0.5, (1, 16, 3, 3, 4))).float().requires_grad_()
    video = codec.decode_tensor(latents, context)
    whole = codec.decode_tensor(latents.detach())
    torch.testing.assert_close(video, whole[:, :, -video.shape[2] :], atol=1e-5, rtol=0)
    inside = (video.detach() - 0.5).abs() < 0.45  # the gradient goes through the clamp, differences do not
    weight = torch.from_numpy(generator(4, "weight").normal(0, 1, video.shape)).float() * inside
    (gradient,) = torch.autograd.grad((video * weight).sum(), latents)
    assert (gradient[:, :, :context] == 0).all()
    direction = torch.from_numpy(generator(5, "direction").normal(0, 1, latents.shape)).float()
    direction[:, :, :context] = 0

    def moved(step: float) -> float:
        moved = codec.decode_tensor(latents.detach() + step * direction, context)
        return float((moved.double() * weight).sum())

    slope = (moved(1e-3) - moved(-1e-3)) / 2e-3
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=2e-2)


def test_gradient_reaches_saturated_pixels(folder):
    vae = tiny_vae()
    with torch.no_grad():
        vae.decoder.conv_out.conv.bias.fill_(5)
    save_vae(folder.parent / "bright", vae)
    codec = open_codec(CONFIG, {"vae": folder.parent / "bright"})
    latents = torch.randn(1, 16, 1, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    video = codec.decode_tensor(latents)
    assert float(video.detach().min()) == 1
    (gradient,) = torch.autograd.grad(video.sum(), latents)
    assert float(gradient.abs().max()) > 0


def test_digest_is_that_of_what_decides_latents(folder, codec):
    def digest(**how: object) -> str:
        return open_codec(CONFIG.model_copy(update=how), {"vae": folder, "same": folder}).digest

    assert codec.digest == digest() == digest(weights="same")
    others = [digest(tile=64), digest(dtype="bfloat16"), digest(encode_window=16)]
    other_weights = write_tiny_vae(folder.parent / "other", seed=1)
    others.append(open_codec(CONFIG, {"vae": other_weights}).digest)
    others.append(open_codec(DctCodecConfig()).digest)
    assert len({codec.digest, *others}) == 6


def test_bfloat16(folder, codec):
    half = open_codec(CONFIG.model_copy(update={"dtype": "bfloat16"}), {"vae": folder})
    clip = _clip(9)
    latent, exact = half.encode(clip), codec.encode(clip)
    assert latent.dtype == np.float32
    assert float((latent - exact).std()) < 0.1 * float(exact.std())
    assert np.abs(half.decode(exact).astype(int) - codec.decode(exact)).mean() < 3


def test_weights_that_are_not_at_hand(tmp_path):
    with pytest.raises(ConfigError, match=r"'vae'.*codec\.weights.*m4v weights import"):
        open_codec(CONFIG)
    with pytest.raises(ConfigError, match="'vae'"):
        open_codec(CONFIG, {"dit": tmp_path})
    with pytest.raises(InputError, match=r"config\.json.*m4v weights import"):
        open_codec(CONFIG, {"vae": tmp_path})


def test_other_latent_channels_are_refused(tmp_path):
    narrow = TINY.model_copy(update={"encoder_out_channels": 4, "decoder_in_channels": 4})
    save_vae(tmp_path, tiny_vae(config=narrow))
    with pytest.raises(ConfigError, match=r"16 latent channels: 4"):
        open_codec(CONFIG, {"vae": tmp_path})


@pytest.mark.parametrize("shape", [(8, 64, 64, 3), (9, 60, 64, 3), (9, 64, 64, 4), (64, 64, 3)])
def test_sizes_it_cannot_take(codec, shape):
    with pytest.raises(ValueError):
        codec.encode(np.zeros(shape, np.uint8))


def test_latents_it_cannot_take(codec):
    with pytest.raises(ValueError, match="a latent must be"):
        codec.decode(np.zeros((8, 1, 2, 2), np.float32))
    with pytest.raises(ValueError, match="latents must be"):
        codec.decode_tensor(torch.zeros(1, 8, 1, 2, 2))
    with pytest.raises(ValueError, match="context must leave"):
        codec.decode_tensor(torch.zeros(1, 16, 1, 2, 2), context=1)


def test_configs_are_told_apart_by_kind():
    adapter: TypeAdapter[CodecConfig] = TypeAdapter(CodecConfig)
    assert adapter.validate_python({"kind": "dct"}) == DctCodecConfig()
    assert adapter.validate_python({"smoothing": False}) == DctCodecConfig(smoothing=False)
    assert adapter.validate_python(CONFIG.canonical()) == CONFIG
    assert adapter.validate_python(CONFIG) == CONFIG
    for wrong in ({"kind": "causal_vae"}, {"kind": "causal_vae", "weights": "v", "tile": 100}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    for unknown in ({"kind": "vae"}, "dct"):
        with pytest.raises(ValidationError, match="kind is dct, causal_vae or wan_vae"):
            adapter.validate_python(unknown)
