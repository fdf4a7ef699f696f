"""Names become roles by the workspace's settings; headers count only from a trusted proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from m4v.core.errors import ConfigError, ExitClass
from pipelines.access import AccessConfig, AccessDenied, Actor, Role, command_actor, request_actor, require
from pipelines.settings import ChannelPolicy, Settings, load_settings
from pipelines.workspace import Workspace

PROXIED = AccessConfig(
    roles={"ada": Role.ADMIN, "bo": Role.VIEWER},
    groups={"ml": Role.OPERATOR, "leads": Role.APPROVER},
    user_header="x-user",
    groups_header="x-groups",
    trusted_proxies=("10.1.0.0/16",),
)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    for name in ("M4V_SETTINGS", "M4V_STORE", "M4V_LEDGER", "M4V_ACTOR"):
        monkeypatch.delenv(name, raising=False)
    return Workspace.open(tmp_path / "home")


def test_each_role_may_what_the_lower_ones_may() -> None:
    for high, role in enumerate(Role):
        for low, other in enumerate(Role):
            assert role.includes(other) == (high >= low)


def test_require_says_who_lacks_which_role() -> None:
    require(Actor("bo", Role.APPROVER), Role.OPERATOR, "promote")
    with pytest.raises(AccessDenied, match="bo is a viewer; to promote to production takes the role operator") as error:
        require(Actor("bo", Role.VIEWER), Role.OPERATOR, "promote to production")
    assert error.value.exit_class == ExitClass.NEEDS_HUMAN


@pytest.mark.parametrize(
    ("headers", "peer", "expected"),
    [
        ({"x-user": "ada"}, "10.1.2.3", Actor("ada", Role.ADMIN)),
        ({"x-user": "ada"}, "10.2.2.3", Actor("anonymous", Role.VIEWER)),  # not the proxy: a header proves nothing
        ({"x-user": "ada"}, None, Actor("anonymous", Role.VIEWER)),
        ({"x-user": "ada"}, "testclient", Actor("anonymous", Role.VIEWER)),
        ({}, "10.1.2.3", Actor("anonymous", Role.VIEWER)),
        ({"x-user": "a\x1b[2J"}, "10.1.2.3", Actor("anonymous", Role.VIEWER)),
        ({"x-user": "cy", "x-groups": "ml, leads"}, "10.1.2.3", Actor("cy", Role.APPROVER)),
        ({"x-user": "bo", "x-groups": "ml"}, "10.1.2.3", Actor("bo", Role.OPERATOR)),
        ({"x-user": "dee", "x-groups": "other"}, "10.1.2.3", Actor("dee", Role.VIEWER)),
    ],
)
def test_request_actor(headers: dict[str, str], peer: str | None, expected: Actor) -> None:
    assert request_actor(PROXIED, headers, peer) == expected


def test_without_a_user_header_every_visitor_is_a_viewer() -> None:
    assert request_actor(AccessConfig(), {"x-user": "ada"}, "127.0.0.1") == Actor("anonymous", Role.VIEWER)


def test_command_actor_is_admin_only_where_no_roles_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_ACTOR", " cy ")
    assert command_actor(AccessConfig()) == Actor("cy", Role.ADMIN)
    assert command_actor(PROXIED) == Actor("cy", Role.VIEWER)
    monkeypatch.setenv("M4V_ACTOR", "a\nb")
    with pytest.raises(ConfigError, match="M4V_ACTOR"):
        command_actor(PROXIED)
    monkeypatch.delenv("M4V_ACTOR")
    monkeypatch.setenv("LOGNAME", "ada")
    assert command_actor(PROXIED) == Actor("ada", Role.ADMIN)


def test_settings_of_a_workspace(workspace: Workspace) -> None:
    assert load_settings(workspace) == Settings()
    (workspace.home / "settings.yaml").write_text(
        "access: {roles: {ada: admin}}\nchannels: {production: {approvals: 2}, '*': {promote: admin}}\n"
    )
    settings = load_settings(workspace)
    assert settings.policy("production") == ChannelPolicy(approvals=2)
    assert settings.policy("other").promote == Role.ADMIN
    assert settings.access.roles == {"ada": Role.ADMIN}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("channels: {production: {aprovals: 2}}", "did you mean approvals"),
        ("access: {trusted_proxies: ['300.1.1.1']}", "300.1.1.1"),
        ("access: {roles: {ada: king}}", "viewer"),
        ("- a", "mapping"),
        ("a: [", "this is not YAML"),
    ],
)
def test_wrong_settings_are_refused_by_name(workspace: Workspace, text: str, says: str) -> None:
    (workspace.home / "settings.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_settings(workspace)


def test_a_named_settings_file_must_exist(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_SETTINGS", str(workspace.home / "none.yaml"))
    with pytest.raises(ConfigError, match="does not exist"):
        load_settings(workspace)
