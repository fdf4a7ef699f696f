"""The crop rectangle that a collection gives for a row, brought to the pixels that are displayed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from dataprep.media.geometry import Box
from dataprep.quarantine import ItemError, Reason
from dataprep.sources.entries import CROP, ListedFile

_UNEVEN = Fraction(1, 50)  # sizes whose shapes differ by less are copies of one picture at two scales

Shares = tuple[float, float, float, float]  # x0, y0, x1, y1
WHOLE: Shares = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class ListedCrop:
    """`box` in pixels of a picture of `width` x `height`, the size that the row claims; None where it claims none and
    the box is in displayed pixels."""

    box: Box
    width: int | None = None
    height: int | None = None

    @classmethod
    def of(cls, file: ListedFile) -> ListedCrop | None:
        """The crop of a listed file, None where its row has none."""
        found = file.extra.get(CROP)
        if not isinstance(found, list):
            return None
        return cls(Box(*found), file.width, file.height)

    def within(self, width: int, height: int, coded: tuple[int, int] | None = None) -> Box:
        """The box in displayed pixels of a picture of this displayed (and coded) size.

        Raises ItemError `crop_mismatch` when the claimed size is of another shape, so that nobody knows which part is
        meant, and when the box does not lie inside the picture.
        """
        claimed = (self.width or width, self.height or height)
        if claimed not in ((width, height), coded) and not _same_shape(claimed, (width, height)):
            raise ItemError(
                Reason.CROP_MISMATCH,
                f"the crop is of a {claimed[0]}x{claimed[1]} picture, this one is {width}x{height}",
            )
        box = scaled(self.box, claimed, (width, height))
        if box.x1 > width or box.y1 > height or box.width < 2 or box.height < 2:
            raise ItemError(
                Reason.CROP_MISMATCH, f"crop {list(self.box)} (x0, y0, x1, y1) is not inside {claimed[0]}x{claimed[1]}"
            )
        return box

    @property
    def key(self) -> str:
        """For the item key of what is measured inside it."""
        return "-".join(map(str, (*self.box, self.width or 0, self.height or 0)))


def video_crop(file: ListedFile, facts: Mapping[str, Any]) -> Box | None:
    """Where the collection crops a video with these probed facts, in displayed pixels; None where it does not.

    Raises ItemError `crop_mismatch`.
    """
    listed = ListedCrop.of(file)
    if listed is None:
        return None
    coded = (int(facts["claimed_width"]), int(facts["claimed_height"]))
    return listed.within(int(facts["width"]), int(facts["height"]), coded if facts["rotation"] % 180 == 0 else None)


def scaled(box: Box, before: tuple[int, int], after: tuple[int, int]) -> Box:
    """A box of a picture of size `before` (width, height) in one of size `after`, rounded inwards."""
    x, y = Fraction(after[0], before[0]), Fraction(after[1], before[1])
    return Box(_up(box.x0 * x), _up(box.y0 * y), int(box.x1 * x), int(box.y1 * y))


def part_of(crop: Box | None, facts: Mapping[str, Any], size: tuple[int, int]) -> Box:
    """A crop of a video with these facts in its frames of `size` (width, height), which may change in mid-stream; all
    of them without one."""
    if crop is None:
        return Box(0, 0, *size)
    return scaled(crop, (int(facts["width"]), int(facts["height"])), size)


def crop_key(crop: Box | None) -> str:
    """For the item key of what is measured of a video inside a crop."""
    return "" if crop is None else "-" + "-".join(map(str, crop))


def shares(box: Box, width: int, height: int) -> Shares:
    """A box of a picture of this size as shares of its sides."""
    return box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height


def shares_of(crop: Box | None, facts: Mapping[str, Any]) -> Shares:
    """A crop of a video with these facts as shares of its picture's sides; all of it without one."""
    return WHOLE if crop is None else shares(crop, int(facts["width"]), int(facts["height"]))


def joint(listed: Box, content: Box) -> Box:
    """The part of both; `listed` alone where its picture would be nothing but bars."""
    both = Box(*map(max, listed[:2], content[:2]), *map(min, listed[2:], content[2:]))
    return both if both.width >= 2 and both.height >= 2 else listed


def _up(value: Fraction) -> int:
    return -int(-value // 1)


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(Fraction(one[0] * other[1], one[1] * other[0]) - 1) <= _UNEVEN
