"""Who acts, and what they may do: names and roles from an auth proxy's headers (page) or the OS user (commands).

Authentication is the proxy's and the operating system's job; here a name becomes a role by the workspace's settings.
"""

from __future__ import annotations

import getpass
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import field_validator

from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError, NeedsHuman

ACTOR_VARIABLE = "M4V_ACTOR"
ANONYMOUS = "anonymous"
MAX_NAME = 200  # characters of a name that a header or variable may give


class Role(StrEnum):
    """Each role may do all that the ones before it may."""

    VIEWER = "viewer"  # reads
    OPERATOR = "operator"  # starts and stops runs, promotes what passed its gate, pins
    APPROVER = "approver"  # approves, promotes against a gate with a reason, takes clips down
    ADMIN = "admin"  # deletes bytes

    @property
    def rank(self) -> int:
        return list(Role).index(self)

    def includes(self, other: Role) -> bool:
        """May this role do what `other` may?"""
        return self.rank >= other.rank


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did something, as the ledger records it."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        return self.role.includes(role)


class AccessDenied(NeedsHuman):
    """The actor's role does not suffice: somebody else has to do this."""


class AccessConfig(FrozenModel):
    """Section `access` of the workspace's settings.

    Without `roles` and `groups` everybody at the command line is `admin`: a workspace of one's own. With them an
    unlisted name has the role `default`. The page knows names only from `user_header`, and believes it only from
    `trusted_proxies` (addresses or networks); without it every visitor is a viewer.
    """

    roles: dict[str, Role] = {}
    groups: dict[str, Role] = {}
    default: Role = Role.VIEWER
    user_header: str | None = None
    groups_header: str | None = None
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network, strict=False)  # raises ValueError with the wrong text in it
        return value

    @property
    def is_open(self) -> bool:
        return not self.roles and not self.groups

    def role_of(self, name: str, groups: tuple[str, ...] = ()) -> Role:
        """The highest role that the name or one of its groups has."""
        found = [self.roles[name]] if name in self.roles else []
        found += [self.groups[g] for g in groups if g in self.groups]
        return max(found, key=lambda role: role.rank, default=self.default)

    def trusts(self, peer: str | None) -> bool:
        """Is the address at the other end of the connection a proxy that may name users?"""
        try:
            address = ipaddress.ip_address(peer or "")
        except ValueError:
            return False
        return any(address in ipaddress.ip_network(network, strict=False) for network in self.trusted_proxies)


def require(actor: Actor, role: Role, what: str) -> None:
    """Raise AccessDenied unless `actor` may do what takes `role`; `what` reads like "promote to production"."""
    if not actor.may(role):
        raise AccessDenied(
            f"{actor.name} is {_article(actor.role)} {actor.role}; to {what} takes the role {role}",
            next_step=f"ask {_article(role)} {role}, or have access.roles changed in the workspace's settings",
        )


def command_actor(access: AccessConfig) -> Actor:
    """Who runs this command: `M4V_ACTOR`, else the OS user. Raises ConfigError for a name that cannot be one."""
    name = user_name()
    return Actor(name, Role.ADMIN if access.is_open else access.role_of(name))


def user_name() -> str:
    """For whom this process acts: `M4V_ACTOR`, else the OS user. Raises ConfigError for a name that cannot be one."""
    named = os.environ.get(ACTOR_VARIABLE)
    return _name(named, ACTOR_VARIABLE) if named else _os_user()


def request_actor(access: AccessConfig, headers: Mapping[str, str], peer: str | None) -> Actor:
    """Who sent a request: the proxy's headers if `peer` (the connection's other end) is a trusted proxy.

    `headers` looks names up in any letter case, as web frameworks' do. A name that is no name is nobody's.
    """
    if access.user_header is None or not access.trusts(peer):
        return Actor(ANONYMOUS, Role.VIEWER)
    name = headers.get(access.user_header, "").strip()
    if not _is_name(name):
        return Actor(ANONYMOUS, Role.VIEWER)
    listed = headers.get(access.groups_header, "") if access.groups_header else ""
    groups = tuple(g.strip() for g in listed.split(",") if g.strip())
    return Actor(name, access.role_of(name, groups))


def run_actor(pipeline_run_id: str) -> Actor:
    """A pipeline run that acts by its recipe."""
    return Actor(f"run {pipeline_run_id}", Role.OPERATOR)


def _os_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"uid {os.getuid()}"


def _name(text: str, where: str) -> str:
    if not _is_name(text.strip()):
        raise ConfigError("this is no name", value=text, where=where, next_step="use printable characters")
    return text.strip()


def _is_name(text: str) -> bool:
    return bool(text) and len(text) <= MAX_NAME and text.isprintable()


def _article(role: Role) -> str:
    return "a" if role is Role.VIEWER else "an"
