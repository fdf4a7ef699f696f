"""How `m4v data inspect` prints: facts of clips, and a what-if side by side."""

from __future__ import annotations

import json
from typing import Any

from pipelines.cli.output import Id, duration, print_facts, print_rows
from pipelines.inspection.targets import Target
from pipelines.inspection.whatif import WhatIf

_BLOCKS = " ▁▂▃▄▅▆▇█"


def print_clips(facts: dict[str, Any]) -> None:
    head = ("artifact_id", "run_id", "recipe", "clips", "kept", "kept_videos")
    print_facts({**{k: facts[k] for k in head}, "kept_time": duration(facts["kept_seconds"])})
    print()
    print_rows(
        ("step", "unit", "in", "out", "dropped"),
        [(s["step"], s["unit"], s["in"], s["out"], _counts(s["dropped_by_reason"])) for s in facts["funnel"]],
        title="Funnel", text=("dropped",),
    )  # fmt: skip
    print()
    print_rows(
        ("source", "clips", "kept", "share", "kept time"),
        [
            (s["source"], s["clips"], s["kept"], f"{s['kept_share']:.0%}", duration(s["kept_seconds"]))
            for s in facts["sources"]
        ],
        title="Yield by source",
    )  # fmt: skip
    print()
    columns = ("p1", "p25", "p50", "p75", "p99")
    print_rows(
        ("score", "measured", *columns, "distribution"),
        [
            (s["name"], s["measured"], *(s["quantiles"][c] for c in columns), sparkline(_sum(s["kept"], s["dropped"])))
            for s in facts["scores"]
        ],
        title="Scores",
    )  # fmt: skip
    rules = [rule for s in facts["scores"] for rule in s["rules"] or () if rule["threshold"] is not None]
    if rules:
        print()
        print_rows(
            ("rule", "key", "threshold", "break it", "dropped by it", "only by it"),
            [
                (r["rule"], f"curate.filters.{r['key']}", f"{r['bound']} {r['threshold']:g}", r["breaks"],
                 r["dropped"], r["alone"])
                for r in rules
            ],
            title="Rules",
        )  # fmt: skip


def print_what_if(target: Target, tried: WhatIf, limit: int) -> None:
    now, then = tried.table.kept, tried.kept
    print_rows(("key", "now", "then"), [(k, v["now"], v["then"]) for k, v in tried.settings.items()], title="Set")
    print()
    before, after = tried.table.dropped_by_rule(), tried.to_json(0)["then"]
    dropped_then: dict[str, int] = after["dropped_by_rule"]  # type: ignore[index]
    rows = [("kept", int(now.sum()), int(then.sum()))]
    rows += [(rule, before.get(rule, 0), dropped_then.get(rule, 0)) for rule in {**before, **dropped_then}]
    print_rows(("fate", "now", "then", "change"), [(f, a, b, _signed(b - a)) for f, a, b in rows], title="Clips")
    print()
    print_rows(
        ("source", "clips", "kept now", "kept then", "time now", "time then"),
        [
            (a.source, a.clips, a.kept, b.kept, duration(a.kept_seconds), duration(b.kept_seconds))
            for a, b in tried.yields()
        ],
        title="Yield by source",
    )  # fmt: skip
    _print_changes(tried, limit)
    if not then.any():
        print("\nno clip would be kept: a run with these thresholds fails")
    if tried.awaiting_captions:
        print(f"\n{tried.awaiting_captions} of those kept have no caption yet: a run asks the caption model for one")
    if tried.drift:
        print(f"\n{tried.drift} clips differ although nothing is set: the rules' code has changed since the run")
    settings = " ".join(f"--set {key}={_yaml(value['then'])}" for key, value in tried.settings.items())
    print(f"\nm4v run {target.recipe or 'RECIPE'} {settings}")


def _print_changes(tried: WhatIf, limit: int) -> None:
    if not tried.changed:
        print("\nno clip changes side")
        return
    changes = tried.changes(limit)
    print()
    print_rows(
        ("clip", "source", "item", "span", "now", "then"),
        [(Id(c.clip_id), c.source, c.path, _span(c.start_us, c.end_us), c.before, c.after) for c in changes],
        title=f"{tried.changed} clips change side",
        text=("item",),
    )
    if len(changes) < tried.changed:
        print(f"{len(changes)} of {tried.changed} listed; --limit {tried.changed} or --json lists all")


def _span(start_us: int, end_us: int) -> str:
    return f"{start_us / 1e6:.2f}-{end_us / 1e6:.2f} s" if end_us else "image"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda p: (-p[1], p[0])))


def _signed(value: int) -> str:
    return f"{value:+d}" if value else "0"


def _yaml(value: object) -> str:
    """A threshold as `--set` takes it."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _sum(first: list[int], second: list[int]) -> list[int]:
    return [a + b for a, b in zip(first, second, strict=True)]


def sparkline(counts: list[int], width: int = 16) -> str:
    """Counts as a row of `width` blocks; what is there at all shows."""
    step = max(1, -(-len(counts) // width))
    cells = [sum(counts[k : k + step]) for k in range(0, len(counts), step)]
    most = max(cells, default=0)
    return "".join(_BLOCKS[-(-c * (len(_BLOCKS) - 1) // most)] if most else _BLOCKS[0] for c in cells)
