"""A study without a ledger: blind videos in a folder, and participants who answer by known truth."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.study.config import CONSENT, CRITERIA
from eval.study.design import Task
from eval.study.records import Answer, Snapshot, Study, StudyPrompt, StudySystem
from m4v.core.palette import COLOURS
from m4v.video_io import encode_frames

SYSTEMS = ("ours", "alpha", "beta", "gamma", "delta")
WORDS = (
    "A breathtaking coastal beach in spring, where gentle waves caress the golden sand in super slow motion.",
    "A red ball rolls from left to right on a wooden floor.",
    "A charming panda in a chef's hat chops vegetables in a cosy, rustic kitchen filled with wooden cabinets.",
    "A colossal, hyper-realistic spaceship descends gracefully onto the rugged Martian surface.",
)


@dataclass(frozen=True)
class StudyHouse:
    study: Study
    folder: Path

    def media(self, file: str) -> Path:
        return self.folder / file


def study_of(prompts: int = 2, systems: tuple[str, ...] = SYSTEMS, criteria: int = 3, **values: object) -> Study:
    texts = [WORDS[n % len(WORDS)] + ("" if n < len(WORDS) else f" Take {n}.") for n in range(prompts)]
    found = [
        StudyPrompt(text=text, videos={name: f"media/{n:02d}{system}.mp4" for system, name in enumerate(systems)})
        for n, text in enumerate(texts)
    ]
    given: dict[str, object] = {
        "title": "Which video is better?", "mode": "rank", "criteria": CRITERIA[:criteria], "tasks": None,
        "ties": False, "seed": 1, "consent": CONSENT, **values,
    }  # fmt: skip
    people = tuple(StudySystem(name=name, samples=f"{n}" * 64, checkpoint="c" * 64) for n, name in enumerate(systems))
    return Study.model_validate({**given, "systems": people, "prompts": tuple(found)})


def house(folder: Path, study: Study, size: tuple[int, int] = (64, 96), frames: int = 8) -> StudyHouse:
    """Videos of a square that moves, another colour for each system."""
    (folder / "media").mkdir(parents=True)
    colours = list(COLOURS.values())
    for prompt in study.prompts:
        for number, file in enumerate(prompt.videos.values()):
            (folder / file).write_bytes(_video(colours[number + 1], size, frames))
    return StudyHouse(study, folder)


def _video(colour: tuple[int, int, int], size: tuple[int, int], frames: int) -> bytes:
    height, width = size
    pixels = np.full((frames, height, width, 3), 225, dtype=np.uint8)
    side = height // 3
    for n in range(frames):
        left = int((width - side) * n / max(1, frames - 1))
        pixels[n, side : 2 * side, left : left + side] = colour
    sink = io.BytesIO()
    encode_frames(iter([pixels]), sink, 8)
    return sink.getvalue()


def truthful(study: Study, task: Task, orders: dict[str, tuple[str, ...]]) -> dict[str, tuple[int, ...]]:
    """The answer of somebody to whom `orders[criterion]` is the order of the systems, best first."""
    said = {}
    for criterion in study.criteria:
        order = orders[criterion.key]
        ranks = [order.index(name) for name in task.shown]
        place = 1 if ranks[0] < ranks[-1] else 2
        said[criterion.key] = tuple(sorted(ranks).index(r) + 1 for r in ranks) if study.mode == "rank" else (place,)
    return said


def answer_of(participant: str, task: Task, said: dict[str, tuple[int, ...]]) -> Answer:
    return Answer(participant=participant, task=task.id, prompt=task.prompt, shown=task.shown, said=said)


def snapshot_of(answers: list[Answer], revoked: tuple[str, ...] = (), invited: int = 20) -> Snapshot:
    return Snapshot(study="s" * 64, invited=invited, revoked=revoked, answers=tuple(answers))
