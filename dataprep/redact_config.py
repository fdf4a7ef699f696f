"""Configuration of the `redact` stage: which clips leave a clip table. Torch-free."""

from __future__ import annotations

from pydantic import Field

from m4v.core.config import FrozenModel


class RedactConfig(FrozenModel):
    """`clips`: ids of the rows that go; `reason`: what the quarantine table says of them."""

    clips: tuple[str, ...] = Field(min_length=1)
    reason: str
