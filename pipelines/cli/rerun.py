"""`m4v runs rerun`: a recorded run executed again, with a verdict on its bytes or as a run of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import typer

from m4v.core.errors import DataIntegrityError, ExitClass, InputError
from pipelines.cli.output import duration, print_json, print_rows
from pipelines.cli.run import run_session
from pipelines.launchers import LocalLauncher
from pipelines.ledger import AttemptRow, Ledger, PipelineRunRow, RunRow
from pipelines.rerun import Allowed, RunVerdict, Tolerance, Verdict, Verifier
from pipelines.session import recorded_session
from pipelines.workspace import Workspace

SHOWN_TENSORS = 20


@dataclass(frozen=True)
class Options:
    """`anew`: a verification that was stopped begins again."""

    allowed: Allowed
    tolerance: Tolerance
    keep: bool
    anew: bool

    @property
    def accepted(self) -> set[Verdict]:
        """Verdicts that end well: equal within a tolerance does only where one was asked for."""
        asked = self.tolerance != Tolerance()
        return {Verdict.IDENTICAL, Verdict.WITHIN} if asked else {Verdict.IDENTICAL}


def options(
    allow_code: bool, allow_machine: bool, rtol: float | None, atol: float | None, keep: bool, anew: bool
) -> Options:
    return Options(Allowed(allow_code, allow_machine), Tolerance(rtol, atol), keep, anew)


def verify(identity: str | None, chosen: Options, json_: bool) -> None:
    """Of every stage run where no run is named. Raises DataIntegrityError when anything is not identical (or, with a
    tolerance asked for, not within it), or could not be executed."""
    workspace = Workspace.open()
    with Ledger.open(workspace.ledger_url) as ledger:
        verifier = Verifier(
            workspace, ledger, LocalLauncher, chosen.allowed, chosen.tolerance, chosen.keep, chosen.anew,
            tell=(lambda _: None) if json_ else lambda text: print(text, flush=True),
        )  # fmt: skip
        found = verifier.verify_all() if identity is None else verifier.verify(identity)
    print_json(found.to_json()) if json_ else print_verdict(found)
    if found.verdict not in chosen.accepted:
        bad = next(s for s in found.stages if s.verdict is found.verdict)
        raise DataIntegrityError(
            f"{bad.node_id} {bad.verdict}: {bad.first}", value=found.subject,
            next_step=f"m4v runs show {bad.run_id} has the verdict; --keep keeps what was made",
        )  # fmt: skip


def print_verdict(found: RunVerdict) -> None:
    print_rows(
        ("stage", "run", "verdict", "took", "recorded", "files", "first difference"),
        [
            (s.node_id, s.run_id, s.verdict, duration(s.seconds), duration(s.recorded_seconds),
             sum(o.files for o in s.outputs), s.first)
            for s in found.stages
        ],
        title=f"Verification {found.verification_id}", text=("first difference",),
    )  # fmt: skip
    for stage in found.stages:
        for file in (f for output in stage.outputs for f in output.different):
            _print_file(stage.node_id, file.path, file)
    for words in dict.fromkeys(w for s in found.stages for w in s.allowed):
        print(f"allowed to differ: {words}")
    if len(found.stages) > 1:
        print(
            f"{sum(s.verdict is Verdict.IDENTICAL for s in found.stages)} of {len(found.stages)} stages are identical"
        )
    print(f"{found.kind} {found.subject}: {found.verdict}")


def _print_file(node_id: str, path: str, file: object) -> None:
    from pipelines.rerun import FileVerdict

    assert isinstance(file, FileVerdict)
    parts = f", {file.equal_parts} of {file.parts} parts equal" if file.parts is not None else ""
    errors = f", max abs {file.max_abs:.3g}, max rel {file.max_rel:.3g}" if file.max_abs is not None else ""
    print(f"{node_id} {path}: {file.verdict} ({file.how}{parts}{errors})")
    for tensor in file.tensors[:SHOWN_TENSORS]:
        size = "" if tensor.max_abs is None else f", max abs {tensor.max_abs:.3g}, max rel {tensor.max_rel or 0:.3g}"
        print(f"    {tensor.name} {tensor.dtype} {list(tensor.shape)}: {tensor.verdict}{size}; {tensor.first.where}")
    if len(file.tensors) > SHOWN_TENSORS:
        print(f"    and {len(file.tensors) - SHOWN_TENSORS} more tensors (--json names them)")


def run_again(identity: str, json_: bool) -> NoReturn:
    """The recipe as it was resolved then, run now; of a stage run up to its stage."""
    workspace = Workspace.open()
    with Ledger.open(workspace.ledger_url) as ledger:
        row = ledger.resolve(identity)
        until = None
        if isinstance(row, RunRow):
            row = ledger.attempt(row.attempt_id)
        if isinstance(row, AttemptRow):
            if row.pipeline_run_id is None:
                raise InputError("this stage ran in no recipe", value=identity, next_step="--verify executes it alone")
            until, row = row.node_id, ledger.pipeline_run(row.pipeline_run_id)
        if not isinstance(row, PipelineRunRow):
            raise InputError("this is no run", value=identity, next_step="m4v runs list")
    exit_class = run_session(recorded_session(row), until, verify=False, prefect=False, json_=json_)
    raise typer.Exit(int(exit_class or ExitClass.OK))
