"""Adapter `webdataset`: existing shards of plain tar, whose members stay where they are.

Members of one key (the name up to its first dot) stand together: a video or image, and `.txt` or `.json`.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

from dataprep.sources.adapter import ScanContext
from dataprep.sources.archives import member_path, open_archive, shard_members
from dataprep.sources.captions import CAPTION_KEYS, record_claims
from dataprep.sources.config_tables import WebDatasetConfig
from dataprep.sources.digests import DigestCache, stream_digest
from dataprep.sources.keys import KeySet, key_of
from dataprep.sources.listing import Count, Entry, Rejected
from dataprep.sources.rows import Row, clean_captions, limited, listed_file, media_of, require_directory, texts_of
from dataprep.sources.tables import read_json
from dataprep.sources.tar_index import TarError, TarMember
from dataprep.sources.text import decode, path_problem, printable
from dataprep.sources.tree import glob_regex
from m4v.core.errors import InputError
from m4v.core.storage import Storage

TEXT_SUFFIXES = (".txt", ".caption", ".json")
MAX_TEXT_BYTES = 1 << 20
_MAX_FACTS, _MAX_FACT_CHARS = 40, 300


class _Group(NamedTuple):
    """Members of one key."""

    key: str
    media: list[TarMember]
    texts: list[TarMember]


class _Shard(NamedTuple):
    """An open shard."""

    name: str
    stream: IO[bytes]
    location: Storage
    digests: DigestCache
    facts: tuple[int, int, int]  # size and times, for remembered digests


class WebDatasetAdapter:
    inside = False

    def entries(self, config: WebDatasetConfig, location: Storage, context: ScanContext) -> Iterator[Entry]:
        names = shard_names(config, location)
        if not names:
            raise InputError(
                "no shard found", value=list(config.shards), where=location.uri, next_step="set `shards` of this source"
            )
        yield from limited(self._all(names, config, location, context), config.limit, context)

    def _all(
        self, names: list[str], config: WebDatasetConfig, location: Storage, context: ScanContext
    ) -> Iterator[Entry]:
        seen = KeySet()
        yield Count("shards", len(names))
        for name in names:
            if problem := path_problem(name):
                yield Rejected(printable(name), None, "unsafe_name", problem)
                continue
            with open_archive(location, name) as stream:
                shard = _Shard(name, stream, location, context.digests, _stat(location, name))
                for item in _groups(location, name, seen):
                    yield from [item] if not isinstance(item, _Group) else _entries(item, shard, config)

    def probe(self, config: WebDatasetConfig, location: Storage | None, digests: DigestCache) -> str:
        """From the name, size and time of every shard."""
        if location is None:
            raise InputError("source has no location", value=config.kind, next_step="give the source a `location`")
        sha = hashlib.sha256()
        for name in shard_names(config, location):
            sha.update(f"{printable(name)}\0{_stat(location, name)[:2]}\n".encode())
        return sha.hexdigest()


def shard_names(config: WebDatasetConfig, location: Storage) -> list[str]:
    """Shards that the config's names or globs mean, by name."""
    require_directory(location)
    exact = [s for s in config.shards if not any(c in s for c in "*?")]
    globs = [glob_regex(s) for s in config.shards if s not in exact]
    found = [f.path for f in location.list() if any(g.match(f.path) for g in globs)] if globs else []
    return sorted({*exact, *found})


def _stat(location: Storage, name: str) -> tuple[int, int, int]:
    if location.is_local:
        status = (location.local_root / name).stat()
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns
    with location.open(name) as stream:
        return stream.seek(0, 2), 0, 0


def _groups(location: Storage, name: str, seen: KeySet) -> Iterator[_Group | Entry]:
    """Groups of a shard, rejections of members that must not be used, and of what breaks it off."""
    group: _Group | None = None
    try:
        for member in shard_members(location, name):
            problem = member.problem or path_problem(member.name.removeprefix("./"))
            if problem is None and not seen.add(key_of(member_path(name, member.name))):
                yield Rejected(member_path(name, member.name), None, "duplicate_member", "its name stands twice")
                continue
            if problem is not None:
                yield Rejected(printable(member_path(name, member.name)), None, "unsafe_member", problem)
                continue
            key, suffix = _key(member.name)
            if group is not None and group.key != key:
                yield group
                group = None
            group = group or _Group(key, [], [])
            if suffix in TEXT_SUFFIXES:
                group.texts.append(member)
            elif media_of(member.name) is not None:
                group.media.append(member)
            else:
                yield Count("ignored")
    except TarError as error:
        yield Rejected(name, None, "bad_archive", str(error))
    if group is not None:
        yield group


