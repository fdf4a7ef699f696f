"""Stage `study`: sample sets of several systems -> a study with blind videos and everything its pages need."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from eval.records import SAMPLES, SampleSet, SampleVideo, read_record, write_record
from eval.study.config import StudyConfig
from eval.study.records import STUDY, Study, StudyPrompt, StudySystem
from m4v.core.artifacts import Artifact
from m4v.core.canonical import digest_json
from m4v.core.errors import ConfigError
from m4v.core.rng import generator
from m4v.core.stage import StageContext

_SHOWN = 3  # missing prompts that an error names
_NAME_CHARS = 20
_LOG = logging.getLogger(__name__)


def run(context: StageContext) -> None:
    config = context.config(StudyConfig)
    artifacts = {name: context.input(f"samples.{name}") for name in config.systems}
    sets = {name: read_record(SampleSet, artifact, SAMPLES) for name, artifact in artifacts.items()}
    videos = {name: _by_prompt(found, config.sample) for name, found in sets.items()}
    common, left_out = _common(videos)
    texts = _chosen(config, common)
    prompts = tuple(_prompt(context, config, text, videos, artifacts) for text in texts)
    systems = tuple(
        StudySystem(name=n, samples=artifacts[n].id, checkpoint=sets[n].checkpoint) for n in config.systems
    )  # fmt: skip
    study = Study(
        title=config.title, mode=config.mode, criteria=config.criteria, systems=systems, prompts=prompts,
        tasks=config.tasks, ties=config.ties, seed=config.seed, consent=config.consent,
    )  # fmt: skip
    write_record(context.output("study") / STUDY, study)
    context.summary(
        "study",
        {"study": config.title, "mode": config.mode, "systems": list(config.systems), "prompts": len(prompts),
         **({"left_out_prompts": left_out} if left_out else {})},
    )  # fmt: skip


def _by_prompt(samples: SampleSet, sample: int) -> dict[str, SampleVideo]:
    """By the words that it is scored as: systems may have been given longer ones, each its own."""
    return {v.scored_prompt: v for v in samples.videos if v.sample_index == sample}


def _common(videos: Mapping[str, Mapping[str, SampleVideo]]) -> tuple[list[str], int]:
    """Prompts that every system has, in order, and how many others there are; those are logged by system. Raises
    ConfigError when no prompt is left."""
    everything = list(dict.fromkeys(text for found in videos.values() for text in found))
    common = [text for text in everything if all(text in found for found in videos.values())]
    lacks = {name: [text for text in everything if text not in found] for name, found in videos.items()}
    if not common:
        name = max(lacks, key=lambda name: len(lacks[name]))
        raise ConfigError(
            f"no prompt has a video of every system; {name} lacks {len(lacks[name])} of {len(everything)}",
            value=lacks[name][:_SHOWN], where=f"samples of {name}",
            next_step="sample every system with the same prompts",
        )  # fmt: skip
    for name, missing in lacks.items():
        if missing:
            _LOG.warning("left out, %s lacks %d of %d prompts: %s", name, len(missing), len(everything), missing)
    return common, len(everything) - len(common)


def _chosen(config: StudyConfig, texts: Sequence[str]) -> list[str]:
    """At most `config.prompts`, drawn by the seed, in the order in which they stood."""
    if len(texts) <= config.prompts:
        return list(texts)
    drawn = generator(config.seed, "study", "prompts").choice(len(texts), config.prompts, replace=False)
    return [texts[n] for n in sorted(drawn)]


def _prompt(
    context: StageContext,
    config: StudyConfig,
    text: str,
    videos: Mapping[str, Mapping[str, SampleVideo]],
    artifacts: Mapping[str, Artifact],
) -> StudyPrompt:
    """Its videos under names that tell nothing of their system."""
    files = {}
    for name in config.systems:
        blind = digest_json([config.seed, "study", name, artifacts[name].id, text])[:_NAME_CHARS]
        files[name] = f"media/{blind}.mp4"
        context.share("study", files[name], artifacts[name], videos[name][text].file)
    return StudyPrompt(text=text, videos=files)
