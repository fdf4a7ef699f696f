"""Identities in other systems, computed from the ledger's: the same row has the same identity on every delivery."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from uuid import UUID

from pipelines.environment import DISTRIBUTION
from pipelines.ledger.ids import id_time_ms


def run_uuid(identity: str) -> str:
    """A version 7 UUID for an id of the ledger, made at the id's own time; other texts count as made at time 0."""
    milliseconds = id_time_ms(identity) or 0
    tail = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:10], "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | tail
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))


def producer() -> str:
    """The package URL of this program, which exports name as their producer."""
    return f"pkg:pypi/{DISTRIBUTION}@{program_version()}"


@cache
def program_version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0"
