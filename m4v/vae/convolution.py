"""The causal convolution and the one mechanism behind whole, chunked and streamed video: a cache of frames.

Cut a video anywhere in time: as long as every convolution gets the frames that it has not used up yet, the
pieces give what the whole video gives. The caches belong to a call, so a model serves many videos at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# cuDNN's 3-D convolutions index with 32 bits: beyond it PyTorch asks for ten times the memory
# (pytorch/pytorch#128947) or, in bf16 with some cuDNN versions, gives wrong numbers (#163539).
MAX_ELEMENTS = 2**31 - 1
LEAD = 2  # frames that a convolution of three looks back


class FrameCache:
    """Frames that a video's next chunk needs from its earlier ones: at most two for each convolution.

    Give one cache to all chunks of one video, in order. Once `closed` is set, frames are read but no longer
    replaced, so that a checkpointed pass over the last chunk can run twice.
    """

    def __init__(self) -> None:
        self._frames: dict[nn.Module, Tensor] = {}
        self.closed = False

    def __contains__(self, convolution: nn.Module) -> bool:
        """Whether the convolution has seen a chunk of this video."""
        return convolution in self._frames

    def __getitem__(self, convolution: nn.Module) -> Tensor:
        return self._frames[convolution]

    def keep(self, convolution: nn.Module, frames: Tensor) -> None:
        if not self.closed:
            # A copy: a view would hold the whole chunk.
            self._frames[convolution] = frames.clone()


class CausalConv3d(nn.Module):
    """Convolution of (b, c, t, h, w) that never looks ahead: zeros stand in front of the first frame, and
    `kernel // 2` zeros around each picture. Kernel and stride are (time, height, width).

    With a cache the input continues what the cache has seen; without one it is a whole video.
    """

    def __init__(
        self, channels: int, out_channels: int, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        margin = kernel // 2
        self.conv = nn.Conv3d(channels, out_channels, kernel, stride, padding=(0, margin, margin))

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if kernel == 1:
            return self._convolve(x)
        if cache is not None and self in cache:
            x = torch.cat([cache[self], x], dim=2)
        else:
            x = F.pad(x, (0, 0, 0, 0, kernel - 1, 0))
        if cache is not None:
            used = ((x.shape[2] - kernel) // stride + 1) * stride
            cache.keep(self, x[:, :, used:])
        return self._convolve(x)

    def convolve_after(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        """The convolution without its bias, stride 1, of a video before whose frames `LEAD` places lie free in
        x (b, c, LEAD + t, h, w): they are filled with what came before. For kernels that write there at once."""
        before = cache[self] if cache is not None and self in cache else None
        if before is None:
            x[:, :, :LEAD].zero_()
        else:
            x[:, :, :LEAD].copy_(before)
        if cache is not None:
            cache.keep(self, x[:, :, -LEAD:])
        return self._convolve(x, biased=False)

    def _convolve(self, x: Tensor, biased: bool = True) -> Tensor:
        """The convolution in as many pieces of time as 32-bit indices ask for: one, nearly always."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        frames = (x.shape[2] - kernel) // stride + 1
        at_once = self._frames_at_once(x)
        if frames <= at_once:
            return self._piece(x, biased)
        pieces = []
        for start in range(0, frames, at_once):
            count = min(at_once, frames - start)
            pieces.append(self._piece(x[:, :, start * stride : (start + count - 1) * stride + kernel], biased))
        return torch.cat(pieces, dim=2)

    def _piece(self, x: Tensor, biased: bool) -> Tensor:
        learns = any(p.requires_grad for p in self.conv.parameters())
        if torch.is_grad_enabled() and x.requires_grad and not learns and self.conv.kernel_size[0] > 1:
            return _FrozenConv.apply(x, self.conv)  # type: ignore[no-any-return, no-untyped-call]
        if biased:
            return self.conv(x)  # type: ignore[no-any-return]
        return F.conv3d(x, self.conv.weight, None, self.conv.stride, self.conv.padding)

    def _frames_at_once(self, x: Tensor) -> int:
        """Output frames for which input and output both stay within `MAX_ELEMENTS`, at least one."""
        (kernel, *_), (stride, down, _) = self.conv.kernel_size, self.conv.stride
        frame = x[:, 0, 0].numel()
        by_input = (MAX_ELEMENTS // (frame * self.conv.in_channels) - kernel) // stride + 1
        by_output = MAX_ELEMENTS * down**2 // (frame * self.conv.out_channels)
        return max(1, min(by_input, by_output))


class _FrozenConv(torch.autograd.Function):
    """A convolution whose weights learn nothing: unlike torch's, it does not keep its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Conv3d) -> Tensor:
        ctx.conv, ctx.shape = conv, tuple(x.shape)
        return conv(x)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient_of_input(ctx.conv, gradient, ctx.shape), None


def gradient_of_input(conv: nn.Conv3d, gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Gradient at an input of `shape` of that at the convolution's output."""
    # Only shape and type of the input count: one element stands for all of them.
    like = gradient.new_empty(1).expand(shape)
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, like, conv.weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0, 0), conv.groups,
        (True, False, False),
    )[0]  # fmt: skip
    return found
