"""What a repeated execution is worth: a verdict per file and tensor, and the first difference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipelines.compare.model import Jsonable

VERDICT_SCHEMA = 1
_DEFAULT_RTOL = {"F64": 1e-7, "F32": 1.3e-6, "F16": 1e-3, "BF16": 1.6e-2}
_DEFAULT_ATOL = {"F64": 1e-7}
_ATOL = 1e-5


class Verdict(StrEnum):
    """From best to worst; `worst` of several is theirs together."""

    IDENTICAL = "identical"
    WITHIN = "equal within tolerance"
    DIFFERS = "differs"
    FAILED = "failed"  # it could not be executed again


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Of none: identical."""
    order = list(Verdict)
    return max(verdicts, key=order.index, default=Verdict.IDENTICAL)


@dataclass(frozen=True)
class Tolerance(Jsonable):
    """|made - recorded| <= atol + rtol * |recorded|. Unset: by dtype, with the values of torch.testing.assert_close;
    whole numbers must be equal."""

    rtol: float | None = None
    atol: float | None = None

    def of(self, dtype: str) -> tuple[float, float]:
        """(rtol, atol) for a dtype as safetensors names it; for numbers in JSON and tables it is F64."""
        rtol = _DEFAULT_RTOL.get(dtype, 0.0) if self.rtol is None else self.rtol
        known = dtype in _DEFAULT_RTOL
        atol = (_DEFAULT_ATOL.get(dtype, _ATOL) if known else 0.0) if self.atol is None else self.atol
        return rtol, atol


@dataclass(frozen=True)
class Place(Jsonable):
    """Where two files differ first: `where` in words (a tensor's index, a path in JSON, row and column, a member, a
    byte), and what stands there on both sides."""

    where: str
    recorded: object
    made: object


@dataclass(frozen=True)
class TensorVerdict(Jsonable):
    """One tensor that is not identical. Errors are None where shapes or dtypes differ; `differing` counts
    elements."""

    name: str
    verdict: Verdict
    dtype: str
    shape: tuple[int, ...]
    differing: int | None
    max_abs: float | None
    max_rel: float | None
    first: Place


@dataclass(frozen=True)
class FileVerdict(Jsonable):
    """One file of an output. `how`: what was compared when the digests differ: bytes | tensors | json | table |
    archive | text. `parts` counts equal parts and all (tensors, members, columns)."""

    path: str
    verdict: Verdict
    how: str = "bytes"
    recorded_sha256: str | None = None
    made_sha256: str | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    first: Place | None = None
    tensors: tuple[TensorVerdict, ...] = ()
    equal_parts: int | None = None
    parts: int | None = None


@dataclass(frozen=True)
class OutputVerdict(Jsonable):
    """One output. Only files that are not identical are listed; `files` counts all. `made_id` is None when the stage
    made no such output."""

    name: str
    kind: str
    verdict: Verdict
    recorded_id: str
    made_id: str | None
    files: int
    different: tuple[FileVerdict, ...] = ()
    note: str = ""

    @property
    def first(self) -> str | None:
        """The first difference in one line."""
        for file in self.different:
            if file.first is not None:
                return f"{file.path}: {file.first.where}: {file.first.recorded!r} -> {file.first.made!r}"
        return None


@dataclass(frozen=True)
class StageVerdict(Jsonable):
    """A stage run, executed again. `allowed`: differences of code, lock file or machine that were waved through;
    `message` says why one that failed could not be executed."""

    run_id: str
    node_id: str
    stage: str
    verdict: Verdict
    outputs: tuple[OutputVerdict, ...]
    seconds: float
    recorded_seconds: float | None
    allowed: tuple[str, ...] = ()
    message: str = ""
    log: str | None = None

    @property
    def first(self) -> str | None:
        lines = (f"{output.name}: {output.first}" for output in self.outputs if output.first)
        return next(lines, self.message or None)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "first_difference": self.first}


@dataclass(frozen=True)
class RunVerdict(Jsonable):
    """Everything that one `m4v runs rerun --verify` found; `subject` is a stage run or a pipeline run."""

    verification_id: str
    subject: str
    kind: str
    verdict: Verdict
    stages: tuple[StageVerdict, ...]
    tolerance: Tolerance

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": VERDICT_SCHEMA, **super().to_json()}
