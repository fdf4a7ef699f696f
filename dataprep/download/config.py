"""Settings of the downloader: how politely, how patiently and from where files may be fetched."""

from __future__ import annotations

import ipaddress
from typing import Self

from pydantic import Field, model_validator

from m4v.core.config import FrozenModel


class DownloadConfig(FrozenModel):
    """Section `download` of a table adapter: fetch files that the table names by URL and that are not there yet.

    - `concurrency`, `per_host`: connections at a time, altogether and to one host.
    - `rate_per_s`, `host_rate_per_s`: requests begun a second, altogether and at one host. `bytes_per_s`: bandwidth
      altogether. None is no limit.
    - `attempts` a file, waiting `backoff_s` times 1, 2, 4, … with jitter, at most `backoff_max_s`; four times as long
      after a 429 or 503, and with the whole host, as its Retry-After is honoured where it gives one; one past
      `retry_after_max_s` counts as a failure.
    - `item_timeout_s`: wall-clock limit of one attempt. `min_bytes_per_s`: a body slower than this over 30 s is a
      timeout.
    - `max_bytes`: larger files are refused, by their announced size before a byte of them is read.
    - `max_disk_bytes`: what the download may hold on the local disk, earlier runs included: files and parts of them
      in a local collection, only what is on its way to a remote one. None is no limit but the disk: `min_free_bytes`
      of it are left free in any case.
    - `allow`: host names, addresses and networks (`10.1.0.0/16`) that may be fetched from although they are private.
    - `honour_opt_out`: files whose server answers `X-Robots-Tag: noai` (or noimageai) are not taken.
    - `max_unreachable`: share of the wanted files whose servers did not answer, past which the run stops as an
      outage that may be tried again (exit 30) and not as a listing with holes.
    """

    concurrency: int = Field(16, ge=1, le=512)
    per_host: int = Field(4, ge=1)
    rate_per_s: float | None = Field(None, gt=0)
    host_rate_per_s: float | None = Field(10, gt=0)
    bytes_per_s: float | None = Field(None, gt=0)
    attempts: int = Field(5, ge=1)
    backoff_s: float = Field(0.5, gt=0)
    backoff_max_s: float = Field(60, gt=0)
    retry_after_max_s: float = Field(600, gt=0)
    connect_timeout_s: float = Field(10, gt=0)
    read_timeout_s: float = Field(30, gt=0)
    item_timeout_s: float = Field(3600, gt=0)
    min_bytes_per_s: float = Field(1024, ge=0)
    max_bytes: int = Field(4 << 30, ge=1)
    max_disk_bytes: int | None = Field(None, ge=1)
    min_free_bytes: int = Field(1 << 30, ge=0)
    max_redirects: int = Field(5, ge=0)
    user_agent: str = Field("m4v-pipeline/0.1", min_length=1, pattern=r"^[\x20-\x7e]+$")
    allow: tuple[str, ...] = ()
    honour_opt_out: bool = True
    max_unreachable: float = Field(0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for entry in self.allow:
            if "/" in entry:
                try:
                    ipaddress.ip_network(entry)
                except ValueError as error:
                    raise ValueError(f"allow: {error}") from None
            elif not entry or (any(c in entry for c in ":@ ") and not _is_address(entry)):
                raise ValueError(f"allow: {entry!r} is not a host name, an address or a network")
        return self


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
