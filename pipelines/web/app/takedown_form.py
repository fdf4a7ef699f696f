"""The form that takes clips down: its fields, what it was shown for, and carrying it out."""

from __future__ import annotations

from m4v.core.canonical import digest_json
from m4v.core.config import parse
from m4v.core.errors import InputError
from pipelines.access import Actor
from pipelines.impact import Impact
from pipelines.ledger import TakedownRow
from pipelines.membership import ClipSelector, parse_selector
from pipelines.recipe import Profile
from pipelines.session import launcher_of
from pipelines.takedown.apply import TakedownRun
from pipelines.takedown.policy import Delete, Policy
from pipelines.web.app.actions import Action
from pipelines.web.app.site import Site
from pipelines.web.app.tasks import Outcome, Tell

NAME = "takedown"


def terms_of(text: str) -> list[str]:
    """One term a line."""
    return [term.strip() for term in text.splitlines() if term.strip()]


def shown_digest(reach: Impact) -> str:
    """Of the clips and of all that they touched: who confirms has seen just this."""
    return digest_json([sorted(c.clip_id for c in reach.clips), sorted(reach.artifact_ids)])


def selector_of(action: Action) -> ClipSelector:
    terms = terms_of(action.text("q"))
    if not terms:
        raise InputError("no clips are named", next_step="name clips, sources, URLs or hashes, one a line")
    return parse_selector(terms)


def policy_of(action: Action) -> Policy:
    """Raises ConfigError for a choice that is none."""
    fields: dict[str, object] = {"delete": action.text("delete") or Delete.KEEP.value}
    if action.text("grace_days"):
        fields["grace_days"] = action.text("grace_days")
    fields["withdraw_checkpoints"] = action.text("withdraw_checkpoints") == "yes"
    return parse(Policy, fields, "the form")


def carry_out(site: Site, actor: Actor, selector: ClipSelector, reason: str, policy: Policy, tell: Tell) -> Outcome:
    """As `m4v takedown apply` does; raises what that raises."""
    run = TakedownRun(site.ledger, site.workspace, launcher_of(Profile()), actor, tell=tell)
    done = run.apply(selector, reason, policy)
    case = done.case.takedown_id
    text = f"Takedown {case} is done" if done.did_something else f"Takedown {case} was done before; nothing turned up"
    return Outcome(f"{text}; its receipt is issued.", f"/takedowns/{case}")


def take_up(site: Site, actor: Actor, case: TakedownRow, tell: Tell) -> Outcome:
    """Go on with a case where it stands: its reason and policy stay those that it was opened with."""
    selector = parse(ClipSelector, case.selector, f"takedown {case.takedown_id}")
    return carry_out(site, actor, selector, case.reason, Policy(delete=Delete.KEEP), tell)
