import numpy as np
import pytest
import torch

from m4v.codec import open_codec
from m4v.codec.basis import OPPONENT, analysis, dct_matrix
from m4v.codec.config import DctCodecConfig
from m4v.codec.dct import FIRST_CONSTANTS, GROUP_CONSTANTS, DctCodec
from m4v.codec.dct_tables import FIRST, GROUP
from m4v.codec.shape import CHANNELS, latent_frames, latent_shape, pixel_frames
from m4v.core.rng import generator
from m4v.flow import latents as flow_latents


def _clip(frames: int = 25, height: int = 64, width: int = 96) -> np.ndarray:
    """A shaded picture with texture, in which a disc moves: something smooth, something sharp, something noisy."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = generator(0, "codec test").normal(0, 6, (height, width, 3))
    clip = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        picture = np.stack([rows * 3, columns * 2, 200 - rows - columns], axis=-1) + noise
        inside = np.hypot(rows - 30, columns - 20 - 2 * t) < 14
        picture[inside] = (220, 40, 60)
        clip[t] = np.clip(picture, 0, 255)
    return clip


@pytest.fixture(scope="module")
def codec() -> DctCodec:
    return DctCodec(DctCodecConfig())


def test_basis_is_orthonormal():
    assert np.allclose(OPPONENT @ OPPONENT.T, np.eye(3), atol=1e-12)
    assert np.allclose(dct_matrix(8) @ dct_matrix(8).T, np.eye(8), atol=1e-12)
    for functions, frames in ((FIRST, 1), (GROUP, 8)):
        rows = analysis(functions, frames)
        assert rows.shape == (CHANNELS, frames * 8 * 8 * 3)
        assert np.allclose(rows @ rows.T, np.eye(CHANNELS), atol=1e-12)


def test_encode_is_the_dct_of_each_block(codec):
    """Against the definition, written with plain sums for one block of the second unit."""
    clip = _clip(9)
    block = clip[1:9, 8:16, 16:24].astype(np.float64) / 127.5 - 1
    index = next(i for i, f in enumerate(GROUP) if (f.colour, f.time, f.vertical, f.horizontal) == (0, 0, 1, 2))
    luma = block.sum(-1) / np.sqrt(3)
    cosine = lambda k: np.cos(np.pi * (np.arange(8) + 0.5) * k / 8) / 2  # noqa: E731
    expected = sum(
        luma[t, y, x] * cosine(1)[y] * cosine(2)[x] for t in range(8) for y in range(8) for x in range(8)
    ) / np.sqrt(8)
    function = GROUP[index]
    latent = GROUP_CONSTANTS[0] + GROUP_CONSTANTS[1] * (expected - function.mean) / function.std
    assert codec.encode(clip)[index, 1, 1, 2] == pytest.approx(latent, rel=1e-5)


def test_shapes_and_types(codec):
    latent = codec.encode(_clip(17))
    assert latent.shape == (16, 3, 8, 12)
    assert latent.dtype == np.float32
    decoded = codec.decode(latent)
    assert decoded.shape == (17, 64, 96, 3)
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_prefix_of_the_latent_is_the_latent_of_the_prefix(codec, frames):
    clip = _clip(25)
    whole, prefix = codec.encode(clip), codec.encode(clip[:frames])
    assert np.array_equal(whole[:, : latent_frames(frames)], prefix)
    assert np.array_equal(codec.decode(whole)[:frames], codec.decode(prefix))


def test_changing_a_later_frame_changes_no_earlier_latent(codec):
    clip = _clip(25)
    changed = clip.copy()
    changed[17:] = 255 - changed[17:]
    before, after = codec.encode(clip), codec.encode(changed)
    assert np.array_equal(before[:, :3], after[:, :3])
    assert not np.array_equal(before[:, 3], after[:, 3])


@pytest.mark.parametrize("smoothing", [True, False])
def test_decoded_pixels_encode_to_the_same_latent(smoothing):
    """The conditional mean agrees with what it is conditioned on: decoding loses nothing that was kept."""
    codec = DctCodec(DctCodecConfig(smoothing=smoothing))
    units = ((codec._first, 1), (codec._group, 8))
    for unit, frames in units:
        latent = torch.from_numpy(generator(1, frames).normal(0, 1, (1, CHANNELS, 4, 6))).float()
        pixels = unit.decode(latent)[0].double()
        blocks = pixels.view(3, frames, 4, 8, 6, 8).permute(2, 4, 1, 3, 5, 0).reshape(24, -1).numpy()
        again = (blocks + 1) * 127.5 @ unit.encode_matrix + unit.encode_offset
        assert np.allclose(again.T.reshape(CHANNELS, 4, 6), latent[0].numpy(), atol=2e-4)


def test_smoothing_raises_psnr():
    clip = _clip(17)
    errors = []
    for smoothing in (True, False):
        codec = DctCodec(DctCodecConfig(smoothing=smoothing))
        errors.append(((codec.decode(codec.encode(clip)).astype(float) - clip) ** 2).mean())
    assert errors[0] < 0.97 * errors[1]


def test_flat_colour_survives(codec):
    """Averages of all three colours are kept, so an even picture comes back to within rounding."""
    clip = np.broadcast_to(np.array([200, 30, 90], np.uint8), (9, 64, 64, 3))
    assert np.abs(codec.decode(codec.encode(clip)).astype(int) - clip).max() <= 1


def test_bfloat16_storage_costs_little(codec):
    clip = _clip(17)
    latent = codec.encode(clip)
    stored = torch.from_numpy(latent).bfloat16().float().numpy()
    exact, rounded = (((codec.decode(z).astype(float) - clip) ** 2).mean() for z in (latent, stored))
    assert rounded < 1.05 * exact


def test_decode_tensor_is_batched_and_matches_decode(codec):
    latents = np.stack([codec.encode(_clip(17)), codec.encode(_clip(17)[::-1].copy())])
    video = codec.decode_tensor(torch.from_numpy(latents))
    assert video.shape == (2, 3, 17, 64, 96)
    assert 0 <= float(video.min()) <= float(video.max()) <= 1
    for row, latent in zip(video, latents, strict=True):
        frames = (row * 255).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
        assert np.array_equal(frames, codec.decode(latent))


def test_gradient_of_decode_tensor(codec):
    """Against finite differences in double precision steps, on pixels that are not saturated."""
    latent = torch.from_numpy(codec.encode(_clip(9)))[None].requires_grad_()
    weights = torch.from_numpy(generator(2).normal(0, 1, (1, 3, 9, 64, 96))).float()
    (gradient,) = torch.autograd.grad((codec.decode_tensor(latent) * weights).sum(), latent)
    assert gradient.isfinite().all()
    direction = torch.from_numpy(generator(3).normal(0, 1, latent.shape)).float()
    units = (codec._first.decode, codec._group.decode)

    def unclipped(z: torch.Tensor) -> torch.Tensor:
        pixels = torch.cat([units[0](z[:, :, 0]), units[1](z[:, :, 1])], dim=2)
        return (((pixels + 1) / 2).double() * weights).sum()

    step = 1e-2
    slope = (unclipped(latent + step * direction) - unclipped(latent - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-3)


def test_gradient_reaches_saturated_pixels(codec):
    latent = torch.from_numpy(codec.encode(np.full((9, 64, 64, 3), 255, np.uint8)))[None] * 1.5
    latent.requires_grad_()
    video = codec.decode_tensor(latent)
    assert video.max().item() == 1
    (gradient,) = torch.autograd.grad(video.sum(), latent)
    assert float(gradient.abs().max()) > 0


def test_normalisation_constants_are_those_of_the_flow():
    """The gains are made for the constants that `m4v.flow` removes."""
    zero = flow_latents.normalise(torch.zeros(1, 16, 2, 8, 8))
    for t, (shift, scale) in enumerate((FIRST_CONSTANTS, GROUP_CONSTANTS)):
        assert float(zero[0, 0, t, 0, 0]) == pytest.approx(-shift / scale)


def test_digest_tells_configs_apart():
    digests = {DctCodec(DctCodecConfig(smoothing=s)).digest for s in (True, False)}
    assert len(digests) == 2
    assert DctCodec(DctCodecConfig()).digest == open_codec(DctCodecConfig()).digest


@pytest.mark.parametrize("shape", [(8, 64, 64, 3), (9, 60, 64, 3), (9, 64, 64, 4), (64, 64, 3)])
def test_sizes_it_cannot_take(codec, shape):
    with pytest.raises(ValueError):
        codec.encode(np.zeros(shape, np.uint8))


def test_other_types_are_refused(codec):
    with pytest.raises(ValueError, match="uint8"):
        codec.encode(np.zeros((9, 64, 64, 3), np.float32))
    with pytest.raises(ValueError, match="latents"):
        codec.decode_tensor(torch.zeros(1, 8, 2, 8, 8))


def test_frame_arithmetic():
    assert [latent_frames(t) for t in (1, 9, 57, 121, 241)] == [1, 2, 8, 16, 31]
    assert all(pixel_frames(latent_frames(t)) == t for t in range(1, 260, 8))
    assert latent_shape(57, 128, 192) == (8, 16, 24)
    with pytest.raises(ValueError, match="8k"):
        latent_frames(16)
    with pytest.raises(ValueError, match="at least one"):
        pixel_frames(0)


def test_stream_gives_the_bytes_of_decode(codec):
    latent = codec.encode(_clip(33))
    pieces = list(codec.decode_stream(np.split(latent, 5, axis=1)))
    assert [len(p) for p in pieces] == [1, 8, 8, 8, 8]
    assert np.array_equal(np.concatenate(pieces), codec.decode(latent))
    tensors = codec.decode_stream(torch.from_numpy(latent).split(1, dim=1))
    assert np.array_equal(np.concatenate(list(tensors)), codec.decode(latent))


def test_stream_is_lazy(codec):
    latent = codec.encode(_clip(17))
    asked = []

    def latents():
        for number in range(3):
            asked.append(number)
            yield latent[:, number : number + 1]

    stream = codec.decode_stream(latents())
    assert len(next(stream)) == 1
    assert asked == [0]
    assert len(next(stream)) == 8
    assert asked == [0, 1]


@pytest.mark.parametrize("context", [1, 2])
def test_decoding_after_a_context_is_the_end_of_the_whole(codec, context):
    latents = torch.from_numpy(codec.encode(_clip(25)))[None].requires_grad_()
    tail, whole = codec.decode_tensor(latents, context), codec.decode_tensor(latents)
    assert torch.equal(tail, whole[:, :, 8 * context - 7 :])
    (gradient,) = torch.autograd.grad(tail.sum(), latents)
    assert (gradient[:, :, :context] == 0).all()
    assert float(gradient[:, :, context:].abs().max()) > 0


def test_moments_are_the_mean_alone(codec):
    moments = codec.encode_moments(_clip(9))
    assert np.array_equal(moments.mean, codec.encode(_clip(9)))
    assert moments.logvar is None


def test_four_frames_a_latent_are_coded_alike() -> None:
    """Latents of the shape of Wan's: causal, of about the variance of the others, decoded at least as well."""
    assert "time_stride" not in DctCodecConfig().canonical()
    four, eight = DctCodec(DctCodecConfig(time_stride=4)), DctCodec(DctCodecConfig())
    assert four.digest != eight.digest
    frames = _clip(17, 48, 64)
    latent = four.encode(frames)
    assert latent.shape == (16, 5, 6, 8)
    assert np.array_equal(four.encode(frames[:9]), latent[:, :3])
    errors = [np.square(codec.decode(codec.encode(frames)).astype(float) - frames).mean() for codec in (four, eight)]
    assert four.decode(latent).shape == frames.shape
    assert errors[0] < 1.2 * errors[1]
    assert four.decode_tensor(torch.from_numpy(latent)[None]).shape == (1, 3, 17, 48, 64)
