"""What people write first: one loop over the files. `python plain_script.py VIDEOS OUT`."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import webdataset as wds

HEIGHT, WIDTH, FRAMES, SHARD, SHORTEST = 128, 192, 241, 16, 17
CUT = 0.35  # of the pixels change their bin


def cuts(path: Path) -> Iterator[tuple[int, int]]:
    """[first, end) of each shot."""
    before, first, number = None, 0, 0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            small = frame.reformat(64, 36, "rgb24").to_ndarray() >> 5
            histogram = np.bincount((small * np.array([64, 8, 1])).sum(-1).ravel(), minlength=512)
            if before is not None and np.abs(histogram - before).sum() / 2 / small[..., 0].size > CUT:
                yield first, number
                first = number
            before, number = histogram, number + 1
    yield first, number


def clip(path: Path, first: int, end: int) -> bytes:
    """Frames [first, end) at 128x192 (cover and crop), as an MP4."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output, av.open(str(path)) as container:
        stream = output.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number, frame in enumerate(container.decode(video=0)):
            if number >= min(end, first + FRAMES):
                break
            if number >= first:
                scale = max(HEIGHT / frame.height, WIDTH / frame.width)
                height, width = round(frame.height * scale), round(frame.width * scale)
                picture = frame.reformat(width, height, "rgb24").to_ndarray()
                top, left = (height - HEIGHT) // 2, (width - WIDTH) // 2
                picture = picture[top : top + HEIGHT, left : left + WIDTH]
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                    output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    return buffer.getvalue()


def main(videos: str, out: str) -> None:
    Path(out).mkdir(parents=True, exist_ok=True)
    with wds.ShardWriter(f"{out}/%05d.tar", maxcount=SHARD, verbose=0) as writer:
        for path in sorted(Path(videos).glob("*.mp4")):
            for first, end in cuts(path):
                if end - first >= SHORTEST:
                    key = f"{path.stem}-{first:06d}"
                    writer.write({"__key__": key, "mp4": clip(path, first, end), "txt": f"a clip called {path.stem}"})


if __name__ == "__main__":
    main(*sys.argv[1:])
