"""An interpreter that has a `vbench` of a few lines: a real child process that runs our worker as it is.

What it does wrong stands in `behaviour.json` beside it: {dimension: word}.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

from eval.vbench.environment import RECORD, SPECS, EnvironmentName, EnvironmentRecord, record_json

# Everything that the worker asks of torch, without its second of importing.
TORCH = """
import contextlib


def set_num_threads(count):
    pass


def device(name):
    return name


def no_grad():
    return contextlib.nullcontext()
"""
UTILS = """
import json, subprocess, sys, os

CACHE = os.environ["VBENCH_CACHE_DIR"]


def init_submodules(dimensions, local, read_frame):
    assert local and not read_frame
    return {d: {} for d in dimensions}


def score(json_dir, dimension):
    with open(json_dir) as stream:
        entries = json.load(stream)
    with open(os.path.join(os.path.dirname(__file__), "behaviour.json")) as stream:
        word = json.load(stream).get(dimension)
    videos = [v for e in entries if dimension in e["dimension"] for v in e["video_list"]]
    assert all(os.path.getsize(v) for v in videos)
    rows = [{"video_path": v, "video_results": (n + 1) / len(videos)} for n, v in enumerate(videos)]
    return misbehave(word, rows)


def mean(rows):
    return sum(r["video_results"] for r in rows) / len(rows)


def misbehave(word, rows):
    import signal, time

    if word == "hang":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        time.sleep(60)
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "exit":
        print("the library gave up", file=sys.stderr, flush=True)
        os._exit(7)
    if word == "nan":
        return float("nan"), rows
    if word == "drop":
        return mean(rows[1:]), rows[1:]
    if word == "zero":
        rows = [{**r, "video_results": 0.0} for r in rows]
    if word == "last frame":
        return rows[-1]["video_results"], rows
    if word == "strange":
        return mean(rows), [{**rows[0], "video_path": "elsewhere.mp4"}, *rows[1:]]
    if word == "download":
        subprocess.run(["wget", "http://example.invalid/weights.pth"])
    if word == "memory":
        raise MemoryError("no room")
    return mean(rows), rows
"""
DIMENSION = """
from vbench.utils import score


class DynamicDegree:
    def get_score(self, image, flow):
        return 0.0


def compute_{name}(json_dir, device, parts, **kwargs):
    return score(json_dir, "{name}")
"""
DETECTOR = """
class DenseCaptioning:
    def __init__(self, device):
        self.seen = 0

    def initialize_model_det(self, **parts):
        pass

    def run_caption_tensor(self, image):
        self.seen += 1
        {trouble}
        return [["a dog", [0, 0, 1, 1], ["dog"]]], None
"""
OBJECT_CLASS = """
from vbench.third_party.grit_model import DenseCaptioning
from vbench.utils import score


def compute_object_class(json_dir, device, parts, **kwargs):
    model = DenseCaptioning(device)
    model.initialize_model_det()
    for frame in range(3):
        try:
            model.run_caption_tensor(frame)
        except:
            pass
    return score(json_dir, "object_class")
"""
# As upstream's class: it says `cuda`, and its own way to the weights opens a GPU's file on a GPU alone.
STATIC_FILTER = """
import os

DEVICE = "cuda"


class RAFT:
    pass


class StaticFilter:
    def __init__(self, args, device):
        assert DEVICE == device == "cpu" and type(self).load_model is not StaticFilter.load_model
        assert (args.small, args.mixed_precision, args.alternate_corr) == (False, False, False)
        with open(args.model) as stream:
            self.still = stream.read().split()

    def load_model(self):
        raise RuntimeError("no GPU")

    def get_score(self, image, flow):
        return float("nan")

    def infer(self, path):
        if "nan" in self.still:
            self.get_score(None, None)
        return os.path.basename(path).removesuffix(".mp4").rpartition("-")[2] in self.still
"""


def fake_environment(folder: Path, name: EnvironmentName = "core", **behaviour: str) -> Path:
    """An environment at `folder` with its record; returns its interpreter. `detector`: what its body does. Its static
    filter takes for near-static the samples whose numbers stand in RAFT's weights."""
    packages = folder / "packages"
    vbench = packages / "vbench"
    for part in ("third_party", "cli"):
        (vbench / part).mkdir(parents=True)
    detector = behaviour.pop("detector", "pass")
    files = {
        "torch.py": TORCH, "torchvision.py": "", "cv2.py": "def imread(path):\n    return open(path, 'rb').read()\n",
        "vbench/__init__.py": "", "vbench/utils.py": UTILS, "vbench/behaviour.json": json.dumps(behaviour),
        "vbench/cli/__init__.py": "", "vbench/cli/static_filter.py": STATIC_FILTER,
        "vbench/third_party/__init__.py": "", "vbench/object_class.py": OBJECT_CLASS,
        "vbench/third_party/grit_model.py": DETECTOR.format(trouble=detector),
        **{f"vbench/{d}.py": DIMENSION.format(name=d) for s in SPECS.values() for d in s.dimensions
           if d != "object_class"},
    }  # fmt: skip
    for place, text in files.items():
        (packages / place).write_text(text)
    python = folder / "bin" / "python"
    python.parent.mkdir()
    # Isolated mode reads no variable, so the packages' place stands before the worker's.
    python.write_text(
        f"#!/bin/sh\nshift 3\nexec {sys.executable} -I -S -B -c "
        f'\'import sys, runpy; sys.path.insert(0, "{packages}"); sys.argv = sys.argv[1:]; '
        'runpy.run_path(sys.argv[0], run_name="__main__")\' "$@"\n'
    )
    python.chmod(0o755)
    record = EnvironmentRecord(
        name=name, python=platform.python_version(), packages={}, dimensions=dict.fromkeys(SPECS[name].dimensions)
    )
    (folder / RECORD).write_bytes(record_json(record))
    return python
