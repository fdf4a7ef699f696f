"""HDR and wide gamut against the formulas of the standards, fields and combs, and scaling before RGB."""

from pathlib import Path

import av
import cv2
import nasty_media
import numpy as np
import pytest

from dataprep.media.colour import PEAK_NITS, WHITE_NITS, Colour, compress, to_sdr
from dataprep.media.convert import Picture
from dataprep.media.decode import open_reader
from dataprep.media.geometry import Display, display_of
from dataprep.media.interlace import combing, first_field
from dataprep.media.probe import probe_video
from m4v.core.asset_catalog import asset_path

PQ = Colour(matrix=9, primaries=9, transfer=16, full_range=False, guessed=False)
HLG = PQ._replace(transfer=18)
# ITU-R BT.2087: linear BT.709 to linear BT.2020.
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def pq(nits: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084, from light to signal."""
    y = (np.asarray(nits) / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def through(signal: np.ndarray, colour: Colour) -> np.ndarray:
    pixels = np.rint(np.asarray(signal, dtype=float) * 65535).astype(np.uint16).reshape(1, -1, 3)
    return to_sdr(pixels, colour)[0].astype(int)


def test_light_below_the_knee_keeps_its_brightness() -> None:
    nits = np.array([0.5, 5.0, 20.0, 50.0, 80.0])
    seen = through(np.repeat(pq(nits)[:, None], 3, axis=1), PQ)
    assert np.abs(seen - 255 * (nits[:, None] / WHITE_NITS) ** (1 / 2.4)).max() <= 1


def test_the_tone_curve_rises_to_white_and_no_further() -> None:
    nits = np.linspace(1, 4000, 4000)
    out = compress(nits)
    assert np.all(np.diff(out) >= -1e-9)
    assert out[999] == pytest.approx(WHITE_NITS, rel=1e-6)  # the peak
    assert out.max() == pytest.approx(WHITE_NITS, rel=1e-6)
    assert np.allclose(out[:80], nits[:80], rtol=1e-6)
    assert np.all(out[100:1000] < nits[100:1000])
    seen = through(np.repeat(pq(np.array([PEAK_NITS, 4000.0, 10_000.0]))[:, None], 3, axis=1), PQ)
    assert seen.min() == 255


@pytest.mark.parametrize("colour", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.2, 0.4, 0.8), (0.9, 0.5, 0.1)])
def test_colours_of_bt709_come_back_from_bt2020(colour: tuple[float, float, float]) -> None:
    nits = 60 * np.array(colour)  # below the knee
    seen = through(pq(TO_2020 @ nits), PQ)[0]
    assert np.abs(seen - 255 * (nits / WHITE_NITS) ** (1 / 2.4)).max() <= 3
    wide = through((TO_2020 @ np.array(colour)) ** (1 / 2.4), PQ._replace(transfer=1))[0]
    assert np.abs(wide - 255 * np.array(colour) ** (1 / 2.4)).max() <= 4


def test_hlg_white_is_where_pq_white_is() -> None:
    """ITU-R BT.2408: reference white is 75 % of HLG, 203 nits, 58 % of PQ."""
    assert np.abs(through(np.full((1, 3), 0.75), HLG) - through(np.full((1, 3), 0.5807), PQ)).max() <= 1
    greys = through(np.repeat(np.linspace(0, 1, 40)[:, None], 3, axis=1), HLG)
    assert np.all(np.diff(greys[:, 0]) >= 0)
    assert (greys[0, 0], greys[-1, 0]) == (0, 255)


def test_a_pq_file_through_the_reader(tmp_path: Path) -> None:
    nits = np.array([2.0, 20.0, 60.0, 500.0, 1000.0])
    path = nasty_media.tagged(
        tmp_path / "pq.mkv", space=9, primaries=9, transfer=16, picture=nasty_media.signal(*pq(nits)), frames=3
    )
    seen = next(iter(open_reader(path).frames([1])))[64, 16::32].astype(int)
    expected = 255 * (compress(nits) / WHITE_NITS) ** (1 / 2.4)
    assert np.abs(seen - expected[:, None]).max() <= 2
    facts = probe_video(path)
    assert facts.colour == {"matrix": "bt2020", "primaries": 9, "transfer": 16, "range": "limited", "guessed": False}
    half = next(iter(open_reader(path).frames([1], (80, 48))))[32, 8::16].astype(int)
    assert np.abs(half - expected[:, None]).max() <= 2


def test_untagged_hdr_is_taken_as_bt2020(tmp_path: Path) -> None:
    def only_transfer(stream: av.video.stream.VideoStream) -> None:
        stream.codec_context.color_trc = 16

    facts = probe_video(nasty_media.write(tmp_path / "pq.mp4", 3, adjust=only_transfer))
    assert facts.colour["guessed"] is True
    assert facts.transforms == ("tone_mapped:pq", "gamut:bt2020")
    assert {"hdr", "colour_guessed"} <= set(facts.warnings)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b.astype(float)) ** 2))))


def test_scaling_before_rgb_is_as_good_as_after() -> None:
    """One conversion that scales planes and expands colours, against full-size RGB and then an area average."""
    reader = open_reader(asset_path("corpus/street/bikes.mp4"))
    for size in ((320, 136), (288, 160), (160, 68)):
        for whole, small in zip(reader.frames([0, 120, 240]), reader.frames([0, 120, 240], size), strict=True):
            after = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
            assert small.shape == after.shape
            assert psnr(small, after) > 38, (size, psnr(small, after))


def test_the_first_field_is_every_second_line(tmp_path: Path) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[0::2] = 200
    for form in ("yuv444p", "yuv444p10le", "yuv420p", "nv12"):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=form)
        field = first_field(frame)
        assert (field.height, field.width, field.format.name) == (24, 64, form)
        shown = Picture(Display(64, 48, 0, display_of(1, 1).sample_aspect), None, deinterlace=True).of(frame)
        assert shown.shape == (48, 64, 3)
        assert shown.std() < 4 if form.startswith("yuv444") else shown[..., 0].std() < 30


def test_combs_are_told_from_film_by_a_weave_of_real_footage() -> None:
    reader = open_reader(asset_path("corpus/street/bikes.mp4"))
    lines = [frame[:, ::4, 1].astype(np.int16) for frame in reader.frames(range(120))]
    film = [combing(lines[k], lines[k - 1]) for k in range(1, 119, 6)]
    assert np.mean(np.array(film) >= 0.6) == 0

    def woven(k: int) -> np.ndarray:
        frame = lines[2 * k].copy()
        frame[1::2] = lines[2 * k + 1][1::2]
        return frame

    combs = [combing(woven(k), woven(k - 1)) for k in range(1, 59, 3)]
    assert np.mean(np.array(combs) >= 0.6) > 0.5
    still = [combing(lines[k], lines[k]) for k in range(0, 100, 20)]
    assert max(still) == 0
