"""ConSE (Norouzi et al. 2013) as an image-text score: no training, no CLIP.

image vector = sum over ImageNet classes of q(class) (MiniLM("a photo of a NAME") - mean over names), with
q = softmax(logits)^0.5 normalised; text vector = MiniLM(caption) - the same mean; score = their cosine.
A real zero-shot signal on photos of things that ImageNet has words for, near chance on cartoons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from m4v.core.asset_catalog import asset_path
from m4v.core.assets import assets_dir
from m4v.core.canonical import digest_bytes, digest_json
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import write_atomic
from m4v.scores.config import ConseConfig, Preprocessing
from m4v.scores.efficientnet import CLASSES, SIDE, EfficientNetLite2, load_efficientnet_lite2
from m4v.scores.resizing import resize
from m4v.scores.self_test import self_test
from m4v.text import open_text_encoder
from m4v.text.interface import TextEncoder

ALGORITHM = 1  # raise it when the same weights come to mean other scores
TEMPLATE = "a photo of a {}"
_NAMES_FILE = "imagenet_names.txt"
_STRIDE = 32  # of the network: sides are rounded to half of it


def class_names() -> list[str]:
    """The 1,000 ImageNet names in the order of the classifier's rows."""
    return resources.files("m4v.scores").joinpath(_NAMES_FILE).read_text().splitlines()


def preprocess(frames: Tensor, how: Preprocessing) -> Tensor:
    """(B, 3, H, W) to the network's pixel count; linear in the frames, with anti-aliasing."""
    height, width = frames.shape[-2:]
    if how == "squash":
        size = (SIDE, SIDE)
    elif how == "crop":
        scale = SIDE / min(height, width)
        size = (max(SIDE, round(height * scale)), max(SIDE, round(width * scale)))
    else:
        step, scale = _STRIDE // 2, SIDE / math.sqrt(height * width)
        size = (max(1, round(height * scale / step)) * step, max(1, round(width * scale / step)) * step)
    resized = resize(frames, size)
    if how != "crop":
        return resized
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return resized[..., top : top + SIDE, left : left + SIDE]


class Conse:
    """`Scorer`. Frozen, but not under `no_grad`: gradients flow to the frames."""

    name = "conse"

    def __init__(self, config: ConseConfig, network: EfficientNetLite2, encoder: TextEncoder, classes: Tensor) -> None:
        self._config, self._network, self._encoder = config, network, encoder
        self._mean = classes.mean(0)
        self._classes = classes - self._mean

    @cached_property
    def digest(self) -> str:
        return digest_json(
            {"config": self._config.canonical(), "algorithm": ALGORITHM, "weights": self._config.packaged()}
        )

    def to(self, device: torch.device | str) -> Conse:
        self._network.to(device)
        self._mean, self._classes = self._mean.to(device), self._classes.to(device)
        return self

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(n, 384), unit length."""
        vectors = F.normalize(self._encoder.encode(texts).pooled.to(self._mean.device), dim=-1)
        return F.normalize(vectors - self._mean, dim=-1)

    def image_features(self, frames: Tensor) -> Tensor:
        """(B, 384), unit length, of frames (B, 3, H, W) in [0, 1]."""
        logits = self._network(preprocess(frames.float(), self._config.preprocessing))
        # softmax(x)^0.5, normalised, is softmax(x / 2), whose gradient stays finite where p is 0.
        return F.normalize((logits / 2).softmax(-1) @ self._classes, dim=-1)

    def compare(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Cosines (B,) fp32 of unit vectors (B, 384)."""
        return (image_features * text_features.float()).sum(-1)

    def score(self, frames: Tensor, text_features: Tensor) -> Tensor:
        """Cosines (B,) fp32 of frames (B, 3, H, W) in [0, 1] with rows of `text_features` (B, 384).

        Raises ValueError when the two batches differ.
        """
        if len(frames) != len(text_features):
            raise ValueError(f"{len(frames)} frames cannot be scored against {len(text_features)} texts")
        return self.compare(self.image_features(frames), text_features)


def open_conse(config: ConseConfig | None = None, device: torch.device | str = "cpu") -> Conse:
    """A score that passed its self-test; raises InputError when its weights have not been fetched."""
    config = config or ConseConfig()
    encoder = open_text_encoder(config.text_encoder)
    network = load_efficientnet_lite2(asset_path("efficientnet-lite2"))
    conse = Conse(config, network, encoder, _class_vectors(encoder)).to(device)
    self_test(conse, device)
    return conse


def _class_vectors(encoder: TextEncoder) -> Tensor:
    """(1000, 384) unit vectors of the class names: seconds to compute, so kept beside the weights."""
    texts = [TEMPLATE.format(name) for name in class_names()]
    if len(texts) != CLASSES:
        raise DataIntegrityError("there are not 1,000 class names", value=len(texts), where=_NAMES_FILE)
    key = digest_json({"encoder": encoder.digest, "texts": digest_bytes("\n".join(texts).encode())})
    path = assets_dir() / "derived" / f"conse-{key[:32]}.safetensors"
    kept = _kept_vectors(path)
    if kept is None:
        kept = F.normalize(encoder.encode(texts).pooled, dim=-1)
        _keep_vectors(path, kept)
    return kept


def _kept_vectors(path: Path) -> Tensor | None:
    """A cached tensor; a damaged or missing file is a miss."""
    try:
        vectors = load_file(path)["vectors"]
        recorded = path.with_suffix(".sha256").read_text()
    except Exception:  # the reader of the format raises its own types on damage
        return None
    return vectors if digest_bytes(path.read_bytes()) == recorded else None


def _keep_vectors(path: Path, vectors: Tensor) -> None:
    payload = save({"vectors": vectors})
    try:
        write_atomic(path, payload)
        write_atomic(path.with_suffix(".sha256"), digest_bytes(payload).encode())
    except OSError:
        return  # a read-only assets directory costs time, nothing else
