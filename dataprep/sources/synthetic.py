"""Adapter `synthetic`: clips of flat moving shapes, drawn here, with captions that are exactly true.

    python -m dataprep.sources.synthetic --out DIR --count 16 --frames 33 --size 64 96

Clip i depends on the seed, the words and i alone: raising `count` adds clips and changes none.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from dataprep.sources.adapter import ScanContext
from dataprep.sources.config import SyntheticConfig
from dataprep.sources.digests import DigestCache
from dataprep.sources.drawing import Picture, Plane, canvas, distance, grid, paint, to_bytes
from dataprep.sources.listing import Caption, Entry, ListedFile
from m4v.core.canonical import digest_json
from m4v.core.config import parse
from m4v.core.errors import M4VError
from m4v.core.items import ItemStore
from m4v.core.palette import COLOURS
from m4v.core.rng import Permutation, generator
from m4v.core.storage import Storage
from m4v.video_io import encode_frames

WordT = TypeVar("WordT", bound=str)
RENDERER = 1  # raise when the same scene would be drawn differently
MEDIA = "media"

_PHRASES = {
    "right": ("moves from left to right", "moves to the right"),
    "left": ("moves from right to left", "moves to the left"),
    "up": ("moves up", "moves from bottom to top"),
    "down": ("moves down", "moves from top to bottom"),
    "circles": ("moves in a circle", "goes round in a circle"),
    "grows": ("grows", "gets bigger"),
    "shrinks": ("shrinks", "gets smaller"),
    "still": ("stays still", "does not move"),
    "pan-right": ("the camera pans to the right", "camera panning right"),
    "pan-left": ("the camera pans to the left", "camera panning left"),
    "zoom-in": ("the camera zooms in", "camera zooming in"),
}
_CAMERAS = frozenset({"pan-right", "pan-left", "zoom-in"})


class Scene(NamedTuple):
    """What a clip shows. `motion` is a motion word, a camera word, or None for a single image.

    `size` is the shape's radius over the shorter side; `cross` the place across the motion, -1 to 1;
    `phase` the angle at which a circular motion begins.
    """

    shape: str
    colour: str
    background: str
    motion: str | None
    size: float
    cross: float
    phase: float

    @property
    def facts(self) -> dict[str, object]:
        camera = self.motion if self.motion in _CAMERAS else None
        return {
            "shape": self.shape, "colour": self.colour, "background": self.background, "camera": camera,
            "motion": None if camera else self.motion,
            "colour_rgb": list(COLOURS[self.colour]), "background_rgb": list(COLOURS[self.background]),
        }  # fmt: skip


def scene_of(config: SyntheticConfig, index: int, still: bool) -> Scene:
    """Scene `index`. Each list of words is dealt like a shuffled pack: every word comes once before any
    comes again, so that even a few clips are balanced."""
    name = "still" if still else "clip"

    def deal(words: Sequence[WordT], turn: int, *key: str) -> WordT:
        round_, place = divmod(turn, len(words))
        return words[Permutation(len(words), config.seed, "synthetic", name, *key, round_)(place)]

    motion = None if still else deal((*config.motions, *config.cameras), index, "motion")
    colours = [c for c in config.colours if any(c != b for b in config.backgrounds)]
    colour = deal(colours, index, "colour")
    background = deal([b for b in config.backgrounds if b != colour], index // len(colours), "background", colour)
    shape = deal(config.shapes, index, "shape")
    draw = generator(config.seed, "synthetic", name, index)
    size, cross, phase = draw.uniform(0.2, 0.28), draw.uniform(-1, 1), draw.uniform(0, 2 * math.pi)
    return Scene(shape, colour, background, motion, float(size), float(cross), float(phase))


def captions_of(scene: Scene, number: int) -> list[str]:
    """Up to three wordings of the same facts; the first is the plainest."""
    thing, ground = f"{scene.colour} {scene.shape}", f"{scene.background} background"
    if scene.motion is None:
        forms = [f"a {thing} on a {ground}", f"a {thing} in front of a {ground}", f"one {thing}, {ground}"]
    elif scene.motion in _CAMERAS:
        first, second = _PHRASES[scene.motion]
        over = "on" if scene.motion == "zoom-in" else "over"
        forms = [
            f"{first} {over} {thing}s on a {ground}",
            f"{thing}s on a {ground}, {second}",
            f"{thing}s, {second}, {ground}",
        ]
    else:
        first, second = _PHRASES[scene.motion]
        forms = [
            f"a {thing} {first} on a {ground}",
            f"on a {ground}, a {thing} {second}",
            f"a {thing} {second}, {ground}",
        ]
    article = {"a orange": "an orange"}
    return [_replace(f, article) for f in forms[:number]]


def _replace(text: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        text = text.replace(old, new)
    return text


def render(scene: Scene, frames: int, height: int, width: int) -> Picture:
    """Frames (T, H, W, 3) of a scene. A motion takes the whole clip, whatever its length, at even speed."""
    return np.stack(list(_pictures(scene, frames, height, width)))


def _pictures(scene: Scene, frames: int, height: int, width: int) -> Iterator[Picture]:
    """The frames of `render`, one at a time: a long clip of a large size is a gigabyte."""
    x, y = grid(height, width)
    times = [0.5] if frames == 1 else [f / (frames - 1) for f in range(frames)]
    empty = to_bytes(canvas(height, width, COLOURS[scene.background]))
    for time in times:
        if scene.motion in _CAMERAS:
            part, signed = np.s_[:, :], _pattern(scene, time, x, y, height, width)
        else:
            part, signed = _single(scene, time, x, y, height, width)
        picture = empty.copy()
        painted = picture[part].astype(np.float32)
        paint(painted, signed, COLOURS[scene.colour])
        picture[part] = to_bytes(painted)
        yield picture


def _single(
    scene: Scene, time: float, x: Plane, y: Plane, height: int, width: int
) -> tuple[tuple[slice, slice], Plane]:
    """One shape that moves, and the part of the picture that it lies in. It stays wholly in view, so its colour is
    there in every frame."""
    radius = scene.size * min(height, width)
    travel_x, travel_y = width / 2 - radius, height / 2 - radius
    along = 2 * time - 1
    shift = {
        "right": (along, scene.cross), "left": (-along, scene.cross),
        "down": (scene.cross, along), "up": (scene.cross, -along),
    }.get(scene.motion or "", (0.0, 0.0))  # fmt: skip
    if scene.motion == "circles":
        angle = scene.phase + 2 * math.pi * time
        shift = (math.cos(angle), math.sin(angle))
        travel_x = travel_y = min(travel_x, travel_y)
    elif scene.motion in ("still", None):
        shift = (scene.cross * 0.5, math.sin(scene.phase) * 0.5)
    elif scene.motion in ("grows", "shrinks"):
        share = time if scene.motion == "grows" else 1 - time
        radius = (0.1 + 0.36 * share) * min(height, width)
    centre_x, centre_y = width / 2 + shift[0] * travel_x, height / 2 + shift[1] * travel_y
    part = _span(centre_y, radius, height), _span(centre_x, radius, width)
    return part, distance(scene.shape, x[:, part[1]] - np.float32(centre_x), y[part[0]] - np.float32(centre_y), radius)


def _span(centre: float, radius: float, side: int) -> slice:
    """Pixels of one side that a shape can reach, its soft edge included."""
    return slice(max(0, math.floor(centre - radius) - 2), min(side, math.ceil(centre + radius) + 2))


def _pattern(scene: Scene, time: float, x: Plane, y: Plane, height: int, width: int) -> Plane:
    """A lattice of shapes seen by a moving camera; a pan crosses two columns, a zoom doubles the scale.

    The lattice is one shape with its coordinates folded into a cell (shapes fill half a cell at most).
    """
    scale = 2.0**time if scene.motion == "zoom-in" else 1.0
    step = np.float32(min(height, width) / 2 * scale)
    pan = {"pan-right": 2 * time, "pan-left": -2 * time}.get(scene.motion or "", 0.0)
    u = (x - np.float32(width / 2)) / step + np.float32(pan + scene.cross / 2)
    v = (y - np.float32(height / 2)) / step
    return distance(scene.shape, (u - np.rint(u)) * step, (v - np.rint(v)) * step, scene.size * float(step))


class SyntheticAdapter:
    """Draws every clip below `media/` of the location and lists it."""

    inside = True

    def entries(self, config: SyntheticConfig, location: Storage, context: ScanContext) -> Iterator[Entry]:
        counts = {False: config.count, True: config.stills}
        places = [(index, still) for still, count in counts.items() for index in range(count)]
        for number, (place, data) in enumerate(zip(places, _drawn(config, places, context), strict=True)):
            context.tick(number, len(places))
            yield _listed(config, *place, location, data)
        context.tick(len(places), len(places))

    def probe(self, config: SyntheticConfig, location: Storage | None, digests: DigestCache) -> str:
        """Nothing outside can change: the config and the renderer say everything."""
        return digest_json(["synthetic", RENDERER])


def _drawn(config: SyntheticConfig, places: Sequence[tuple[int, bool]], context: ScanContext) -> Iterator[bytes]:
    """The files in their order, a few drawn ahead: drawing and encoding leave the interpreter to other threads."""
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(context.workers) as pool:
        try:
            for place in places:
                waiting.append(pool.submit(_data, config, *place, context.items))
                if len(waiting) > context.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _data(config: SyntheticConfig, index: int, still: bool, items: ItemStore | None) -> bytes:
    """The file of a scene, drawn unless the items have it."""
    scene = scene_of(config, index, still)
    frames = 1 if still else config.frames
    parameters = [RENDERER, list(scene), frames, config.fps, list(config.size), config.crf]
    if items is None:
        return _encode(scene, config, still)
    return items.get_or_make(digest_json(parameters), lambda: _encode(scene, config, still))


def _listed(config: SyntheticConfig, index: int, still: bool, location: Storage, data: bytes) -> ListedFile:
    scene = scene_of(config, index, still)
    height, width = config.size
    name = f"still-{index:06d}.png" if still else f"clip-{index:06d}.mp4"
    path = f"{MEDIA}/{name}"
    location.write_bytes(path, data)
    return ListedFile(
        path, len(data), hashlib.sha256(data).hexdigest(), "image" if still else "video", name, config.licence,
        tuple(Caption(None, None, text, "synthetic") for text in captions_of(scene, config.captions)),
        width=width, height=height, fps=None if still else config.fps,
        duration_s=None if still else config.frames / config.fps,
        extra={**scene.facts, "frames": 1 if still else config.frames},
    )  # fmt: skip


def _encode(scene: Scene, config: SyntheticConfig, still: bool) -> bytes:
    height, width = config.size
    sink = io.BytesIO()
    if not still:
        pictures = _pictures(scene, config.frames, height, width)
        encode_frames((picture[None] for picture in pictures), sink, config.fps, config.crf)
        return sink.getvalue()
    Image.fromarray(render(scene, 1, height, width)[0]).save(sink, format="PNG", optimize=False)
    return sink.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dataprep.sources.synthetic", description="Draw synthetic clips.")
    parser.add_argument("--out", required=True, type=Path, help="directory; clips go to its media/ with a .txt each")
    for name, default in (("count", 16), ("stills", 0), ("frames", 33), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--fps", type=float, default=24)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("HEIGHT", "WIDTH"))
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    try:
        config = parse(SyntheticConfig, options, "command line")
        with DigestCache() as digests:
            for entry in SyntheticAdapter().entries(config, Storage(str(out)), ScanContext(digests)):
                if isinstance(entry, ListedFile):
                    (out / entry.path).with_suffix(".txt").write_text(entry.captions[0].text + "\n")
                    print(f"{entry.path}\t{entry.captions[0].text}")
    except M4VError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_class)
    return 0


if __name__ == "__main__":
    sys.exit(main())
