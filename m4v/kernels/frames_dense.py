"""Attention of a rectangle of queries and keys without any mask, on the fastest kernel of torch, and its gradients.

Results of several rectangles of the same queries become one by their log-sum-exp; the gradients of a rectangle
follow from the result and the log-sum-exp of the whole (as in ring attention).
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

_ATEN = torch.ops.aten
# It makes torch lay out cuDNN's log-sum-exp in another way, with which its gradients must then agree.
_RAGGED = "TORCH_CUDNN_SDPA_AVOID_RECOMPILE"


def dense_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """q (b, n, H, size), k and v (b, m, H, size), rows of any stride -> contiguous (b, n, H, size), and the natural
    log-sum-exp of the scaled scores (b, H, n), float32 or wider."""
    turned = [u.transpose(1, 2) for u in (q, k, v)]
    if not q.is_cuda:
        out, lse = _ATEN._scaled_dot_product_flash_attention_for_cpu(*turned)
    elif _uses_cudnn():
        out, lse = _ATEN._scaled_dot_product_cudnn_attention(*turned, None, True)[:2]
    else:
        out, lse = _ATEN._flash_attention_forward(q, k, v, None, None, q.shape[1], k.shape[1], 0.0, False, False)[:2]
        return out.contiguous(), lse.contiguous()
    return out.transpose(1, 2).contiguous(), lse.reshape(q.shape[0], q.shape[2], q.shape[1]).contiguous()


def dense_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, each contiguous: what this rectangle gives to them when `out` (b, n, H, size) and `lse`
    (b, H, n) are those of all keys that the queries see."""
    rows, keys = q.shape[1], k.shape[1]
    turned = [u.transpose(1, 2) for u in (grad, q, k, v, out)]
    if not q.is_cuda:
        found = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(*turned, lse, 0.0, False)
    elif _uses_cudnn():
        seed, offset = (torch.empty((), dtype=torch.int64, device=q.device) for _ in range(2))
        found = _ATEN._scaled_dot_product_cudnn_attention_backward(
            *turned, lse[..., None], seed, offset, None, None, None, rows, keys, 0.0, False
        )
    else:
        state = torch.empty((2,), dtype=torch.uint64, device=q.device)
        unused = torch.empty((0,), device=q.device)
        return _contiguous(
            _ATEN._flash_attention_backward(
                grad, q, k, v, out, lse, None, None, rows, keys, 0.0, False, state, unused
            )
        )  # fmt: skip
    return _contiguous(u.transpose(1, 2) for u in found)


def _contiguous(gradients: object) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (u.contiguous() for u in gradients)  # type: ignore[attr-defined]
    return dq, dk, dv


def _uses_cudnn() -> bool:
    """Faster than torch's own kernel by half, but its gradients are not the same in every run."""
    return not torch.are_deterministic_algorithms_enabled() and os.environ.get(_RAGGED, "0") in ("", "0")
