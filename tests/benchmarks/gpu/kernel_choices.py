"""Named sets of kernels for the speed benchmarks, as far as the product offers them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from speed_clock import Unavailable

from m4v.kernels import use_kernels

Choice = dict[str, str]
PLAIN = ("torch", "plain", "dense")  # words for plain torch, whichever the operation offers


OWN = ("triton", "fused", "frames", "m4v")  # words for kernels of our own, best first


def offered() -> dict[str, tuple[str, ...]]:
    """Operation -> words that the product knows for it."""
    hints = get_type_hints(inspect.unwrap(use_kernels))
    names = inspect.signature(inspect.unwrap(use_kernels)).parameters
    return {name: tuple(_words(hints[name])) for name in names}


def _words(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [word for part in get_args(hint) for word in _words(part)]


def plain() -> Choice:
    """Plain torch throughout."""
    found = {name: next((word for word in PLAIN if word in words), "") for name, words in offered().items()}
    return {name: word for name, word in found.items() if word}


def stock() -> Choice:
    """mamba-ssm's scan and convolution as they come, everything else plain torch."""
    return {**plain(), "scan": "mamba_ssm"}


def ours() -> Choice:
    """Kernels of our own wherever there are any, else what the product chooses by itself."""
    found = {name: next((word for word in OWN if word in words), "") for name, words in offered().items()}
    return {name: word for name, word in found.items() if word}


def attention_words() -> list[str]:
    """All that attention can be asked for by name."""
    return [word for word in offered().get("attention", ()) if word != "auto"]


def take_functions_whole() -> None:
    """Dynamo loses the gradient of our autograd functions where it traces into them (torch 2.11: those whose forward
    makes views give zeros), so it takes them whole."""
    for function in _functions(torch.autograd.Function):
        torch._dynamo.allow_in_graph(function)


def leave_reductions_apart() -> None:
    """Inductor of torch 2.10 and 2.11 fuses sums along rows and along columns, and then never writes column sums that
    belong into one buffer: the modulation's gradients of a single sample (pytorch issue 193061)."""
    from torch._inductor import config

    config.triton.mix_order_reduction = False


def _functions(parent: Any) -> Iterator[Any]:
    """Our own autograd functions."""
    for child in parent.__subclasses__():
        if child.__module__.startswith("m4v."):
            yield child
        yield from _functions(child)


@contextmanager
def chosen(choice: Choice) -> Iterator[None]:
    """`use_kernels`; raises Unavailable when the product does not offer the choice."""
    known = offered()
    for name, word in choice.items():
        if word not in known.get(name, ()):
            raise Unavailable(f"no {name} kernels called {word}")
    with use_kernels(**choice):  # type: ignore[arg-type]
        yield
