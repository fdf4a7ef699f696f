"""Whole, chunked, streamed and continued videos are the same video, whatever the cuts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vae import THIN, tiny_vae

from m4v.core.rng import torch_seed
from m4v.vae import coder, convolution
from m4v.vae.convolution import CausalConv3d, FrameCache
from m4v.vae.tiling import chunks, gather

EXACT = {"atol": 1e-10, "rtol": 1e-10}  # in float64, where only rounding may differ


@pytest.fixture(scope="module")
def vae():
    return tiny_vae(config=THIN).double().requires_grad_(False)


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(torch_seed(seed, "vae test", *shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@given(
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
)
def test_convolution_in_any_pieces_is_the_convolution(cuts, kernel, stride):
    """For stride 1; for stride 2 pieces are those that a video's halvings make: odd first, then even."""
    if stride == 2:
        kernel, cuts = 3, [2 * cuts[0] + 1, *(2 * n for n in cuts[1:])]
    module = CausalConv3d(2, 3, kernel, (stride, stride, stride)).double().requires_grad_(False)
    video, cache = _randn(1, 2, sum(cuts), 4, 6), FrameCache()
    pieces = [module(piece, cache) for piece in video.split(cuts, dim=2)]
    whole = module(video)
    assert whole.shape[2] == (video.shape[2] - 1) // stride + 1
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, **EXACT)
    if kernel == 3:
        assert cache[module].shape[2] == kernel - stride


def test_convolution_is_causal_and_zero_padded():
    """Against `torch.nn.functional.conv3d` on a padded copy; a change in frame 3 reaches no earlier output."""
    module = CausalConv3d(2, 3).double().requires_grad_(False)
    video = _randn(1, 2, 5, 4, 6)
    padded = torch.nn.functional.pad(video, (1, 1, 1, 1, 2, 0))
    expected = torch.nn.functional.conv3d(padded, module.conv.weight, module.conv.bias)
    torch.testing.assert_close(module(video), expected, **EXACT)
    changed = video.clone()
    changed[:, :, 3] += 1
    difference = (module(changed) - expected).abs().amax(dim=(0, 1, 3, 4))
    assert (difference[:3] == 0).all()
    assert (difference[3:] > 0).all()


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 1, 1)])
def test_tensors_past_32_bit_indices_are_convolved_in_pieces(stride, monkeypatch):
    module = CausalConv3d(2, 6, stride=stride).double()
    video = _randn(1, 2, 9, 4, 6).requires_grad_()
    whole = module(video)
    gradient = torch.autograd.grad(whole.square().sum(), video)[0]
    seen = []
    module.conv.register_forward_hook(lambda _, inputs, out: seen.append(max(inputs[0].numel(), out.numel())))
    limit = 2 * 24 * 6
    monkeypatch.setattr(convolution, "MAX_ELEMENTS", limit)
    pieces = module(video)
    assert len(seen) > 1
    assert max(seen) <= limit
    torch.testing.assert_close(pieces, whole, **EXACT)
    torch.testing.assert_close(torch.autograd.grad(pieces.square().sum(), video)[0], gradient, **EXACT)


@settings(max_examples=7)
@given(
    units=st.integers(0, 3), height=st.integers(1, 3), width=st.integers(1, 3), window=st.integers(1, 2),
    tile=st.sampled_from([None, 32]),
)  # fmt: skip
def test_chunks_change_nothing(vae, units, height, width, window, tile):
    video = _randn(1, 3, 8 * units + 1, 16 * height, 16 * width).clamp(-1, 1)
    whole, chunked = vae.encode(video, tile=tile), vae.encode(video, window=8 * window, tile=tile)
    torch.testing.assert_close(chunked.mean, whole.mean, **EXACT)
    torch.testing.assert_close(chunked.logvar, whole.logvar, **EXACT)
    decoded = vae.decode(whole.mean, tile=tile)
    assert decoded.shape == video.shape
    torch.testing.assert_close(vae.decode(whole.mean, window=window, tile=tile), decoded, **EXACT)
    stream = list(vae.decode_stream(whole.mean.split(1, dim=2), window=window, tile=tile))
    torch.testing.assert_close(torch.cat(stream, dim=2), decoded, **EXACT)
    torch.testing.assert_close(vae.encode(video[:, :, :1], tile=tile).mean, whole.mean[:, :, :1], **EXACT)


