"""Digest of the source files that a stage function can reach by static imports inside our own packages.

The walk reads syntax trees and imports nothing, so planning stays quick and needs no torch. Imports inside
functions count, as do the `__init__` files on the way and a stage's declared data files.
"""

from __future__ import annotations

import ast
import atexit
import os
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from m4v.core.canonical import digest_file
from m4v.core.errors import ConfigError
from pipelines.keys.parsed import ParsedImports, place

OUR_PACKAGES = frozenset({"dataprep", "eval", "m4v", "pipelines", "training"})
CODE_ROOT = Path(__file__).resolve().parents[2]


def reachable_files(
    references: Iterable[str], data_files: Iterable[str] = (), root: Path = CODE_ROOT
) -> dict[str, str]:
    """`path below root -> sha256` of every file that can act on the functions `package.module:name`.

    Walked packages are ours and the functions' own top-level ones (a stage may live outside the house).
    Raises ConfigError for a reference whose module has no source file.
    """
    starts = [reference.partition(":")[0] for reference in references]
    packages = OUR_PACKAGES | {name.split(".")[0] for name in starts}
    found: dict[str, Path] = {}
    absent: set[str] = set()  # `from module import name` where name is no module
    waiting = list(starts)
    for name in starts:
        if _locate(name, root) is None:
            raise ConfigError("module has no source file", value=name, where="stage declaration")
    while waiting:
        name = waiting.pop()
        if name in found or name in absent or name.split(".")[0] not in packages:
            continue
        path = _locate(name, root)
        if path is None:
            absent.add(name)
            continue
        found[name] = path
        waiting.extend(_parents(name))
        waiting.extend(_imports(path, name))
    files = {_relative(name, path): _digest(path) for name, path in found.items()}
    for pattern in data_files:
        files |= {p.relative_to(root).as_posix(): _digest(p) for p in sorted(root.glob(pattern)) if _is_data(p)}
    return dict(sorted(files.items()))


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for length in range(1, len(parts)):
        yield ".".join(parts[:length])


def _relative(name: str, path: Path) -> str:
    """Path of a module's file below the directory that holds its top-level package."""
    parts = name.split(".")
    return "/".join([*parts, "__init__.py"] if path.name == "__init__.py" else [*parts[:-1], path.name])


def _is_data(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")


def _locate(name: str, root: Path) -> Path | None:
    """Source file of a dotted module name, found without importing anything."""
    inside = name.replace(".", os.sep)
    bases = [str(root)] if name.split(".")[0] in OUR_PACKAGES else [str(root), *(p for p in sys.path if p)]
    for base in bases:
        for candidate in (f"{base}{os.sep}{inside}{os.sep}__init__.py", f"{base}{os.sep}{inside}.py"):
            # Thousands of names: a Path takes several times as long to make as a file to look up.
            if os.path.isfile(candidate):  # noqa: PTH113
                return Path(candidate)
    return None


def _imports(path: Path, name: str) -> tuple[str, ...]:
    stat = path.stat()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return _parse_imports(path, package, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _parse_imports(path: Path, package: str, _mtime_ns: int, _size: int) -> tuple[str, ...]:
    source = path.read_bytes()
    return _parsed().names(source, package, lambda: _parse(path, source, package))


@lru_cache(maxsize=1)
def _parsed() -> ParsedImports:
    """The store of this process, written when it ends; this file's own digest says which parser it is."""
    parsed = ParsedImports(place(), _digest(Path(__file__)))
    atexit.register(parsed.save)
    return parsed


def _parse(path: Path, source: bytes, package: str) -> tuple[str, ...]:
    try:
        tree = ast.parse(source, filename=path.name)
    except SyntaxError as error:
        raise ConfigError(f"file does not parse: {error.msg} on line {error.lineno}", where=str(path)) from None
    names: dict[str, None] = {}
    for node in _walk(tree, source):
        names.update(dict.fromkeys(_imported_by(node, package)))
    return tuple(names)


def _walk(tree: ast.Module, source: bytes) -> Iterator[ast.AST]:
    """Every node that may import: all of them where the text has an import call, else statements only, which
    are a tenth."""
    if b"import_module" in source or b"__import__" in source:
        yield from ast.walk(tree)
        return
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            below = getattr(node, field, ())
            waiting.extend(below if isinstance(below, list) else ())


def _imported_by(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = _absolute(node, package)
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Call) and _is_import_call(node.func) and node.args:
        argument = node.args[0]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """Module that `from … import` names, with leading dots resolved against the importing package."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _is_import_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def _digest(path: Path) -> str:
    stat = path.stat()
    return _digest_cached(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _digest_cached(path: Path, _mtime_ns: int, _size: int) -> str:
    return digest_file(path)
