"""Pictures from files, brought to a video's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from m4v.core.errors import DataIntegrityError, InputError

Picture = npt.NDArray[np.uint8]
_DEEP_MODES = ("I", "F")  # and "I;16" with its byte orders: more than 8 bits a channel


def read_image(path: Path) -> Picture:
    """uint8 RGB (H, W, 3), turned upright as its EXIF says; transparent parts lie on white.

    Raises InputError when the file is missing, no picture, or deeper than 8 bits, DataIntegrityError when it is cut
    short.
    """
    if not path.is_file():
        raise InputError("image file does not exist", value=str(path))
    try:
        with Image.open(path) as image:
            if image.mode.split(";")[0] in _DEEP_MODES:
                raise InputError(
                    f"image has more than 8 bits a channel (mode {image.mode})", value=str(path),
                    next_step="save it as an 8-bit RGB picture",
                )  # fmt: skip
            upright = ImageOps.exif_transpose(image)
            if "A" in upright.getbands() or "transparency" in upright.info:
                layer = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            return np.array(upright.convert("RGB"))  # a copy: PIL's own memory is read-only
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(
            f"file cannot be read as a picture ({error})", value=str(path), next_step="use a PNG or JPEG file"
        ) from None
    except (OSError, SyntaxError) as error:  # PIL raises both for damaged files
        raise DataIntegrityError(f"picture does not decode: {error}", value=str(path)) from None


def cover(picture: Picture, height: int, width: int) -> Picture:
    """`picture` (H, W, 3) resized to cover `height` x `width` and cut around its centre (bicubic)."""
    if picture.shape[:2] == (height, width):
        return picture
    fitted = ImageOps.fit(Image.fromarray(picture), (width, height), Image.Resampling.BICUBIC)
    return np.array(fitted)
