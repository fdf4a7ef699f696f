"""`m4v generate`: videos from a checkpoint, free-hand; the same command goes on with a half-done list."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from pydantic import JsonValue
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from m4v.config import Dtype, VideoConfig, default_dtype
from m4v.core.canonical import plain_json
from m4v.core.config import parse
from pipelines.cli.output import JsonOption, console, duration, print_json, short
from pipelines.generation.checkpoint import FoundCheckpoint, find_checkpoint, parse_weights
from pipelines.generation.folder import MANIFEST, Settings, VideoRecord, opened_folder
from pipelines.generation.prompts import MAX_SEED, Job, PromptLine, jobs_of, read_prompts
from pipelines.generation.settings import sampler_options, video_config

if TYPE_CHECKING:
    from m4v.sampling import VideoSampler

PLAIN_INTERVAL_S = 15.0


CheckpointArgument = Annotated[
    str, typer.Argument(help="A checkpoint folder, or the id of an artifact (or its beginning).")
]
PromptOption = Annotated[list[str] | None, typer.Option(help="What to show; repeatable.")]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        help="File with one prompt a line, or JSONL with prompt, and if wanted seed, negative, image; or a shipped set."
    ),
]
NegativeOption = Annotated[str | None, typer.Option(help="What not to show (default: the sampler's own).")]
SuffixOption = Annotated[
    str | None, typer.Option(help="Put behind every prompt (default: as the recipe, else words for quality).")
]
SeedOption = Annotated[int, typer.Option(help="First seed of each prompt.", min=0, max=MAX_SEED)]
SamplesOption = Annotated[int, typer.Option(help="Videos of each prompt: seeds S, S+1, …", min=1, max=100_000)]
ImageOption = Annotated[Path | None, typer.Option(help="Picture that becomes the first frame (image to video).")]
OutOption = Annotated[Path, typer.Option(help="Folder for the videos and their manifest.")]
FramesOption = Annotated[int | None, typer.Option(help="Frames, 8k + 1 (default: as the checkpoint's recipe).")]
HeightOption = Annotated[int | None, typer.Option(help="Pixels, a multiple of 64 (default: as the recipe).")]
WidthOption = Annotated[int | None, typer.Option(help="Pixels, a multiple of 64 (default: as the recipe).")]
FpsOption = Annotated[float | None, typer.Option(help="Frames a second (default: as the recipe, else 24).")]
StepsOption = Annotated[
    str | None, typer.Option(help="Steps a stage, FIRST or FIRST,LATER: of the first latent frame and the others.")
]
GuidanceOption = Annotated[
    str | None, typer.Option(help="Scale of text guidance, FIRST or FIRST,LATER; 0 turns it off.")
]
GuidanceDecayOption = Annotated[
    float | None, typer.Option(help="Taken off the guidance with every latent frame, down to 2.")
]
SelfGuidanceOption = Annotated[
    float | None, typer.Option(help="Scale of self-quality guidance from the 8th latent frame on; 0: off.")
]
EmaOption = Annotated[bool, typer.Option("--ema/--raw", help="Averaged weights if there are some, or the raw ones.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto: a GPU if there is one.")]
DtypeOption = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="Type the transformer computes in (default: bfloat16 on a GPU, float32 on the CPU)."),
]
CrfOption = Annotated[int | None, typer.Option(help="H.264 quality, less is better (default: recipe, else 12).")]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(help="Folder of imported weights that the checkpoint uses, NAME=DIR; repeatable."),
]


def register(app: typer.Typer) -> None:
    app.command()(generate)


def generate(
    checkpoint: CheckpointArgument,
    prompt: PromptOption = None,
    prompts: PromptsOption = None,
    negative: NegativeOption = None,
    suffix: SuffixOption = None,
    seed: SeedOption = 0,
    samples: SamplesOption = 1,
    image: ImageOption = None,
    out: OutOption = Path("generated"),
    frames: FramesOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    fps: FpsOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    guidance_decay: GuidanceDecayOption = None,
    self_guidance: SelfGuidanceOption = None,
    ema: EmaOption = True,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    crf: CrfOption = None,
    weights: WeightsOption = None,
    json_: JsonOption = False,
) -> None:
    """Generate videos from prompts; what a folder already holds is not made again."""
    spoken = [parse(PromptLine, {"prompt": p}, "--prompt") for p in prompt or []]
    lines = [*spoken, *(read_prompts(prompts) if prompts else [])]
    jobs = jobs_of(lines, seed=seed, samples=samples, negative=negative, image=image)
    found = find_checkpoint(checkpoint, parse_weights(weights or []), ema=ema)
    sampler = sampler_options(found.config, steps, guidance, guidance_decay, self_guidance, suffix)
    size = {"frames": frames, "height": height, "width": width, "fps": fps, "crf": crf}
    config = video_config(found, size, sampler)
    _run(found, config, jobs, out, device, dtype, json_)


def _run(
    found: FoundCheckpoint, config: VideoConfig, jobs: list[Job], out: Path, device: str, dtype: Dtype | None,
    json_: bool,
) -> None:  # fmt: skip
    from pipelines.generation.make import make_videos  # brings codecs and image libraries

    device = _chosen(device)
    dtype = dtype or default_dtype(device)

    def open_loaded() -> VideoSampler:
        from m4v.sampling import open_sampler

        return open_sampler(found.path_of, ema=found.ema, device=device, dtype=dtype, folders=found.folders)

    started = time.monotonic()
    settings = _settings(found, config, device, dtype)
    display = GenerateDisplay(found, config, quiet=json_)
    with opened_folder(out, settings, config.sampler.negative_prompt) as folder, display:
        records, made = make_videos(folder, jobs, config, open_loaded, display)
    display.end(made, len(records), out)
    if json_:
        print_json(
            {
                "checkpoint": found.identity, "out": str(out), "manifest": str(out / MANIFEST), "made": made,
                "already_there": len(records) - made, "seconds": round(time.monotonic() - started, 3),
                "videos": [record.canonical() for record in records],
            }
        )  # fmt: skip


def _chosen(device: str) -> str:
    """Raises ConfigError for a device that is not there."""
    if device == "cpu":
        return device
    import torch

    from m4v.devices import usable_device

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else str(usable_device(device))


def _settings(found: FoundCheckpoint, config: VideoConfig, device: str, dtype: Dtype) -> Settings:
    # Every option, unlike the canonical form: a default may change one day.
    sampler = plain_json({name: value for name, value in config.sampler if name != "negative_prompt"})
    size = config.model_dump(include={"frames", "height", "width", "fps", "crf"})
    return Settings(
        checkpoint=found.identity, weights="ema" if found.ema else "raw", imported=dict(found.imported),
        sampler=cast(dict[str, JsonValue], sampler), device=device.partition(":")[0], dtype=dtype, **size,
    )  # fmt: skip


class GenerateDisplay:
    """A bar on a terminal; otherwise one plain line a video, and one every 15 seconds within it."""

    def __init__(self, found: FoundCheckpoint, config: VideoConfig, *, quiet: bool) -> None:
        self._found, self._config, self._quiet = found, config, quiet
        self._live = None if quiet or not sys.stdout.isatty() else _bar()
        self._task: TaskID | None = None
        self._total = self._there = self._made = 0
        self._part = 0.0
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> GenerateDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def start(self, total: int, there: int) -> None:
        self._total, self._there = total, there
        config, weights = self._config, "averaged" if self._found.ema else "raw"
        known = f", as in {self._found.origin}" if self._found.origin else ""
        self._tell(
            f"{_videos(total)} of {config.frames} frames, {config.width}x{config.height}, {config.fps:g} fps{known}"
        )
        self._tell(
            f"checkpoint {short(self._found.identity)}, {weights} weights" + (f"; {there} are there" if there else "")
        )
        if self._live is not None and there < total:
            self._live.start()
            self._task = self._live.add_task("generate", total=total, completed=there, note="")

    def loading(self) -> None:
        self._note("loading the checkpoint")

    def frame(self, done: int, total: int) -> None:
        if done == 1 and self._made == 0 and self._part == 0:
            self._started = time.monotonic()  # loading is no part of the rate
        self._part = min(done / (total + 1), 1.0)
        self._note(self._state())

    def video(self, record: VideoRecord) -> None:
        self._made, self._part = self._made + 1, 0.0
        self._tell(f"{record.file}  {self._state()}")
        self._note(self._state())

    def _state(self) -> str:
        done = self._made + self._part
        text = f"{self._there + self._made} of {self._total}"
        elapsed = time.monotonic() - self._started
        if done and elapsed > 0:
            left = self._total - self._there - done
            text += f", {duration(elapsed / done)} a video" + (
                f", {duration(elapsed / done * left)} left" if left else ""
            )
        return text

    def _note(self, text: str) -> None:
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self._there + self._made + self._part, note=text)
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._tell(f"  {text}")

    def _tell(self, text: str) -> None:
        """A reader that went away (`m4v generate … | head`) does not end the work."""
        if self._quiet:
            return
        self._printed = time.monotonic()
        try:
            if self._live is not None:
                self._live.console.print(text, markup=False)
            else:
                print(text, flush=True)
        except OSError:
            self._quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit

    def end(self, made: int, total: int, out: Path) -> None:
        """The last line."""
        there = f", {total - made} were there" if made < total else ""
        self._tell(f"{made} made{there}; in {out}, each with its origin in {MANIFEST}")


def _videos(count: int) -> str:
    return "1 video" if count == 1 else f"{count} videos"


def _bar() -> Progress:
    return Progress(
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        console=console(),
        expand=True,
    )
