"""Is an entry whole on this machine: files present, sizes, digests, and keys and shapes against the model they
are for. Only headers are read unless digests are asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.core.storage import storage_faults
from m4v.weights.catalogue import CatalogueEntry
from m4v.weights.components import Component, components
from m4v.weights.expected import expected
from m4v.weights.source import SourceFile, missing_file, source_files

State = Literal["ok", "not here", "missing", "wrong size", "wrong digest", "no JSON", "LFS pointer"]
_FINE = ("ok", "not here")
_REMEDY: dict[State, str] = {
    "LFS pointer": "git lfs pull, or fetch the file itself",
    "wrong size": "fetch it again; for another model in this format set published: false",
}
_LFS_HEADER = b"version https://git-lfs.github.com/spec/"
_LFS_BYTES = 1024  # a pointer is smaller
Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, file
_SHOWN = 5
_CHUNK_BYTES = 4 << 20


class FileState(FrozenModel):
    """One file. `place` is its path below the entry's folder, `path` where it was looked for. `sha256` is what
    was found, None when nobody asked for digests; `digest_known`: the catalogue states one to hold it to. An
    optional file may be `not here`. `LFS pointer`: a clone without Git LFS left a note in place of the file."""

    place: str
    path: str
    state: State
    size_bytes: int | None = None
    expected_bytes: int | None = None
    sha256: str | None = None
    digest_known: bool = False


class WrongShape(FrozenModel):
    key: str
    found: tuple[int, ...]
    expected: tuple[int, ...]


class TensorDiff(FrozenModel):
    """A component's tensors against the model it is for. `compared`: there is such a model; without one only
    the files' own form was checked. `problem`: it could not be read at all, and why."""

    component: str
    kind: str
    tensors: int = 0
    parameters: int = 0
    compared: bool = False
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    wrong_shape: tuple[WrongShape, ...] = ()
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return not (self.missing or self.unknown or self.wrong_shape or self.problem)

    def lines(self, shown: int = _SHOWN) -> list[str]:
        """The difference for a person: a count of each kind and its first few tensors."""
        if self.problem:
            return [self.problem]
        shapes = [f"{w.key}: {list(w.found)}, the model needs {list(w.expected)}" for w in self.wrong_shape]
        kinds = {"missing": self.missing, "unknown": self.unknown, "of another shape": tuple(shapes)}
        lines = []
        for kind, names in kinds.items():
            if names:
                more = [f"… and {len(names) - shown} more"] if len(names) > shown else []
                lines += [f"{_count(names)} {kind}:", *(f"  {name}" for name in [*names[:shown], *more])]
        return lines


class CheckReport(FrozenModel):
    """What `m4v weights check` says of one entry. Components are compared only when their files can be read."""

    entry: str
    folder: str
    files: tuple[FileState, ...]
    components: tuple[TensorDiff, ...] = ()

    @property
    def ok(self) -> bool:
        return all(f.state in _FINE for f in self.files) and all(c.ok for c in self.components)

    @property
    def present(self) -> bool:
        return all(f.state != "missing" for f in self.files)

    def lines(self) -> list[str]:
        """The report for a person."""
        lines = [f"{self.entry}: {'ok' if self.ok else 'not ok'} (in {self.folder})"]
        for file in self.files:
            wrong = f", the catalogue says {file.expected_bytes}" if file.state == "wrong size" else ""
            size = "" if file.size_bytes is None else f" ({file.size_bytes} bytes{wrong})"
            lines.append(f"  {file.state:12} {file.place}{size}")
        for part in self.components:
            against = "match the model" if part.compared else "read; no model to compare with"
            counts = f"{part.tensors} tensors, {part.parameters} parameters"
            verdict = f"{counts}, {against if part.ok else 'DIFFERENT from the model'}"
            lines.append(f"  {part.component}: {'cannot be compared' if part.problem else verdict}")
            lines += [f"    {line}" for line in part.lines()]
        return lines


