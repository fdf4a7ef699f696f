"""A samples artifact of real little videos under prompts of VBench's suite, and contexts of the stage on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eval.prompts import prompt_set_digest, video_name
from eval.records import SAMPLES, SampleSet, SampleVideo, write_record
from eval.vbench.config import VBenchConfig
from eval.vbench.prompt_suite import SuitePrompt, suite_prompts
from eval.vocabulary import Facts
from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, write_manifest
from m4v.core.canonical import digest_file
from m4v.core.stage import InputRef, OutputRef, Resources, StageContext, StageRequest
from m4v.video_io import write_mp4


def prompts_for(*dimensions: str) -> list[SuitePrompt]:
    """For each dimension the first prompt of the suite that serves it, each once."""
    found = [next(p for p in suite_prompts() if d in p.dimensions) for d in dimensions]
    return sorted(set(found))


def sample_artifact(
    folder: Path, prompts: list[SuitePrompt], samples: int = 1, size: int = 32, frames: int = 9
) -> Artifact:
    """Drifting noise, another for each video."""
    videos = []
    for prompt in prompts:
        for sample in range(samples):
            file = video_name(prompt.number, sample)
            rng = np.random.default_rng(1000 * prompt.number + sample)
            wide = np.kron(rng.integers(0, 256, (size // 8, size // 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            write_mp4(folder / file, np.stack([wide[:, n : n + size] for n in range(frames)]), 8)
            videos.append(
                SampleVideo(
                    file=file, prompt=prompt.prompt, prompt_index=prompt.number, sample_index=sample, seed=0,
                    facts=Facts(), frames=frames, fps=8, height=size, width=size, sha256=digest_file(folder / file),
                )
            )  # fmt: skip
    write_record(folder / SAMPLES, SampleSet(
        checkpoint="c" * 64, ema=True, sampler={}, codec={}, text_encoder={}, crf=12, seed_rule="", base_seed=0,
        prompt_set=prompt_set_digest([p.prompt for p in prompts]), prompts=len(prompts), samples_per_prompt=samples,
        videos=tuple(videos), counts={p.number: samples for p in prompts},
    ))  # fmt: skip
    manifest = build_manifest(folder, ArtifactKind.SAMPLES, {})
    write_manifest(folder, manifest)
    return Artifact(str(folder), manifest.artifact_id, ArtifactKind.SAMPLES, folder.parent / "cache")


def vbench_context(
    root: Path, samples: Artifact, locations: dict[str, str], attempt: str = "1", **config: Any
) -> StageContext:
    request = StageRequest(
        stage="vbench", stage_version=1, function="eval.stages.vbench:run", config_model="unused:Unused",
        stage_key="0" * 64, attempt_id=attempt, seed=0, config=VBenchConfig.model_validate(config).canonical(),
        inputs=(InputRef(name="samples", kind=samples.kind, artifact_id=samples.id, uri=samples.storage.uri),),
        outputs=(OutputRef(name="scores", kind=ArtifactKind.SCORES),), store_uri=str(root / "store"),
        work_dir=str(root / f"work-{attempt}"), state_uri=str(root / "state"), items_uri=str(root / "items"),
        resources=Resources(ranks=1, threads=1, workers=1), locations=locations,
    )  # fmt: skip
    Path(request.work_dir).mkdir(parents=True, exist_ok=True)
    return StageContext(request)
