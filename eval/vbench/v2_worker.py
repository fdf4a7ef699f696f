"""One dimension of VBench-2.0: `python v2_worker.py REQUEST RESULT`, the tasks of `worker.py`.

The package's own functions measure. What surrounds them upstream is left out: it goes on where a video is missing, and
prints that a download failed and goes on, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "vbench2"
CODE = "vbench2-code"  # digest of the package's programs: it is run from a checkout, which has no version
HUB_BRANCH = "main"  # asked of the network where it is not told
INSTANCE = "instance_preservation"
DIVERSITY = "diversity"


def load_base() -> Any:
    """`worker.py`: the interpreter is isolated, so that no folder of ours is on its path."""
    spec = importlib.util.spec_from_file_location("worker", Path(__file__).with_name("worker.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


base = load_base()


def environment(request: dict[str, Any]) -> dict[str, Any]:
    """As the base's, of the dimensions' modules in this package."""
    packages = installed()
    schemas = base.import_torchvision(request["device"])
    prepare()
    found: dict[str, str | None] = {}
    for name in request["dimensions"]:
        try:
            importlib.import_module(f"{PACKAGE}.{name}")
            found[name] = None
        except Exception as error:
            base.traceback.print_exc()
            found[name] = base.words_of(error)
    return {"dimensions": found, "operator_schemas": schemas, **packages}


def evaluate(request: dict[str, Any]) -> dict[str, Any]:
    """`entries`: as upstream's file has them, with paths. `videos` of the answer: [path, value] of every judgement."""
    dimension, device_name = request["dimension"], request["device"]
    packages = installed()
    schemas = base.import_torchvision(device_name)
    if device_name == "cpu" and not request["on_a_cpu"]:
        raise base.Trouble("environment", f"{dimension} of VBench-2.0 runs on a GPU alone")
    check_memory(request.get("memory_bytes", 0))
    prepare()
    import torch

    torch.set_num_threads(request["threads"])
    if device_name == "cuda" and not torch.cuda.is_available():
        raise base.Trouble("environment", "this interpreter's torch sees no GPU")
    module = importlib.import_module(f"{PACKAGE}.{dimension}")
    utils = importlib.import_module(f"{PACKAGE}.utils")
    if Path(str(utils.CACHE_DIR)) != Path(os.environ["VBENCH2_CACHE_DIR"]):
        raise base.Trouble("environment", f"VBench-2.0 reads weights from {utils.CACHE_DIR}, and not where they lie")
    stay_offline(torch, utils)
    Path(request["full_info"]).write_text(json.dumps(request["entries"]), encoding="utf-8")
    published = request["published"]
    parts = utils.init_submodules([published], local=True)[published]
    if dimension == INSTANCE:
        check_base_model(Path(parts["model"]))
    if dimension == DIVERSITY:
        keep_features(torch, module)
    with watched_judge(dimension):
        score, rows = getattr(module, f"compute_{dimension}")(request["full_info"], torch.device(device_name), parts)
    return {
        "score": base.plain(score), "videos": [[r["video_path"], base.plain(r["video_results"])] for r in rows],
        "operator_schemas": schemas, **packages,
    }  # fmt: skip


