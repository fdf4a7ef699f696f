"""Rules of a recipe's gate on scores of its `evaluation.vbench`, checked before a video is sampled. Torch-free."""

from __future__ import annotations

from eval.config import GateConfig, GateRule, Maximum, Minimum, NonRegression, named_metrics
from eval.vbench import i2v_prompts
from eval.vbench.aggregate import AVG4, AVG7
from eval.vbench.config import TITLES, VBenchConfig
from eval.vbench.constants import DIMENSIONS, constants
from eval.vbench.v2_prompts import V2_DIMENSIONS, rules

PREFIXES = tuple(f"{suite}." for suite in TITLES)


def gates_on_vbench(gate: GateConfig) -> bool:
    return any(_named(rule) for rule in gate.rules)


def check_vbench_rules(gate: GateConfig, entry: VBenchConfig | None) -> None:
    """Raise ValueError for a rule that such scores cannot answer, with what to write in its place."""
    for rule in gate.rules:
        for metric in _named(rule):
            _check(rule, metric, entry)


def _named(rule: GateRule) -> list[str]:
    return [metric for metric in named_metrics(rule) if metric.startswith(PREFIXES)]


def _check(rule: GateRule, metric: str, entry: VBenchConfig | None) -> None:
    where = f"gate.rules: {rule.rule} of {metric}"
    if metric.startswith(f"{i2v_prompts.SET}."):
        raise ValueError(
            f"{where}: a recipe cannot measure it, whose videos begin with pictures; gate imported scores by a "
            "channel's settings"
        )
    if entry is None:
        raise ValueError(f"{where}: the recipe has no evaluation.vbench; add it, or leave the rule out")
    suite, _, name = metric.partition(".")
    if suite != entry.suite:
        raise ValueError(f"{where}: evaluation.vbench measures suite {entry.suite}, whose scores are {entry.suite}.…")
    if entry.partial:
        raise ValueError(
            f"{where}: evaluation.vbench is partial, and a score over what videos there are opens no gate; leave "
            "partial out, or the rule"
        )
    if not isinstance(rule, Minimum | Maximum):
        also = ", with must_not_fall and margins" if isinstance(rule, NonRegression) else ""
        raise ValueError(
            f"{where}: the untrained model is not measured by VBench; use minimum or maximum here, and compare with "
            f"what a channel names by its non_regression in the settings{also}"
        )
    figures = _figures(entry)
    if name not in (*entry.known, *figures):
        raise ValueError(f"{where}: mode {entry.mode} gives {', '.join([*figures, 'the dimensions'])}, and no {name!r}")
    if missing := [dimension for dimension in figures.get(name, (name,)) if dimension not in entry.wanted]:
        raise ValueError(f"{where}: evaluation.vbench.dimensions lacks {missing[0]!r}, which it needs")


def _figures(entry: VBenchConfig) -> dict[str, tuple[str, ...]]:
    """Figures that the scores have, and the dimensions that each needs."""
    if entry.suite == "vbench2":
        return {"total": V2_DIMENSIONS, **rules().groups}
    if (entry.suite, entry.mode) == ("vbench-long", "custom"):
        return {}
    if entry.mode == "custom":
        return {"avg4": AVG4, "avg7": AVG7}
    return {"total": DIMENSIONS, "quality": constants().names("quality"), "semantic": constants().names("semantic")}
