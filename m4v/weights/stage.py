"""Stage `weights`: a folder of published files becomes a `weights` artifact."""

from __future__ import annotations

from m4v.core.stage import StageContext
from m4v.weights.catalogue import entry
from m4v.weights.config import WeightsConfig
from m4v.weights.convert import convert
from m4v.weights.source import source_folder

OUTPUT = "weights"


def run(context: StageContext) -> None:
    """Check and convert `context.location(config.name)` into the output `weights`.

    Raises InputError when a file is missing, DataIntegrityError when one is damaged, is not what the catalogue
    says, holds code, or does not fit the model it is for; Drained on request (the next run
    starts the import again).
    """

    def progress(done: int, total: int, note: str) -> None:
        context.check_drain()
        context.progress.update(done, total, "bytes", note)

    config = context.config(WeightsConfig)
    folder = source_folder(config, context.request.locations)
    record = convert(
        entry(config.entry),
        folder,
        context.output(OUTPUT),
        published=config.published,
        progress=progress,
    )
    facts = {
        "name": config.name, "entry": record.entry, "licence": record.licence, "format": record.format,
        "tensors": record.tensors, "parameters": record.parameters,
    }  # fmt: skip
    context.summary(OUTPUT, facts)
    context.metrics({"parameters": record.parameters, "source_bytes": sum(f.size_bytes for f in record.source)})
