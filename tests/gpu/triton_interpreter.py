"""Triton's interpreter, which stands in for a GPU where there is none (TRITON_INTERPRET=1), mended."""

from __future__ import annotations

from typing import Any


def mend() -> None:
    """Triton 3.6's interpreter multiplies the bits of bfloat16 numbers as integers, cuts numbers off where a GPU rounds
    them to bfloat16, and counts to arguments with a conversion that newer numpy refuses."""
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    multiply, prepare = interpreter.InterpreterBuilder.create_dot, interpreter._patch_lang_tensor
    convert = interpreter._convert_float

    def converted(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) == (tl.bfloat16, tl.float32):
            return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        if (source, target) == (tl.float32, tl.bfloat16):
            values = torch.from_numpy(np.array(data, np.float32)).bfloat16()
            return values.view(torch.int16).numpy().view(np.uint16)
        return convert(data, source, target, mode)

    def exact(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(converted(handle.data, tl.bfloat16, tl.float32, None), tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, exact(a), exact(b), *rest)

    def with_index(tensor: Any, scope: Any) -> None:
        prepare(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter.InterpreterBuilder.create_dot = dot  # type: ignore[method-assign]
    interpreter._convert_float = converted
    interpreter._patch_lang_tensor = with_index
