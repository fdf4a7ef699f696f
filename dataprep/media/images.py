"""Still images: decoding with limits, EXIF turns, transparency composited on white."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dataprep.media.container import Limits, check_bytes
from dataprep.media.geometry import Frame
from dataprep.quarantine import ItemError, Reason

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_PAPER = (255, 255, 255, 255)
_ORIENTATION = 0x0112


def read_image(path: Path, limits: Limits = Limits()) -> Frame:  # noqa: B008 - immutable
    """RGB pixels, upright, uint8 (h, w, 3).

    Raises ItemError: empty, not_media, too_large, truncated, decode_error, animation.
    """
    return read_still(path, limits)[0]


def read_still(path: Path, limits: Limits = Limits()) -> tuple[Frame, tuple[str, ...]]:  # noqa: B008 - immutable
    """As `read_image`, with the names of what was done to the pixels."""
    check_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                return _pixels(image, limits)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        bomb = isinstance(error, Image.DecompressionBombError)
        raise ItemError(Reason.TOO_LARGE if bomb else Reason.NOT_MEDIA, "no image format reads it") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = Reason.TRUNCATED if "truncated" in str(error).lower() else Reason.DECODE_ERROR
        raise ItemError(reason, str(error)) from None


def _pixels(image: Image.Image, limits: Limits) -> tuple[Frame, tuple[str, ...]]:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ItemError(Reason.TOO_LARGE, f"{width}x{height} pixels")
    if getattr(image, "is_animated", False):
        raise ItemError(Reason.ANIMATION, "an animation, not a still image")
    made = [f"exif_orientation:{turn}"] if (turn := image.getexif().get(_ORIENTATION, 1)) in range(2, 9) else []
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, _PAPER), upright)
        made.append("composited:#ffffff")
    if upright.mode.startswith(("I", "F")):  # 16-bit and float greys: PIL would clip them
        grey = np.asarray(upright, dtype=np.float64)
        scale = 255 / max(float(grey.max()), 1.0)
        made.append("grey_scaled")
        return np.repeat((grey * scale).astype(np.uint8)[..., None], 3, axis=2), tuple(made)
    return np.asarray(upright.convert("RGB"), dtype=np.uint8), tuple(made)
