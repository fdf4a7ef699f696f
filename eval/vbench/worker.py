"""One dimension of VBench, or a look at what an interpreter has: `python worker.py REQUEST RESULT`.

Run by an interpreter that has VBench, in a process of its own; so nothing of this product is imported, and every
trouble ends as a word in RESULT. Tasks: `environment` (what is installed, which dimensions import), `evaluate`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import math
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = 1
DETECTOR_DIMENSIONS = {
    "object_class": "initialize_model_det",
    "multiple_objects": "initialize_model_det",
    "spatial_relationship": "initialize_model_det",
    "color": "initialize_model",
}
DOWNLOADERS = ("wget", "git", "unzip", "curl")
# What torchvision's compiled part would define; enough to import it beside a torch that it was not built for.
OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
KEPT: list[object] = []  # a library's definitions go with its object


class Trouble(Exception):
    """Something that is said as it is; `kind` is a word that the caller knows."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def main(arguments: list[str]) -> None:
    request_path, result_path = map(Path, arguments)
    request = json.loads(request_path.read_text(encoding="utf-8"))
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    started = time.monotonic()
    try:
        answer = {"status": "ok", **TASKS[request["task"]](request)}
        text = dumped(answer, started)
    except BaseException as error:  # every end but a kill is told; the trace goes to the log
        traceback.print_exc()
        text = dumped({"status": "failed", "error": {"kind": kind_of(error), "message": words_of(error)}}, started)
    temporary = result_path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(result_path)


def end_with(parent: int) -> None:
    """Whoever asked may be killed: nobody would read the answer then."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)  # the group is ours: whoever asked gave us a session


def dumped(answer: dict[str, Any], started: float) -> str:
    """Strict JSON: a NaN raises ValueError."""
    facts = {"schema_version": SCHEMA, "seconds": round(time.monotonic() - started, 3)}
    return json.dumps({**facts, **answer}, allow_nan=False)


def kind_of(error: BaseException) -> str:
    if isinstance(error, Trouble):
        return error.kind
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "memory"
    if isinstance(error, ImportError):
        return "import"
    return "number" if "JSON compliant" in str(error) else "error"


def words_of(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Trouble) else f"{type(error).__name__}: {text}"[:2000]


def environment(request: dict[str, Any]) -> dict[str, Any]:
    """Installed packages and, of each dimension asked for, why it does not import (null: it does)."""
    packages = installed()
    schemas = import_torchvision(request["device"])
    refuse_downloads()
    found: dict[str, str | None] = {}
    for name in request["dimensions"]:
        try:
            importlib.import_module(f"vbench.{name}")
            found[name] = None
        except Exception as error:
            traceback.print_exc()
            found[name] = words_of(error)
    return {"dimensions": found, "operator_schemas": schemas, **packages}


def installed() -> dict[str, Any]:
    """Before anything is imported: `pkg_resources` puts what setuptools carries among the installed."""
    rows = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version(), "packages": dict(sorted(rows.items()))}


def import_torchvision(device: str) -> bool:
    """Import it; on the CPU also one that was built for another torch. True when its operators are names alone."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if device != "cpu" or "torchvision::" not in str(error):
            raise Trouble("environment", f"torchvision does not fit torch: {words_of(error)}") from None
    else:
        return False
    import torch

    for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    KEPT.append(library)
    for name in OPERATORS:
        library.define(name + SIGNATURE)
    importlib.import_module("torchvision")
    return True


def refuse_downloads() -> None:
    """VBench fetches what it does not find, with programs of the shell: on a cluster that hangs or brings the wrong
    file. Here it is an error that names the file."""
    import subprocess
    import urllib.request

    run = subprocess.run

    def guarded(command: Any, *args: Any, **kwargs: Any) -> Any:
        words = command if isinstance(command, (list, tuple)) else str(command).split()
        if words and Path(str(words[0])).name in DOWNLOADERS:
            raise Trouble("download", f"VBench would fetch a file that is not there: {' '.join(map(str, words))}")
        return run(command, *args, **kwargs)

    def refused(url: Any, *args: Any, **kwargs: Any) -> Any:
        raise Trouble("download", f"VBench would fetch a file that is not there: {url}")

    for place, name, blocked in (
        (subprocess, "run", guarded), (urllib.request, "urlopen", refused), (urllib.request, "urlretrieve", refused)
    ):  # fmt: skip
        setattr(place, name, blocked)