@pytest.mark.parametrize("elements", [1, 3000])
def test_large_frames_go_through_in_pieces(vae, elements, monkeypatch):
    """No value changes; at the levels of large frames, fewer go through a block at a time."""
    video = _randn(1, 3, 25, 16, 24).clamp(-1, 1)
    moments = vae.encode(video, window=16)
    decoded = vae.decode(moments.mean, window=2)
    most = {}
    for name, module in vae.named_modules():
        if name.endswith(("blocks.0", "blocks.3")):
            hook = lambda _, args, name=name: most.update({name: max(most.get(name, 0), args[0].shape[2])})  # noqa: E731
            module.register_forward_pre_hook(hook)
    monkeypatch.setattr(coder, "PIECE_ELEMENTS", elements)
    pieces = vae.encode(video, window=16)
    torch.testing.assert_close(pieces.mean, moments.mean, **EXACT)
    torch.testing.assert_close(pieces.logvar, moments.logvar, **EXACT)
    torch.testing.assert_close(vae.decode(moments.mean, window=2), decoded, **EXACT)
    assert most["encoder.down_blocks.0"] == 3
    assert most["decoder.up_blocks.3"] == 1
    assert most["decoder.up_blocks.0"] == (1 if elements == 1 else 3)


def test_stream_equals_chunked_decode_to_the_bit(vae):
    latents = _randn(1, 16, 6, 3, 5)
    for window, sizes in ((1, [1] * 6), (2, [1] * 6), (2, [4, 2]), (3, [6])):
        stream = vae.decode_stream(latents.split(sizes, dim=2), window=window)
        assert torch.equal(torch.cat(list(stream), dim=2), vae.decode(latents, window=window))


def test_later_frames_change_no_earlier_ones(vae):
    """Frame 9 belongs to the third latent, and the second latent to frames 1 to 8: both ways."""
    video = _randn(1, 3, 17, 16, 24).clamp(-1, 1)
    changed = video.clone()
    changed[:, :, 9] = 1
    before, after = vae.encode(video).mean, vae.encode(changed).mean
    torch.testing.assert_close(after[:, :, :2], before[:, :, :2], **EXACT)
    assert float((after - before)[:, :, 2].abs().min()) > 0
    latents = before.clone()
    latents[:, :, 1] += 1
    difference = (vae.decode(latents) - vae.decode(before)).abs().amax(dim=(0, 1, 3, 4))
    assert float(difference[0]) < EXACT["atol"]
    assert (difference[1:] > 1e-6).all()


def test_batches_and_their_rows_agree(vae):
    videos = _randn(2, 3, 9, 16, 24).clamp(-1, 1)
    rows = torch.cat([vae.encode(row).mean for row in videos.split(1)])
    torch.testing.assert_close(vae.encode(videos).mean, rows, **EXACT)


def test_memory_order_of_channels_changes_nothing():
    """GPUs run the weights in channels_last_3d order; activations of either order must pass every view."""
    plain, last = (
        tiny_vae(config=THIN).double(),
        tiny_vae(config=THIN).double().to(memory_format=torch.channels_last_3d),
    )
    video = _randn(1, 3, 17, 48, 40).clamp(-1, 1)
    ordered = video.contiguous(memory_format=torch.channels_last_3d)
    for how in ({}, {"window": 8}, {"tile": 32}):
        torch.testing.assert_close(last.encode(ordered, **how).mean, plain.encode(video, **how).mean, **EXACT)
    latents = _randn(1, 16, 3, 3, 5)
    for how in ({}, {"window": 1}):
        torch.testing.assert_close(last.decode(latents, **how), plain.decode(latents, **how), **EXACT)


def test_bytes_are_pixels(vae):
    pixels = torch.arange(3 * 9 * 16 * 16).view(1, 3, 9, 16, 16).mul(37).remainder(256).to(torch.uint8)
    expected = vae.encode((pixels.double() / 127.5 - 1).float())
    torch.testing.assert_close(vae.encode(pixels, window=8).mean, expected.mean, atol=1e-6, rtol=1e-6)


def test_interleaved_streams_do_not_touch_each_other(vae):
    """Caches belong to calls: two videos through one model, a chunk of each in turn, and an encode in between."""
    first, second = _randn(1, 16, 4, 2, 3), _randn(1, 16, 4, 3, 2, seed=1)
    alone = [list(vae.decode_stream(z.split(1, dim=2))) for z in (first, second)]
    streams = [vae.decode_stream(z.split(1, dim=2)) for z in (first, second)]
    for chunk in range(3):
        for stream, expected in zip(streams, alone, strict=True):
            assert torch.equal(next(stream), expected[chunk])
        vae.encode(_randn(1, 3, 9, 16, 24), window=8)
    assert {name for name, _ in vae.named_buffers()} == set()


