"""Mutated containers: no crash, no hang, no leak, and no picture accepted that is not the original's.

The last can be held to the letter where pictures carry checksums. Elsewhere a changed bit may decode to another sound
picture, which nothing in the file tells. There an acceptance is *wrong* when a person could see it: when some 16x16
block of an accepted picture is less than `VISIBLE_DB` from every picture of the original. What is nearer is counted.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fuzz_files
import pytest
from fuzz_files import Original, Seen, case, look, mutated, originals, worst_block

from dataprep.engine import open_engine
from dataprep.quarantine import ItemFailure, Reason
from m4v.core.stage import Resources

QUICK, DEEP = 100, 2000
TIMEOUT_S, MEMORY_BYTES = 60.0, 2 << 30
FLAGS = {"partial", "damaged"}
VISIBLE_DB = 30.0
VISIBLE, UNSEEN = "accepted, visibly wrong", "accepted, changed beneath sight"
IN_PART_VISIBLE, IN_PART_UNSEEN = "flagged, rest visibly wrong", "flagged, rest changed beneath sight"
SAME, SAME_AT_ONCE, SAME_LIMIT_S = 400, 50, 600  # files, in a process, and what a process may take (seconds alone)
IN_PART_LIMIT = 0.002  # of 2,000 measured: 3, all MPEG-4, where changed bits are other codes of the same length


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Original]:
    return originals(tmp_path_factory.mktemp("originals"))


def cases(sources: list[Original], folder: Path, seeds: range) -> Iterator[Path]:
    for seed in seeds:
        source = case(sources, seed).path
        data, _ = mutated(source.read_bytes(), seed)
        path = folder / f"{seed}{source.suffix}"
        path.write_bytes(data)
        yield path


def is_run_of(span: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    return any(whole[k : k + len(span)] == span for k in range(len(whole) - len(span) + 1))


def is_part_of(span: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    """Whether pictures come in the original's order, some of them left out."""
    rest = iter(whole)
    return all(picture in rest for picture in span)


def fuzz(sources: list[Original], folder: Path, seeds: range) -> Counter[str]:
    """Outcomes by name; asserts what must never happen."""
    outcomes: Counter[str] = Counter()
    others: list[tuple[Path, Path, bool]] = []  # changed files, their originals, whether nothing flags them
    wholes = {source: look(source.path).spans[0] for source in sources}
    files_before = len(list(Path("/proc/self/fd").iterdir()))
    first: Seen | None = None
    last: Seen | None = None
    with open_engine(Resources(workers=1), isolate=True) as engine:
        paths = cases(sources, folder, seeds)
        results = engine.map(look, paths, timeout_s=TIMEOUT_S, cpu_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES)
        for seed, result in zip(seeds, results, strict=True):
            source = case(sources, seed)
            if isinstance(result, ItemFailure):
                assert result.reason in set(Reason), result
                outcomes[f"rejected {result.reason}"] += 1
                continue
            first, last = first or result, result
            found = verdict(result, wholes[source])
            if found in ("wrong", "flagged, with other pictures") and not source.hashed:
                others.append((folder / f"{seed}{source.path.suffix}", source.path, found == "wrong"))
                continue
            outcomes[found] += 1
            if outcomes["wrong"]:
                name = mutated(b"\0" * 64, seed)[1]
                pytest.fail(f"case {seed}: {name} of {source.path.name} is accepted with other pictures: {result}")
        pairs = [(path, whole) for path, whole, _ in others]
        nearest = engine.map(worst_block, pairs, timeout_s=TIMEOUT_S, cpu_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES)
        for (path, _, unflagged), near in zip(others, nearest, strict=True):
            assert not isinstance(near, ItemFailure), (path, near)
            visible, unseen = (VISIBLE, UNSEEN) if unflagged else (IN_PART_VISIBLE, IN_PART_UNSEEN)
            outcomes[visible if near < VISIBLE_DB else unseen] += 1
            print(f"{path.name}: {visible if near < VISIBLE_DB else unseen}, {near:.1f} dB")
    deadline = time.monotonic() + 60  # other threads of this process may have files open for a moment
    while len(list(Path("/proc/self/fd").iterdir())) > files_before + 2:
        assert time.monotonic() < deadline, "files are left open"
        time.sleep(0.05)
    assert first is not None
    assert last is not None
    assert last.open_files <= first.open_files + 2
    assert last.memory_bytes - first.memory_bytes < 256 << 20
    return outcomes


