"""One latent that another program saved, and its files: read as tensors alone, checked before it is believed."""

from __future__ import annotations

import contextlib
import posixpath
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dataprep.quarantine import ItemError, QuarantineRow
from m4v.codec.config import CodecConfig
from m4v.codec.shape import CHANNELS, SPATIAL
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage
from m4v.text.interface import TextFeatures
from m4v.text.saved import read_saved_features
from m4v.weights.pickles import load_pickle

STEP = "import"
MAX_FILE_BYTES = 2 << 30


@dataclass
class Precomputed:
    """One latent. `latent()` and each of `texts` raise ItemError; `frames` are the source frames it was made of, None
    where only their start is known."""

    path: str
    place: str
    latent: Callable[[], Tensor]
    captions: list[str]
    texts: list[Callable[[], TextFeatures]] = field(default_factory=list)
    start: int = 0
    frames: tuple[int, ...] | None = None
    fps: float | None = None
    names_media: bool = True  # `path` is that of the media; else of the latent itself

    def add(self, caption: str, text: Callable[[], TextFeatures] | None) -> None:
        """Another caption of the same latent; one that is there already is left out."""
        if caption not in self.captions:
            self.captions.append(caption)
            if text is not None:
                self.texts.append(text)


Row = Precomputed | QuarantineRow


def inside(path: str, location: Storage) -> str:
    """Relative to the collection; an absolute path below it is cut."""
    if location.is_local and path.startswith("/") and Path(path).is_relative_to(location.local_root):
        path = Path(path).relative_to(location.local_root).as_posix()
    return posixpath.normpath(path) if not path.startswith("/") else path


@contextlib.contextmanager
def local_file(location: Storage, path: str) -> Iterator[Path]:
    """Raises ItemError when there is no such file, or one too large to be of a clip."""
    with tempfile.TemporaryDirectory() as scratch:
        if location.is_local:
            local = location.local_root / path
        else:
            try:
                local = location.fetch(path, Path(scratch) / "file")
            except InputError:
                raise ItemError("missing_file", path) from None
        if not local.is_file():
            raise ItemError("missing_file", path)
        if local.stat().st_size > MAX_FILE_BYTES:
            raise ItemError("too_large", f"{path} has {local.stat().st_size} bytes")
        yield local


def load_tensor_file(local: Path, path: str, reason: str) -> object:
    """What a file of `torch.save` holds; raises ItemError `reason`."""
    try:
        return load_pickle(local)
    except DataIntegrityError as error:
        raise ItemError(reason, f"{path}: {error.what} {error.value or ''}") from None


def latent_reader(location: Storage, path: str, codec: CodecConfig) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with local_file(location, path) as local:
            found = load_tensor_file(local, path, "bad_latent")
            return checked_latent(found, path, codec).clone()

    return read


def text_reader(location: Storage, path: str) -> Callable[[], TextFeatures]:
    def read() -> TextFeatures:
        with local_file(location, path) as local:
            try:
                found = read_saved_features(local)
            except DataIntegrityError as error:
                raise ItemError("bad_text", f"{path}: {error.what} {error.value or ''}") from None
            return checked_features(found.embedding, found.mask, found.pooled, where=path)

    return read


def checked_features(embedding: Tensor, mask: Tensor, pooled: Tensor, *, where: str) -> TextFeatures:
    """Features of one text, copied, the embedding zero where the mask is; raises ItemError `bad_text` for shapes that
    do not belong together and for numbers that are not finite."""
    shapes = [tuple(tensor.shape) for tensor in (embedding, mask, pooled)]
    if embedding.ndim != 3 or pooled.ndim != 2 or shapes[1] != shapes[0][:2] or {len(embedding), len(pooled)} != {1}:
        raise ItemError("bad_text", f"{where}: shapes {shapes} do not fit")
    if not (embedding.is_floating_point() and pooled.is_floating_point()):
        raise ItemError("bad_text", f"{where}: {embedding.dtype} and {pooled.dtype}, not floats")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (embedding, pooled)):
        raise ItemError("bad_text", f"{where}: features that are not finite")
    real = mask != 0
    return TextFeatures(torch.where(real[..., None], embedding.float(), 0.0), real.clone(), pooled.float().clone())


def checked_latent(found: object, where: str, codec: CodecConfig) -> Tensor:
    """float32 (16, t, h, w) of what a file held; raises ItemError `bad_latent`."""
    multiple = codec.pixel_multiple // SPATIAL
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.layout != torch.strided:
        raise ItemError("bad_latent", f"{where}: {type(found).__name__}, not a tensor of floats")
    latent = found[0] if found.ndim == 5 and len(found) == 1 else found
    shape = tuple(found.shape)
    if latent.ndim != 4 or latent.shape[0] != CHANNELS or 0 in latent.shape:
        raise ItemError("bad_latent", f"{where}: shape {shape}, not (1, {CHANNELS}, t, h, w)")
    if latent.shape[2] % multiple or latent.shape[3] % multiple:
        raise ItemError("bad_latent", f"{where}: shape {shape}: models need multiples of {multiple} in h and w")
    latent = latent.to(torch.float32)
    if not bool(torch.isfinite(latent).all()):
        raise ItemError("bad_latent", f"{where}: numbers that are not finite")
    return latent
