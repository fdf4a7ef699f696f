"""Files of artifacts over HTTP: in pieces, by byte range, from a local store or a remote one; never whole in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from m4v.core.artifacts import Manifest, ManifestFile, read_manifest
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage, storage_faults
from pipelines.ledger import ArtifactRow

CHUNK_BYTES = 256 * 1024
MANIFESTS_KEPT = 64
_TYPES = {
    ".mp4": "video/mp4", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".html": "text/html",
    ".json": "application/json", ".jsonl": "text/plain", ".txt": "text/plain", ".tsv": "text/plain",
    ".log": "text/plain", ".md": "text/plain", ".yaml": "text/plain",
}  # fmt: skip
# A report brings its own script and pictures; it may use those and nothing of this server.
_DOCUMENT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; img-src data:; media-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class _Span(NamedTuple):
    """First and last byte to send; `partial` when a range asked for it."""

    first: int
    last: int
    partial: bool


def manifest_of(row: ArtifactRow) -> Manifest:
    """The manifest of a published artifact. Raises InputError when its bytes are gone, DataIntegrityError when it is of
    another artifact."""
    return _manifest(row.uri, row.artifact_id)


@lru_cache(MANIFESTS_KEPT)
def _manifest(uri: str, artifact_id: str) -> Manifest:
    storage = Storage(uri)
    try:
        manifest = read_manifest(storage)
    except DataIntegrityError as error:
        if storage.exists("manifest.json"):
            raise
        raise InputError(
            "the artifact's bytes are not in the store", value=artifact_id, where=uri, next_step=error.next_step
        ) from None
    if manifest.artifact_id != artifact_id:
        raise DataIntegrityError("manifest is of another artifact", value=manifest.artifact_id, where=uri)
    return manifest


def send_file(request: Request, row: ArtifactRow, path: str) -> Response:
    """A file that the artifact's manifest names, or the part of it that the request's Range asks for.

    Raises InputError for any other path: what is not in the manifest cannot be asked for.
    """
    try:
        entry = manifest_of(row).entry(path)
    except DataIntegrityError:
        raise InputError("artifact has no such file", value=path, where=f"{row.kind} {row.artifact_id[:12]}") from None
    headers = _headers(entry)
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    wanted = _wanted(request, entry, headers["etag"])
    if wanted is None:
        return Response(status_code=416, headers={**headers, "content-range": f"bytes */{entry.size_bytes}"})
    headers["content-length"] = str(wanted.last - wanted.first + 1)
    if wanted.partial:
        headers["content-range"] = f"bytes {wanted.first}-{wanted.last}/{entry.size_bytes}"
    status = 206 if wanted.partial else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    stream = Storage(row.uri).open(entry.path)  # before the answer begins: what is missing is said with a status
    return StreamingResponse(_pieces(stream, row.uri, wanted), status, headers)


def _headers(entry: ManifestFile) -> dict[str, str]:
    suffix = "." + entry.path.rsplit(".", 1)[-1].lower()
    media_type = _TYPES.get(suffix, "application/octet-stream")
    headers = {
        "content-type": f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type,
        "accept-ranges": "bytes",
        "etag": f'"{entry.sha256}"',
        "cache-control": "private, max-age=31536000, immutable",  # an artifact never changes
    }
    if suffix == ".html":
        headers["content-security-policy"] = _DOCUMENT_POLICY
    if suffix not in _TYPES:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", entry.path.rsplit("/", 1)[-1])
        headers["content-disposition"] = f'attachment; filename="{name}"'
    return headers


def _wanted(request: Request, entry: ManifestFile, etag: str) -> _Span | None:
    """What to send; None when the range asked for lies outside. Several ranges at once are answered whole, as the
    protocol allows."""
    whole = _Span(0, entry.size_bytes - 1, partial=False)
    header = request.headers.get("range")
    if header is None or request.headers.get("if-range", etag) != etag:
        return whole
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return whole
    begin, end = match.groups()
    if not begin:
        first, last = max(0, entry.size_bytes - int(end)), entry.size_bytes - 1
        return _Span(first, last, partial=True) if int(end) > 0 and entry.size_bytes else None
    first = int(begin)
    last = min(int(end), entry.size_bytes - 1) if end else entry.size_bytes - 1
    return _Span(first, last, partial=True) if first <= last else None


def _pieces(stream: BinaryIO, uri: str, wanted: _Span) -> Iterator[bytes]:
    with stream, storage_faults(uri):
        stream.seek(wanted.first)
        left = wanted.last - wanted.first + 1
        while left > 0:
            piece = stream.read(min(CHUNK_BYTES, left))
            if not piece:
                return  # the file is shorter than its manifest says: the client sees a short answer
            left -= len(piece)
            yield piece
