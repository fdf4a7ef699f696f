"""Captions that lie beside media files, in the forms met in public collections.

- `a.txt`, `a.json`, `a.csv` beside `a.mp4` (or `a.mp4.txt` …): the whole text is one caption; JSON is an
  object or a list of objects; CSV has a row a caption
- a table of its folder: `captions|metadata.csv|tsv|json|jsonl`, `videos2caption.json`
- `videos.txt` or `images.txt` with `prompt.txt` (or `prompts|captions|caption.txt`): line i belongs to line i

Frame ranges: `first_frame`, `last_frame` (inclusive), or `frame_idx` = "start:end" (half-open).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dataprep.sources.listing import Caption, Count, Entry, Rejected
from dataprep.sources.tables import Record, read_csv, read_json, read_json_lines
from dataprep.sources.text import clean_caption, decode, path_problem, printable, repairs
from m4v.core.storage import Storage

FILE_KEYS = ("file", "file_name", "filename", "path", "video", "image", "video_path", "image_path", "name")
CAPTION_KEYS = ("caption", "captions", "text", "cap", "prompt", "texts")
TABLES = {f"{stem}.{kind}" for stem in ("captions", "metadata") for kind in ("csv", "tsv", "json", "jsonl")}
TABLES |= {"videos2caption.json"}
LINE_FILES = ("prompt.txt", "prompts.txt", "captions.txt", "caption.txt")
LINE_NAMES = ("videos.txt", "images.txt")
SIDECARS = (".txt", ".json", ".csv")
MAX_FRAME = 1 << 40
MAX_TABLE_BYTES = 512 << 20


@dataclass
class FileFacts:
    """What the texts beside a file say about it."""

    captions: list[Caption] = field(default_factory=list)
    licence: str | None = None
    claims: dict[str, float] = field(default_factory=dict)
    extra: dict[str, object] = field(default_factory=dict)


class CaptionIndex:
    """All captions of a tree, by media path. `paths` are all other files; `rejected` grows while it reads.
    `keep` takes from a record's fields what a kind of collection keeps beside captions."""

    def __init__(
        self,
        storage: Storage,
        paths: Iterable[str],
        media: Iterable[str],
        max_chars: int,
        keep: Callable[[Mapping[str, object]], Mapping[str, object]] = lambda fields: {},
    ) -> None:
        self._storage, self._max_chars, self._keep = storage, max_chars, keep
        self.media = set(media)
        self._others = set(paths)
        self.files: dict[str, FileFacts] = {}
        self.rejected: list[Entry] = []
        self.used: set[str] = set()
        self._read(set(paths))

    def _read(self, paths: set[str]) -> None:
        for path in sorted(self.media):
            stem = posixpath.splitext(path)[0]
            for suffix in SIDECARS:
                for name in (stem + suffix, path + suffix):
                    if name in paths and posixpath.basename(name) not in TABLES:
                        self._sidecar(name, path)
        for path in sorted(paths):
            if posixpath.basename(path) in TABLES:
                self._table(path)
            elif posixpath.basename(path) in LINE_NAMES:
                self._lines(path, paths)

    def _sidecar(self, name: str, media: str) -> None:
        self.used.add(name)
        if not name.endswith(".txt"):
            for item in self._records(name):
                self._add(item, name, media)
            return
        self._add_texts([decode(self._storage.read_bytes(name))], None, None, media, name, None)

    def _table(self, path: str) -> None:
        self.used.add(path)
        for item in self._records(path):
            self._add(item, path, None)

    def _lines(self, path: str, paths: set[str]) -> None:
        folder = posixpath.dirname(path)
        beside = next((n for n in (posixpath.join(folder, f) for f in LINE_FILES) if n in paths), None)
        if beside is None:
            return
        self.used |= {path, beside}
        names, texts = (_lines_of(decode(self._storage.read_bytes(p))) for p in (path, beside))
        while names and not names[-1].strip():
            names.pop()
        while len(texts) > len(names) and not texts[-1].strip():
            texts.pop()  # blank lines at the end; a blank line between others is a blank caption
        if len(names) != len(texts):
            detail = f"{len(names)} lines, {posixpath.basename(beside)} has {len(texts)}"
            self.rejected.append(Rejected(path, None, "bad_table", detail))
            return
        for row, (name, text) in enumerate(zip(names, texts, strict=True), start=1):
            if name.strip():
                self._add(Record(row, None, {"file": name.strip(), "caption": text}), path, None)
            elif text.strip():
                self.rejected.append(Rejected(path, row, "bad_row", "a caption stands at a line that names no file"))

    def _records(self, path: str) -> Iterator[Record | Rejected]:
        if path.endswith(".json"):
            return read_json(self._storage.read_bytes(path), path)
        if path.endswith(".jsonl"):
            return read_json_lines(self._storage.open(path), path)
        return read_csv(self._storage.open(path), path, "\t" if path.endswith(".tsv") else None)

    def _add(self, item: Record | Rejected, table: str, media: str | None) -> None:
        """File one record under its media path; `media` is given for a sidecar."""
        if isinstance(item, Rejected):
            self.rejected.append(item)
            return
        fields = {str(k).strip().lower(): v for k, v in item.fields.items() if k is not None}
        where = f"{table} row {item.row}" + (f", byte {item.offset}" if item.offset is not None else "")
        name = next((fields[k] for k in FILE_KEYS if fields.get(k)), None)
        if media is None:
            if not isinstance(name, str):
                self.rejected.append(Rejected(table, item.row, "bad_row", f"{where}: names no file"))
                return
            media = self._resolve(name, table, item.row, where)
            if media is None:
                return
        try:
            first, last = frame_range(fields)
        except ValueError as error:
            self.rejected.append(Rejected(media, item.row, "bad_range", f"{where}: {error}"))
            return
        facts = self.files.setdefault(media, FileFacts())
        if isinstance(fields.get("licence") or fields.get("license"), str):
            facts.licence = str(fields.get("licence") or fields.get("license"))
        facts.claims.update(record_claims(fields))
        facts.extra.update(self._keep(fields))
        self._add_texts(_texts(fields), first, last, media, table, item.row)

    def _resolve(self, name: str, table: str, row: int, where: str) -> str | None:
        """Media path that a table means: relative to its folder, to `videos/` in it, or to the root."""
        problem = path_problem(name.removeprefix("./"))
        if problem:
            self.rejected.append(Rejected(printable(name), row, "unsafe_name", f"{where}: {problem}"))
            return None
        folder = posixpath.dirname(table)
        for place in (folder, posixpath.join(folder, "videos"), posixpath.join(folder, "images"), ""):
            candidate = posixpath.join(place, name.removeprefix("./"))
            if candidate in self.media:
                return candidate
            if candidate in self._others:  # of another medium, or excluded by the config
                self.rejected.append(Count("rows_of_other_files"))
                return None
        self.rejected.append(Rejected(posixpath.join(folder, name), row, "missing_file", where))
        return None

    def _add_texts(
        self, texts: list[str], first: int | None, last: int | None, media: str, origin: str, row: int | None
    ) -> None:
        facts = self.files.setdefault(media, FileFacts())
        for raw in texts or [""]:
            clean = clean_caption(raw, self._max_chars)
            caption = Caption(first, last, clean.text, origin)
            if clean.problem is not None:
                detail = f"{origin}" + (f" row {row}" if row is not None else "") + ": no usable caption"
                self.rejected.append(Rejected(media, row, clean.problem, detail))
            elif any(caption.same(other) for other in facts.captions):
                self.rejected.append(Rejected(media, row, "duplicate_caption", f"{origin} row {row}"))
            else:
                facts.captions.append(caption._replace(flags=repairs(raw)) if clean.changed else caption)
                if clean.changed:
                    self.rejected.append(Count("captions_repaired"))


