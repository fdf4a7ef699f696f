"""Executes recorded stage runs again, each in a work directory of its own, and holds what they make against what they
made. Nothing is published: the bytes of record stay those of the first execution.

verdict = Verifier(workspace, ledger, launcher_for).verify(identity)
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from m4v.core.canonical import canonical_json, plain_json
from m4v.core.errors import ExitClass, InputError
from m4v.core.stage import RESULT, StageRequest, StageResult, write_json
from pipelines.environment import host_facts
from pipelines.launchers import LOG, REQUEST, Ending, Launcher
from pipelines.ledger import AttemptRow, Ledger, PipelineRunRow, RunRow, new_id
from pipelines.ledger.verifications import EVERY_RUN
from pipelines.provenance import BlobStore, code_state
from pipelines.rerun.outputs import compare_output
from pipelines.rerun.recorded import Allowed, Recorded, again, check, recorded
from pipelines.rerun.resume import ALLOWED, Stopped, stopped
from pipelines.rerun.verdict import OutputVerdict, RunVerdict, StageVerdict, Tolerance, Verdict, worst
from pipelines.rerun_folders import close_folder, open_folder, rerun_folders
from pipelines.workspace import Workspace

POLL_S = 0.5


def _quiet(_: str) -> None:
    return None


@dataclass(frozen=True)
class Verifier:
    """The services of verifications. `launcher_of` gives the launcher for a recorded lock file; `tell` hears what
    happens. With `keep` the work directories of stages that differ stay, to be looked at. `anew`: one that was stopped
    does not go on, but begins again."""

    workspace: Workspace
    ledger: Ledger
    launcher_of: Callable[[str | None], Launcher]
    allowed: Allowed = field(default_factory=Allowed)
    tolerance: Tolerance = field(default_factory=Tolerance)
    keep: bool = False
    anew: bool = False
    tell: Callable[[str], None] = _quiet

    def verify(self, identity: str) -> RunVerdict:
        """Execute a stage run, or every stage run of a pipeline run, again and record the verdict. A verification of
        a pipeline run that was stopped goes on.

        Every check of code, machine and inputs comes before the first stage starts. Raises ConfigError or InputError
        for what is not as it was; a stage that fails is a verdict.
        """
        subject, runs = self._runs(identity)
        if isinstance(subject, RunRow):
            return self._verify(subject.run_id, "stage run", runs)
        return self._verify(subject.pipeline_run_id, "pipeline run", runs)

    def verify_all(self) -> RunVerdict:
        """`verify` for every stage run of the ledger, oldest first, as one verification. Runs are left out, and told,
        of which a takedown withdrew inputs or outputs, or whose bytes were deleted."""
        every = sorted(self.ledger.runs(limit=None), key=lambda run: run.run_id)
        gone = {w.artifact_id for w in self.ledger.withdrawals()}
        gone |= {a.artifact_id for a in self.ledger.artifacts(limit=None) if a.deletion is not None}
        runs = [run for run in every if gone.isdisjoint(p.artifact_id for p in (*run.inputs, *run.outputs))]
        if len(runs) < len(every):
            self.tell(f"{len(every) - len(runs)} stage runs are left out: what they read or made is withdrawn or gone")
        if not runs:
            raise InputError("no stage run has outputs that stand", value=str(self.workspace.home))
        return self._verify(EVERY_RUN, "ledger", runs)

    def _verify(self, subject: str, kind: str, runs: list[RunRow]) -> RunVerdict:
        stages = [recorded(self.ledger, run) for run in runs]
        noted = [check(stage, self.launcher_of(stage.request.lock_file), self.allowed) for stage in stages]
        before = self._stopped(subject, kind, list(zip(runs, noted, strict=True)))
        with self._folder(before.verification_id, runs) as folder:
            found = tuple(
                before.verdicts.get(stage.run.run_id)
                or self._stage(stage, folder / f"{number:03d}-{stage.node_id}", words, before.verification_id, subject)
                for number, (stage, words) in enumerate(zip(stages, noted, strict=True))
            )
        whole = worst(s.verdict for s in found)
        verdict = RunVerdict(before.verification_id, subject, kind, whole, found, self.tolerance)
        if kind != "stage run":
            self._record_whole(verdict)
        return verdict

    def _stopped(self, subject: str, kind: str, runs: list[tuple[RunRow, tuple[str, ...]]]) -> Stopped:
        """The verification to go on with; a new one where none was stopped."""
        found = None
        if kind != "stage run" and not self.anew:
            blobs = BlobStore(self.workspace.store_uri)
            found = stopped(self.ledger, blobs, self.workspace.home, subject, runs, self.tolerance)
        if found is None:
            return Stopped(new_id())
        self.tell(f"going on with verification {found.verification_id}: {len(found.verdicts)} of {len(runs)} are done")
        return found

    def _runs(self, identity: str) -> tuple[PipelineRunRow | RunRow, list[RunRow]]:
        row = self.ledger.resolve(identity)
        if isinstance(row, AttemptRow) and row.run_id is not None:
            row = self.ledger.run(row.run_id)
        if isinstance(row, RunRow):
            return row, [row]
        if not isinstance(row, PipelineRunRow):
            raise InputError("this is no run that could be executed again", value=identity, next_step="m4v runs list")
        ids = dict.fromkeys(n.run_id for n in self.ledger.nodes(row.pipeline_run_id) if n.run_id is not None)
        if not ids:
            raise InputError("no stage of this run has outputs", value=identity, next_step=f"m4v runs show {identity}")
        return row, [self.ledger.run(run_id) for run_id in ids]

    @contextmanager
    def _folder(self, verification_id: str, runs: list[RunRow]) -> Iterator[Path]:
        """A work directory of this process, which tells what it reads; what killed ones left is removed."""
        sweep(self.workspace.home)
        inputs = [(port.artifact_id, str(port.kind)) for run in runs for port in (*run.inputs, *run.outputs)]
        folder = open_folder(self.workspace.home, verification_id, inputs)
        try:
            yield folder
        finally:
            close_folder(folder, keep=self.keep)

    def _stage(
        self, stage: Recorded, work_dir: Path, words: tuple[str, ...], verification_id: str, subject: str
    ) -> StageVerdict:
        self.tell(f"{stage.node_id}: executing run {stage.run.run_id} again")
        started = time.monotonic()
        ending, outputs = self._execute(stage, work_dir)
        seconds = time.monotonic() - started
        verdict = Verdict.FAILED if ending.message else worst(o.verdict for o in outputs)
        found = StageVerdict(
            run_id=stage.run.run_id, node_id=stage.node_id, stage=stage.run.stage, verdict=verdict, outputs=outputs,
            seconds=seconds, recorded_seconds=self.ledger.attempt(stage.run.attempt_id).duration_s, allowed=words,
            message=ending.message, log=str(work_dir / LOG) if self.keep else None,
        )  # fmt: skip
        self._record_stage(found, verification_id, subject)
        if not self.keep or verdict is Verdict.IDENTICAL:
            shutil.rmtree(work_dir, ignore_errors=True)
        first = f": {found.first}" if found.first else ""
        self.tell(f"{stage.node_id}: {verdict} after {seconds:.1f} s{first}")
        return found

    # Executing

    def _execute(self, stage: Recorded, work_dir: Path) -> tuple[Ending, tuple[OutputVerdict, ...]]:
        launcher = self.launcher_of(stage.request.lock_file)
        # The launcher removes what runs below an attempt's parent folder: it has to be this stage's own.
        request = again(stage, self.ledger, launcher, self.workspace, work_dir / "attempt")
        ending = _launch(launcher, request)
        if ending.exit_class is not ExitClass.OK:
            said = ending.message or f"ended with class {ending.exit_class.name}"
            return Ending(ending.exit_class, f"{said}{_last_words(Path(request.work_dir))}"), ()
        result = StageResult.model_validate_json((Path(request.work_dir) / RESULT).read_bytes())
        made = {output.name: output for output in result.outputs}
        return Ending(ExitClass.OK), tuple(
            compare_output(self.ledger, port, made.get(port.name), self.tolerance) for port in stage.run.outputs
        )

    # Recording

    def _record_stage(self, found: StageVerdict, verification_id: str, subject: str) -> None:
        blobs = BlobStore(self.workspace.store_uri)
        facts = self._facts(verification_id, found.verdict, found.to_json(), blobs)
        different = [file.verdict for output in found.outputs for file in output.different]
        counts = {str(v): different.count(v) for v in (Verdict.WITHIN, Verdict.DIFFERS)}
        outputs = {
            o.name: {"recorded": o.recorded_id, "made": o.made_id, "verdict": str(o.verdict), "files": o.files}
            for o in found.outputs
        }
        facts |= {
            "subject": subject, "first_difference": found.first, "outputs": outputs, "different_files": counts,
            "allowed": list(found.allowed[:ALLOWED]), "seconds": round(found.seconds, 3), "message": found.message,
        }  # fmt: skip
        self.ledger.record_verification(found.run_id, str(found.verdict), facts)

    def _record_whole(self, verdict: RunVerdict) -> None:
        blobs = BlobStore(self.workspace.store_uri)
        facts = self._facts(verdict.verification_id, verdict.verdict, verdict.to_json(), blobs)
        names = [s.node_id if verdict.kind == "pipeline run" else s.run_id for s in verdict.stages]
        facts["stages"] = {name: str(s.verdict) for name, s in zip(names, verdict.stages, strict=True)}
        facts["first_difference"] = next((f"{s.node_id}: {s.first}" for s in verdict.stages if s.first), None)
        self.ledger.record_verification(verdict.subject, str(verdict.verdict), facts)

    def _facts(
        self, verification_id: str, verdict: Verdict, details: dict[str, object], blobs: BlobStore
    ) -> dict[str, object]:
        """What every verdict's event holds; `details` is the digest of the whole of it, kept in the store."""
        kept = blobs.put(canonical_json(plain_json(details)))
        return {
            "verification_id": verification_id, "tolerance": self.tolerance.to_json(), "host": host_facts(),
            "code": code_state(blobs).canonical(), "details": kept.sha256,
        }  # fmt: skip


def _launch(launcher: Launcher, request: StageRequest) -> Ending:
    """Run a request to its end; nothing of it outlives an exception (Ctrl-C) here."""
    work_dir = Path(request.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    write_json(work_dir / REQUEST, request)
    job = launcher.submit(request)
    try:
        while True:
            ending = launcher.poll(job, POLL_S)
            if ending is not None:
                return ending
    except BaseException:
        launcher.cancel(job)
        raise


def _last_words(work_dir: Path) -> str:
    try:
        lines = (work_dir / LOG).read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f" (log ends: {lines[-1][:200]})" if lines else ""


def sweep(home: Path) -> list[Path]:
    """Remove work directories whose owner was killed, and what of it still runs; returns them."""
    gone = [folder for folder in rerun_folders(home) if not folder.is_alive and not folder.was_kept]
    for folder in gone:
        folder.remove()
    return [folder.path for folder in gone]


def read_details(store_uri: str, sha256: str) -> dict[str, object]:
    """The whole verdict that an event cites; raises InputError when it is gone."""
    return dict(json.loads(BlobStore(store_uri).get(sha256)))
