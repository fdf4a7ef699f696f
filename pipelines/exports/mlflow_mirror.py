"""Mirror to MLflow: a run for each pipeline run and, nested in it, for each attempt of a stage."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar

from m4v.core.errors import ConfigError, InfrastructureError
from pipelines.exports.config import MlflowSink
from pipelines.exports.mirror import PREFIX, Point, RunUpdate, updates
from pipelines.ledger import EventRow, Ledger, Status

EXTRA = "pip install 'm4v-pipeline[mlflow]'"
TIMEOUT_S = 15  # of a request; MLflow's own two minutes would outlast a delivery's lease
IDENTITY = f"{PREFIX}.id"
_METRICS, _PARAMS = 1000, 100  # of a batch; the server takes no more
_ENDS = {Status.SUCCEEDED: "FINISHED", Status.DRAINED: "KILLED"}
_RETRY_STATUS = (408, 429)
_UNSAFE = re.compile(r"[^\w./ -]")
ResultT = TypeVar("ResultT")


class MlflowMirror:
    """Runs are found again by the tag `m4v.id`, so a repeated event changes nothing."""

    def __init__(self, config: MlflowSink, ledger: Ledger) -> None:
        self._config, self._ledger = config, ledger
        self._runs: dict[str, str] = {}
        self._mlflow = _library()
        self._client = self._mlflow.MlflowClient(tracking_uri=config.tracking_uri)
        self._experiment: str | None = None

    def send(self, event: EventRow) -> None:
        for update in updates(self._ledger, event):
            self._call(lambda u=update: self._apply(u))  # type: ignore[misc]

    def flush(self) -> None:
        """Nothing to do: every call returned when the server had it."""

    def close(self) -> None:
        self._runs.clear()

    def _apply(self, update: RunUpdate) -> None:
        run_id = self._run(update)
        at = _milliseconds(update.at)
        entities = self._mlflow.entities
        params = [entities.Param(_safe(k), v) for k, v in update.params.items()]
        tags = [entities.RunTag(_safe(k), v) for k, v in update.tags.items()]
        tags += [entities.RunTag(_safe(f"{PREFIX}.uri.{i.role}.{i.port}"), i.uri) for i in update.links]
        for params_part in _parts(params, _PARAMS):
            self._client.log_batch(run_id, params=params_part)
        for tags_part in _parts(tags, _PARAMS):
            self._client.log_batch(run_id, tags=tags_part)
        for points in _parts(update.points, _METRICS):
            self._client.log_batch(run_id, metrics=[self._metric(p, at) for p in points])
        if update.status is not None:
            self._client.set_terminated(run_id, _ENDS.get(update.status, "FAILED"), end_time=at)

    def _metric(self, point: Point, at: int) -> Any:
        return self._mlflow.entities.Metric(_safe(point.name), point.value, at, point.step)

    def _run(self, update: RunUpdate) -> str:
        """The run of this identity, made if there is none; the parent's place is kept when that comes later."""
        known = self._runs.get(update.identity) or self._find(update.identity)
        if known is None:
            tags: dict[str, str] = {IDENTITY: update.identity, f"{PREFIX}.kind": update.kind}
            if update.parent is not None and (parent := self._runs.get(update.parent) or self._find(update.parent)):
                tags["mlflow.parentRunId"] = parent
            made = self._client.create_run(
                self._experiment_id(), start_time=_milliseconds(update.at), tags=tags, run_name=update.name
            )
            known = str(made.info.run_id)
        self._runs[update.identity] = known
        return known

    def _find(self, identity: str) -> str | None:
        found = self._client.search_runs([self._experiment_id()], f"tags.`{IDENTITY}` = '{identity}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _experiment_id(self) -> str:
        if self._experiment is None:
            name = self._config.experiment
            known = self._client.get_experiment_by_name(name)
            if known is not None and known.lifecycle_stage == "deleted":
                raise ConfigError(
                    "the MLflow experiment was deleted", value=name, where=self._place,
                    next_step="restore it, or name another in the sink's settings",
                )  # fmt: skip
            self._experiment = str(known.experiment_id if known else self._client.create_experiment(name))
        return self._experiment

    @property
    def _place(self) -> str:
        return f"sink {self._config.name}"

    def _call(self, call: Callable[[], ResultT]) -> ResultT:
        """Faults of the server as ours: refused for good, or to be tried again."""
        from mlflow.exceptions import MlflowException

        try:
            return call()
        except MlflowException as error:
            status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
            what = " ".join(str(error).split())[:300]
            if 400 <= status < 500 and status not in _RETRY_STATUS:
                raise ConfigError(
                    f"MLflow refuses: {what}", value=self._config.tracking_uri, where=self._place,
                    next_step="correct the sink's settings or the MLFLOW_TRACKING_… variables",
                ) from error  # fmt: skip
            raise InfrastructureError(
                f"MLflow cannot be reached: {what}", value=self._config.tracking_uri, where=self._place,
                next_step="m4v ledger deliver, when it is back",
            ) from error  # fmt: skip


def _library() -> Any:
    """MLflow, told neither to report its use nor to hide an outage behind minutes of its own retries."""
    for variable, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT_S),
    }.items():
        os.environ.setdefault(variable, value)
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise ConfigError("the MLflow client is not installed", value=error.name, next_step=EXTRA) from None
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return mlflow


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def _safe(name: str) -> str:
    """A name of characters that MLflow allows."""
    return _UNSAFE.sub("_", name)[:250]


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
