"""Which kinds of collection a location may hold, by the names and the first rows of what lies at its top."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.sources import laion, openvid, webvid
from dataprep.sources.archives import shard_members
from dataprep.sources.captions import CAPTION_KEYS, FILE_KEYS, LINE_FILES, LINE_NAMES, TABLES
from dataprep.sources.generated import provenance
from dataprep.sources.json_stream import read_json_array
from dataprep.sources.listing import Rejected
from dataprep.sources.openvid_archives import archive_names
from dataprep.sources.rows import media_of, require_directory
from dataprep.sources.tables import Record, read_csv, read_json, read_json_lines
from dataprep.sources.tar_index import TarError
from dataprep.sources.text import path_problem
from m4v.core.storage import Storage, StoredFile

FOLDERS = (
    "", "data/train", "data/train/partitions", "data/val/partitions", "anno_jsons", "anno_json", "annotation", "videos",
    "images", "OpenVidHD",
)  # fmt: skip
FIRST_ROWS = 20
MAX_NAMES = 5000  # of a folder
MAX_LOOKED_AT = 12  # files of one suffix whose first rows are read
MAX_SIDECAR_BYTES = 1 << 20
_DEEPEST = 3


@dataclass(frozen=True)
class Sniffed:
    """`adapter` is a config to start from (None where a collection is recognised and cannot be used);
    `confidence` is from 0 to 1, `why` one line."""

    kind: str
    confidence: float
    why: str
    adapter: Mapping[str, object] | None


@dataclass
class _Tree:
    """The files of the folders that published collections use, and the folders at the top."""

    location: Storage
    files: dict[str, StoredFile] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in FOLDERS:
            for file in self.location.files(folder, MAX_NAMES):
                if not posixpath.basename(file.path).startswith("."):
                    self.files[file.path] = file
        self.folders = [n for n in self.location.directories() if not n.startswith(".")]

    def of(self, *suffixes: str) -> list[str]:
        return [p for p in self.files if p.endswith(suffixes)][:MAX_LOOKED_AT]

    def named(self, name: str) -> list[str]:
        return [p for p in self.files if posixpath.basename(p) == name]

    def first(self, path: str, read: Callable[[IO[bytes], str], Iterator[Record | Rejected]]) -> list[Record]:
        """The usable ones among a table's first rows."""
        with self.location.open(path) as stream:
            return [item for item in islice(read(stream, path), FIRST_ROWS) if isinstance(item, Record)]


def sniff(location: Storage) -> list[Sniffed]:
    """Kinds that the location may hold, likeliest first; empty when nothing is recognised.

    Raises InputError when a local directory does not exist.
    """
    require_directory(location)
    tree = _Tree(location)
    found = [guess for look in _LOOKS for guess in look(tree)]
    return sorted(found, key=lambda guess: (-guess.confidence, guess.kind))


def _csv_tables(tree: _Tree) -> Iterator[Sniffed]:
    webvids, openvids = [], []
    for path in tree.of(".csv"):
        rows = tree.first(path, read_csv)
        columns = set(rows[0].fields) if rows else set()
        if set(webvid.COLUMNS) <= columns:
            webvids.append(path)
        elif set(openvid.COLUMNS) <= columns:
            openvids.append(path)
    if webvids:
        why = f"{webvids[0]} has WebVid's columns"
        yield Sniffed("webvid", 0.95, why, {"kind": "webvid", "csv": _csv_patterns(webvids)})
    if openvids:
        yield _openvid(tree, openvids)


def _csv_patterns(paths: list[str]) -> list[str]:
    """Partitions by a glob, other files by name."""
    return list(dict.fromkeys(f"{d}/*.csv" if (d := posixpath.dirname(p)).endswith("partitions") else p for p in paths))


