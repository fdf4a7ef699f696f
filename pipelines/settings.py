"""Settings of a workspace: who may do what, what a channel demands, what is kept, where events are delivered. No run's
outputs depend on them.

`settings.yaml` in the home directory, or the file that `M4V_SETTINGS` names; without one, the defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from eval.config import NonRegression
from m4v.core.artifacts import ArtifactKind
from m4v.core.config import FrozenModel, parse
from m4v.core.errors import ConfigError
from pipelines.access import AccessConfig, Role
from pipelines.exports.config import SinkConfig, check_sinks
from pipelines.recipe_files import parse_yaml
from pipelines.workspace import Workspace

SETTINGS = "settings.yaml"
SETTINGS_VARIABLE = "M4V_SETTINGS"
DIGEST_PREFIX = r"^[0-9a-f]{12,64}$"


class GatePin(FrozenModel):
    """Which gate's verdicts open a channel, by the digests (or beginnings of them) that `m4v channels gates CHECKPOINT`
    prints; those of any other gate do not count there, however new.

    - rules: of the gate's config, that is of its rules and thresholds.
    - evaluate, generate: of the configs by which its scores and its samples were made.
    - vbench, vbench_generate: likewise of the suite's, where the gate judges those, too.
    - recipe: of the recipe whose run judged.
    """

    rules: str | None = Field(None, pattern=DIGEST_PREFIX)
    evaluate: str | None = Field(None, pattern=DIGEST_PREFIX)
    generate: str | None = Field(None, pattern=DIGEST_PREFIX)
    vbench: str | None = Field(None, pattern=DIGEST_PREFIX)
    vbench_generate: str | None = Field(None, pattern=DIGEST_PREFIX)
    recipe: str | None = Field(None, pattern=DIGEST_PREFIX)

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.named:
            raise ValueError(f"a gate is named by at least one of {', '.join(type(self).model_fields)}")
        return self

    def accepts(self, gate: Mapping[str, str]) -> bool:
        """Whether these digests, by the names above, are those of the named gate."""
        return all(gate.get(name, "").startswith(value) for name, value in self.named.items())

    @property
    def named(self) -> dict[str, str]:
        return {name: value for name, value in self.canonical().items() if isinstance(value, str)}


class ChannelPolicy(FrozenModel):
    """What it takes to move a channel.

    `approvals` counts people other than the promoter and, where a run promotes, other than who started the run;
    `promote` and `override` (past a gate that did not pass) are the least roles. `gate` pins the gate whose verdict
    counts; without it that is whichever judged last. `non_regression`: a checkpoint must also hold up against the one
    that the channel names when it is promoted, by scores of one protocol.
    """

    approvals: int = Field(0, ge=0, le=10)
    promote: Role = Role.OPERATOR
    override: Role = Role.APPROVER
    gate: GatePin | None = None
    non_regression: NonRegression | None = None


class RetentionConfig(FrozenModel):
    """What garbage collection keeps besides pins, work in flight and what takedown cases cite.

    - runs: newest pipeline runs of each recipe, and its newest that ended well.
    - promotions: newest entries of each channel.
    - grace_hours: nothing recorded, made, read or reused since then goes.
    - work_days: from when on scratch and staging of ended attempts go, and what a verification was told to keep.
    - log_days: from when on their folders with the logs go, and provenance files that no run or verdict cites.
    - state_days: from when on the resume state goes that no attempt has touched.
    - item_days: from when on results of expensive steps go that no stage has used (null: never).
    - kinds: kinds of artifact that always stay; imported weights may have no other copy.
    """

    runs: int = Field(3, ge=0)
    promotions: int = Field(2, ge=1)
    grace_hours: float = Field(24.0, ge=0)
    work_days: float = Field(7.0, ge=0)
    log_days: float = Field(90.0, ge=0)
    state_days: float = Field(30.0, ge=0)
    item_days: float | None = Field(90.0, ge=0)
    kinds: tuple[ArtifactKind, ...] = (ArtifactKind.WEIGHTS,)


class Settings(FrozenModel):
    """`channels` maps a channel's name to its policy; the name `*` stands for channels that are not listed."""

    access: AccessConfig = AccessConfig()
    channels: dict[str, ChannelPolicy] = {}
    retention: RetentionConfig = RetentionConfig()
    sinks: tuple[SinkConfig, ...] = ()

    @field_validator("sinks")
    @classmethod
    def _sinks(cls, value: tuple[SinkConfig, ...]) -> tuple[SinkConfig, ...]:
        return check_sinks(value)

    def policy(self, channel: str) -> ChannelPolicy:
        return self.channels.get(channel) or self.channels.get("*") or ChannelPolicy()


def load_settings(workspace: Workspace) -> Settings:
    """Raises ConfigError naming the key for settings that are wrong, or the file when a named one is missing."""
    named = os.environ.get(SETTINGS_VARIABLE)
    path = Path(named).expanduser() if named else workspace.home / SETTINGS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not named:
            return Settings()
        raise ConfigError("settings file does not exist", value=named, where=SETTINGS_VARIABLE) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"settings cannot be read: {reason}", value=str(path)) from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict | None):
        raise ConfigError("settings are a mapping of keys", value=data, where=str(path), next_step="see the README")
    return parse(Settings, data or {}, str(path))
