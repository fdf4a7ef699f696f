"""Sinks that ledger events are delivered to: section `sinks` of the workspace's settings.

Secrets never stand in it: a sink names the environment variables that hold them.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from m4v.core.config import FrozenModel

NAMESPACE = "m4v"
MAX_TIMEOUT_S = 20.0  # below the lease of a delivery, so that two deliveries of a sink never overlap
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class BaseSink(FrozenModel):
    """`name` is the sink's identity in the outbox: a new name is fed the whole history again."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)


class OpenLineageSink(BaseSink):
    """`namespace` holds jobs and datasets. `repository` (an https URL) makes links to the code of a commit."""

    namespace: str = Field(NAMESPACE, min_length=1)
    repository: str | None = None

    @field_validator("repository")
    @classmethod
    def _https(cls, value: str | None) -> str | None:
        return None if value is None else _checked_url(value).rstrip("/")


class OpenLineageFile(OpenLineageSink):
    """One event a line, appended to a local file; relative to the home directory."""

    kind: Literal["openlineage-file"]
    path: str = "lineage/openlineage.jsonl"

    @field_validator("path")
    @classmethod
    def _local(cls, value: str) -> str:
        if "://" in value:
            raise ValueError("a file sink appends, which object stores cannot; use a local path")
        return value


class OpenLineageHttp(OpenLineageSink):
    """An OpenLineage API such as Marquez or DataHub. `token_env` names the variable with the API key, `headers_env`
    the variables with further headers."""

    kind: Literal["openlineage-http"]
    url: str
    endpoint: str = "api/v1/lineage"
    token_env: EnvironmentName | None = None
    headers_env: dict[str, EnvironmentName] = {}
    timeout_s: float = Field(5.0, gt=0, le=MAX_TIMEOUT_S)

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        return _checked_url(value)


class MlflowSink(BaseSink):
    """Mirror to an MLflow tracking server. Credentials come from MLflow's own `MLFLOW_TRACKING_*` variables."""

    kind: Literal["mlflow"]
    tracking_uri: str
    experiment: str = "m4v"

    @field_validator("tracking_uri")
    @classmethod
    def _url(cls, value: str) -> str:
        return _checked_url(value) if value.startswith(("http:", "https:")) else value


class WandbSink(BaseSink):
    """Mirror to Weights & Biases; `WANDB_API_KEY` for `online`. `offline` writes run files below `directory`
    (relative to the home directory) for `wandb sync`."""

    kind: Literal["wandb"]
    project: str = "m4v"
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"
    directory: str = "wandb"


SinkConfig = Annotated[OpenLineageFile | OpenLineageHttp | MlflowSink | WandbSink, Field(discriminator="kind")]


def check_sinks(sinks: tuple[SinkConfig, ...]) -> tuple[SinkConfig, ...]:
    """Raises ValueError when two sinks share a name, and with it their place in the outbox."""
    names = [s.name for s in sinks]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"the sink name {twice[0]!r} stands twice")
    return sinks


def _checked_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("this is no http or https URL")
    if parts.username or parts.password:
        raise ValueError("a URL here holds no user or password: name an environment variable instead")
    return value