def _openvid(tree: _Tree, tables: list[str]) -> Sniffed:
    adapter: dict[str, object] = {"kind": "openvid", "csv": tables}
    why = f"{tables[0]} has OpenVid's columns"
    hd = tree.named("OpenVidHD.json")
    zips = [p for p in tree.files if posixpath.basename(p).startswith(("OpenVid_part", "OpenVidHD_part"))]
    if "video" not in tree.folders and zips:
        patterns = sorted({posixpath.join(posixpath.dirname(p), "OpenVid*") for p in zips})
        adapter["archives"] = patterns
        why += f", beside {len(archive_names(tree.location, patterns))} archives"
        if hd and all(posixpath.basename(p).startswith("OpenVidHD") for p in zips):
            adapter["hd_list"] = hd[0]
    return Sniffed("openvid", 0.95, why, adapter)


def _arrays(tree: _Tree) -> Iterator[Sniffed]:
    launch = tree.named("merge_data.txt")
    if "merge_data.txt" in launch:
        yield Sniffed("opensora_plan", 0.9, "merge_data.txt names media and annotations", {"kind": "opensora_plan"})
    sets = []
    for path in tree.of(".json"):
        if posixpath.basename(path) in TABLES | {"OpenVidHD.json"}:
            continue
        rows = [r.fields for r in tree.first(path, read_json_array)]
        if rows and all(isinstance(r.get("path"), str) and "cap" in r for r in rows):
            names = [str(r["path"]) for r in rows]
            sets.append({"annotation": path, "media": _media_folder(tree, names)})
    if sets and not launch:
        why = f"{sets[0]['annotation']} is an array of path and cap"
        yield Sniffed("opensora_plan", 0.85, why, {"kind": "opensora_plan", "sets": sets})


def _media_folder(tree: _Tree, names: list[str]) -> str:
    """The folder below which the first rows' files are; the collection itself when none has any."""
    safe = [n for n in names if path_problem(n) is None]
    for folder in ("", *tree.folders):
        if any(tree.location.exists(posixpath.join(folder, n)) for n in safe):
            return folder
    return ""


def _json_lines(tree: _Tree) -> Iterator[Sniffed]:
    found = []
    for path in tree.of(".jsonl"):
        rows = [r.fields for r in tree.first(path, read_json_lines)]
        if rows and all(("video" in r or "image" in r) and "file_name" not in r for r in rows):
            found.append((path, rows))
    if found:
        names = [str(r.get("video") or r.get("image")) for _, rows in found for r in rows]
        adapter = {"kind": "pyramidflow", "annotations": [p for p, _ in found], "media": _media_folder(tree, names)}
        yield Sniffed("pyramidflow", 0.9, f"{found[0][0]} has lines with video or image", adapter)


def _parquet(tree: _Tree) -> Iterator[Sniffed]:
    found = []
    for path in tree.of(".parquet"):
        try:
            with tree.location.open(path) as stream:
                columns = {name.lower() for name in pq.read_schema(stream).names}
        except (pa.ArrowException, OSError, ValueError):
            continue
        if any(c.endswith("latent_bytes") for c in columns):
            why = f"{path} holds latents: m4v data import --layout fastvideo takes those of a codec we have"
            yield Sniffed("preprocessed", 0.9, why, None)
            return
        if "url" in columns and columns & set(laion.COLUMNS["text"]):
            found.append((path, "key" in columns and "status" in columns))
    if found:
        path, downloaded = found[0]
        why = f"{path} has " + ("what img2dataset writes" if downloaded else "LAION's columns")
        yield Sniffed("laion", 0.95, why, {"kind": "laion", "tables": ["*.parquet" if "/" not in path else path]})


def _shards(tree: _Tree) -> Iterator[Sniffed]:
    tars = tree.of(".tar")
    for folder in tree.folders[:8] if not tars else ():
        tars += [f.path for f in tree.location.files(folder, 200) if f.path.endswith(".tar")]
    for path in tars[:1]:
        try:
            names = [m.name for m in islice(shard_members(tree.location, path), FIRST_ROWS)]
        except TarError:
            return
        if any(media_of(n) for n in names):
            texts = any(n.endswith((".txt", ".json")) for n in names)
            folder = posixpath.dirname(path)
            adapter = {"kind": "webdataset", "shards": [posixpath.join(folder, "*.tar") if folder else "*.tar"]}
            why = f"{path} holds media {'with their texts' if texts else 'without texts beside them'}"
            yield Sniffed("webdataset", 0.8 if texts else 0.4, why, adapter)


