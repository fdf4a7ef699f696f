"""An interpreter that has a `vbench` of a few lines: a real child process that runs our worker as it is. For
environment `long` it has a `vbench2_beta_long`, too, which cuts a video by copying it.

What it does wrong stands in `behaviour.json` beside it: {dimension: word}.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path

from eval.vbench import v2_prompts
from eval.vbench.constants import DIMENSIONS
from eval.vbench.environment import RECORD, SPECS, EnvironmentName, EnvironmentRecord, record_json

# Everything that the worker asks of torch, without its second of importing.
TORCH = """
import contextlib


def set_num_threads(count):
    pass


class cuda:
    def is_available():
        return True


def device(name):
    return name


def no_grad():
    return contextlib.nullcontext()


class hub:
    def load(repo_or_dir, *arguments, **named):
        return repo_or_dir
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
# It cuts as many clips as a file says, by seconds.
LONG_UTILS = """
import json, os, shutil


def get_video_properties(video_path):
    return {"fps": 8}


def split_video_into_clips(video_path, output_path, duration, fps):
    with open(os.path.join(os.path.dirname(__file__), "clips.json")) as stream:
        clips = json.load(stream)
    name = os.path.basename(video_path).removesuffix(".mp4")
    os.makedirs(os.path.join(output_path, name))
    for n in range(clips[str(duration)]):
        shutil.copy(video_path, os.path.join(output_path, name, f"{name}_{n:03d}.mp4"))
"""
# Rows of the two consistencies name a path below the clip, as upstream's do.
LONG_DIMENSION = """
import os

from vbench.utils import score
from vbench2_beta_long import asked
import vbench.{name}


def compute_long_{name}(json_dir, device, parts, **kwargs):
    asked({name!r}, kwargs)
    told, rows = score(json_dir, "{name}")
    if "clip2clip" in " ".join(kwargs):
        below = [{{**r, "video_path": os.path.join(r["video_path"], "x.mp4")}} for r in rows]
        return told, below
    if rows and "filtered_clips" in rows[0]["video_path"]:
        videos = {{}}
        for r in rows:
            videos.setdefault(os.path.basename(r["video_path"]).split("_")[0], []).append(r["video_results"])
        means = [sum(values) / len(values) for values in videos.values()]
        told = sum(means) / len(means)
    return told, rows, []
"""
LONG_INIT = """
import json, os

HERE = os.path.dirname(__file__)


def asked(name, kwargs):
    files = {k: open(v).read() for k, v in kwargs.items() if isinstance(v, str) and os.path.isfile(v)}
    with open(os.path.join(HERE, f"asked-{name}.json"), "w") as stream:
        json.dump({**kwargs, **files}, stream)
"""


def long_files(clips: dict[str, int]) -> dict[str, str]:
    """`clips`: how many its function cuts of a video, by seconds."""
    package = "vbench2_beta_long"
    return {
        "torchvision/__init__.py": "", "torchvision/io.py": "def write_video(*a, **k):\n    pass\n",
        f"{package}/__init__.py": LONG_INIT, f"{package}/utils.py": LONG_UTILS,
        f"{package}/clips.json": json.dumps(clips),
        **{f"{package}/{d}.py": LONG_DIMENSION.format(name=d) for d in DIMENSIONS},
    }  # fmt: skip


# Every judgement of the n-th entry's videos; -1 where the behaviour says `void`.
V2_INIT = """
import json, os


def judged(json_dir, dimension, published):
    with open(json_dir) as stream:
        entries = json.load(stream)
    with open(os.path.join(os.path.dirname(__file__), "behaviour.json")) as stream:
        word = json.load(stream).get(dimension)
    assert all(e["dimension"] == [published] for e in entries)
    if dimension == "diversity":
        videos = [e["video_list"][0] for e in entries]
    else:
        videos = [v for e in entries for v in e["video_list"]]
    assert all(os.path.getsize(v) for e in entries for v in e["video_list"])
    rows = [{"video_path": v, "video_results": (n + 1) / len(videos)} for n, v in enumerate(videos)]
    if word == "void":
        rows[0]["video_results"] = -1
    if word == "drop":
        rows = rows[1:]
    if word == "zero":
        rows = [{**r, "video_results": 0} for r in rows]
    if word == "percent":
        rows = [{**r, "video_results": 100 * r["video_results"]} for r in rows]
    values = [r["video_results"] for r in rows if r["video_results"] != -1]
    return 0.5 if word == "wrong" else sum(values) / len(values), rows
"""
V2_UTILS = """
import os

CACHE_DIR = os.environ["VBENCH2_CACHE_DIR"]


class gdown:
    download = None


def google_drive(model, file_id, output_path):
    try:
        gdown.download(file_id)
    except Exception as error:
        print(error)


def clone_model(repo_url, target_dir):
    pass


def hug_model(model_name, local_dir):
    return local_dir


def init_submodules(dimensions, local=False):
    assert local
    found = {}
    for name in dimensions:
        folder = os.path.join(CACHE_DIR, "instance_anomaly_detector", "model")
        found[name] = {"model": folder}
        if name == "Composition":
            hug_model(model_name="a/judge", local_dir=os.path.join(CACHE_DIR, "lmms-lab", "LLaVA-Video-7B-Qwen2"))
    return found
"""
V2_DIMENSION = """
from vbench2 import judged
import vbench2.utils


class VGG:
    pass


def compute_{name}(json_dir, device, parts, **kwargs):
    return judged(json_dir, "{name}", "{published}")
"""
V2_INSTANCE = """
from vbench2 import judged
from vbench2.third_party.Instance_detector.test import ask


def compute_instance_preservation(json_dir, device, parts, **kwargs):
    ask()
    return judged(json_dir, "instance_preservation", "Instance_Preservation")
"""
V2_JUDGE = """
def infer_lora(engine, request):
    {trouble}


def ask():
    for clip in range(3):
        try:
            infer_lora(None, None)
        except:
            pass
"""


