"""Config models of the dataprep stages, torch-free; each is defined beside what it configures."""

from __future__ import annotations

from dataprep.curate_config import CurateConfig
from dataprep.encode_config import EncodeConfig
from dataprep.sources.config import AdapterConfig, SourceConfig

__all__ = ["AdapterConfig", "CurateConfig", "EncodeConfig", "SourceConfig"]
