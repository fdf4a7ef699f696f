"""From a selector to clips: each kind of term has an index of its own; perceptual hashes are compared one and all."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

from sqlalchemy import Row, Select, and_, bindparam, select
from sqlalchemy.orm import Session

from m4v.core.errors import InputError
from pipelines.ledger import schema_clips as tables
from pipelines.ledger.clip_hashes import by_hashes, hash_words, hashes_of
from pipelines.ledger.clip_load import chunks, source_key, table_of, url_key, word_key
from pipelines.ledger.statements import among_given, is_sqlite
from pipelines.membership.facts import ClipFacts
from pipelines.membership.selector import CLIP_DIGITS, WORD_DIGITS, ClipSelector

Matches = dict[bytes, tuple[str, ...]]  # clip id -> what matched it
_File = tuple[int, int, str]  # source number, key and id
Span = tuple[int, int]
_SHOWN = 3  # near ids or names in an error
_ROWS_A_CLIP = 4  # enough for clips whose files were replaced thrice
_clip = tables.Clip
_columns, _names = table_of(tables.Clip).c, table_of(tables.ClipSource).c
_WITH_PREFIX = (
    select(_columns.clip_id)
    .where(_columns.clip_id.between(bindparam("low"), bindparam("high")))
    .distinct()
    .order_by(_columns.clip_id)
    .limit(bindparam("most"))
)
_SOURCES = select(_names.name, _names.source_no)


def find(
    session: Session,
    selector: ClipSelector,
    *,
    missing_ok: bool,
    of_source: int | None = None,
    hashes: bool = True,
) -> list[ClipFacts]:
    """Clips of every term, and what overlaps them; of a whole source `of_source` at most, if that is given."""
    matches: Matches = {}
    missing: list[InputError] = []

    def note(term: str, clips: Iterable[bytes], hint: Callable[[], str]) -> None:
        ids = list(clips)
        for clip in ids:
            matches[clip] = (*matches.get(clip, ()), term)
        if not ids:
            kind, _, value = term.partition(":")
            missing.append(InputError(f"no clip of this {_WORDS[kind]} is indexed", value=value, next_step=hint()))

    for prefix in selector.clips:
        note(f"clip:{prefix}", _by_prefix(session, prefix), partial(_near_clips, session, prefix))
    for source in selector.sources:
        note(f"source:{source}", _by_source(session, source, of_source), partial(_near_sources, session, source))
    for url in selector.urls:
        note(f"url:{url}", _by_url(session, url), partial(_near_url, session, url))
    for digest in selector.digests:
        note(f"sha256:{digest}", _by_digest(session, bytes.fromhex(digest)), lambda: "m4v data sources")
    if selector.phashes:
        found = by_hashes(session, [hash_words(p) for p in selector.phashes], selector.phash_bits)
        for phash, clips in zip(selector.phashes, found, strict=True):
            note(f"phash:{phash}", clips, lambda: f"allow more than {selector.phash_bits} bits to differ")
    if missing and not missing_ok:
        raise missing[0]
    known = _add_overlaps(session, matches, selector.sources)
    facts = facts_of(session, matches, known=known, hashes=hashes)
    return sorted(facts.values(), key=lambda c: (c.source, c.source_id, c.start_us, c.end_us, c.clip_id))


_WORDS = {"clip": "id", "source": "source", "url": "URL", "sha256": "file digest", "phash": "perceptual hash"}


def _by_prefix(session: Session, prefix: str) -> list[bytes]:
    """The clip whose id begins so; raises InputError when there are several."""
    found = _with_prefix(session, prefix, _SHOWN + 1)
    if len(found) > 1:
        shown = ", ".join(c.hex() for c in found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
        raise InputError("more than one clip begins so", value=prefix, where="ledger", next_step=f"one of {shown}")
    return found


def _with_prefix(session: Session, prefix: str, limit: int) -> list[bytes]:
    low, high = (bytes.fromhex(prefix.ljust(CLIP_DIGITS, digit)) for digit in "0f")
    return list(session.scalars(_WITH_PREFIX, {"low": low, "high": high, "most": limit}))


def _near_clips(session: Session, prefix: str) -> str:
    """Clips whose ids share most with what was given."""
    for length in range(len(prefix) - 1, 3, -1):
        if near := _with_prefix(session, prefix[:length], _SHOWN):
            return f"did you mean {' or '.join(c.hex() for c in near)}?"
    if len(prefix) == WORD_DIGITS:
        return f"phash:{prefix} if it is a perceptual hash"
    return "m4v ledger index, if its artifact was recorded before clips were indexed"


def _near_url(session: Session, url: str) -> str:
    row, source = tables.SourceUrl, tables.ClipSource
    listing = select(source.name).join(row, row.source_no == source.source_no).where(row.url_key == url_key(url))
    if names := sorted(set(session.scalars(listing))):
        return f"{' and '.join(names)} lists it, but no clip was cut from its file: name it as SOURCE/SOURCE_ID"
    return "name the source and its id: SOURCE/SOURCE_ID"


def _near_sources(session: Session, term: str) -> str:
    names = list(session.scalars(select(tables.ClipSource.name)))
    name, _, source_id = term.partition("/")
    if name in names and source_id:
        return f"m4v data inspect lists the files of {name}"
    near = difflib.get_close_matches(name, names, n=_SHOWN) or sorted(names)[:_SHOWN]
    return f"did you mean {' or '.join(near)}?" if near else "m4v ledger index"


def _by_source(session: Session, term: str, limit: int | None) -> Iterator[bytes]:
    """Clips of `SOURCE` (the first of them, file by file), or of one file `SOURCE/SOURCE_ID`; names of sources may
    hold a slash themselves."""
    for name, number in _source_numbers(session).items():
        if term == name:
            yield from _of_source(session, number, limit)
        elif term.startswith(f"{name}/"):
            yield from _of_file(session, number, term[len(name) + 1 :])


def _of_source(session: Session, source_no: int, limit: int | None) -> Iterable[bytes]:
    query = select(_clip.clip_id).where(_clip.source_no == source_no)
    if limit is None:
        return session.scalars(query.distinct())
    # A clip whose file was replaced has more rows than one, side by side.
    ordered = query.order_by(_clip.source_key, _clip.clip_id).limit(_ROWS_A_CLIP * limit)
    return list(dict.fromkeys(session.scalars(ordered)))[:limit]


def _source_numbers(session: Session) -> dict[str, int]:
    return dict(session.execute(_SOURCES).tuples().all())


def _of_file(session: Session, source_no: int, source_id: str) -> Sequence[bytes]:
    query = select(_clip.clip_id).where(_clip.source_no == source_no, _clip.source_key == source_key(source_id))
    return session.scalars(query.where(_clip.source_id == source_id).distinct()).all()


def _by_url(session: Session, url: str) -> set[bytes]:
    """Clips of the files that came from a URL, also where the URL is the file's source id."""
    row = tables.SourceUrl
    same_file = and_(_clip.source_no == row.source_no, _clip.source_key == row.source_key)
    found = set(session.scalars(select(_clip.clip_id).join(row, same_file).where(row.url_key == url_key(url))))
    for number in session.scalars(select(tables.ClipSource.source_no)).all():
        found.update(_of_file(session, number, url.strip()))
    return found


