"""Identity: canonical JSON (RFC 8785), sha256 digests, Merkle roots."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import rfc8785

_CHUNK_BYTES = 1 << 20
_EXACT = 2**53 - 1  # integers up to here are doubles without loss
_EXPONENT_FROM = 10**21  # from here on RFC 8785 writes an exponent


class FileEntry(NamedTuple):
    """One file of an artifact: `/`-separated relative path, size in bytes, sha256 hex."""

    path: str
    size_bytes: int
    sha256: str


def canonical_json(value: object) -> bytes:
    """RFC 8785 bytes of `value`; raises ValueError on NaN, infinities, non-JSON types, and integers past
    2**53 that are not the text of a double.

    1.5e18 is written `1500000000000000000`, which JSON reads back as an integer: that one is accepted, so
    that canonical text always reads back to a value of the same text.
    """
    try:
        return bytes(rfc8785.dumps(value))  # type: ignore[arg-type]
    except rfc8785.IntegerDomainError:
        return bytes(rfc8785.dumps(_large_integers_as_doubles(value)))  # type: ignore[arg-type]


def _large_integers_as_doubles(value: object) -> object:
    if isinstance(value, Mapping):
        return {k: _large_integers_as_doubles(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_large_integers_as_doubles(v) for v in value]
    if isinstance(value, int) and _EXACT < abs(value) < _EXPONENT_FROM:
        double = float(value)
        return double if rfc8785.dumps(double) == str(value).encode() else value
    return value


def _is_canonical(value: int) -> bool:
    try:
        canonical_json(value)
    except ValueError:
        return False
    return True


def plain_json(value: object) -> object:
    """`value` with what canonical JSON refuses turned into text: NaN, infinities and integers past 2**53.

    For measurements (metrics, environment, summaries): a NaN loss must not cost the record of a run.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, int) and not isinstance(value, bool):
        return value if _is_canonical(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain_json(v) for v in value]
    return value


def digest_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_json(value: object) -> str:
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def merkle_root(entries: Iterable[FileEntry]) -> str:
    """Digest of the sorted (path, size, sha256) rows: the identity of an artifact (DESIGN, Identity).

    The encoding is one canonical JSON array per row, so no path can imitate another row.
    """
    sha = hashlib.sha256()
    for entry in sorted(entries):
        sha.update(canonical_json([entry.path, entry.size_bytes, entry.sha256]))
        sha.update(b"\n")
    return sha.hexdigest()
