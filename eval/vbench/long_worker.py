"""One dimension of VBench-Long: `python long_worker.py REQUEST RESULT`, the tasks of `worker.py` on clips.

The package's own functions cut, measure and join; what surrounds them upstream is left out, since it finds prompts by
the order of a folder's entries and may then measure nothing without a word.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = "vbench2_beta_long"
SPLIT, FILTERED = "split_clip", "filtered_clips"  # folders that the package knows by these words
HUB_BRANCH = "main"  # asked of the network where it is not told


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
    packages = base.installed()
    schemas = base.import_torchvision(request["device"])
    writer = ensure_writer()
    base.refuse_downloads()
    found: dict[str, str | None] = {}
    for name in request["dimensions"]:
        try:
            importlib.import_module(f"{PACKAGE}.{name}")
            found[name] = None
        except Exception as error:
            base.traceback.print_exc()
            found[name] = base.words_of(error)
    return {"dimensions": found, "operator_schemas": schemas, "writer": writer, **packages}


def evaluate(request: dict[str, Any]) -> dict[str, Any]:
    """Cut, choose, measure. `clips`: [video's path, value] of every clip; `left_out`: [video's path, how many]."""
    dimension, device_name = request["dimension"], request["device"]
    packages = base.installed()
    schemas = base.import_torchvision(device_name)
    writer = ensure_writer()
    base.refuse_downloads()
    import torch

    torch.set_num_threads(request["threads"])
    if device_name == "cuda" and not torch.cuda.is_available():
        raise base.Trouble("environment", "this interpreter's torch sees no GPU")
    device = torch.device(device_name)
    module = importlib.import_module(f"{PACKAGE}.{dimension}")
    video_of = cut(request["clips"])
    clips_of: dict[str, list[str]] = {}
    for clip, video in video_of.items():
        clips_of.setdefault(video, []).append(clip)
    entries = [
        {**entry, "video_list": [clip for video in entry["video_list"] for clip in clips_of[video]]}
        for entry in request["entries"]
    ]
    left_out: dict[str, int] = {}
    if request.get("static_filter"):
        entries, left_out = near_static_clips(entries, video_of, device, request)
    Path(request["full_info"]).write_text(json.dumps(entries), encoding="utf-8")
    if dimension == "dynamic_degree":
        base.check_flow(importlib.import_module("vbench.dynamic_degree").DynamicDegree)
    utils = importlib.import_module("vbench.utils")
    parts = utils.init_submodules([dimension], local=True, read_frame=False)[dimension]
    keep_offline(torch, module, device)
    compute = getattr(module, f"compute_long_{dimension}")
    with base.watched_detector(dimension, parts, device, request.get("picture")):
        score, rows, *_ = compute(request["full_info"], device, parts, **settings(request))
    return {
        "score": base.plain(score),
        "clips": [[owner(r["video_path"], video_of), base.plain(r["video_results"])] for r in rows],
        "left_out": sorted(left_out.items()), "operator_schemas": schemas, "writer": writer, **packages,
    }  # fmt: skip


def cut(request: dict[str, Any]) -> dict[str, str]:
    """Cut every video by the package's function; each clip's path with that of its video, in order. Raises Trouble
    where a video gives other clips than its frames and rate say."""
    utils = importlib.import_module(f"{PACKAGE}.utils")
    root, found = Path(request["folder"]) / SPLIT, dict[str, str]()
    for video, wanted in request["videos"].items():
        name = Path(video).stem
        if "_" in name:  # the package takes a clip's video for what stands before it
            raise base.Trouble("clips", f"a video's name has an underscore, at which VBench-Long ends it: {name}")
        if (root / name).exists():
            raise base.Trouble("clips", f"two videos' clips would lie in one folder of this disk: {name}")
        rate = utils.get_video_properties(video)["fps"]
        if rate != wanted["fps"]:  # clips would have another length
            raise base.Trouble(
                "clips", f"VBench-Long reads {rate} frames a second of {name}, which has {wanted['fps']}"
            )
        utils.split_video_into_clips(video, str(root), wanted["seconds"], fps=8)
        clips = sorted((root / name).glob("*.mp4"))
        if len(clips) != wanted["clips"]:
            raise base.Trouble(
                "clips",
                f"{name} was cut into {len(clips)} clips of {wanted['seconds']} s, and its frames and rate make "
                f"{wanted['clips']}",
            )
        found.update({str(clip): video for clip in clips})
    return found


def near_static_clips(
    entries: list[Any], video_of: dict[str, str], device: Any, request: dict[str, Any]
) -> tuple[list[Any], dict[str, int]]:
    """Entries with links to those clips alone that VBench's filter keeps, in the folder by whose name the package
    knows that it has to join them by video; and how many of each video it left out."""
    kept, left_out = base.near_static(entries, device, **request["static_filter"])
    folder = Path(request["clips"]["folder"]) / FILTERED
    folder.mkdir()
    for entry in kept:
        entry["video_list"] = [str(linked(Path(clip), folder)) for clip in entry["video_list"]]
    for entry in kept:
        for link in entry["video_list"]:
            video_of[link] = video_of[str(Path(link).readlink())]
    counts: dict[str, int] = {}
    for clip in left_out:
        counts[video_of[clip]] = counts.get(video_of[clip], 0) + 1
    return kept, counts


def linked(clip: Path, folder: Path) -> Path:
    link = folder / clip.name
    link.symlink_to(clip)
    return link


def settings(request: dict[str, Any]) -> dict[str, Any]:
    """What upstream's program passes on; its files of figures, which its package leaves out, are written here."""
    found: dict[str, Any] = {"static_filter_flag": False, "imaging_quality_preprocessing_mode": "longer"}
    branch = request.get("clip_to_clip")
    if branch is None:
        return found
    short = {"subject_consistency": "sb", "background_consistency": "bg"}[request["dimension"]]
    plain = {"subject_consistency": "dino", "background_consistency": "clip"}[request["dimension"]]
    folder = Path(request["clips"]["folder"])
    table, weights = folder / "mapping.yaml", folder / "weights.yaml"
    table.write_text("".join(f"{key}: {value}\n" for key, value in branch["mapping"].items()), encoding="utf-8")
    inside, between = branch["in_clip_weight"], branch["clip_to_clip_weight"]
    weights.write_text(f"w_inclip_{short}: {inside}\nw_clip2clip_{short}: {between}\n", encoding="utf-8")
    return {
        **found, "dev_flag": branch["on"], "w_inclip": 1.0, "w_clip2clip": 0.0,
        f"{short}_clip2clip_feat_extractor": branch["features"] if branch["on"] else plain,
        f"{short}_mapping_file_path": str(table), "slow_fast_eval_config": str(weights),
    }  # fmt: skip


