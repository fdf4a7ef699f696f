"""Identity: canonical JSON (RFC 8785), sha256 digests, Merkle roots."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import rfc8785

_CHUNK_BYTES = 1 << 20


class FileEntry(NamedTuple):
    """One file of an artifact: `/`-separated relative path, size in bytes, sha256 hex."""

    path: str
    size_bytes: int
    sha256: str


def canonical_json(value: object) -> bytes:
    """RFC 8785 bytes of `value`; raises ValueError on NaN, infinities and non-JSON types."""
    return bytes(rfc8785.dumps(value))  # type: ignore[arg-type]


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