def check(
    found: CatalogueEntry,
    folder: Path | None = None,
    *,
    published: bool = True,
    hashing: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Check an entry below `folder` (default: its place below the weights root).

    `hashing` reads every byte, `progress` then hears of it. With `published` false the sizes and digests of
    the catalogue do not count: the files are of another model in the same format. Never raises for what is
    wrong with the files, the report says it; InfrastructureError when a disk cannot be read.
    """
    folder = found.folder() if folder is None else folder
    files = source_files(found, folder, published)
    states, done = [], 0
    total = sum(f.path.stat().st_size for f in files if f.path.is_file()) if hashing else 0
    for file in files:
        if hashing and progress is not None:
            progress(done, total, file.place)
        states.append(_file_state(file, published, hashing))
        done += states[-1].size_bytes or 0
    missing = {s.place for s in states if s.state in ("missing", "LFS pointer", "no JSON")}
    parts = components(found, [file for file in files if not file.is_absent])
    whole = [p for p in parts if not missing & {f.place for f in (*p.weights, p.config_file, p.index_file) if f}]
    return CheckReport(
        entry=found.name, folder=str(folder), files=tuple(states), components=tuple(compare(p) for p in whole)
    )


def _file_state(file: SourceFile, published: bool, hashing: bool) -> FileState:
    row = file.catalogued
    if not file.path.is_file():
        gone: State = "not here" if row.optional else "missing"
        return FileState(place=file.place, path=str(file.path), state=gone, expected_bytes=row.size_bytes)
    size, state, sha256 = file.path.stat().st_size, _form(file.path), None
    known = published and (row.sha256 is not None or row.md5 is not None) and not row.is_pattern
    if state != "ok":
        pass
    elif published and row.size_bytes is not None and not row.is_pattern and size != row.size_bytes:
        state = "wrong size"
    elif hashing:
        sha256, md5 = digests(file.path, md5=known and row.md5 is not None)
        if known and (row.sha256 or sha256, row.md5 or md5) != (sha256, md5):
            state = "wrong digest"
    return FileState.model_validate(
        {
            "place": file.place, "path": str(file.path), "state": state, "size_bytes": size,
            "expected_bytes": row.size_bytes if published else None, "sha256": sha256, "digest_known": known,
        }
    )  # fmt: skip


def _form(path: Path) -> State:
    """What the first look at a file says: small files are read, large ones not."""
    with storage_faults(str(path)):
        if path.stat().st_size < _LFS_BYTES and path.read_bytes().startswith(_LFS_HEADER):
            return "LFS pointer"
        if path.suffix == ".json":
            try:
                json.loads(path.read_bytes())
            except ValueError:
                return "no JSON"
    return "ok"


def digests(path: Path, md5: bool) -> tuple[str, str | None]:
    """sha256 of a file, and its md5 if asked for."""
    sha, other = hashlib.sha256(), hashlib.md5(usedforsecurity=False) if md5 else None
    with storage_faults(str(path)), path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha.update(chunk)
            if other is not None:
                other.update(chunk)
    return sha.hexdigest(), None if other is None else other.hexdigest()


def compare(part: Component) -> TensorDiff:
    """Keys and shapes of a component against the model that its config describes, from headers alone."""
    try:
        infos = part.infos()
        where = str(part.config_file.path) if part.config_file else part.name
        wanted = expected(part.kind, part.config(), where)
        found = {} if wanted is None else {wanted.rename(key): infos[key] for key in infos}
    except (ConfigError, DataIntegrityError, InputError) as error:
        return TensorDiff(component=part.name, kind=part.kind, problem=str(error))
    except OSError as error:
        return TensorDiff(component=part.name, kind=part.kind, problem=f"cannot be read: {error}")
    facts = TensorDiff(
        component=part.name, kind=part.kind, tensors=len(infos), parameters=sum(i.elements for i in infos.values())
    )
    if wanted is None:
        return facts
    held = {
        key: info.shape for key, info in found.items() if key in wanted.shapes or not key.startswith(wanted.ignored)
    }
    wrong = [
        WrongShape(key=key, found=held[key], expected=shape)
        for key, shape in sorted(wanted.shapes.items())
        if key in held and held[key] != shape
    ]
    return facts.model_copy(
        update={
            "compared": True,
            "missing": tuple(sorted(set(wanted.shapes) - set(held) - wanted.optional)),
            "unknown": tuple(sorted(set(held) - set(wanted.shapes))),
            "wrong_shape": tuple(wrong),
        }
    )


def require(found: CatalogueEntry, report: CheckReport, files: list[SourceFile]) -> None:
    """Raise what the first trouble of a report asks for: InputError for a missing file, else DataIntegrityError."""
    for state, file in zip(report.files, files, strict=True):
        if state.state == "missing":
            raise missing_file(found, file)
        if state.state not in _FINE:
            raise DataIntegrityError(
                f"file is not what it should be ({state.state})", value=state.place, where=str(file.path.parent),
                next_step=_REMEDY.get(state.state, "fetch it again"),
            )  # fmt: skip
    for part in report.components:
        if part.problem:
            raise DataIntegrityError(part.problem)
        if not part.ok:
            raise DataIntegrityError(
                f"{part.component} is not the model that its config.json describes: " + _one_line(part),
                where=report.folder, next_step=f"m4v weights check {found.name} shows the whole difference",
            )  # fmt: skip


def _one_line(part: TensorDiff) -> str:
    """`2 tensors missing: a, b; 1 tensor unknown: c`."""
    lines = part.lines(shown=3)
    text = lines[0] if lines else ""
    for before, line in pairwise(lines):
        text += (" " if before.endswith(":") else ", " if line.startswith(" ") else "; ") + line.strip()
    return text


def _count(names: Sequence[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
