"""Fast kernels behind the plain torch of `m4v.model`, which stays the reference and the CPU path.

`kernel_set(device)` says which implementation each operation uses; `use_kernels` and the variables
`M4V_KERNELS` and `M4V_ATTENTION` choose. Importing this package loads no torch.
"""

from m4v.kernels.selection import kernel_set, kernel_summary, use_kernels

__all__ = ["kernel_set", "kernel_summary", "use_kernels"]
