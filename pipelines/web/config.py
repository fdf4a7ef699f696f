"""Config of the report stage."""

from __future__ import annotations

from pydantic import Field

from m4v.core.config import FrozenModel


class ReportConfig(FrozenModel):
    """What the page embeds. Media are inlined, so the limits bound the file; what is left out is counted
    on the page.

    - generated: prompts shown with their clips (trained beside untrained); reconstructions: clips shown.
    - rejected: dropped clips shown per rule; quarantined: rows of the quarantine table.
    - media_mib: all embedded videos and pictures together.
    """

    title: str = "M4V run report"
    generated: int = Field(default=12, ge=0)
    reconstructions: int = Field(default=6, ge=0)
    rejected: int = Field(default=4, ge=0)
    kept: int = Field(default=8, ge=0)
    quarantined: int = Field(default=50, ge=0)
    media_mib: float = Field(default=24, gt=0)
