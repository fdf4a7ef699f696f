"""Every golden fixture of PyramidFlow is used: some test records its error with `oracle_error` or `oracle_close`."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

TESTS = Path(__file__).parents[1]
RECORDERS = ("oracle_error", "oracle_close")


def names_in(source: str) -> Iterator[tuple[str, ...]]:
    """Strings of a test module as literal pieces: one piece for a constant, pieces around the holes of an f-string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield (node.value,)
        elif isinstance(node, ast.JoinedStr):
            pieces = [""]
            for part in node.values:
                if isinstance(part, ast.Constant):
                    pieces[-1] += str(part.value)
                else:
                    pieces.append("")
            yield tuple(pieces)


def used_by(source: str, files: list[str]) -> set[str]:
    """Those of `files` (paths below the fixtures' folder) that a module names; f-string holes by its own constants."""
    if not any(recorder in source for recorder in RECORDERS):
        return set()
    names = set(names_in(source))
    constants = {pieces[0] for pieces in names if len(pieces) == 1}
    found = set()
    for pieces in names:
        if "/" not in "".join(pieces):
            continue
        pattern = re.compile("(?:pyramidflow/)?" + "(.+)".join(map(re.escape, pieces)) + r"(?:\.safetensors|\.json)?")
        for file in files:
            match = pattern.fullmatch(file) or pattern.fullmatch(f"pyramidflow/{file}")
            if match and set(match.groups()) <= constants:
                found.add(file)
    return found


def test_names_are_found_in_constants_and_format_strings() -> None:
    source = 'NAMES = ["case_a", "b"]\noracle_error(f"tiny/{name}.safetensors", 0, 0)\noracle_error("x/y.json", 0, 0)\n'
    files = ["tiny/case_a.safetensors", "tiny/b.safetensors", "tiny/case_c.safetensors", "x/y.json", "x/z.json"]
    assert used_by(source, files) == {"tiny/case_a.safetensors", "tiny/b.safetensors", "x/y.json"}
    assert used_by(source.replace("oracle_error", "load"), files) == set(), "reading a file is not comparing with it"


def test_every_golden_file_is_compared(oracles: Path) -> None:
    folder = oracles / "pyramidflow"
    files = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.suffix in (".safetensors", ".json")]
    assert len(files) >= 40
    used: set[str] = set()
    for module in sorted(TESTS.rglob("test_*.py")):
        if module != Path(__file__):
            used |= used_by(module.read_text(), files)
    unused = [file for file in files if file not in used]
    assert not unused, f"no test compares with {unused}"


def test_the_table_has_the_largest_error_of_each_file(pytestconfig: pytest.Config) -> None:
    """Reports as they come from workers, where pairs have become lists."""
    table = type(pytestconfig.pluginmanager.get_plugin("golden-table"))()
    for properties, failed in (
        ([("golden fixture", ["a/x.safetensors", 1e-7, "2e-5 / 1e-4"]), ("other", 1)], False),
        ([["golden fixture", ["a/x.safetensors", 3e-6, "2e-5 / 1e-4"]]], False),
        ([["golden fixture", ["a/index.json", 0, "exact"]], ["golden fixture", ["b/y.json", 0.5, "exact"]]], True),
        ([], False),
    ):
        table.pytest_runtest_logreport(SimpleNamespace(user_properties=properties, failed=failed))
    lines: list[str] = []
    table.pytest_terminal_summary(SimpleNamespace(section=lines.append, write_line=lines.append))
    assert [line.split() for line in lines[:1] + lines[2:]] == [
        ["golden", "fixtures"],
        ["a/index.json", "0", "exact", "FAILED"],
        ["a/x.safetensors", "3.00e-06", "2e-5", "/", "1e-4"],
        ["b/y.json", "5.00e-01", "exact", "FAILED"],
    ]


def test_only_fixtures_and_numbers_can_be_recorded(oracle_error: Callable[..., None]) -> None:
    with pytest.raises(AssertionError, match="no golden fixture is named nothing"):
        oracle_error("nothing", 0, "exact")
    with pytest.raises(AssertionError, match="not a number"):
        oracle_error("flux_tiny/config", float("nan"), "exact")
