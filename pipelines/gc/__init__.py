"""Garbage collection: what nothing needs any more goes, by reachability from roots. Plain domain code."""

from pipelines.gc.artifacts import Collected, collect_artifacts, finish_deletions, verified_now
from pipelines.gc.judge import Judged, judge
from pipelines.gc.leftovers import Leftover, find_leftovers, remove_leftovers

__all__ = [
    "Collected", "Judged", "Leftover", "collect_artifacts", "find_leftovers", "finish_deletions", "judge",
    "remove_leftovers", "verified_now",
]  # fmt: skip
