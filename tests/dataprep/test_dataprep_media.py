"""Decoding: frame numbers, times, geometry, colours, typed failures; generated files and real footage."""

from fractions import Fraction
from pathlib import Path

import av
import media_files
import nasty
import numpy as np
import pytest
from media_files import HEIGHT, WIDTH, number_of
from PIL import Image

from dataprep.media.container import Limits
from dataprep.media.decode import Backend, decode_span, open_reader
from dataprep.media.geometry import Box, cover, display_of, resize
from dataprep.media.images import read_image
from dataprep.media.index import FrameIndex, frame_index
from dataprep.media.location import MediaFile
from dataprep.media.probe import probe_video
from dataprep.media.sampling import sample_frames, samples_in
from dataprep.quarantine import ItemError, Reason
from m4v.core.asset_catalog import asset_path
from m4v.core.canonical import digest_file

SIZE = (HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return media_files.write(folder / "plain.mp4", 240)


def numbers(path: Path, first: int, frames: int, fps: float, **options: object) -> list[int]:
    return [number_of(p) for p in decode_span(path, first, frames, fps=fps, size=SIZE, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [0, 1, 11, 12, 13, 100, 215])
def test_a_span_is_frame_exact_wherever_it_begins(plain: Path, first: int) -> None:
    assert numbers(plain, first, 24, 24) == list(range(first, first + 24))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("open-gop.mp4", "libx264", {"g": "30", "bf": "3", "x264-params": "open-gop=1:b-adapt=0:bframes=3"}),
        ("one-gop.mkv", "libx264", {"g": "600"}),
        ("mpeg2.mpg", "mpeg2video", {"g": "12", "bf": "2", "b": "4M"}),
        ("transport.ts", "libx264", {"g": "15"}),
        ("intra.avi", "mjpeg", {"q": "2"}),
        ("old.avi", "mpeg4", {"g": "12", "bf": "2", "q": "2"}),
    ],
)
def test_containers_and_codecs_count_alike(folder: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = media_files.write(
        folder / name, 90, codec=codec, options=options, pixel_format="yuvj420p" if codec == "mjpeg" else "yuv420p"
    )
    assert frame_index(path).frames == 90
    for first in (0, 37, 61):
        assert numbers(path, first, 20, 24) == list(range(first, first + 20))
    reader = open_reader(path)
    assert [number_of(f) for f in reader.frames([3, 40, 41, 88])] == [3, 40, 41, 88]


def test_real_footage_is_the_same_by_seeking_and_in_sequence() -> None:
    for asset, count in (("corpus/street/bikes.mp4", 250), ("corpus/street/cityCC0.mpg", 190)):
        reader = open_reader(asset_path(asset))
        assert reader.index.frames == count
        sequence = [hash(f.tobytes()) for f in reader.frames(range(count), 64)]
        for k in (count - 1, 118, 61, 30, 1):
            assert hash(next(iter(reader.frames([k], 64))).tobytes()) == sequence[k]


def test_seeking_does_not_decode_from_the_start(plain: Path) -> None:
    index = frame_index(plain)
    assert index.seekable
    assert len(index.keys) == 20
    with pytest.raises(ValueError, match="not increasing"):
        list(open_reader(plain).frames([5, 4]))


def test_sampling_goes_by_time(plain: Path) -> None:
    assert numbers(plain, 10, 12, 12) == list(range(10, 34, 2))
    assert numbers(plain, 0, 6, 10) == [0, 2, 5, 7, 10, 12]  # times .1 apart, frames .041667; ties go down
    assert numbers(plain, 0, 4, 48) == [0, 0, 1, 1]


def test_a_variable_rate_keeps_its_true_times(folder: Path) -> None:
    # Frames 0..19 at 24 fps, then a hole of two seconds, then 20..39.
    pts = [round(1000 * k / 24) for k in range(20)] + [2833 + round(1000 * k / 24) for k in range(20)]
    path = media_files.write(folder / "vfr.mkv", 40, pts=pts)
    facts = probe_video(path)
    assert "variable_rate" in facts.warnings
    assert facts.max_gap == pytest.approx(48, abs=3)
    held = numbers(path, 18, 52, 24)
    assert held[:3] == [18, 19, 19]
    assert held[-3:] == [20, 20, 21]
    assert held.count(19) in range(23, 26)  # the nearer half of the hole


def test_an_edit_list_hides_its_frames(folder: Path) -> None:
    # B-frames and a late start: MP4 writes an edit list for both.
    path = media_files.write(folder / "late.mp4", 48, pts=[500 + round(1000 * k / 24) for k in range(48)])
    facts = probe_video(path)
    assert facts.frames == 48
    assert facts.duration_us == pytest.approx(2_000_000, abs=50_000)
    assert numbers(path, 0, 48, 24) == list(range(48))


def test_the_end_of_a_clip_is_held(plain: Path) -> None:
    assert numbers(plain, 220, 20, 24)[-1] == 239
    with pytest.raises(ItemError, match="too_short: 20 of 21 frames at 24 fps"):
        numbers(plain, 220, 21, 24)
    with pytest.raises(ItemError, match="too_short: 10 of 11"):
        numbers(plain, 100, 11, 24, end_frame=110)
    with pytest.raises(ItemError, match="too_short"):
        numbers(plain, 240, 1, 24)


@pytest.mark.parametrize(
    ("frames", "source", "fps", "count"),
    [(240, 24, 24, 240), (240, 24, 12, 120), (241, 24, 12, 121), (30, 29.97, 24, 25), (1, 25, 24, 1), (0, 24, 24, 0)],
)
def test_samples_in_a_constant_rate(frames: int, source: float, fps: float, count: int) -> None:
    assert samples_in(frames, source, fps) == count
    if frames:
        ticks = np.arange(frames + 1, dtype=np.int64) * 1001
        rate = Fraction(source).limit_denominator(1001)
        index = FrameIndex(ticks[:-1], ticks[:1], 1 / (rate * 1001), int(ticks[-1]), True)
        assert len(sample_frames(index, 0, count, fps)) == count
        with pytest.raises(ItemError):
            sample_frames(index, 0, count + 1, fps)


def test_rotation_is_applied(folder: Path) -> None:
    upright = media_files.write(folder / "upright.mp4", 4)
    turned = media_files.write(folder / "turned.mp4", 4, adjust=lambda s: s.set_display_rotation(90))
    facts = probe_video(turned)
    assert (facts.width, facts.height, facts.rotation) == (HEIGHT, WIDTH, 90)
    assert "rotated" in facts.warnings
    straight = next(iter(open_reader(upright).frames([2])))
    assert np.array_equal(next(iter(open_reader(turned).frames([2]))), np.rot90(straight))


def test_square_pixels(folder: Path) -> None:
    def anamorphic(stream: av.video.stream.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = media_files.write(folder / "sar.mp4", 4, adjust=anamorphic)
    facts = probe_video(path)
    assert (facts.width, facts.height) == (WIDTH * 4 // 3, HEIGHT)
    assert "non_square_pixels" in facts.warnings
    assert decode_span(path, 0, 2, fps=24, size=(32, 64)).shape == (2, 32, 64, 3)
    tall = display_of(100, 90, None, Fraction(1, 2))
    assert (tall.width, tall.height) == (100, 180)


def test_odd_sizes_and_full_chroma(folder: Path) -> None:
    def odd(k: int) -> np.ndarray:
        return media_files.numbered(k, 321, 241)

    path = media_files.write(folder / "odd.mkv", 5, codec="ffv1", pixel_format="bgr0", picture=odd)
    frame = next(iter(open_reader(path).frames([3])))
    assert np.array_equal(frame, odd(3))
    assert decode_span(path, 0, 5, fps=24, size=(64, 128)).shape == (5, 64, 128, 3)


@pytest.mark.parametrize(("space", "height"), [(1, 64), (5, 64), (2, 64), (2, 720)])
def test_colours_come_back_whatever_the_matrix(folder: Path, space: int, height: int) -> None:
    """Tagged BT.709, tagged BT.601, and untagged guessed by height."""
    colour = np.array([200, 60, 30], np.uint8)
    path = folder / f"colour-{space}-{height}.mkv"
    matrix = {1: 1, 5: 5, 2: 1 if height >= 720 else 5}[space]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv444p"
        stream.codec_context.colorspace = space
        picture = av.VideoFrame.from_ndarray(np.broadcast_to(colour, (height, 64, 3)).copy(), format="rgb24")
        frame = picture.reformat(format="yuv444p", dst_colorspace=matrix, dst_color_range=1)
        frame.colorspace = space
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    decoded = next(iter(open_reader(path).frames([0])))
    assert np.abs(decoded.astype(int) - colour).max() <= 3


def test_a_size_change_in_mid_stream_is_found(folder: Path) -> None:
    parts = [
        media_files.write(folder / f"part{k}.ts", 12, picture=lambda n, k=k: media_files.numbered(n, WIDTH, HEIGHT * k))
        for k in (1, 2)
    ]
    joined = folder / "joined.ts"
    joined.write_bytes(b"".join(p.read_bytes() for p in parts))
    reader = open_reader(joined)
    with pytest.raises(ItemError, match=r"size_change|decode_error"):
        list(reader.frames(range(reader.index.frames)))


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_other_backends_agree_with_pyav(plain: Path, backend: Backend) -> None:
    bikes = asset_path("corpus/street/bikes.mp4")
    for first in (0, 75, 200):
        ours = decode_span(bikes, first, 17, fps=24, size=(64, 96)).astype(int)
        theirs = decode_span(bikes, first, 17, fps=24, size=(64, 96), backend=backend)
        assert np.abs(ours - theirs).mean() < 2.0
    assert numbers(plain, 50, 10, 12, backend=backend) == list(range(50, 70, 2))


@pytest.mark.parametrize("name", [n for n in nasty.EXPECTED if "caption" not in n and n != "blank.mp4"])
def test_nasty_files_have_their_own_reasons(tmp_path: Path, name: str) -> None:
    path = nasty.corpus(tmp_path) / name

    def read_all() -> None:
        list(open_reader(path).frames(range(probe_video(path).frames)))

    with pytest.raises(ItemError) as caught:
        read_all()
    assert caught.value.reason in nasty.EXPECTED[name]


def test_a_faststart_file_cut_short_keeps_its_whole_groups_of_pictures(folder: Path) -> None:
    whole = media_files.write(folder / "fast.mp4", 120, container={"movflags": "+faststart"}, options={"crf": "2"})
    short = folder / "short.mp4"
    short.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    facts = probe_video(short)
    assert "partial" in facts.warnings
    assert facts.claimed_frames == 120
    assert 24 <= facts.frames < 80
    assert facts.frames % 12 == 0  # a group of pictures has twelve
    kept = list(range(facts.frames))
    assert [number_of(p) for p in open_reader(short).frames(kept)] == kept
    data = whole.read_bytes()
    short.write_bytes(data[: data.index(b"mdat") + len(data) // 24])
    with pytest.raises(ItemError, match=r"truncated: \d+ of 120 claimed frames are in the file, and no whole group"):
        probe_video(short)


def test_damaged_packets_are_found_by_decoding(folder: Path) -> None:
    whole = media_files.write(folder / "whole.mp4", 120, options={"crf": "4"})
    data = bytearray(whole.read_bytes())
    begin, end = data.index(b"mdat"), data.index(b"moov")
    middle = (begin + end) // 2
    data[middle : middle + 900] = np.random.default_rng(0).integers(0, 256, 900, np.uint8).tobytes()
    damaged = folder / "damaged.mp4"
    damaged.write_bytes(data)
    with pytest.raises(ItemError, match="decode_error"):
        list(open_reader(damaged).frames(range(frame_index(damaged).frames)))


def test_playlists_are_never_given_to_a_demuxer(tmp_path: Path) -> None:
    secret = media_files.write(tmp_path / "secret.ts", 12)
    for text in (f"#EXTM3U\n#EXTINF:1,\n{secret}\n", f"ffconcat version 1.0\nfile '{secret}'\n"):
        path = tmp_path / "list.mp4"
        path.write_text(text)
        with pytest.raises(ItemError, match="not_media: text"):
            probe_video(path)


def test_odd_names_are_only_names(tmp_path: Path) -> None:
    for path in nasty.odd_names(tmp_path):
        assert probe_video(path).frames == 24


def test_limits(plain: Path) -> None:
    with pytest.raises(ItemError, match="too_large: 144x64 pixels"):
        probe_video(plain, Limits(max_pixels=1000))
    with pytest.raises(ItemError, match="too_large: more than 100 frames"):
        probe_video(plain, Limits(max_frames=100))
    with pytest.raises(ItemError, match="missing_file"):
        probe_video(plain.with_name("absent.mp4"))


def test_a_changed_file_is_noticed(plain: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(plain.read_bytes())
    listed = MediaFile(str(tmp_path), copy.name, copy.stat().st_size, digest_file(copy), True, str(tmp_path / "cache"))
    assert listed.local() == copy
    listed.check(copy)
    copy.write_bytes(bytes(reversed(plain.read_bytes())))
    with pytest.raises(ItemError, match="source_changed"):
        listed.check(copy)
    copy.write_bytes(b"short")
    with pytest.raises(ItemError, match="source_changed: 5 bytes, listed with"):
        listed.local()


def test_cover_cuts_the_centre_and_never_stretches() -> None:
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 255
    assert cover(picture, 50, 50).min() == 255
    assert cover(picture, 200, 200).shape == (200, 200, 3)
    assert np.array_equal(resize(picture, 300, 100), picture)
    small = resize(np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, 2), 2, 2)
    assert small[..., 0].tolist() == [[3, 5], [11, 13]]  # area means 2.5, 4.5, 10.5, 12.5


def test_a_crop_is_taken_before_scaling(plain: Path) -> None:
    box = Box(0, 0, WIDTH, 16)
    top = decode_span(plain, 5, 1, fps=24, size=(16, WIDTH), crop=box)[0]
    whole = next(iter(open_reader(plain).frames([5])))
    assert np.array_equal(top, whole[:16])
    with pytest.raises(ValueError, match="not inside a frame"):
        decode_span(plain, 5, 1, fps=24, size=(16, 16), crop=(0, 0, WIDTH + 1, 16))


def test_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))
    clear = np.dstack([pixels, np.zeros((40, 60), np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").min() == 255
    deep = (np.arange(2400, dtype=np.uint16) * 27).reshape(40, 60)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").max() == 255


def test_bad_images(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_text("<html>not here</html>")
    (tmp_path / "noise.png").write_bytes(bytes(range(256)) * 8)
    frames = [Image.new("RGB", (8, 8), (k, 0, 0)) for k in range(0, 200, 50)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    reasons = {"cut": "truncated", "empty": "empty", "page": "not_media", "noise": "not_media", "moves": "animation"}
    for path in tmp_path.iterdir():
        if path.stem in reasons:
            with pytest.raises(ItemError) as caught:
                read_image(path)
            assert caught.value.reason == reasons[path.stem]
    with pytest.raises(ItemError) as caught:
        read_image(good, Limits(max_pixels=100))
    assert caught.value.reason == Reason.TOO_LARGE


@pytest.mark.deep
def test_the_film_is_frame_exact_by_seeking() -> None:
    reader = open_reader(asset_path("film"))
    assert reader.index.frames == 14_315
    sequence = [hash(f.tobytes()) for f in reader.frames(range(8000, 8400), 160)]
    for k in range(8000, 8400, 23):
        assert hash(next(iter(reader.frames([k], 160))).tobytes()) == sequence[k - 8000]
