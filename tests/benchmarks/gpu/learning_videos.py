"""Videos of a learning check's checkpoint: made in batches, read, scored and shown."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_corpus import FPS, FRAMES, FeatureTable, Words, all_words, codec, png_of
from learning_scores import accuracies, contact_sheet, found_in, table

from m4v.checkpoint import load_checkpoint
from m4v.config import SamplerConfig
from m4v.core.storage import replacing
from m4v.flow.sampler import stream
from m4v.flow.schedule import PyramidSchedule
from m4v.text.interface import TextFeatures
from m4v.video_io import write_mp4

SHEET_ROWS = 16
ENDS_S = 15.0  # to read, score and show the videos


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def on_device(text: TextFeatures, device: str, dtype: torch.dtype) -> TextFeatures:
    there = text.to(device)
    return TextFeatures(there.embedding.to(dtype), there.mask, there.pooled.to(dtype))


def generate(
    work: Path, checkpoint: Path, features: FeatureTable, prompts: list[str], seeds: list[int],
    options: argparse.Namespace,
) -> list[np.ndarray]:  # fmt: skip
    """uint8 frames (57, H, W, 3) of each prompt, in batches that are kept in `work`; what a video is like depends on
    its own seed alone. Of fewer prompts, the first, where `--limit-s` leaves no time for another batch."""
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    model, config = load_checkpoint(checkpoint.joinpath, device=options.device, dtype=dtype)
    schedule, videos, last_s = PyramidSchedule(config.schedule), [], 0.0
    sampler = SamplerConfig(
        steps_first=(options.sampler_steps,) * 3, steps_later=(options.sampler_steps,) * 3,
        guidance_first=options.guidance, guidance_later=options.guidance, prompt_suffix="", negative_prompt="",
    )  # fmt: skip
    shape = (1 + (FRAMES - 1) // 8, options.side // 8, options.side // 8)
    for start in range(0, len(prompts), options.batch):
        part, kept = slice(start, start + options.batch), work / f"videos-{start:04d}.npy"
        if kept.exists():
            videos += list(np.load(kept))
            continue
        if videos and options.limit_s is not None and last_s + ENDS_S > options.limit_s - (time.time() - options.began):
            say(f"no time for the videos after the first {len(videos)}")
            break
        given, null = (on_device(features.encode(texts), options.device, dtype) for texts in (prompts[part], [""]))
        began = time.perf_counter()
        frames = list(stream(model.eval(), schedule, sampler, given, null, shape, seeds[part]))
        latents = torch.cat(frames, dim=2).float().cpu().numpy()
        made = [np.asarray(codec().decode(latent)) for latent in latents]
        with replacing(kept) as temporary, temporary.open("wb") as file:
            np.save(file, np.stack(made))
        videos += made
        last_s = time.perf_counter() - began
        say(f"generated {len(videos)} of {len(prompts)} videos, {last_s:.1f} s for the last batch")
    return videos


def showcase(asked: list[Words], count: int) -> list[int]:
    """Places of `count` unseen prompts, chosen before anything was made: spread evenly over the list."""
    return [int(p) for p in np.linspace(0, len(asked) - 1, min(count, len(asked))).round()]


def score(work: Path, checkpoint: Path, features: FeatureTable, options: argparse.Namespace) -> dict[str, Any]:
    """Videos of every unseen prompt, `--samples` of each, and one of as many seen ones."""
    unseen = [w for w in all_words() if w.held_out]
    seen = [w for w in all_words() if not w.held_out][::2]
    unseen, seen = unseen[:: options.every], seen[:: options.every]
    asked = [w for w in unseen for _ in range(options.samples)] + seen
    prompts = [w.captions[0] for w in asked]
    videos = generate(work, checkpoint, features, prompts, [1000 + n for n in range(len(asked))], options)
    asked, prompts = asked[: len(videos)], prompts[: len(videos)]
    found, count = [found_in(video) for video in videos], min(len(unseen) * options.samples, len(videos))
    tables = {"unseen": accuracies(asked[:count], found[:count])}
    if count < len(asked):
        tables["seen"] = accuracies(asked[count:], found[count:])
    out, tag = Path(options.out), f"learning-{options.mixer.replace('_', '')}"
    places = showcase(asked[:count], SHEET_ROWS)
    sheet = contact_sheet([videos[p] for p in places], [prompts[p] for p in places], [found[p] for p in places])
    (out / f"{tag}.png").write_bytes(png_of(sheet))
    # Eight of the sheet's videos in one file, side by side.
    wall = np.concatenate(
        [np.concatenate([videos[p] for p in row], axis=2) for row in np.array_split(places, min(2, len(places)))
         if len(row) == len(places) // min(2, len(places))], axis=1
    )  # fmt: skip
    write_mp4(out / f"{tag}.mp4", np.ascontiguousarray(wall), FPS, 12)
    for name, result in tables.items():
        print(table(f"{options.mixer}, {name} prompts", result), flush=True)
    return {
        "accuracy": {n: {k: a._asdict() for k, a in t.items()} for n, t in tables.items()},
        "videos": [{"prompt": p, "found": f._asdict()} for p, f in zip(prompts, found, strict=True)],
    }
