"""EfficientNet-Lite2 (Tan and Le 2019, Lite variant of 2020), loading the packaged ImageNet weights strictly.

Lite has no squeeze-and-excitation and ReLU6 for Swish; padding is TensorFlow's SAME, which puts the odd
pixel behind.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.core.errors import DataIntegrityError

CLASSES = 1000
SIDE = 260  # pixels a side at which the network was trained
BATCH_NORM_EPS = 1e-3
# (repeats, kernel, stride, expansion, channels) at width 1.1 and depth 1.2; stem and head are not scaled,
# the first and last stage not repeated more often.
_STAGES = (
    (1, 3, 1, 1, 16), (3, 3, 2, 6, 24), (3, 5, 2, 6, 48), (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120), (5, 5, 2, 6, 208), (1, 3, 1, 6, 352),
)  # fmt: skip
_STEM, _HEAD = 32, 1280


class _Conv(nn.Conv2d):
    """Convolution with SAME padding and no bias."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        rows, columns = ((-(-n // stride) - 1) * stride + kernel - n for n in x.shape[-2:])
        rows, columns = max(rows, 0), max(columns, 0)
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        found: Tensor = super().forward(x)
        return found


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> _Conv:
    return _Conv(inputs, outputs, kernel, stride, groups=groups, bias=False)


class _Block(nn.Module):
    """Inverted residual: expand, depthwise, project. Names are those of the published file."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = _conv(inputs, width), nn.BatchNorm2d(width, BATCH_NORM_EPS)
        self._depthwise_conv = _conv(width, width, kernel, stride, width)
        self._bn1 = nn.BatchNorm2d(width, BATCH_NORM_EPS)
        self._project_conv, self._bn2 = _conv(width, outputs), nn.BatchNorm2d(outputs, BATCH_NORM_EPS)
        self._expands, self._skips = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        out: Tensor = self._bn2(self._project_conv(y))
        return x + out if self._skips else out


class EfficientNetLite2(nn.Module):
    """RGB in [0, 1] (B, 3, H, W), of any size, to ImageNet logits (B, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _conv(3, _STEM, 3, 2), nn.BatchNorm2d(_STEM, BATCH_NORM_EPS)
        blocks, channels = [], _STEM
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for i in range(repeats):
                blocks.append(_Block(channels, outputs, kernel, stride if i == 0 else 1, expansion))
                channels = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = _conv(channels, _HEAD), nn.BatchNorm2d(_HEAD, BATCH_NORM_EPS)
        self._fc = nn.Linear(_HEAD, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """(B, 1280) pooled features."""
        x = (images * 255 - 127) / 128
        x = F.relu6(self._bn0(self._conv_stem(x)))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return x.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self._fc(self.features(images))
        return logits


def load_efficientnet_lite2(path: Path) -> EfficientNetLite2:
    """Frozen, in eval mode; raises DataIntegrityError when the file does not hold exactly its tensors."""
    model = EfficientNetLite2()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, KeyError) as error:
        raise DataIntegrityError(
            f"weights are of another model: {str(error).splitlines()[0]}", where=path.name
        ) from None
    return model.eval().requires_grad_(False)