def _files(tree: _Tree) -> Iterator[Sniffed]:
    """Trees of files: generated clips where something says so, else plain folders."""
    sizes = {p: f.size_bytes for p, f in tree.files.items()}
    for folder in tree.folders:
        if folder not in FOLDERS:
            sizes |= {f.path: f.size_bytes for f in _walk(tree.location, folder, 1)}
    names = list(sizes)
    media = {m: [n for n in names if media_of(n) == m] for m in ("video", "image")}
    line_files = any(tree.named(n) for n in LINE_NAMES) and any(tree.named(n) for n in LINE_FILES)
    tables = [p for p in tree.files if posixpath.basename(p) in TABLES]
    stems = {posixpath.splitext(n)[0] for n in names if n.endswith((".txt", ".json"))}
    sidecars = [n for n in names if n.endswith(".json") and n not in tables and sizes[n] <= MAX_SIDECAR_BYTES]
    made = _made(tree, tables, sidecars)
    if latents := [n for n in tree.folders if n in ("latent", "prompt_embed")]:
        why = f"folder {latents[0]} holds what another encoder made: bring the videos"
        yield Sniffed("preprocessed", 0.6, why, None)
    if any(media.values()) and (made or line_files or tree.named("videos2caption.json")):
        why = made or ("files are paired with prompts line by line" if line_files else "videos2caption.json")
        yield Sniffed("generated", 0.85 if made else 0.7, why, {"kind": "generated"})
    for kind, medium in (("folder", "video"), ("images", "image")):
        if found := media[medium]:
            paired = bool(tables or line_files) or any(posixpath.splitext(n)[0] in stems for n in found)
            why = f"{medium}s such as {found[0]}" + ("" if paired else ", no captions seen beside them")
            adapter: dict[str, object] = {"kind": kind} if paired else {"kind": kind, "require_captions": False}
            yield Sniffed(kind, (0.5 if paired else 0.3) - 0.05 * (kind == "images"), why, adapter)


def _walk(location: Storage, folder: str, depth: int) -> Iterator[StoredFile]:
    """A sample of a tree: the first files of each folder, the first folders of each level."""
    yield from location.files(folder, 200)
    if depth < _DEEPEST:
        for name in location.directories(folder)[:4]:
            yield from _walk(location, f"{folder}/{name}", depth + 1)


def _made(tree: _Tree, tables: list[str], sidecars: list[str]) -> str:
    """Which table or sidecar says how its clips were made, beside their captions; empty when none does."""
    records = [(path, record) for path in tables for record in tree.first(path, _READERS[posixpath.splitext(path)[1]])]
    for path in sidecars[:MAX_LOOKED_AT]:
        items = islice(read_json(tree.location.read_bytes(path), path), 1)
        records += [(path, item) for item in items if isinstance(item, Record)]
    for path, record in records:
        fields = {str(k).strip().lower(): v for k, v in record.fields.items()}
        known = provenance(fields)
        row = any(k in fields for k in (*FILE_KEYS, *CAPTION_KEYS))
        if row and {"model", "seed", "guidance", "negative_prompt"} & set(known):
            return f"{path} says how clips were made ({', '.join(sorted(known))})"
    return ""


_READERS: dict[str, Callable[[IO[bytes], str], Iterator[Record | Rejected]]] = {
    ".csv": read_csv, ".tsv": read_csv, ".jsonl": read_json_lines, ".json": read_json_array,
}  # fmt: skip
_LOOKS: tuple[Callable[[_Tree], Iterator[Sniffed]], ...] = (
    _csv_tables, _arrays, _json_lines, _parquet, _shards, _files,
)  # fmt: skip
