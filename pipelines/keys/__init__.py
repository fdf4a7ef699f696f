"""Stage keys: what went into a stage execution, its digest, and what differs between two of them."""

from pipelines.keys.changes import Change, changes, flatten, summarise
from pipelines.keys.code import CODE_ROOT, OUR_PACKAGES, reachable_files
from pipelines.keys.record import KeyRecord, SeenCode, key_record, probe_value

__all__ = [
    "CODE_ROOT", "OUR_PACKAGES", "Change", "KeyRecord", "SeenCode", "changes", "flatten", "key_record", "probe_value",
    "reachable_files", "summarise",
]  # fmt: skip
