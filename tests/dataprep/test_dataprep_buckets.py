import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprep.buckets import Bucket, choose_size, image_bucket, sampling_fps, video_buckets
from dataprep.encode_config import BucketConfig
from m4v.codec.shape import latent_frames

CONFIG = BucketConfig(frames=(9, 57, 121), sizes=((128, 192), (192, 128), (128, 128)), fps=24)


def test_bucket_sizes_and_tokens():
    bucket = Bucket(57, 128, 192)
    assert bucket.name == "57x128x192"
    assert bucket.latent == (8, 16, 24)
    assert bucket.tokens == 8 * 8 * 12


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (720, 1280, (128, 192)),
        (1280, 720, (192, 128)),
        (500, 520, (128, 128)),
        (272, 640, (128, 192)),
    ],
)
def test_nearest_aspect_ratio(height, width, expected):
    assert choose_size(CONFIG.sizes, height, width) == expected


def test_of_one_aspect_the_largest_that_needs_no_enlarging():
    sizes = ((128, 192), (256, 384), (512, 768), (128, 128))
    assert choose_size(sizes, 720, 1080) == (512, 768)
    assert choose_size(sizes, 400, 600) == (256, 384)
    assert choose_size(sizes, 100, 150) == (128, 192)  # all would enlarge: the smallest


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.permutations([(64, 64), (64, 128), (128, 64), (128, 128), (128, 192)]),
)
def test_size_does_not_depend_on_the_order_of_the_config(height, width, sizes):
    assert choose_size(sizes, height, width) == choose_size(sorted(sizes), height, width)


def test_slow_videos_keep_their_rate():
    assert sampling_fps(CONFIG, 30) == 24
    assert sampling_fps(CONFIG, 24000 / 1001) == 24000 / 1001
    assert sampling_fps(CONFIG, 10) == 10


@pytest.mark.parametrize(
    ("frames", "fps", "lengths"),
    [
        (8, 24, []),
        (9, 24, [9]),
        (56, 24, [9]),
        (57, 24, [57, 9]),
        (130, 24, [121, 57, 9]),
        (130, 48, [57, 9]),
        (57, 10, [57, 9]),
    ],
)
def test_longest_length_first(frames, fps, lengths):
    assert [b.frames for b in video_buckets(CONFIG, frames, fps, 720, 1280)] == lengths


@given(st.integers(1, 2000), st.floats(5, 120))
def test_every_length_fits_and_is_causal(frames, fps):
    for bucket in video_buckets(CONFIG, frames, fps, 720, 1280):
        assert latent_frames(bucket.frames) == bucket.latent[0]
        # The last sample lies inside the span.
        assert (bucket.frames - 1) / sampling_fps(CONFIG, fps) < frames / fps * (1 + 1e-3)


def test_images_are_one_frame_in_sizes_of_their_own():
    own = CONFIG.model_copy(update={"image_sizes": ((256, 256),)})
    assert image_bucket(CONFIG, 720, 1280) == Bucket(1, 128, 192)
    assert image_bucket(own, 720, 1280) == Bucket(1, 256, 256)


def test_a_picture_without_size_is_refused():
    with pytest.raises(ValueError, match="aspect"):
        choose_size(CONFIG.sizes, 0, 10)
