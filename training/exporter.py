"""Prometheus endpoint of a running training stage: off unless `M4V_TRAINING_METRICS_PORT` names a port.

The port belongs to the launcher profile's `environment`: it is in no key and changes no byte.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from m4v.core.errors import ConfigError

PORT_VARIABLE, ADDRESS_VARIABLE = "M4V_TRAINING_METRICS_PORT", "M4V_TRAINING_METRICS_ADDRESS"
PREFIX = "m4v_training"
_HIGHEST_PORT = 65535
_DESCRIPTIONS = {
    "step": "Finished steps",
    "loss": "Mean flow-matching loss of the last step",
    "grad_norm": "Global gradient norm of the last step before clipping",
    "lr": "Learning rate of the last step",
    "tokens_per_second": "Visual tokens a second over all ranks",
    "mfu": "Model FLOPs utilisation of the last step",
}


class Exporter:
    """Serves the newest values of one stage. Raises ConfigError when the client library is missing or the port is
    taken."""

    def __init__(self, stage: str, port: int, address: str) -> None:
        try:
            import prometheus_client as client
        except ModuleNotFoundError:
            raise ConfigError(
                "the metrics endpoint needs a package that is not installed", value="prometheus-client",
                where=PORT_VARIABLE, next_step="pip install prometheus-client, or unset the variable",
            ) from None  # fmt: skip
        self._client: Any = client
        self._stage, self._registry, self._gauges = stage, client.CollectorRegistry(), dict[str, Any]()
        try:
            self._server, self._thread = client.start_http_server(port, address, self._registry)
        except OSError as error:
            raise ConfigError(
                f"the metrics endpoint cannot listen: {error.strerror}", value=f"{address}:{port}",
                where=PORT_VARIABLE, next_step="choose a free port",
            ) from None  # fmt: skip
        self.port = int(self._server.server_port)

    @classmethod
    def from_environment(cls, stage: str) -> Exporter | None:
        """The endpoint that the environment asks for; raises ConfigError for a port that is none."""
        text = os.environ.get(PORT_VARIABLE, "")
        if not text:
            return None
        if not text.isdecimal() or int(text) > _HIGHEST_PORT:
            raise ConfigError("port of the metrics endpoint is none", value=text, where=PORT_VARIABLE)
        return cls(stage, int(text), os.environ.get(ADDRESS_VARIABLE, "127.0.0.1"))

    def set(self, values: Mapping[str, float]) -> None:
        """Show the newest values."""
        for name, value in values.items():
            if name not in self._gauges:
                description = _DESCRIPTIONS.get(name, f"{name} of the last step")
                self._gauges[name] = self._client.Gauge(
                    f"{PREFIX}_{name}", description, ["stage"], registry=self._registry
                )
            self._gauges[name].labels(self._stage).set(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