def installed() -> dict[str, Any]:
    """As the base's, with the digest of the programs below `vbench2`."""
    found: dict[str, Any] = base.installed()
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return found
    root, sha = Path(spec.origin).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        sha.update(f"{path.relative_to(root).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return {**found, "packages": {**found["packages"], CODE: sha.hexdigest()}}


def check_memory(needed: int) -> None:
    """Said before minutes of work: a kernel that is out of memory ends a process without a word."""
    free = free_memory()
    if free is not None and needed > free:
        raise base.Trouble(
            "memory",
            f"upstream's program keeps the features of all videos of a prompt, {needed / 1e9:.0f} GB, and "
            f"{free / 1e9:.0f} GB are free",
        )


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes: the machine's, or what is left to our control group (v2 or v1) where that is less; None where nothing is
    known. A group's limit and use are where a container sees its own."""
    found = []
    with contextlib.suppress(OSError):  # another system's: nothing is known
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    group = root / "sys/fs/cgroup"
    for limit, used in (("memory.max", "memory.current"),
                        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):  # fmt: skip
        with contextlib.suppress(OSError, ValueError):  # no such group, or its limit is `max`
            found.append(max(0, int((group / limit).read_text()) - int((group / used).read_text())))
    return min(found, default=None)


def prepare() -> None:
    """Nothing is fetched; and paths that the package writes from its repository's root are found in this folder."""
    base.refuse_downloads()
    io: Any = importlib.import_module("torchvision.io")
    if not hasattr(io, "write_video"):  # imported, and called by nothing: a newer torchvision has none

        def no_writer(*arguments: Any, **named: Any) -> None:
            raise base.Trouble("environment", "this torchvision writes no videos")

        io.write_video = no_writer
    spec = importlib.util.find_spec(PACKAGE)
    link = Path(PACKAGE)
    if spec is not None and spec.origin is not None and not link.is_symlink():
        link.symlink_to(Path(spec.origin).parent)


def stay_offline(torch: Any, utils: Any) -> None:
    """Its helpers catch every error of a download, ours too: they are replaced before it calls them."""
    load = torch.hub.load

    def local(repo_or_dir: str, *arguments: Any, **named: Any) -> Any:
        if named.get("source", "github") == "github" and ":" not in repo_or_dir:
            repo_or_dir = f"{repo_or_dir}:{HUB_BRANCH}"
        return load(repo_or_dir, *arguments, **named)

    def refused(*arguments: Any, **named: Any) -> Any:
        words = next((str(v) for v in (*arguments, *named.values())), "a file")
        raise base.Trouble("download", f"VBench-2.0 would fetch a file that is not there: {words}")

    def there(model_name: str, local_dir: str) -> str:
        folder = Path(local_dir)
        if not folder.is_dir() or not any(folder.iterdir()):
            refused(model_name)
        return local_dir

    torch.hub.load, torch.hub.urlopen, torch.hub.download_url_to_file = local, refused, refused
    utils.hug_model, utils.google_drive, utils.clone_model = there, refused, refused
    utils.gdown.download = refused
    utils.gdown.download_folder = refused


def keep_features(torch: Any, module: Any) -> None:
    """Upstream keeps what a layer gives by a call that copies from a GPU alone: on a CPU the next layer's ReLU changes
    it in place, and the score is another. Here no ReLU works in place."""
    original = module.VGG.__init__

    def made(self: Any) -> None:
        original(self)
        for part in self.modules():
            if isinstance(part, torch.nn.ReLU):
                part.inplace = False

    module.VGG.__init__ = made


def check_base_model(adapter: Path) -> None:
    """The adapter of instance preservation names its base model, which another library would fetch."""
    try:
        model = json.loads((adapter / "args.json").read_text(encoding="utf-8")).get("model")
    except (OSError, ValueError) as error:
        raise base.Trouble("weights", f"args.json of the instance detector cannot be read: {error}") from None
    if not model or not Path(str(model)).is_dir():
        raise base.Trouble(
            "weights",
            f"the instance detector's args.json names the base model {model!r}, and no folder of this machine",
        )


@contextlib.contextmanager
def watched_judge(dimension: str) -> Iterator[None]:
    """Instance preservation takes an exception of its judge for `no anomaly`, so that a broken one scores 1.0."""
    if dimension != INSTANCE:
        yield
        return
    detector: Any = importlib.import_module(f"{PACKAGE}.third_party.Instance_detector.test")
    original = detector.infer_lora
    failures: list[str] = []
    calls: list[int] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        try:
            return original(*arguments, **named)
        except BaseException as error:
            failures.append(base.words_of(error))
            raise

    detector.infer_lora = counted
    try:
        yield
    finally:
        detector.infer_lora = original
    if failures:
        raise base.Trouble("detector", f"the judge failed on {len(failures)} of {len(calls)} clips: {failures[0]}")
    if not calls:
        raise base.Trouble("detector", "the judge was asked of no clip")


if __name__ == "__main__":
    base.TASKS.update(environment=environment, evaluate=evaluate)
    base.main(sys.argv[1:])