def test_stream_is_lazy(vae):
    """Frames of a chunk come before the next latent is asked for."""
    asked = []

    def latents():
        for number in range(3):
            asked.append(number)
            yield _randn(1, 16, 1, 2, 2, seed=number)

    stream = vae.decode_stream(latents())
    assert next(stream).shape == (1, 3, 9, 16, 16)
    assert asked == [0, 1]
    assert next(stream).shape == (1, 3, 8, 16, 16)
    assert asked == [0, 1, 2]


def test_cuts():
    assert chunks(17, None) == [slice(0, 17)]
    assert [(c.start, c.stop) for c in chunks(25, 16)] == [(0, 17), (17, 25)]
    assert [(c.start, c.stop) for c in chunks(4, 1)] == [(0, 2), (2, 3), (3, 4)]
    assert [(c.start, c.stop) for c in chunks(1, 1)] == [(0, 1)]
    assert [(c.start, c.stop) for c in chunks(3, 1, begins=False)] == [(0, 1), (1, 2), (2, 3)]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 4))
def test_gathered_pieces_are_the_chunks(sizes, window):
    video = _randn(1, 1, sum(sizes), 1, 1)
    gathered = list(gather(video.split(sizes, dim=2), window))
    assert [g.shape[2] for g in gathered] == [c.stop - c.start for c in chunks(sum(sizes), window)]
    assert torch.equal(torch.cat(gathered, dim=2), video)
    assert list(gather([], window)) == []


def test_gradients_of_chunks_are_those_of_the_whole(vae):
    latents = _randn(1, 16, 4, 2, 3).requires_grad_()
    weight = _randn(1, 3, 25, 16, 24)
    whole, chunked = (
        torch.autograd.grad((vae.decode(latents, window=window) * weight).sum(), latents)[0] for window in (None, 1)
    )
    torch.testing.assert_close(chunked, whole, **EXACT)


@pytest.mark.parametrize(("context", "tile"), [(0, None), (1, 32), (3, None)])
def test_gradients_after_a_context(vae, context, tile):
    """Frames and gradients of the scored latents are those of the whole; the context gets none."""
    latents = _randn(1, 16, 4, 5, 3).requires_grad_()
    frames = vae.decode(latents, tile=tile)[:, :, max(0, 8 * context - 7) :]
    weight = _randn(*frames.shape, seed=1)
    expected = torch.autograd.grad((frames * weight).sum(), latents)[0]
    for recompute in (False, True):
        after = vae.decode_after(latents, context, window=1, tile=tile, recompute=recompute)
        torch.testing.assert_close(after, frames, **EXACT)
        gradient = torch.autograd.grad((after * weight).sum(), latents)[0]
        assert (gradient[:, :, :context] == 0).all()
        torch.testing.assert_close(gradient[:, :, context:], expected[:, :, context:], **EXACT)


@pytest.mark.parametrize(
    ("shape", "how", "message"),
    [
        ((1, 3, 8, 16, 16), {}, r"8k\+1 frames, not 8"),
        ((1, 3, 9, 20, 16), {}, "multiples of 8, not 20x16"),
        ((1, 4, 9, 16, 16), {}, "video must be"),
        ((3, 9, 16, 16), {}, "video must be"),
        ((1, 3, 9, 16, 16), {"window": 12}, "multiple of 8 frames, not 12"),
        ((1, 3, 9, 16, 16), {"tile": 40}, "multiple of 32 pixels, not 40"),
    ],
)
def test_videos_it_cannot_take(vae, shape, how, message):
    with pytest.raises(ValueError, match=message):
        vae.encode(torch.zeros(shape), **how)


def test_latents_it_cannot_take(vae):
    with pytest.raises(ValueError, match="latents must be"):
        vae.decode(torch.zeros(16, 1, 2, 2))
    with pytest.raises(ValueError, match="latents must be"):
        vae.decode(torch.zeros(1, 16, 0, 2, 2))
    with pytest.raises(ValueError, match="at least one latent, not 0"):
        vae.decode(torch.zeros(1, 16, 1, 2, 2), window=0)
    with pytest.raises(ValueError, match="context must leave"):
        vae.decode_after(torch.zeros(1, 16, 2, 2, 2), context=2)
