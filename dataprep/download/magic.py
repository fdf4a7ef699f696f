"""Do the first bytes of a body belong to a video or an image? Error pages with status 200 do not."""

from __future__ import annotations

HEAD_BYTES = 512
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof")
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"miaf")
_VIDEO_HEADS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"OggS",
    b"FLV\x01",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"GIF87a",
    b"GIF89a",
)
_IMAGE_HEADS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"\xff\x0a",  # JPEG XL
    b"\x00\x00\x00\x0cJXL ",
)
_TS_PACKETS = (188, 192)


def media_problem(head: bytes, media: str) -> str | None:
    """What the first HEAD_BYTES of a file are when they are not `media` (video or image); None when they fit."""
    if (_is_video(head) if media == "video" else _is_image(head)) or (media == "video" and _is_animation(head)):
        return None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<script", b"<body")):
        return "an HTML page"
    if text.startswith(b"<"):
        return "an XML document"
    if text.startswith((b"{", b"[")):
        return "JSON"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"#EXTM3U"):
        return "a playlist, not the video"
    if _is_text(head[:64]):
        return "text"
    return f"no {media} that is known (begins with {head[:8].hex()})"


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", "ignore")  # the cut may fall into a character
    return len(text.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in text)


def _is_video(head: bytes) -> bool:
    if head[4:8] in _BOXES:
        return not (head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS)
    if head.startswith(_VIDEO_HEADS) or (head.startswith(b"RIFF") and head[8:12] == b"AVI "):
        return True
    starts = (0, 4)  # M2TS puts four bytes before every packet
    return any(
        head[at : at + 1] == b"\x47" and head[at + size : at + size + 1] == b"\x47"
        for at, size in zip(starts, _TS_PACKETS, strict=True)
    )


def _is_image(head: bytes) -> bool:
    if head[4:8] == b"ftyp":
        return head[8:12] in _IMAGE_BRANDS
    return head.startswith(_IMAGE_HEADS) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def _is_animation(head: bytes) -> bool:
    return head.startswith(b"RIFF") and head[8:12] == b"WEBP"
