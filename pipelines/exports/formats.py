"""The formats of `m4v lineage export`, each a text with deterministic bytes for one state of the ledger."""

from __future__ import annotations

import json
from enum import StrEnum

from pipelines.exports.config import NAMESPACE
from pipelines.ledger import Ledger


class Format(StrEnum):
    """What an export is written as."""

    OPENLINEAGE = "openlineage"
    SLSA = "slsa"
    CROISSANT = "croissant"
    MODELCARD = "modelcard"


def export(ledger: Ledger, identity: str, format_: Format, *, namespace: str = NAMESPACE) -> str:
    """The export of one row by id or prefix, ending with a newline.

    Raises InputError when the id is unknown or its kind has no such export, DataIntegrityError when the
    artifact's files are needed and gone.
    """
    match format_:
        case Format.OPENLINEAGE:
            from pipelines.exports.openlineage import OpenLineageMapper
            from pipelines.exports.openlineage_facts import events_of

            mapper = OpenLineageMapper(ledger, namespace)
            events = [mapped for event in events_of(ledger, identity) for mapped in mapper.map(event)]
            return "".join(f"{json.dumps(e, sort_keys=True, ensure_ascii=False)}\n" for e in events)
        case Format.SLSA:
            from pipelines.exports.slsa import statement

            return _pretty(statement(ledger, identity))
        case Format.CROISSANT:
            from pipelines.exports.croissant import card

            return _pretty(card(ledger, identity))
        case Format.MODELCARD:
            from pipelines.exports.modelcard import model_card

            return model_card(ledger, identity)


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