def evaluate(request: dict[str, Any]) -> dict[str, Any]:
    dimension, device_name = request["dimension"], request["device"]
    packages = installed()
    schemas = import_torchvision(device_name)
    refuse_downloads()
    import torch

    torch.set_num_threads(request["threads"])
    if device_name == "cuda" and not torch.cuda.is_available():
        raise Trouble("environment", "this interpreter's torch sees no GPU")
    module = importlib.import_module(f"vbench.{dimension}")
    utils = importlib.import_module("vbench.utils")
    # A device object, as upstream's own command passes it: some dimensions compare it with the word.
    device = torch.device(device_name)
    full_info, entries, more = request["full_info"], request["entries"], {}
    if request.get("static_filter"):
        entries, more["left_out"] = near_static(entries, device, **request["static_filter"])
    Path(full_info).write_text(json.dumps(entries), encoding="utf-8")
    if dimension == "dynamic_degree":
        check_flow(module.DynamicDegree)
    parts = utils.init_submodules([dimension], local=True, read_frame=False)[dimension]
    with watched_detector(dimension, parts, device, request.get("picture")):
        score, rows = getattr(module, f"compute_{dimension}")(full_info, device, parts)
    rows = [[r["video_path"], plain(r["video_results"])] for r in rows]
    return {"score": plain(score), "videos": rows, "operator_schemas": schemas, **more, **packages}


def near_static(entries: list[Any], device: Any, weights: str, most: int) -> tuple[list[Any], list[str]]:
    """Entries with those videos alone that VBench's filter finds near-static, at most `most` of each, taken in its
    order (of file names, as text); and the paths of the others. A prompt without any goes."""
    import torch

    upstream: Any = importlib.import_module("vbench.cli.static_filter")
    check_flow(upstream.StaticFilter)
    upstream.DEVICE = device  # where it puts frames; it says `cuda`

    class Filter(upstream.StaticFilter):  # type: ignore[misc]
        def load_model(self) -> None:
            """Upstream's opens a file saved on a GPU only where there is one."""
            held = torch.load(self.args.model, map_location="cpu", weights_only=True)
            self.model = upstream.RAFT(self.args)
            self.model.load_state_dict({name.removeprefix("module."): value for name, value in held.items()})
            self.model.to(device).eval()

    arguments = argparse.Namespace(model=weights, small=False, mixed_precision=False, alternate_corr=False)
    finder, left_out = Filter(arguments, device), list[str]()
    kept: list[Any] = []
    for entry in entries:
        still: list[str] = []
        for path in sorted(entry["video_list"], key=os.path.basename):
            (still if len(still) < most and finder.infer(path) else left_out).append(path)
        if still:
            kept.append({**entry, "video_list": still})
    if not kept:
        raise Trouble("static", f"none of {len(left_out)} videos is near-static, and the dimension measures those")
    return kept, left_out


def check_flow(owner: Any) -> None:
    """Where a side has fewer than 128 pixels RAFT's coarsest level is one pixel wide and its flow no number; VBench
    would take such a video for a still one without a word."""
    original = owner.get_score

    def checked(self: Any, image: Any, flow: Any) -> Any:
        score = original(self, image, flow)
        if not math.isfinite(score):
            raise Trouble("number", "RAFT's flow is no number, as where a side of the video has fewer than 128 pixels")
        return score

    owner.get_score = checked


def plain(value: Any) -> bool | float:
    """A bool, or a float that is a number."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    number = float(value)
    if not math.isfinite(number):
        raise Trouble("number", f"VBench gave {number}, which is no number")
    return number


@contextlib.contextmanager
def watched_detector(dimension: str, parts: Any, device: Any, picture: str | None) -> Iterator[None]:
    """Of dimensions that ask a detector: try it on a known picture first, and count its exceptions later, which
    `object_class` swallows (a broken detector then scores 0.0)."""
    if dimension not in DETECTOR_DIMENSIONS:
        yield
        return
    detector = importlib.import_module("vbench.third_party.grit_model").DenseCaptioning
    original = detector.run_caption_tensor
    failures: list[str] = []
    calls: list[int] = []

    def counted(self: Any, image: Any) -> Any:
        calls.append(1)
        try:
            return original(self, image)
        except BaseException as error:
            failures.append(words_of(error))
            raise

    probe = detector(device)
    getattr(probe, DETECTOR_DIMENSIONS[dimension])(**parts)
    probe_detector(probe, picture)
    del probe
    detector.run_caption_tensor = counted
    try:
        yield
    except Exception:
        if not failures:
            raise
    finally:
        detector.run_caption_tensor = original
    if failures:
        raise Trouble("detector", f"the detector failed on {len(failures)} of {len(calls)} frames: {failures[0]}")


def probe_detector(probe: Any, picture: str | None) -> None:
    import cv2
    import torch

    image = None if picture is None else cv2.imread(picture)
    if image is None:
        raise Trouble("detector", f"the probe's picture cannot be read: {picture}")
    try:
        with torch.no_grad():
            captions, _ = probe.run_caption_tensor(image)
        list(captions)
    except Exception as error:
        raise Trouble("detector", f"the detector does not work on a known picture: {words_of(error)}") from error


TASKS = {"environment": environment, "evaluate": evaluate}

if __name__ == "__main__":
    main(sys.argv[1:])
