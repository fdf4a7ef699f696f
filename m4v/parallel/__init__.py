"""Sequence parallelism: one forward of a long clip on several ranks, each with a contiguous part of its frames.

Every packed token (text, image) has one owner, so each term of a parameter's gradient is computed on one rank, and
the gradient of the whole model is the plain sum over the ranks: what data parallelism sums anyway. Tokens meet in
three places, each an exact linear map with its adjoint as backward: scans (states and a convolution halo pass between
neighbours in time), attention (tokens against heads: DeepSpeed-Ulysses, arXiv:2309.14509), the predicted frames.
"""
