"""Wan's VAE as a latent codec, held equal to diffusers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from wan_cases import tiny_vae

from m4v.core.errors import DataIntegrityError, InputError
from m4v.wan.vae import WanVae, open_wan_vae


def latent_of(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(4, frames, 4, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("frames", [1, 3])
def test_streamed_frames_are_those_of_diffusers(frames: int) -> None:
    vae, latent = tiny_vae(), latent_of(frames)
    wrapped = WanVae(vae)
    pieces = list(wrapped.decode_stream(latent.split(1, dim=1)))
    assert [len(piece) for piece in pieces] == [1] + [4] * (frames - 1)
    with torch.no_grad():
        pixels = vae.decode(latent[None]).sample[0]
    expected = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
    np.testing.assert_array_equal(np.concatenate(pieces), expected)
    np.testing.assert_array_equal(wrapped.decode(latent.numpy()), expected)
    assert expected.std() > 1


def test_streams_do_not_disturb_each_other() -> None:
    wrapped, latent = WanVae(tiny_vae()), latent_of(2)
    whole = wrapped.decode(latent)
    first, second = (wrapped.decode_stream(latent.split(1, dim=1)) for _ in range(2))
    turns = [(next(first), next(second)) for _ in range(2)]
    for side in (0, 1):
        np.testing.assert_array_equal(np.concatenate([turn[side] for turn in turns]), whole)


def test_a_stream_takes_latents_one_by_one() -> None:
    asked: list[int] = []

    def latents() -> Iterator[Tensor]:
        for number, piece in enumerate(latent_of(3).split(1, dim=1)):
            asked.append(number)
            yield piece

    seen = []
    for frames in WanVae(tiny_vae()).decode_stream(latents()):
        seen.append((len(frames), list(asked)))
    assert seen == [(1, [0]), (4, [0, 1]), (4, [0, 1, 2])]


def test_decoded_tensors_carry_gradients() -> None:
    vae = tiny_vae()
    latents = torch.stack([latent_of(3, 1), latent_of(3, 2)]).requires_grad_()
    whole = WanVae(vae).decode_tensor(latents)
    expected = (vae.decode(latents).sample + 1) / 2
    torch.testing.assert_close(whole, expected.clamp(0, 1), atol=1e-6, rtol=0)
    (grad,) = torch.autograd.grad(whole[:, :, 5:].square().sum(), latents)
    tail = WanVae(vae).decode_tensor(latents, context=2)
    torch.testing.assert_close(tail, whole[:, :, 5:])
    (part,) = torch.autograd.grad(tail.square().sum(), latents)
    torch.testing.assert_close(part[:, :, 2], grad[:, :, 2])
    assert not part[:, :, :2].any()
    assert grad[:, :, :2].abs().max() > 0


def test_saturated_pixels_keep_their_gradient() -> None:
    wrapped = WanVae(tiny_vae())
    wrapped.vae.decoder.conv_out.weight.data.mul_(30)
    latents = latent_of(1)[None].requires_grad_()
    pixels = wrapped.decode_tensor(latents)
    saturated = (pixels.detach() <= 0) | (pixels.detach() >= 1)
    assert saturated.any()
    (grad,) = torch.autograd.grad(pixels[saturated].sum(), latents)
    assert grad.abs().max() > 0
    with pytest.raises(ValueError, match="context 1 of 1 latents"):
        wrapped.decode_tensor(latents, context=1)


def test_encoding_is_diffusers_posterior() -> None:
    vae = tiny_vae()
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    found = WanVae(vae).encode_moments(frames)
    with torch.no_grad():
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
    np.testing.assert_allclose(found.mean, posterior.mean[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found.logvar, posterior.logvar[0].numpy(), atol=1e-5)
    assert found.mean.shape == (4, *WanVae(vae).latent_shape(5, 32, 48)) == (4, 2, 4, 6)
    np.testing.assert_array_equal(WanVae(vae).encode(frames), found.mean)
    with pytest.raises(ValueError, match="6 frames of 32 x 48"):
        WanVae(vae).encode(np.concatenate([frames, frames[:1]]))


def test_latents_are_normalised_by_the_published_constants() -> None:
    vae, latents = tiny_vae(), latent_of(2)[None]
    wrapped = WanVae(vae)
    found = wrapped.normalise(latents)
    for channel, (mean, deviation) in enumerate(zip(vae.config.latents_mean, vae.config.latents_std, strict=True)):
        torch.testing.assert_close(found[:, channel], (latents[:, channel] - mean) / deviation)
    torch.testing.assert_close(wrapped.denormalise(found), latents)


def test_a_vae_is_known_by_its_weights() -> None:
    first, same, other = tiny_vae(), tiny_vae(), tiny_vae()
    with torch.no_grad():
        other.decoder.conv_out.bias.add_(1)
    assert WanVae(first).digest == WanVae(same).digest != WanVae(other).digest


@pytest.mark.parametrize(
    ("size", "words"),
    [((6, 32, 32), "ask for 5"), ((5, 40, 32), "multiples of 16"), ((0, 32, 32), "ask for 1")],
)
def test_sizes_without_latents_are_refused(size: tuple[int, int, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        WanVae(tiny_vae()).latent_shape(*size)


def test_vae_folders_load_or_say_why_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json of a Wan VAE"):
        open_wan_vae(tmp_path)
    tiny_vae().save_pretrained(tmp_path / "vae")
    np.testing.assert_array_equal(open_wan_vae(tmp_path).decode(latent_of(2)), WanVae(tiny_vae()).decode(latent_of(2)))
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataIntegrityError, match="Wan VAE does not load"):
        open_wan_vae(tmp_path)
