"""OpenLineage over a file or HTTP, through the transports of `openlineage-python`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from m4v.core.errors import ConfigError, InfrastructureError
from m4v.core.storage import storage_faults
from pipelines.exports.config import OpenLineageFile, OpenLineageHttp
from pipelines.exports.openlineage import OpenLineageEvent, OpenLineageMapper
from pipelines.ledger import EventRow

EXTRA = "pip install 'm4v-pipeline[openlineage]'"
_RETRY_STATUS = (408, 425, 429)
_SHOWN_BODY = 200


class OpenLineageFileSink:
    """Appends to a JSON Lines file. Half a line that a kill left is cut off: its event comes again."""

    def __init__(self, config: OpenLineageFile, home: Path, mapper: OpenLineageMapper) -> None:
        self._path, self._mapper = home / config.path, mapper
        transport = _client("openlineage.client.transport.file")
        with storage_faults(str(self._path)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_half_line(self._path)
        self._transport = transport.FileTransport(transport.FileConfig(log_file_path=str(self._path), append=True))

    def send(self, event: EventRow) -> None:
        for mapped in self._mapper.map(event):
            try:
                self._transport.emit(mapped)
            except (RuntimeError, OSError) as error:  # the client wraps what open() raises
                raise InfrastructureError(
                    f"events cannot be written: {error}", value=str(self._path), next_step="m4v ledger deliver"
                ) from error

    def flush(self) -> None:
        if not self._path.exists():
            return  # nothing that was delivered so far is an OpenLineage event
        with storage_faults(str(self._path)), self._path.open("rb") as stream:
            os.fsync(stream.fileno())

    def close(self) -> None:
        self._transport.close()


class OpenLineageHttpSink:
    """Posts each event; answers that are not 2xx leave it in the outbox."""

    def __init__(self, config: OpenLineageHttp, mapper: OpenLineageMapper) -> None:
        self._config, self._mapper = config, mapper
        http = _client("openlineage.client.transport.http")
        settings: dict[str, Any] = {
            "url": config.url,
            "endpoint": config.endpoint,
            "timeout": config.timeout_s,
            "custom_headers": {h: _secret(v, config.name) for h, v in config.headers_env.items()},
            # The delivery tries again by itself; a client that does so as well only hides the reason.
            "retry": {"total": 0, "read": 0, "connect": 0, "status_forcelist": []},
        }
        if config.token_env is not None:
            settings["auth"] = {"type": "api_key", "api_key": _secret(config.token_env, config.name)}
        self._transport = http.HttpTransport(http.HttpConfig.from_dict(settings))
        self._transport.session.max_redirects = 0  # a redirected POST would arrive as a GET

    def send(self, event: EventRow) -> None:
        for mapped in self._mapper.map(event):
            self._post(mapped)

    def _post(self, mapped: OpenLineageEvent) -> None:
        import requests

        try:
            self._transport.emit(mapped)
        except requests.HTTPError as error:
            raise self._refused(error.response.status_code if error.response is not None else 0) from error
        except requests.TooManyRedirects as error:
            raise ConfigError(
                "the sink redirects, which would lose the event", value=self._config.url, where=self._place,
                next_step="set the sink's url to the final address",
            ) from error  # fmt: skip
        except requests.RequestException as error:
            raise InfrastructureError(
                f"the sink cannot be reached: {_reason(error)}", value=self._config.url, where=self._place,
                next_step="m4v ledger deliver, when it is back",
            ) from error  # fmt: skip

    @property
    def _place(self) -> str:
        return f"sink {self._config.name}"

    def _refused(self, status: int) -> InfrastructureError | ConfigError:
        if status >= 500 or status in _RETRY_STATUS:
            return InfrastructureError(
                f"the sink answers {status}", value=self._config.url, where=self._place, next_step="m4v ledger deliver"
            )
        if status in (401, 403):
            step = "set token_env in the sink's settings, and that variable"
            return ConfigError(
                f"the sink refuses us with {status}", value=self._config.url, where=self._place, next_step=step
            )
        return ConfigError(
            f"the sink refuses the event with {status}", value=self._config.url, where=self._place,
            next_step="correct the sink's url and endpoint, or m4v ledger deliver --skip EVENT",
        )  # fmt: skip

    def flush(self) -> None:
        """Nothing to do: an answer of 2xx says that the event is there."""

    def close(self) -> None:
        self._transport.close()


def _client(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError("the OpenLineage client is not installed", value=error.name, next_step=EXTRA) from None


def _secret(variable: str, sink: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise ConfigError("an environment variable that a sink needs is not set", value=variable, where=f"sink {sink}")
    return value


def _reason(error: BaseException) -> str:
    """The innermost cause in words, without the client's wrappers."""
    while (inner := error.__context__ or error.__cause__) is not None:
        error = inner
    return " ".join(str(error).split()) or type(error).__name__


def _drop_half_line(path: Path) -> None:
    """Cut the file after its last newline."""
    try:
        with path.open("r+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - (1 << 16))
                stream.seek(start)
                found = stream.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            stream.truncate(end)
    except FileNotFoundError:
        return
