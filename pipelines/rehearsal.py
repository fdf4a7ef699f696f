"""The rehearsal of a recipe: its real sizes, two steps a training stage, on the GPUs that are here, under a name of its
own, so that no key, channel or history of the real run is touched.

What a rehearsal cannot have is stood in for, and said: drawn clips for a collection that is not here, the seed for
weights that are not imported, the packaged text encoder, score and transform codec for theirs.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from itertools import takewhile
from shutil import which
from typing import Any

from dataprep.sources import probe as source_probe
from m4v.codec.config import DctCodecConfig
from m4v.core.assets import resolve
from m4v.core.config import parse
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.scores.config import ConseConfig
from m4v.text.config import MiniLmConfig
from m4v.weights.source import probe as weights_probe
from pipelines.lookup import PINNED
from pipelines.recipe import Recipe, SourceEntry, WeightsEntry
from training.config import TrainConfig

SUFFIX = "-rehearse"
STEPS = 2
PACKS = 2  # of a rank and step, at most: gradients add up, and no pack is larger for there being more of them
CLIPS = 2  # of a stand-in collection, and as many stills
FILES = 8  # of a real one, at most
_ABSENT = (ConfigError, InputError, DataIntegrityError)


@dataclass(frozen=True)
class Rehearsal:
    """`notes`: what stands in for what, one sentence each."""

    recipe: Recipe
    notes: tuple[str, ...]


def rehearse(recipe: Recipe) -> Rehearsal:
    """The rehearsal of `recipe` on this machine; raises ConfigError when it cannot be made to hold together."""
    notes: list[str] = []
    data: dict[str, Any] = recipe.model_dump(mode="json")
    data["name"] = recipe.name + SUFFIX
    data["sources"] = [_source(entry, number, recipe, notes) for number, entry in enumerate(recipe.sources)]
    if notes:  # what stands in is decoded once to see that it can be
        data["encode"]["reconstructions"] = min(1, recipe.encode.reconstructions)
    absent = {entry.name for entry in recipe.weights if not _is_here(entry)}
    _weights(recipe, data, absent, notes)
    _profile(recipe, data, notes)
    ranks = _ranks(data)
    data["train"] = [_stage(config, recipe, f"train.{config.name}", ranks, notes) for config in recipe.train]
    if recipe.reward is not None:
        data["reward"] = _stage(recipe.reward, recipe, "reward", ranks, notes)
        _scorers(data["reward"], absent, notes)
    _ending(data)
    return Rehearsal(parse(Recipe, data, f"rehearsal of {recipe.name}"), tuple(notes))


def _source(entry: SourceEntry, number: int, recipe: Recipe, notes: list[str]) -> dict[str, Any]:
    """A collection as it is, or drawn clips of a seed of its own: curation drops clips that two sources share."""
    data: dict[str, Any] = entry.model_dump(mode="json")
    try:
        source_probe(entry.config, {} if entry.location is None else {entry.name: resolve(entry.location)})
    except _ABSENT:
        every = [recipe.encode.buckets, *(e.buckets for e in recipe.encodings)]
        height, width = max((size for b in every for size in b.sizes), key=lambda size: size[0] * size[1])
        frames = max(frames for b in every for frames in b.frames)
        notes.append(f"source {entry.name} is not here: {CLIPS} drawn clips of {frames} frames stand in")
        adapter = {"kind": "synthetic", "count": CLIPS, "stills": CLIPS, "frames": frames, "size": [height, width],
                   "fps": every[0].fps, "seed": number}  # fmt: skip
        return {"name": entry.name, "location": None, "adapter": adapter}
    if "limit" in data["adapter"]:
        data["adapter"]["limit"] = min(data["adapter"]["limit"] or FILES, FILES)
    return data


def _weights(recipe: Recipe, data: dict[str, Any], absent: set[str], notes: list[str]) -> None:
    """Drop what starts from, or encodes with, weights that are not here."""
    if recipe.init is not None and recipe.init.weights in absent:
        notes.append(f"weights {recipe.init.weights} are not here: the model starts from the seed")
        data["init"] = None
    codec, text = recipe.encode.codec, recipe.encode.text_encoder
    if getattr(codec, "weights", None) in absent:
        notes.append("the codec's weights are not here: the transform codec stands in, latents have the same shape")
        data["encode"]["codec"] = DctCodecConfig(time_stride=codec.time_stride).model_dump(mode="json")
    if getattr(text, "weights", None) in absent:
        packaged = MiniLmConfig(slots=text.slots)
        notes.append(f"the text encoder's weights are not here: the packaged one stands in, with {text.slots} slots")
        data["encode"]["text_encoder"] = packaged.model_dump(mode="json")
        widths = {"text_dim": packaged.embedding_dim, "pooled_dim": packaged.pooled_dim}
        data["model"] |= {name: width for name, width in widths.items() if name in data["model"]}
    data["weights"] = [row for row in data["weights"] if row["name"] not in absent]


def _scorers(stage: dict[str, Any], absent: set[str], notes: list[str]) -> None:
    """The packaged score once, in place of all whose weights are not here; nothing stands in for one held out."""
    reward, watch = stage["reward"], stage["watch"]
    watch["held_out"] = [scorer for scorer in watch["held_out"] if scorer.get("weights") not in absent]
    here = [row for row in reward["scorers"] if row["scorer"].get("weights") not in absent]
    if len(here) < len(reward["scorers"]):
        gone = [row["scorer"]["weights"] for row in reward["scorers"] if row not in here]
        notes.append(f"weights {', '.join(gone)} are not here: the packaged score stands in for the reward's")
        here.append({"scorer": ConseConfig().model_dump(mode="json"), "weight": 1.0})
    reward["scorers"] = here


def _is_here(entry: WeightsEntry) -> bool:
    if entry.location is not None and entry.location.startswith(PINNED):
        return True
    try:
        weights_probe(entry.config, {} if entry.location is None else {entry.name: resolve(entry.location)})
    except _ABSENT:
        return False
    return True


def _profile(recipe: Recipe, data: dict[str, Any], notes: list[str]) -> None:
    """No more ranks than GPUs are here."""
    profile, here = data["profiles"][recipe.profile], max(1, gpus_here())
    for name, resources in [("default", profile["default"]), *profile["stages"].items()]:
        there = resources["ranks"]
        if resources["device"] == "cuda" and there > here:
            notes.append(f"{name} takes {here} of {there} GPUs and keeps block inputs alone")
            resources["ranks"] = here


def _ranks(data: dict[str, Any]) -> dict[str, int]:
    profile = data["profiles"][data["profile"]]
    return {"": profile["default"]["ranks"], **{name: r["ranks"] for name, r in profile["stages"].items()}}


def _stage(
    config: TrainConfig, recipe: Recipe, node_id: str, ranks: dict[str, int], notes: list[str]
) -> dict[str, Any]:
    """Two steps of packs of the real size, few of them: as much memory, less time."""
    data: dict[str, Any] = config.model_dump(mode="json")
    stage = node_id.partition(".")[0]
    here = ranks.get(node_id, ranks.get(stage, ranks[""]))
    there = recipe.active_profile.resources(stage, node_id).ranks
    shared = config.engine.sequence_parallel
    fewer = max(size for size in range(1, min(shared, here) + 1) if here % size == 0)
    packs = max(1, config.order.packs * shared // there)
    data["order"]["packs"] = min(PACKS, packs) * (here // fewer)
    if packs > PACKS:
        notes.append(f"{node_id} takes {PACKS} packs of the real size on each GPU, not {packs}")
    if fewer < shared:
        data["engine"]["sequence_parallel"] = fewer
    if here < there:  # each GPU holds a larger part of model and optimiser
        data["engine"]["checkpointing"] = "block"
    data |= {"steps": STEPS, "save_every": STEPS}
    if data["order"]["image_every"]:
        data["order"]["image_every"] = 1  # so that one of the two steps is an image step
    if config.validation.every:
        data["validation"]["every"] = STEPS
    return data


def _ending(data: dict[str, Any]) -> None:
    """One video in few steps; a gate that anything passes; no suite, no promotion; two steps of the variants, too."""
    generate = data["generate"]
    if isinstance(generate["prompts"], list):
        generate["prompts"] = generate["prompts"][:1]
    generate["samples_per_prompt"] = 1
    few = {"steps_first": [1, 1, 1], "steps_later": [1, 1, 1], "steps": 2}
    generate["sampler"] |= {name: steps for name, steps in few.items() if name in generate["sampler"]}
    data["gate"]["rules"] = [{"rule": "minimum", "metric": "local.flicker", "value": 0.0}]
    data["promote"] = None
    data["evaluation"] = {}
    if "ablation" in data:
        data["ablation"] |= {"steps": None, "vbench": False, "prompts": None}


def gpus_here() -> int:
    """GPUs of this machine that CUDA may use: of those that CUDA_VISIBLE_DEVICES leaves; 0 without a driver."""
    command = which("nvidia-smi")
    if command is None:
        return 0
    answer = subprocess.run([command, "--list-gpus"], capture_output=True, text=True, timeout=30, check=False)
    here = sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return here
    # CUDA reads the list up to the first entry that names no device.
    visible = takewhile(lambda entry: entry and entry != "-1", (entry.strip() for entry in named.split(",")))
    return min(here, sum(1 for _ in visible))