def verdict(seen: Seen, whole: tuple[str, ...]) -> str:
    right = seen.sought and all(is_run_of(span, whole) for span in seen.spans)
    flagged = seen.damaged > 0 or bool(FLAGS & set(seen.warnings))
    if flagged:
        return "flagged" if right else "flagged, with other pictures"
    if right:
        return "whole" if seen.spans == (whole,) else "part of the original"
    # A hole that is told of: the pictures are right, at their own times.
    holes = (
        bool({"variable_rate", "meta_mismatch"} & set(seen.warnings))
        and seen.sought
        and all(is_part_of(span, whole) for span in seen.spans)
    )
    return "told of its holes" if holes else "wrong"


def test_originals_are_whole(sources: list[Original]) -> None:
    for source in sources:
        seen = look(source.path)
        assert seen.damaged == 0
        assert seen.sought
        assert [len(span) for span in seen.spans] == [fuzz_files.FRAMES]
        assert len(set(seen.spans[0])) == fuzz_files.FRAMES


def test_a_hundred_mutated_files(sources: list[Original], tmp_path: Path) -> None:
    outcomes = fuzz(sources, tmp_path, range(QUICK))
    assert sum(outcomes.values()) == QUICK
    assert sum(n for name, n in outcomes.items() if name.startswith("rejected")) > QUICK // 5
    assert outcomes["flagged"] > QUICK // 20
    assert outcomes[VISIBLE] == 0
    assert outcomes[IN_PART_VISIBLE] == 0
    assert outcomes["rejected timeout"] + outcomes["rejected worker_died"] + outcomes["rejected out_of_memory"] == 0


@pytest.mark.deep
def test_two_thousand_mutated_files(sources: list[Original], tmp_path: Path) -> None:
    outcomes = fuzz(sources, tmp_path, range(QUICK, QUICK + DEEP))
    print(dict(sorted(outcomes.items())))
    assert sum(outcomes.values()) == DEEP
    assert outcomes[VISIBLE] == 0
    assert outcomes[IN_PART_VISIBLE] <= IN_PART_LIMIT * DEEP


@pytest.mark.deep
@pytest.mark.timeout(3 * SAME_LIMIT_S + 60)
@pytest.mark.parametrize("start", range(QUICK, QUICK + SAME, SAME_AT_ONCE))
def test_a_damaged_file_gets_the_same_verdict_every_time(sources: list[Original], tmp_path: Path, start: int) -> None:
    """Also where memory that nothing was written to holds something else."""
    paths = [str(path) for path in cases(sources, tmp_path, range(start, start + SAME_AT_ONCE))]
    verdicts = [verdicts_with(fill, paths) for fill in ("0", "85", "170")]
    assert [p for p, *said in zip(paths, *verdicts, strict=True) if len(set(said)) > 1] == []


def verdicts_with(fill: str, paths: list[str]) -> list[str]:
    """A line for each file, from a process in which fresh memory holds `fill`; a file that it does not come through is
    named."""
    environment = {**os.environ, "MALLOC_PERTURB_": fill, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, fuzz_files.__file__]
    try:
        ran = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True, env=environment,
                             timeout=SAME_LIMIT_S, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as late:
        done = (late.stdout or b"").count(b"\n")
        pytest.fail(f"{done} of {len(paths)} files in {SAME_LIMIT_S} s with memory of {fill}: {paths[done]}")
    found = ran.stdout.splitlines()
    assert (ran.returncode, len(found)) == (0, len(paths)), (fill, paths[len(found) :][:1], ran.stderr[-2000:])
    return found
