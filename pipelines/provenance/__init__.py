"""Where a run came from besides its inputs: the code's commit and uncommitted changes, and the request as it was
launched. Recorded with a run and never in its key."""

from pipelines.provenance.blobs import BlobRef, BlobStore
from pipelines.provenance.code import CodeState, DiffRef, code_state, start_environment
from pipelines.provenance.request import RecordedRequest, read_record, recorded_request, write_record

__all__ = [
    "BlobRef", "BlobStore", "CodeState", "DiffRef", "RecordedRequest", "code_state", "read_record", "recorded_request",
    "start_environment", "write_record",
]  # fmt: skip