def _key(name: str) -> tuple[str, str]:
    """Key and last suffix; the key ends at the first dot of the base name, as WebDataset has it."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0]), posixpath.splitext(base)[1].lower()


def _entries(group: _Group, shard: _Shard, config: WebDatasetConfig) -> Iterator[Entry]:
    chosen = [m for m in group.media if config.media in ("both", media_of(m.name))]
    # Beside a video an image is its still.
    chosen.sort(key=lambda m: media_of(m.name) != "video")
    if not chosen:
        yield Count("keys_without_media")
        return
    if len(chosen) > 1:
        yield Count("ignored", len(chosen) - 1)
    member = chosen[0]
    path = member_path(shard.name, member.name)
    texts: list[str] = []
    facts: dict[str, object] = {}
    for part in group.texts:
        try:
            found = _read_text(part, shard)
        except ValueError as error:
            yield Rejected(member_path(shard.name, part.name), None, "bad_row", str(error))
            continue
        if isinstance(found, str):
            texts.append(found)
        else:
            facts |= found
    texts += next((texts_of(facts[k]) for k in CAPTION_KEYS if facts.get(k)), [])
    captions, problems, repaired = clean_captions(texts, None, None, shard.name, config)
    if not captions and config.require_captions:
        yield Rejected(path, None, problems[0] if problems else "missing_caption", "its key has no usable caption")
    elif member.size == 0:
        yield Rejected(path, None, "empty", "member has no bytes")
    else:
        if repaired:
            yield Count("captions_repaired", repaired)
        row = Row(
            path, path, media_of(member.name) or "image", texts, claims=record_claims(facts), extra=_extra(facts),
            licence=_licence(facts),
        )  # fmt: skip
        yield listed_file(row, member.size, _digest(member, shard, config), captions, config)


def _read_text(member: TarMember, shard: _Shard) -> str | dict[str, object]:
    """A caption, or the fields of a JSON object. Raises ValueError for what is neither."""
    if member.size > MAX_TEXT_BYTES:
        raise ValueError(f"text of {member.size} bytes")
    shard.stream.seek(member.offset)
    data = shard.stream.read(member.size)
    if not member.name.lower().endswith(".json"):
        return decode(data)
    item = next(iter(read_json(data, member.name)), None)
    if item is None or isinstance(item, Rejected):
        raise ValueError(item.detail if item else "empty list")
    return {str(k).strip().lower(): v for k, v in item.fields.items()}


def _licence(facts: Mapping[str, object]) -> str | None:
    found = facts.get("licence") or facts.get("license")
    return found if isinstance(found, str) else None


def _extra(facts: Mapping[str, object]) -> dict[str, object]:
    """The short plain facts of a sample's JSON; captions stand elsewhere."""
    kept: dict[str, object] = {}
    for key in sorted(facts):
        value = facts[key]
        plain = isinstance(value, str | bool | int) or (isinstance(value, float) and abs(value) < 1e300)
        if key not in CAPTION_KEYS and plain and len(str(value)) <= _MAX_FACT_CHARS and len(kept) < _MAX_FACTS:
            kept[key] = value
    return kept


def _digest(member: TarMember, shard: _Shard, config: WebDatasetConfig) -> str:
    def compute() -> str:
        return stream_digest(shard.stream, member.size, config.identity, member.offset)

    if not shard.location.is_local:
        return compute() if shard.digests.reads else shard.digests.of(shard.location, member.name, member.size)
    key = (printable(f"{shard.location.uri}/{member_path(shard.name, member.name)}"), config.identity)
    return shard.digests.remembered(key, shard.facts, compute)
