"""What the offline archive has to hold, what it leaves out, and how its machine code is found."""

from __future__ import annotations

import ast
import os
import struct
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "infra" / "offline"))

from folding import FAT, FRAME, frames
from pack import cached, groups_of, members

ROOT = Path(__file__).parents[2]
OFFLINE = ROOT / "infra" / "offline"
# Imported on other machines only, or by parts that a machine without a network does not run.
ELSEWHERE = {
    "ray", "prefect", "fastapi", "starlette", "uvicorn", "mlflow", "openlineage", "wandb", "s3fs", "moto", "pgserver",
    "psycopg", "playwright", "torchcodec", "imageio_ffmpeg", "video2dataset", "vbench", "detectron2", "mamba_ssm",
    "causal_conv1d", "open_clip", "hpsv2", "hpsv2x", "webdataset", "google", "clip",
}  # fmt: skip


def imported() -> set[str]:
    """Top-level names that the product's packages import from elsewhere, in functions too."""
    found: set[str] = set()
    for package in ("m4v", "dataprep", "training", "eval", "pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"m4v", "dataprep", "training", "eval", "pipelines", "worker"}


def test_all_that_the_product_imports_is_in_the_image_or_packed() -> None:
    image = [line for line in (OFFLINE / "image.txt").read_text().splitlines() if line and not line.startswith("#")]
    known = {n.lower().replace("-", "_") for names in groups_of(OFFLINE / "packages.txt").values() for n in names}
    known |= {n.lower().replace("-", "_") for n in image}
    by_module = metadata.packages_distributions()
    missing = {
        module for module in imported() - ELSEWHERE
        if module not in known
        and not {d.lower().replace("-", "_") for d in by_module.get(module, [])} & known
    }  # fmt: skip
    assert not missing


def test_a_cached_wheel_is_taken_at_its_pinned_version_only(tmp_path: Path) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    version = pins["typing-inspection"]
    (tmp_path / "typing_inspection-0.0.1-py3-none-any.whl").touch()
    (tmp_path / "typing_inspection_more-0.0.1-py3-none-any.whl").touch()
    assert cached("typing-inspection", tmp_path) is None
    right = tmp_path / f"typing_inspection-{version}-py3-none-any.whl"
    right.touch()
    assert cached("typing-inspection", tmp_path) == right
    (tmp_path / "never_pinned-7-py3-none-any.whl").touch()
    assert cached("never-pinned", tmp_path) == tmp_path / "never_pinned-7-py3-none-any.whl"


def test_wheels_are_laid_out_as_a_site_without_what_nobody_imports(tmp_path: Path) -> None:
    names = (
        "a/__init__.py", "a/tests/test_a.py", "a/b.pyc", "a/c.cu", "a-1.dist-info/METADATA", "a-1.dist-info/RECORD",
        "a-1.data/purelib/d.py", "a-1.data/scripts/run",
    )  # fmt: skip
    with zipfile.ZipFile(tmp_path / "a-1-py3-none-any.whl", "w") as wheel:
        for name in names:
            wheel.writestr(name, name)
    found = dict(members([tmp_path / "a-1-py3-none-any.whl"]))
    assert set(found) == {"a/__init__.py", "a-1.dist-info/METADATA", "d.py"}


def test_frames_of_fat_binaries_are_found() -> None:
    def entry(code: bytes, unpacked: int) -> bytes:
        return struct.pack("<HHIQI", 2, 1, 64, len(code), len(code)) + bytes(36) + struct.pack("<Q", unpacked) + code

    packed, plain = FRAME + b"packed", b"plain code"
    body = entry(packed, 99) + entry(plain, 0)
    held = b"ELF" + FAT + struct.pack("<Q", len(body)) + body + b"end" + FAT + struct.pack("<Q", 0)
    ((place, length, unpacked),) = frames(held)
    assert held[place : place + length] == packed
    assert unpacked == 99


def test_unpacking_makes_a_python_that_finds_packages_and_checkout(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "given-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("of_the_archive.py", "VALUE = 7")
    environment = {**os.environ, "PYTHON": sys.executable}
    script, target = str(OFFLINE / "unpack.sh"), tmp_path / "target"
    wheel_path = str(tmp_path / "given-1-py3-none-any.whl")
    made = subprocess.run(["bash", script, str(target), wheel_path], env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("torch ")
    code = "import of_the_archive, m4v.core.errors as e; print(of_the_archive.VALUE, e.__file__)"
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said = subprocess.run([target / "python", "-c", code], cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert said.stdout.split() == ["7", str(ROOT / "m4v" / "core" / "errors.py")]
    for wrong in ("absent.whl", str(Path(__file__))):
        assert subprocess.run(["bash", script, str(target), wrong], capture_output=True).returncode == 10
