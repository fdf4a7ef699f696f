"""Runs one stage in a process of its own: `python -m pipelines.stage_process REQUEST.json`.

Under torchrun every rank runs this; rank 0 hashes the outputs and writes `result.json` last. The exit code
is the exit class, kept with its reason in `exit.<rank>.json`. Neither Prefect nor the ledger is needed here.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from m4v.core.artifacts import build_manifest, write_manifest
from m4v.core.canonical import FileEntry
from m4v.core.errors import ConfigError, Drained, ExitClass, M4VError
from m4v.core.items import LAST_USED
from m4v.core.stage import (
    RESULT,
    ExitRecord,
    OutputResult,
    StageContext,
    StageRequest,
    StageResult,
    install_drain_handler,
    write_exit,
    write_json,
)
from m4v.core.startup import keep_pandas_out, uncollected
from m4v.core.storage import Storage
from pipelines.device_faults import DEVICE_FAULTS
from pipelines.environment import check_lock, check_numerics, environment_facts
from pipelines.processes import die_with_parent
from pipelines.spec import load_object

SUPERVISED = "M4V_SUPERVISED"
_TRANSIENT_ERRNO = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT}
)
_NOT_DETERMINISTIC = "does not have a deterministic implementation"  # torch, of an operation
# What a rank sees when another one has died: the other one's reason is the true one.
_PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Timed out waiting")


def main(arguments: list[str]) -> int:
    """Run the request; returns the exit class."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m pipelines.stage_process REQUEST.json\n")
        return ExitClass.USAGE
    if os.environ.get(SUPERVISED):
        die_with_parent()
    path = Path(arguments[0])
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        run_request(read_request(path), rank, world_size)
        record = ExitRecord(rank=rank, exit_class=ExitClass.OK)
    except Drained as drained:
        record = ExitRecord(rank=rank, exit_class=ExitClass.DRAINED, message=drained.message)
    except (Exception, SystemExit) as error:  # every reason must reach exit.json, whatever it is
        sys.stderr.write(traceback.format_exc())
        record = ExitRecord(
            rank=rank, exit_class=classify(error), message=message_of(error), traceback=traceback.format_exc()
        )
    write_exit(path.parent, record)
    return record.exit_class


def read_request(path: Path) -> StageRequest:
    """Raises ConfigError when the file is missing or does not follow the schema."""
    try:
        return StageRequest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"request cannot be read: {error.strerror}", value=str(path)) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"request does not follow the schema: {field}: {first['msg']}", where=str(path)) from None


def run_request(request: StageRequest, rank: int, world_size: int) -> None:
    """Check the environment, run the stage function, and on rank 0 write manifests and `result.json`."""
    if world_size != request.resources.ranks:
        raise ConfigError(f"the request is for {request.resources.ranks} ranks", value=world_size, where="WORLD_SIZE")
    if world_size == 1:
        clean_attempt(Path(request.work_dir))
    if rank == 0 and request.lock_file is not None:
        check_lock(Path(request.lock_file), request.lock_digest)
    numerics: dict[str, object] | None = None
    if request.numerics is not None:
        numerics = check_numerics(request.numerics, request.resources, world_size)
        keep_promise(numerics)
    function = _load_function(request)
    context = _MarkingContext(request, rank, world_size)
    install_drain_handler(context)
    try:
        call_stage(function, context)
    finally:
        context.progress.close()
    if rank == 0:
        write_result(context, numerics)


class _MarkingContext(StageContext):
    """Marks the items of a step as used when a stage opens them: garbage collection goes by that."""

    def items(self, step: str, config_digest: str) -> Storage:
        place = super().items(step, config_digest)
        if self.rank == 0:
            place.write_bytes(LAST_USED, b"")
        return place


def call_stage(function: Callable[[StageContext], None], context: StageContext) -> None:
    """Raises ConfigError where torch refuses an operation because deterministic bytes were promised."""
    try:
        function(context)
    except RuntimeError as error:
        operation, refused, _ = str(error).partition(_NOT_DETERMINISTIC)
        if not refused:
            raise
        raise ConfigError(
            "an operation gives other bytes in every run on a GPU", value=operation.strip(),
            where="deterministic mode", next_step="train with engine.deterministic: false, or on other kernels",
        ) from error  # fmt: skip


def keep_promise(numerics: Mapping[str, object]) -> None:
    """Switch torch to deterministic operations where the record says so; before the first operation on a GPU."""
    if numerics["device"] == "cuda" and numerics.get("deterministic"):
        from m4v.deterministic import use_deterministic

        use_deterministic()


def clean_attempt(work_dir: Path) -> None:
    """Forget what an earlier start in this directory left: an attempt begins with empty staging; what it
    resumes from lies at `state_uri`."""
    shutil.rmtree(work_dir / "staging", ignore_errors=True)
    for name in (RESULT, "progress.json"):
        (work_dir / name).unlink(missing_ok=True)
    for record in work_dir.glob("exit.*.json"):
        record.unlink()


def write_result(context: StageContext, numerics: dict[str, object] | None) -> None:
    """Hash every declared output and write its manifest, then `result.json`."""
    request = context.request
    outputs = []
    for declared in request.outputs:
        directory = context.output(declared.name)
        shared = context.shared(declared.name)
        entries = (FileEntry(f.path, f.size_bytes, f.sha256) for f in shared)
        manifest = build_manifest(directory, declared.kind, context.summaries().get(declared.name, {}), entries)
        write_manifest(directory, manifest)
        outputs.append(
            OutputResult(
                name=declared.name,
                kind=declared.kind,
                artifact_id=manifest.artifact_id,
                staging=str(directory),
                size_bytes=manifest.size_bytes,
                files=len(manifest.files),
                shared=shared,
            )
        )
    result = StageResult(
        stage=request.stage,
        stage_key=request.stage_key,
        attempt_id=request.attempt_id,
        outputs=tuple(outputs),
        metrics=context.collected_metrics(),
        environment={**environment_facts(), "numerics": numerics},
    )
    write_json(context.work_dir / RESULT, result)


def classify(error: BaseException) -> ExitClass:
    """Exit class of an exception that left a stage function."""
    if isinstance(error, M4VError):
        return error.exit_class
    if isinstance(error, ConnectionError | TimeoutError):
        return ExitClass.INFRASTRUCTURE
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return ExitClass.INFRASTRUCTURE
    if type(error).__module__.startswith("torch.") and type(error).__name__.startswith("Dist"):
        return ExitClass.INFRASTRUCTURE
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in (*_PEER_LOST, *DEVICE_FAULTS)):
        return ExitClass.INFRASTRUCTURE
    return ExitClass.BUG


def message_of(error: BaseException) -> str:
    return error.message if isinstance(error, M4VError) else f"{type(error).__name__}: {error}"


def _load_function(request: StageRequest) -> Callable[[StageContext], None]:
    try:
        with uncollected():
            function = cast(Callable[[StageContext], None], load_object(request.function))
    except ConfigError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        if missing is None or missing in request.function:
            raise
        raise ConfigError(
            "the stage needs a package that is not installed", value=missing, where=request.function,
            next_step=f"pip install {missing.split('.')[0]}",
        ) from error  # fmt: skip
    if "pyarrow" in sys.modules:
        keep_pandas_out()
    return function


def _exit(code: int) -> None:
    """Leave at once: threads and native pools of a finished stage must not hold or change its exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit(main(sys.argv[1:]))
