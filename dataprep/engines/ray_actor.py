"""What runs on a Ray node: an actor that keeps one killable child process and has it do the items.

The child is the one that the local engine uses, under the same limits: a decoder that hangs or eats memory dies there,
not the actor, so an actor that goes away was always lost from outside.
"""

from __future__ import annotations

import os
import pickle
import platform
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import dataprep
import m4v
from dataprep.engines.calls import THREAD_VARIABLES, Function
from dataprep.engines.limits import WorkLimits
from dataprep.engines.process import ProcessPool
from dataprep.engines.schedule import replies
from m4v.core.canonical import digest_bytes, digest_json

_LIBRARIES = ("av", "numpy", "opencv-python-headless", "pillow", "torch", "onnxruntime", "safetensors")


@cache
def fingerprint() -> dict[str, str]:
    """What the bytes of a result may depend on besides the item: the code, Python, and the libraries."""
    found = {name: metadata.version(name) for name in _LIBRARIES if _installed(name)}
    return {"python": platform.python_version(), "code": _code_digest(), **found}


def _installed(name: str) -> bool:
    return next(iter(metadata.distributions(name=name)), None) is not None


def _code_digest() -> str:
    roots = [Path(str(module.__file__)).parent for module in (dataprep, m4v)]
    files = [(root.name, path.relative_to(root), path) for root in roots for path in sorted(root.rglob("*.py"))]
    return digest_json([[name, rest.as_posix(), digest_bytes(path.read_bytes())] for name, rest, path in files])[:16]


def _nothing(item: None) -> None:
    """The item that starts a child."""


class Host:
    """Runs items one after another in a child of its own; a Ray actor class."""

    def __init__(self, preload: tuple[str, ...]) -> None:
        # A child would import Ray's worker script for its __main__, and with it Ray.
        vars(sys.modules["__main__"]).pop("__file__", None)
        for variable in THREAD_VARIABLES:
            os.environ[variable] = "1"
        self._pool = ProcessPool(1, preload)
        self._function: tuple[bytes, Function] | None = None

    def ready(self) -> dict[str, str]:
        """Answers once the actor and its child are up: their start is no part of an item's time."""
        list(replies(self._pool, _nothing, [None], WorkLimits(), total=1))
        return fingerprint()

    def run(self, function: bytes, item: bytes, limits: WorkLimits) -> bytes:
        """One item to its pickled reply. Function and item come pickled, and the reply goes so: bytes are copied out of
        the object store, where arrays would hold their place."""
        if self._function is None or self._function[0] != function:
            self._function = function, pickle.loads(function)
        (reply,) = replies(self._pool, self._function[1], [pickle.loads(item)], limits, total=1)
        return pickle.dumps(reply)
