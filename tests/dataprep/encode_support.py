"""Sources and clip tables for tests of the encode stage: drawn videos and images, published as artifacts."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataprep.curation.table import SCHEMA
from dataprep.sources.listing import Caption, ListedFile, ListingWriter, SourceFacts, write_facts
from dataprep.stages.encode import run
from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, write_manifest
from m4v.core.canonical import digest_file, digest_json
from m4v.core.ids import clip_id
from m4v.core.stage import InputRef, OutputRef, Resources, StageContext, StageRequest
from m4v.video_io import write_mp4

SOURCE = "mine"


def drawn(frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """A square crossing a shaded picture; every seed has other colours."""
    rows, columns = np.mgrid[0:height, 0:width]
    clip = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        clip[t] = np.stack([rows * 2 + seed * 20, columns, np.full_like(rows, 40 * seed % 256)], -1).clip(0, 255)
        clip[t, 20:44, 4 + t : 28 + t] = (230, 30 * seed % 256, 20)
    return clip


@dataclass
class Bench:
    """A working directory with one source artifact and one clip table."""

    root: Path
    source: Artifact
    rows: list[dict[str, object]]
    location: Path

    def clips(self) -> Artifact:
        out = self.root / f"clips-{digest_json([str(r) for r in self.rows])[:8]}"
        if not out.exists():
            out.mkdir()
            pq.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA), out / "clips.parquet")
            write_manifest(out, build_manifest(out, ArtifactKind.CLIPS, {}))
        return _artifact(out, ArtifactKind.CLIPS, self.root)

    def request(self, work: Path, config: dict[str, object], items: Path, resources: Resources) -> StageRequest:
        inputs = {"clips": self.clips(), "source.0": self.source}
        return StageRequest(
            stage="encode", stage_version=1, function="dataprep.stages.encode:run",
            config_model="dataprep.config:EncodeConfig", stage_key="k", attempt_id="a", config=config, seed=0,
            inputs=tuple(InputRef(name=n, kind=a.kind, artifact_id=a.id, uri=a.storage.uri) for n, a in inputs.items()),
            outputs=(OutputRef(name="dataset", kind=ArtifactKind.DATASET),), store_uri=str(self.root / "store"),
            work_dir=str(work), state_uri=str(work / "state"), items_uri=str(items),
            locations={SOURCE: str(self.location)}, resources=resources,
        )  # fmt: skip

    def encode(
        self, name: str, config: dict[str, object], items: str | None = None, resources: Resources | None = None
    ) -> tuple[Path, StageContext]:
        """Run the stage in `root/name`, with an item store of its own unless `items` names a shared one."""
        work = self.root / name
        request = self.request(work, config, self.root / (items or f"{name}-items"), resources or Resources())
        context = StageContext(request)
        try:
            run(context)
        finally:
            context.progress.close()
        return work / "staging" / "dataset", context


def _artifact(directory: Path, kind: ArtifactKind, root: Path) -> Artifact:
    from m4v.core.artifacts import read_manifest
    from m4v.core.storage import Storage

    return Artifact(str(directory), read_manifest(Storage(str(directory))).artifact_id, kind, root / "cache")


def clip_row(file: ListedFile, **changes: object) -> dict[str, object]:
    """A kept clip that spans a whole listed file; `changes` replace columns."""
    image = file.media == "image"
    frames = int(str(file.extra["frames"]))
    end_us = 0 if image else round(frames / 24 * 1e6)
    row: dict[str, object] = {
        "clip_id": clip_id(SOURCE, file.source_id, 0, end_us), "source": SOURCE, "source_id": file.source_id,
        "path": file.path, "source_digest": file.sha256, "size_bytes": file.size_bytes,
        "media": file.media, "start_us": 0, "end_us": end_us,
        "first_frame": 0, "frames": frames, "fps": 0.0 if image else 24.0, "width": file.width, "height": file.height,
        "crop": None, "captions": [c.text for c in file.captions],
        "caption_digest": digest_json([c.text for c in file.captions]), "score_motion": 1.5, "score_text": None,
        "phash": "00ff", "kept": True, "drop_rule": None, "duplicate_of": None, "licence": "CC0-1.0",
    }  # fmt: skip
    return row | changes


def make_bench(root: Path, videos: int = 3, images: int = 2) -> Bench:
    """Videos of 20 + 8i frames at 24 fps, 80x128 pixels, and images of 100x100."""
    location = root / "media"
    files: list[ListedFile] = []
    for i in range(videos):
        path, frames = location / f"video-{i}.mp4", 20 + 8 * i
        write_mp4(path, drawn(frames, 80, 128, i), 24)
        files.append(_listed(path, "video", frames, 80, 128, (f"a square moves, take {i}", f"take {i}")))
    for i in range(images):
        path = location / f"image-{i}.png"
        Image.fromarray(drawn(1, 100, 100, 5 + i)[0]).save(path)
        files.append(_listed(path, "image", 1, 100, 100, (f"a square, picture {i}",)))
    out = root / "source"
    out.mkdir()
    with ListingWriter(out) as writer:
        for file in files:
            writer.add(file)
    facts = SourceFacts(
        name=SOURCE, kind="folder", licence="CC0-1.0", terms="", media="external", identity="full", counts={}
    )
    write_facts(out, facts)
    write_manifest(out, build_manifest(out, ArtifactKind.SOURCE, {}))
    return Bench(root, _artifact(out, ArtifactKind.SOURCE, root), [clip_row(f) for f in files], location)


def _listed(path: Path, media: str, frames: int, height: int, width: int, captions: tuple[str, ...]) -> ListedFile:
    return ListedFile(
        path=path.name, size_bytes=path.stat().st_size, sha256=digest_file(path), media=media, source_id=path.name,  # type: ignore[arg-type]
        licence="CC0-1.0", captions=tuple(Caption(None, None, c, "test") for c in captions), width=width, height=height,
        extra={"frames": frames},
    )  # fmt: skip


def tree_digest(directory: Path) -> dict[str, str]:
    """Digest of every file below a directory."""
    return {
        p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }
