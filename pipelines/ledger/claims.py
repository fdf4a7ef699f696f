"""Claims: one live lease per stage key, with a fencing number that committing checks."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger.chain import record_event
from pipelines.ledger.database import Database
from pipelines.ledger.process import host_name, is_alive, is_dead, process_token
from pipelines.ledger.records import Claim, ClaimHeld, ClaimLost

ABANDONED_S = 120.0


class ClaimOps:
    """The claim verbs of a Ledger."""

    _db: Database

    def claim(self, stage_key: str, owner: str, lease_s: float = 60.0) -> Claim:
        """Take the lease on `stage_key`; raises ClaimHeld while another holder lives.

        A holder's lease ends by release, by time, or at once when its process is gone from this host.
        """
        if lease_s <= 0:
            raise InputError("a lease needs a positive time", value=lease_s)
        with self._db.write() as session:
            now = self._db.now(session)
            until = now + timedelta(seconds=lease_s)
            row = session.get(schema.Claim, stage_key, with_for_update=True)
            if row is None:
                row = schema.Claim(stage_key=stage_key, fence=0, released=True, owner="", lease_until=now)
                session.add(row)
            elif is_live(row, now):
                raise ClaimHeld(stage_key, row.owner, row.host, row.lease_until)
            elif not row.released:
                record_event(session, "claim.taken-over", stage_key, {"from": row.owner, "by": owner})
            row.fence += 1
            row.owner, row.host, row.process = owner, host_name(), process_token()
            row.lease_until, row.released = until, False
            return Claim(stage_key=stage_key, fence=row.fence, owner=owner, lease_until=until)

    def renew(self, claim: Claim, lease_s: float = 60.0) -> Claim:
        """Extend the lease; raises ClaimLost when somebody else took it meanwhile."""
        with self._db.write(chain=False) as session:
            row = checked(session, claim, lock=True)
            row.lease_until = self._db.now(session) + timedelta(seconds=lease_s)
            return replace(claim, lease_until=row.lease_until)

    def release(self, claim: Claim) -> None:
        """Give the lease back; a claim that was lost already is left alone."""
        with self._db.write(chain=False) as session:
            row = session.get(schema.Claim, claim.stage_key, with_for_update=True)
            if row is not None and row.fence == claim.fence:
                row.released = True

    def holder(self, stage_key: str) -> Claim | None:
        """The live claim on a key, if any."""
        with self._db.read() as session:
            row = session.get(schema.Claim, stage_key)
            if row is None or not is_live(row, self._db.now(session)):
                return None
            return Claim(stage_key=stage_key, fence=row.fence, owner=row.owner, lease_until=row.lease_until)


def is_live(row: schema.Claim, now: datetime) -> bool:
    return not row.released and row.lease_until > now and not is_dead(row.process)


def is_abandoned(row: schema.Claim, now: datetime) -> bool:
    """Whether nobody will renew the lease: it was released, its holder's process is gone, or it has been over for
    `ABANDONED_S` and the process is not known to be alive (a holder may have slept, or waited for the database)."""
    if row.released or is_dead(row.process):
        return True
    return row.lease_until + timedelta(seconds=ABANDONED_S) <= now and not is_alive(row.process)


def checked(session: Session, claim: Claim, *, lock: bool = False) -> schema.Claim:
    """The claim's row if it is still this claim's; raises ClaimLost otherwise.

    A lease past its time still counts as long as nobody took it: the fence, not the clock, decides.
    """
    row = session.get(schema.Claim, claim.stage_key, with_for_update=lock)
    if row is None:
        raise ClaimLost(claim, "there is no such claim")
    if row.fence != claim.fence:
        raise ClaimLost(claim, f"{row.owner} on {row.host} holds fence {row.fence}")
    if row.released:
        raise ClaimLost(claim, "it was released")
    return row
