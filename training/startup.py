"""Start DeepSpeed in a fraction of a second: no operator builds, no compiler stack, no start-up noise.

Five training stages start five times on every rank, and importing torch's compiler costs more than a second
each time although nothing here compiles. Measured on one core: engine ready 2.6 s sooner.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from unittest import mock

import torch

from m4v.core.startup import hidden, uncollected

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class PlainAdamW(torch.optim.AdamW):
    """torch's AdamW, same arithmetic, without importing `torch._dynamo` to tell it to keep away.

    A `step` leaves weights and moments alone when `may_update` says no."""

    may_update: Callable[[], bool] | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if self.may_update is not None and not self.may_update():
            return
        inner = getattr(torch.optim.Adam.step, "__wrapped__", None)
        if inner is None:
            super().step(closure)
        else:
            inner(self, closure)


def _keep_dynamo_out() -> None:
    """Mark torch's optimiser methods as already excluded from tracing, which is what they import it for."""
    for name in ("__init__", "add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        inner = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if inner is not None and not hasattr(inner, "__dynamo_disable"):
            setattr(inner, "__dynamo_disable", inner)


def _as_is(function: FunctionT | None = None, **_: object) -> FunctionT | Callable[[FunctionT], FunctionT]:
    return (lambda f: f) if function is None else function


@contextlib.contextmanager
def _nothing_compiles() -> Iterator[None]:
    """Inside, what compiles or keeps from compiling returns its function as it is: DeepSpeed wraps its hooks
    in `disable`, and imports Muon (an optimiser not used here), which compiles itself on import."""
    with contextlib.ExitStack() as stack:
        for name in ("torch.compile", "torch.compiler.disable", "torch._disable_dynamo"):
            stack.enter_context(mock.patch(name, _as_is))
        yield


@functools.cache
def deepspeed_module() -> Any:
    """DeepSpeed, imported quietly.

    On CPU it would build a shared-memory collective with the host's compiler (half a minute, and other sums
    on a host without one): the operator is declared incompatible, gloo does the work.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    warnings.filterwarnings("ignore", message=".*torch.distributed.*is deprecated.*", category=FutureWarning)
    # Its autotuner, which nobody asks here, imports mlflow where that is installed: longer than all the rest.
    with contextlib.redirect_stdout(io.StringIO()), _nothing_compiles(), hidden("mlflow"), uncollected():
        import deepspeed
        import deepspeed.runtime.zero.muon.muon_optimizer
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def plain_adamw(groups: list[dict[str, Any]], fused: bool = False, **adam: Any) -> PlainAdamW:
    """torch's AdamW over `groups`, tensor by tensor, or `fused` in one kernel for many."""
    _keep_dynamo_out()
    return PlainAdamW(groups, foreach=False, fused=fused, **adam)


def initialise(model: torch.nn.Module, groups: list[dict[str, Any]], config: dict[str, Any], **adam: Any) -> Any:
    """(engine, optimiser as DeepSpeed wraps it, its inner AdamW) of a model in a running process group."""
    inner = plain_adamw(groups, **adam)
    with _nothing_compiles():
        engine, wrapped, _, _ = deepspeed_module().initialize(
            model=model, optimizer=inner, config=config, dist_init_required=False
        )
    return engine, wrapped, inner