def _by_digest(session: Session, digest: bytes) -> Sequence[bytes]:
    query = select(_clip.clip_id).where(_clip.digest_key == word_key(digest), _clip.digest == digest)
    return session.scalars(query.distinct()).all()


# Overlaps and facts


def _add_overlaps(session: Session, matches: Matches, sources: Collection[str]) -> dict[bytes, list[Row[Any]]]:
    """Clips that share footage with a matched one: their spans of one source file overlap. A span 0, 0 is the whole
    of a file. All clips of `sources` are matched already. Returns the rows of clips that were looked at."""
    names = _source_numbers(session) if sources else {}
    whole = {f"source:{source}" for source in sources if source in names}
    by_file: dict[_File, dict[bytes, Span]] = {}
    known: dict[bytes, list[Row[Any]]] = {}
    for row in _rows(session, [clip for clip, terms in matches.items() if not whole.intersection(terms)]):
        by_file.setdefault(_file(row), {})[row.clip_id] = row.start_us, row.end_us
        known.setdefault(row.clip_id, []).append(row)
    for row in _of_files(session, by_file):
        own = by_file.get(_file(row), {})
        over = [c for c, span in own.items() if _overlap(span, (row.start_us, row.end_us))]
        if over and row.clip_id not in matches:
            matches[row.clip_id] = tuple(f"overlaps {c.hex()}" for c in over)
    return known


def _file(row: Row[Any]) -> _File:
    return row.source_no, row.source_key, row.source_id


def _overlap(one: Span, other: Span) -> bool:
    whole = one[1] == 0 or other[1] == 0
    return whole or (one[0] < other[1] and other[0] < one[1])


def _of_files(session: Session, files: Iterable[_File]) -> Iterator[Row[Any]]:
    """Rows of `clip` that have the source and the source key of one of the files."""
    keys: dict[int, set[int]] = {}
    for number, key, _ in files:
        keys.setdefault(number, set()).add(key)
    query = _in_files(is_sqlite(session))
    for number, wanted in keys.items():
        for some in chunks(sorted(wanted)):
            yield from session.execute(query, {"source": number, "keys": some})


def _rows(session: Session, clips: Iterable[bytes]) -> Iterator[Row[Any]]:
    """Rows of `clip`, of one clip together."""
    query = _of_clips(is_sqlite(session))
    for some in chunks(clips):
        yield from session.execute(query, {"clips": some})


@cache
def _in_files(sqlite: bool) -> Select[Any]:
    wanted = among_given(sqlite, _columns.source_key, "keys")
    return select(*_columns).where(_columns.source_no == bindparam("source"), wanted)


@cache
def _of_clips(sqlite: bool) -> Select[Any]:
    wanted = among_given(sqlite, _columns.clip_id, "clips")
    return select(*_columns).where(wanted).order_by(_columns.clip_id, _columns.digest_key)


def facts_of(
    session: Session,
    matches: Mapping[bytes, tuple[str, ...]],
    *,
    known: Mapping[bytes, list[Row[Any]]] | None = None,
    hashes: bool = True,
) -> dict[str, ClipFacts]:
    """Facts of clips by id, with the terms that matched each. `known`: rows that were read already."""
    found = dict(known or {})
    for row in _rows(session, [clip for clip in matches if clip not in found]):
        found.setdefault(row.clip_id, []).append(row)
    names = {number: name for name, number in _source_numbers(session).items()}
    blocks = {clip: rows[0].block_no for clip, rows in found.items()} if hashes else {}
    words = hashes_of(session, blocks)
    return {
        clip.hex(): ClipFacts(
            clip_id=clip.hex(),
            source=names[rows[0].source_no],
            source_id=rows[0].source_id,
            start_us=rows[0].start_us,
            end_us=rows[0].end_us,
            source_digests=tuple(row.digest.hex() for row in rows),
            phash=words.get(clip),
            matched_by=matches[clip],
        )
        for clip, rows in found.items()
    }