def v2_files(detector: str, behaviour: dict[str, str]) -> dict[str, str]:
    """A `vbench2`; `detector`: what the body of the judge of instance preservation does."""
    found = {
        "torchvision/__init__.py": "", "torchvision/io.py": "",
        "vbench2/__init__.py": V2_INIT, "vbench2/utils.py": V2_UTILS,
        "vbench2/behaviour.json": json.dumps(behaviour), "vbench2/third_party/__init__.py": "",
        "vbench2/third_party/Instance_detector/__init__.py": "",
        "vbench2/third_party/Instance_detector/test.py": V2_JUDGE.format(trouble=detector),
    }  # fmt: skip
    for name, published in v2_prompts.rules().published_names.items():
        found[f"vbench2/{name}.py"] = V2_DIMENSION.format(name=name, published=published)
    return found | {"vbench2/instance_preservation.py": V2_INSTANCE}


# As upstream's: pictures are looked for below the folder that it runs in, and camera motion imports a drawer that is
# not there.
I2V_UTILS = """
def init_submodules(dimensions, local, resolution):
    assert local
    return {d: {"resolution": resolution} for d in dimensions}
"""
I2V_DIMENSION = """
import json, os


def dreamsim(pretrained, **named):
    assert named["cache_dir"] and named["device"] == "cpu"


def compute_{name}(json_dir, device, parts, **kwargs):
    if "{name}" == "i2v_background":
        dreamsim(pretrained=True)
    with open(json_dir) as stream:
        entries = json.load(stream)
    rows = []
    for entry in entries:
        path = os.path.join("vbench2_beta_i2v/data/crop", parts["resolution"], entry["image_name"])
        worth = float(open(path).read())
        rows += [{{"video_path": v, "video_results": worth}} for v in entry["video_list"]]
    return sum(r["video_results"] for r in rows) / len(rows), rows
"""
I2V_CAMERA = """
import os
from vbench2_beta_i2v.third_party.cotracker.utils.visualizer import Visualizer
from vbench.utils import score


def compute_camera_motion(json_dir, device, parts, **kwargs):
    told, rows = score(json_dir, "camera_motion")
    assert all("camera" in os.path.basename(r["video_path"]) for r in rows)
    return told, {"pan_left": float("nan")}, rows
"""


def i2v_files() -> dict[str, str]:
    package = "vbench2_beta_i2v"
    return {
        f"{package}/__init__.py": "", f"{package}/utils.py": I2V_UTILS, f"{package}/camera_motion.py": I2V_CAMERA,
        **{f"{package}/{d}.py": I2V_DIMENSION.format(name=d) for d in ("i2v_subject", "i2v_background")},
    }  # fmt: skip


def fake_environment(
    folder: Path, name: EnvironmentName = "core", clips: dict[str, int] | None = None, **behaviour: str
) -> Path:
    """An environment at `folder` with its record; returns its interpreter. `detector`: what its body does. Its static
    filter takes for near-static the samples whose numbers stand in RAFT's weights. `clips`: see `long_files`."""
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
        **{f"vbench/{d}.py": DIMENSION.format(name=d) for d in DIMENSIONS if d != "object_class"},
    }  # fmt: skip
    if SPECS[name].suite == "vbench-long":
        files = {k: v for k, v in files.items() if k != "torchvision.py"} | long_files(clips or {"2": 3, "10": 1})
        for part in ("torchvision", "vbench2_beta_long"):
            (packages / part).mkdir()
    if SPECS[name].suite == "vbench-i2v":
        files |= i2v_files()
    if SPECS[name].suite == "vbench2":
        files = {k: v for k, v in files.items() if k != "torchvision.py"} | v2_files(detector, behaviour)
    for place, text in files.items():
        (packages / place).parent.mkdir(parents=True, exist_ok=True)
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
        name=name, python=platform.python_version(), dimensions=dict.fromkeys(SPECS[name].dimensions),
        packages={"vbench2-code": _code(packages / "vbench2")} if SPECS[name].suite == "vbench2" else {},
    )  # fmt: skip
    (folder / RECORD).write_bytes(record_json(record))
    return python


def _code(root: Path) -> str:
    """As the worker has it: sha256 over path, NUL and sha256 of every program, in the order of paths."""
    sha = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        sha.update(f"{path.relative_to(root).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()
