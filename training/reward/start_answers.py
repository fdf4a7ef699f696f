"""The start model's answers to a reward stage's probe, kept in the stage's state for every attempt after the first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage

TENSORS, RECORD = "watch/start.safetensors", "watch/start.json"


@dataclass(frozen=True)
class StartAnswers:
    """Velocities by sample and column, float32; mean cosine between the videos of each prompt; mean scores of each
    scored clip's estimates, in the order of the scorers."""

    velocities: Sequence[Sequence[Tensor]]
    likeness: Sequence[float]
    scores: Sequence[Sequence[float]] = ()


def write_start(state: Storage, answers: StartAnswers) -> None:
    """The record comes last: without it the tensors do not count."""
    tensors = {f"{n:04d}.{c:04d}": v.contiguous() for n, of in enumerate(answers.velocities) for c, v in enumerate(of)}
    for name, numbers in (("likeness", answers.likeness), ("scores", answers.scores)):
        tensors[name] = torch.tensor(numbers, dtype=torch.float64)
    data = save(tensors)
    state.write_bytes(TENSORS, data)
    state.write_bytes(RECORD, json.dumps({"sha256": hashlib.sha256(data).hexdigest()}).encode())


def read_start(state: Storage, samples: int, prompts: int, scored: int = 0) -> StartAnswers:
    """Raises DataIntegrityError when they are not there, damaged, or of another number of samples, prompts or scored
    clips."""
    fault = "they are not there"
    try:
        data = state.read_bytes(TENSORS)
        if hashlib.sha256(data).hexdigest() == json.loads(state.read_bytes(RECORD))["sha256"]:
            found = load(data)
            likeness = found.pop("likeness").tolist()
            # Stages that began before clips were scored have none; they go on.
            scores = found.pop("scores").tolist() if "scores" in found else []
            velocities: dict[str, list[Tensor]] = {}
            for name in sorted(found):
                velocities.setdefault(name.partition(".")[0], []).append(found[name])
            has, wanted = (len(velocities), len(likeness), len(scores)), (samples, prompts, scored)
            if has == wanted:
                return StartAnswers(list(velocities.values()), likeness, scores)
            told = ("{} samples, {} prompts and {} scored clips".format(*each) for each in (has, wanted))
            fault = "they are of {}, not {}".format(*told)
        else:
            fault = "their bytes differ from their digest"
    except (InputError, ValueError, KeyError):
        pass  # what is missing or no record is said below
    raise DataIntegrityError(
        f"the answers of the start model, which the hacking watch compares with, cannot be used: {fault}",
        where=f"{state.uri}/{TENSORS}",
        next_step="delete the stage's state there, so that it begins again, or set watch.probe.samples,"
        " watch.probe.prompts and watch.probe.scored to 0",
    )  # fmt: skip
