"""Options of `m4v generate` over what is known of the checkpoint."""

from __future__ import annotations

from typing import Any

from m4v.config import SamplerConfig, VideoConfig
from m4v.core.config import parse
from m4v.core.errors import ConfigError, InputError
from m4v.family import AnyCheckpoint
from m4v.wan.config import WanCheckpointConfig, WanSamplerConfig
from pipelines.generation.checkpoint import FoundCheckpoint

_COMMAND = "m4v generate"


def video_config(found: FoundCheckpoint, options: dict[str, Any], sampler: dict[str, Any]) -> VideoConfig:
    """Size, rate, quality and sampler: `options` and `sampler` where not None, else the checkpoint's defaults.

    Raises ConfigError naming the option that is wrong, or the sizes that nobody gave.
    """
    values = {**found.defaults, **{name: value for name, value in options.items() if value is not None}}
    if missing := [name for name in ("frames", "height", "width") if name not in values]:
        raise ConfigError(
            f"nothing says how large the checkpoint's videos are: {', '.join(missing)} missing",
            next_step=f"give {' '.join(f'--{name} N' for name in missing)} as in its training, "
            "e.g. --frames 121 --height 768 --width 1280",
        )
    base = values.get("sampler") or _defaults(found.config)
    given = {name: value for name, value in sampler.items() if value is not None}
    is_wan = isinstance(found.config, WanCheckpointConfig)
    values["sampler"] = parse(WanSamplerConfig if is_wan else SamplerConfig, {**base, **given}, _COMMAND)
    return parse(VideoConfig, values, _COMMAND)


def _defaults(checkpoint: AnyCheckpoint) -> dict[str, Any]:
    """The published step counts for a schedule of any number of stages; Wan's sampler with the shift of training."""
    if isinstance(checkpoint, WanCheckpointConfig):
        return {"shift": checkpoint.flow.shift, "train_steps": checkpoint.flow.train_steps}
    default, stages = SamplerConfig(), checkpoint.schedule.stages
    return {
        "steps_first": [default.steps_first[0]] * stages,
        "steps_later": [default.steps_later[0]] * stages,
    }


def sampler_options(
    checkpoint: AnyCheckpoint,
    steps: str | None,
    guidance: str | None,
    decay: float | None,
    self_guidance: float | None,
    suffix: str | None,
) -> dict[str, Any]:
    """`steps` and `guidance` are FIRST or FIRST,LATER: of the first latent frame and of those after it. A Wan model,
    which makes all frames at once, has one number of each and none of the other options.

    Raises InputError for text of another form and for an option that the model has no use for.
    """
    if isinstance(checkpoint, WanCheckpointConfig):
        others = {"--guidance-decay": decay, "--self-guidance": self_guidance, "--suffix": suffix}
        return _wan_options(steps, guidance, {name: value for name, value in others.items() if value is not None})
    stages = checkpoint.schedule.stages
    found: dict[str, Any] = {"guidance_decay": decay, "self_guidance": self_guidance, "prompt_suffix": suffix}
    if steps is not None:
        first, later = _pair(steps, int, "--steps", "20,10")
        found |= {"steps_first": [first] * stages, "steps_later": [later] * stages}
    if guidance is not None:
        first, later = _pair(guidance, float, "--guidance", "7,5")
        found |= {"guidance_first": first, "guidance_later": later, "guidance_image": later}
    return found


def _wan_options(steps: str | None, guidance: str | None, others: dict[str, Any]) -> dict[str, Any]:
    if others:
        name, value = next(iter(others.items()))
        raise InputError(f"a Wan model has no {name}", value=value, next_step=f"leave {name} out")
    found: dict[str, Any] = {}
    kinds: dict[str, tuple[str | None, type[int] | type[float]]] = {
        "steps": (steps, int),
        "guidance": (guidance, float),
    }
    for option, (text, kind) in kinds.items():
        if text is not None:
            try:
                found[option] = kind(text)
            except ValueError:
                raise InputError(
                    f"--{option} takes one number for a Wan model", value=text, next_step=f"e.g. --{option} 50"
                ) from None
    return found


def _pair(text: str, kind: type[int] | type[float], option: str, example: str) -> tuple[float, float]:
    parts = text.split(",")
    try:
        first, later = (kind(p) for p in (parts if len(parts) == 2 else [text, text]))
    except ValueError:
        raise InputError(
            f"{option} takes FIRST or FIRST,LATER numbers", value=text, next_step=f"e.g. {option} {example}"
        ) from None
    return first, later
