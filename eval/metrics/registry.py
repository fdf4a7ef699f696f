"""All metrics by name. Change a metric's `version` whenever its numbers can change."""

from __future__ import annotations

from eval.config import EvaluateConfig
from eval.metrics import colour, motion, pixels, shape
from eval.metrics.alignment import Alignment
from eval.metrics.clip import Metric

_LOCAL = (
    Metric("local.flicker", 1, "Flicker", "", True,
           "1 - mean absolute difference of neighbouring frames / 255; a frozen clip has 1", pixels.flicker),
    Metric("local.motion", 1, "Motion", "sides/s", None,
           "mean optical flow (DIS), picture short sides per second", motion.motion),
    Metric("local.motion_direction", 1, "Direction", "cosine", True,
           "cosine between net motion and the prompt's direction word", motion.motion_direction, 0.0),
    Metric("local.sharpness", 1, "Sharpness", "levels²", None,
           "variance of the Laplacian of the luma; depends on the picture size", pixels.sharpness),
    Metric("local.saturation", 1, "Saturation", "", None, "mean HSV saturation", pixels.saturation),
    Metric("local.colour_follow", 1, "Colour follows prompt", "rank", True,
           "rank of the prompt's colour words among all colour words, for object and background",
           colour.colour_follow, 0.5),
    Metric("local.motion_follow", 1, "Motion follows prompt", "", True,
           "does what moves go where the prompt says, or stay still when it says so", motion.motion_follow, 0.25),
    Metric("local.shape_follow", 1, "Shape follows prompt", "rank", True,
           "rank of the prompt's shape word among all shapes, by overlap with templates", shape.shape_follow, 0.5),
)  # fmt: skip


def metrics_of(config: EvaluateConfig) -> list[Metric]:
    """The metrics that `config` names, in its order."""
    known = {m.name: m for m in _LOCAL}
    known["conse.alignment"] = Metric(
        "conse.alignment", 1, "ConSE alignment", "cosine", True,
        "cosine of frames and prompt by ConSE (EfficientNet-Lite2 + MiniLM); coarse, not a CLIP score",
        Alignment(config.conse, config.conse_frames), 0.0,
    )  # fmt: skip
    return [known[name] for name in config.metrics]