def owner(path: str, video_of: dict[str, str]) -> str:
    """The video of a row: it names the clip, or as a path below it."""
    return video_of.get(path) or video_of.get(str(Path(path).parent)) or path


def keep_offline(torch: Any, module: Any, device: Any) -> None:
    """Torch hub asks the network for a repository's branch, and DreamSim wants a GPU and a folder of its own."""
    load = torch.hub.load

    def local(repo_or_dir: str, *arguments: Any, **named: Any) -> Any:
        if named.get("source", "github") == "github" and ":" not in repo_or_dir:
            repo_or_dir = f"{repo_or_dir}:{HUB_BRANCH}"
        return load(repo_or_dir, *arguments, **named)

    def refused(url: Any, *arguments: Any, **named: Any) -> Any:
        raise base.Trouble("download", f"VBench-Long would fetch a file that is not there: {url}")

    torch.hub.load, torch.hub.urlopen, torch.hub.download_url_to_file = local, refused, refused
    dreamsim: Callable[..., Any] | None = getattr(module, "dreamsim", None)
    if dreamsim is not None:
        folder = str(Path(os.environ["VBENCH_CACHE_DIR"]) / "dreamsim_model")
        module.dreamsim = lambda **_: dreamsim(pretrained=True, device=device, cache_dir=folder)


def ensure_writer() -> str:
    """Who writes clips: torchvision, or where a newer one has no `write_video` any more, what that did with PyAV."""
    io: Any = importlib.import_module("torchvision.io")
    if hasattr(io, "write_video"):
        return "torchvision"
    io.write_video = write_video
    return "av"


def write_video(filename: str, video_array: Any, fps: float) -> None:
    """Frames of shape (count, height, width, RGB), 0 to 255 of any type, as H.264 4:2:0 at x264's default quality."""
    import av
    import numpy as np

    with av.open(filename, mode="w") as container:
        stream = container.add_stream("libx264", rate=round(fps))
        stream.height, stream.width = video_array.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in np.ascontiguousarray(video_array.byte().numpy()):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    base.TASKS.update(environment=environment, evaluate=evaluate)
    base.main(sys.argv[1:])