def _lines_of(text: str) -> list[str]:
    """Lines as editors count them: other separators (U+2028, form feed) are part of a caption."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _texts(fields: Mapping[str, object]) -> list[str]:
    value = next((fields[k] for k in CAPTION_KEYS if fields.get(k) not in (None, "", [])), "")
    if isinstance(value, list):
        return [v for v in value if isinstance(v, str)]
    return [value] if isinstance(value, str) else []


def frame_range(fields: Mapping[str, object]) -> tuple[int | None, int | None]:
    """(first, last) inclusive, or (None, None); raises ValueError for half a range or a wrong one."""
    index = fields.get("frame_idx")
    if index not in (None, ""):
        start, _, end = str(index).partition(":")
        first, last = _integer(start, "frame_idx"), _integer(end, "frame_idx") - 1
    else:
        given = [fields.get(k) for k in ("first_frame", "last_frame")]
        if all(v in (None, "") for v in given):
            return None, None
        first, last = (_integer(v, k) for v, k in zip(given, ("first_frame", "last_frame"), strict=True))
    if not 0 <= first <= last:
        raise ValueError(f"frames {first} to {last} are no range")
    return first, last


def _integer(value: object, name: str) -> int:
    try:
        number = int(str(value))
    except ValueError:
        raise ValueError(f"{name} {str(value)[:40]!r} is no whole number") from None
    if abs(number) > MAX_FRAME:
        raise ValueError(f"{name} is too large a number for a frame")
    return number


def record_claims(fields: Mapping[str, object]) -> dict[str, float]:
    """Claimed width, height, fps and duration_s; nonsense claims are dropped, the file will be measured."""
    resolution = fields.get("resolution")
    flat = {**fields, **resolution} if isinstance(resolution, dict) else dict(fields)
    found: dict[str, float] = {}
    for key, names in (("width", ("width",)), ("height", ("height",)), ("fps", ("fps",)),
                       ("duration_s", ("duration", "duration_sec", "seconds"))):  # fmt: skip
        value = next((flat[n] for n in names if flat.get(n) not in (None, "")), None)
        number = positive_number(value)
        if number is not None:
            found[key] = number
    return found


def positive_number(value: object) -> float | None:
    """A finite number above zero, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 < number < 1e12 else None


def whole(value: float | None) -> int | None:
    """A claim for a column of 32 bits."""
    return int(value) if value is not None and value < 1 << 31 else None
