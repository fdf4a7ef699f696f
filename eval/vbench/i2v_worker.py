"""One dimension of VBench-I2V: `python i2v_worker.py REQUEST RESULT`, the tasks of `worker.py`; the six dimensions that
VBench has, too, are measured by its own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

PACKAGE = "vbench2_beta_i2v"
NEW = ("i2v_subject", "i2v_background", "camera_motion")
DRAWER = f"{PACKAGE}.third_party.cotracker.utils.visualizer"


def load(name: str) -> Any:
    """A worker beside this one: the interpreter is isolated, so that no folder of ours is on its path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


long = load("long_worker")
base = long.base


def environment(request: dict[str, Any]) -> dict[str, Any]:
    """As the base's; of the three new dimensions the modules of this package."""
    packages = base.installed()
    schemas = base.import_torchvision(request["device"])
    base.refuse_downloads()
    lay_drawer()
    found: dict[str, str | None] = {}
    for name in request["dimensions"]:
        try:
            importlib.import_module(f"{PACKAGE if name in NEW else 'vbench'}.{name}")
            found[name] = None
        except Exception as error:
            base.traceback.print_exc()
            found[name] = base.words_of(error)
    return {"dimensions": found, "operator_schemas": schemas, **packages}


def evaluate(request: dict[str, Any]) -> dict[str, Any]:
    """`images`: folder of the pictures, of the ratio `ratio`."""
    dimension = request["dimension"]
    if dimension not in NEW:
        answer: dict[str, Any] = base.evaluate(request)
        return answer
    packages = base.installed()
    schemas = base.import_torchvision(request["device"])
    base.refuse_downloads()
    lay_drawer()
    import torch

    torch.set_num_threads(request["threads"])
    if request["device"] == "cuda" and not torch.cuda.is_available():
        raise base.Trouble("environment", "this interpreter's torch sees no GPU")
    device = torch.device(request["device"])
    module = importlib.import_module(f"{PACKAGE}.{dimension}")
    parts = importlib.import_module(f"{PACKAGE}.utils").init_submodules(
        [dimension], local=True, resolution=request["ratio"]
    )[dimension]
    lay_pictures(Path(request["images"]), request["ratio"])
    Path(request["full_info"]).write_text(json.dumps(request["entries"]), encoding="utf-8")
    long.keep_offline(torch, module, device)
    score, *_, rows = getattr(module, f"compute_{dimension}")(request["full_info"], device, parts)
    videos = [[r["video_path"], base.plain(r["video_results"])] for r in rows]
    return {"score": base.plain(score), "videos": videos, "operator_schemas": schemas, **packages}


def lay_drawer() -> None:
    """Camera motion imports a drawer of tracks, which its wheel lacks and its measurement does not call."""
    try:
        importlib.import_module(DRAWER)
    except ImportError:
        module: Any = types.ModuleType(DRAWER)
        module.Visualizer = None
        parts = DRAWER.split(".")
        for end in range(2, len(parts)):
            sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        sys.modules[DRAWER] = module


def lay_pictures(images: Path, ratio: str) -> None:
    """Where the package looks for them: below the folder that it runs in."""
    place = Path(PACKAGE) / "data" / "crop" / ratio
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(images.absolute())


if __name__ == "__main__":
    base.TASKS.update(environment=environment, evaluate=evaluate)
    base.main(sys.argv[1:])
