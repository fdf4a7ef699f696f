"""What becomes of the bytes of withdrawn artifacts."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import Field

from m4v.core.config import FrozenModel
from pipelines.ledger.types import iso, utc_now


class Delete(StrEnum):
    """When bytes are deleted; rows never are."""

    NOW = "now"
    AFTER_GRACE = "after-grace"
    KEEP = "keep"


class Policy(FrozenModel):
    """`grace_days` counts from the opening of the case, with `after-grace`. `withdraw_checkpoints`: checkpoints that
    saw a clip, or descend from one that did, go out of use as well (their bytes stay): nothing starts from them, and no
    channel can be pointed at one."""

    delete: Delete = Delete.AFTER_GRACE
    grace_days: float = Field(30.0, ge=0)
    withdraw_checkpoints: bool = False

    def recorded(self) -> dict[str, Any]:
        """As the case keeps it, with the moment from which bytes may go."""
        grace = timedelta(days=self.grace_days if self.delete is Delete.AFTER_GRACE else 0)
        when = None if self.delete is Delete.KEEP else iso(utc_now() + grace)
        return {**self.canonical(), "delete_from": when}


def may_delete(recorded: dict[str, Any]) -> bool:
    """Whether the policy that a case was opened with lets bytes go now."""
    return recorded["delete_from"] is not None and datetime.fromisoformat(recorded["delete_from"]) <= utc_now()
