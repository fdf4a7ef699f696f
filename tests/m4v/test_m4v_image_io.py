"""Pictures from files: upright, opaque, covering the size asked for; clear refusals."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m4v.core.errors import DataIntegrityError, InputError
from m4v.image_io import cover, read_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(height: int = 40, width: int = 80) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (128, 64), (192, 320), (40, 80)])
def test_cover_keeps_the_centre_and_the_proportions(size: tuple[int, int]) -> None:
    found = cover(np.asarray(halves()), *size)
    assert found.shape == (*size, 3)
    assert found.dtype == np.uint8
    edge, middle = size[1] // 2, size[0] // 2
    assert tuple(found[middle, edge - size[1] // 8]) == RED
    assert tuple(found[middle, edge + size[1] // 8]) == BLUE


def test_proportions_are_kept() -> None:
    """A circle stays round when a wide picture is cut to a square."""
    y, x = np.mgrid[:120, :240]
    disc = ((y - 60) ** 2 + (x - 120) ** 2 < 40**2)[..., None] * np.full(3, 255, np.uint8)
    found = cover(disc.astype(np.uint8), 60, 60)[..., 0] > 127
    assert found.any(0).sum() == pytest.approx(40, abs=1)
    assert found.any(1).sum() == pytest.approx(40, abs=1)


def test_files_are_read_upright_and_opaque(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    halves().save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert turned.shape == (80, 40, 3)
    assert tuple(turned[5, 20]) == RED
    layer = halves().convert("RGBA")
    layer.putalpha(Image.new("L", layer.size, 0))
    layer.save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()
    halves().convert("L").save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").shape == (40, 80, 3)


def test_refusals_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist: '.*none\.png'"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        read_image(tmp_path / "text.png")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits"):
        read_image(tmp_path / "deep.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataIntegrityError, match="does not decode"):
        read_image(tmp_path / "cut.png")
