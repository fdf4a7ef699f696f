"""From a sink's settings to the sink: what each kind needs is imported only when it is opened."""

from __future__ import annotations

from pathlib import Path

from pipelines.exports.config import MlflowSink, OpenLineageFile, OpenLineageHttp, SinkConfig, WandbSink
from pipelines.exports.delivery import Sink
from pipelines.ledger import Ledger


def open_sink(config: SinkConfig, ledger: Ledger, home: Path) -> Sink:
    """Raises ConfigError when the sink's client is not installed, a secret is missing or a setting cannot be."""
    match config:
        case OpenLineageFile() | OpenLineageHttp():
            from pipelines.exports.openlineage import OpenLineageMapper
            from pipelines.exports.openlineage_sinks import OpenLineageFileSink, OpenLineageHttpSink

            mapper = OpenLineageMapper(ledger, config.namespace, config.repository)
            if isinstance(config, OpenLineageFile):
                return OpenLineageFileSink(config, home, mapper)
            return OpenLineageHttpSink(config, mapper)
        case MlflowSink():
            from pipelines.exports.mlflow_mirror import MlflowMirror

            return MlflowMirror(config, ledger)
        case WandbSink():
            from pipelines.exports.wandb_mirror import WandbMirror

            return WandbMirror(config, ledger, home)
