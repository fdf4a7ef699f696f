"""What a suite of a plan costs before its first video: videos to sample and to judge, hours of both. Torch-free.

JSON of `m4v plan --json`, key `suite_costs`: {node id: SuiteCost}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.config import EvaluateConfig, GenerateConfig
from eval.prompts import jobs, numbers
from eval.vbench import v2_prompts
from eval.vbench.config import VBenchConfig
from eval.vbench.inputs import expected_of
from eval.vbench.prompt_suite import SAMPLES, STATIC_DIMENSION, STATIC_SAMPLES, prompts_of
from pipelines.generation_cost import GenerationCost
from pipelines.plan import Plan, PlanStatus
from pipelines.spec import StageNode

PAPER = (
    "no evaluation of this kind stands in the ledger, so nothing is known of the time to judge; the paper (C.1) has "
    "more than 160 A100-hours for a model's full VBench and 4 for its fast set, and does not say whether sampling is "
    "among them"
)

LONG = (
    "no evaluation of this kind stands in the ledger, and nobody has published what VBench-Long costs; each dimension "
    "cuts every video into clips of 2 or 10 s anew, and reads all of them"
)

VBENCH2 = (
    "no evaluation of this kind stands in the ledger, and upstream says nothing of the time; twelve of VBench-2.0's "
    "dimensions ask a judge of 7 B parameters about every video, on a GPU, four of them a second one"
)


@dataclass(frozen=True)
class SuiteCost:
    """Of one stage that measures samples.

    - sampled_by: the stage that samples them; None where they are there. generation: its cost, None on a cache hit or
      of an unknown model.
    - videos: how many are judged; readings: by dimension, since each reads them anew. expected: videos that the
      protocol wants of those dimensions, where it says a number; fewer are refused, or marked as partial.
    - judge_seconds, judge_gpu_hours: by the ledger's history of this stage; None without any.
    """

    suite: str
    sampled_by: str | None
    generation: GenerationCost | None
    videos: int | None
    readings: dict[str, int]
    expected: dict[str, int]
    judge_seconds: float | None
    judge_gpu_hours: float | None
    assumptions: tuple[str, ...]

    @property
    def total_readings(self) -> int:
        return sum(self.readings.values())

    @property
    def short(self) -> tuple[str, ...]:
        """Dimensions for which too few videos are sampled."""
        return tuple(name for name, wanted in self.expected.items() if self.readings[name] < wanted)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total_readings": self.total_readings, "short": list(self.short)}


def suite_costs(
    nodes: Sequence[StageNode], plan: Plan, generation: Mapping[str, GenerationCost]
) -> dict[str, SuiteCost]:
    """Of the stages that measure samples and are expected to run."""
    by_id = {node.id: node for node in nodes}
    found = {}
    for step in plan.steps:
        node = by_id[step.node_id]
        if step.status is PlanStatus.HIT or not isinstance(node.config, VBenchConfig | EvaluateConfig):
            continue
        source = node.inputs.get("samples")
        sampling = by_id[source[0]] if source is not None else None
        config = sampling.config if sampling is not None else None
        readings = _readings(node.config, config) if isinstance(config, GenerateConfig) else {}
        suite = node.config.suite if isinstance(node.config, VBenchConfig) else "local"
        found[node.id] = SuiteCost(
            suite=suite,
            sampled_by=None if sampling is None else sampling.id,
            generation=None if sampling is None else generation.get(sampling.id),
            videos=len(jobs(config.prompts, config.samples_per_prompt)) if isinstance(config, GenerateConfig) else None,
            readings=readings,
            expected=_expected(node.config, readings),
            judge_seconds=step.estimate_s,
            judge_gpu_hours=step.gpu_hours,
            assumptions=_assumptions(suite) if step.estimate_s is None else (),
        )
    return found


def _assumptions(suite: str) -> tuple[str, ...]:
    return {"vbench": (PAPER,), "vbench-long": (LONG,), "vbench2": (VBENCH2,)}.get(suite, ())


def _expected(config: VBenchConfig | EvaluateConfig, readings: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(config, VBenchConfig) or config.mode != "standard":
        return {}
    if config.suite == "vbench2":
        return {name: v2_prompts.expected_of(name) for name in readings}
    return {name: expected_of(name, static_filter=_wants_25(config)) for name in readings}


def _wants_25(config: VBenchConfig) -> bool:
    """VBench's filter chooses among 25 videos, VBench-Long's among the clips of five."""
    return config.static_filter and config.suite == "vbench"


def _readings(config: VBenchConfig | EvaluateConfig, sampling: GenerateConfig) -> dict[str, int]:
    """Videos that each dimension, or metric, reads."""
    of_prompt = Counter(number for number, _ in jobs(sampling.prompts, sampling.samples_per_prompt))
    total = sum(of_prompt.values())
    if isinstance(config, EvaluateConfig):
        return dict.fromkeys(config.metrics, total)
    if config.mode == "custom":
        return dict.fromkeys(config.wanted, total)
    texts = zip(numbers(sampling.prompts), sampling.prompts, strict=True)
    counts: Counter[str] = Counter()  # two prompts may be wordings of one of the suite's
    for number, prompt in texts:
        counts[prompt.scored_as or prompt.text] += of_prompt[number]
    return {name: _read(name, counts, config.suite) for name in config.wanted}


def _read(dimension: str, counts: Mapping[str, int], suite: str) -> int:
    """Of the suite's own prompts: of VBench's the first 5 videos each, or the 25 that its temporal flickering chooses
    from."""
    if suite == "vbench2":
        return sum(
            min(v2_prompts.samples_of(dimension), counts.get(p.prompt, 0)) for p in v2_prompts.prompts_of(dimension)
        )
    most = STATIC_SAMPLES if dimension == STATIC_DIMENSION and suite == "vbench" else SAMPLES
    return sum(min(most, counts.get(each.prompt, 0)) for each in prompts_of(dimension))
