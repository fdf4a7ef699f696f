"""What the configs of all kinds of source share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dataprep.download.config import DownloadConfig
from m4v.core.config import FrozenModel

Identity = Literal["full", "sampled"]


class Adapter(FrozenModel):
    """Common to all kinds. `licence` holds where a row has none of its own; `terms` is kept for reviewers.

    `max_rejected`: share of rows that may be rejected before the stage fails (collections of under 20 rows
    are exempt). `max_caption_chars`: longer captions are cut at a word.
    """

    licence: str = "unstated"
    terms: str = ""
    max_rejected: float = Field(0.5, ge=0, le=1)
    max_caption_chars: int = Field(4000, ge=16)


class Tables(Adapter):
    """Tables whose rows name media files.

    `identity` says what a file's digest is made of: `full` bytes, or `sampled` (size and 16 spread blocks of
    64 KiB), which keeps a terabyte collection listable. `require_captions`: a row without a caption is
    rejected; otherwise its file is listed without one. `limit` takes the first usable rows. With `download`, files
    that rows name by URL and that are not there are fetched into the collection first.
    """

    identity: Identity = "sampled"
    require_captions: bool = True
    limit: int | None = Field(None, ge=1)
    download: DownloadConfig | None = None
