"""A comparison of two runs as tables of the terminal; the values are those of `pipelines.compare`."""

from __future__ import annotations

from pipelines.cli.output import print_facts, print_rows, short
from pipelines.compare import DataDelta, FieldChange, MetricDelta, RunComparison, SampleFile, StageComparison

SHOWN_FILES, SHOWN_CLIPS = 40, 5
DIGESTS = ("input", "code", "weights", "lock", "probe")


def print_comparison(found: RunComparison) -> None:
    """Every section that has something to say; a section without differences is named in the last line."""
    _sides(found)
    if len(found.stages) > 1:
        _stages(found.stages)
    equal = [
        title
        for title, shown in (
            ("config", _changes("config", found.config)),
            ("inputs", len(found.stages) > 1 or _changes("input", found.stages[0].of("input", "probe"))),
            ("data", _data(found.data)),
            ("code", _code(found)),
            ("environment", _environment(found)),
            ("weights", _changes("weights", found.weights)),
            ("metrics", _metrics(found.metrics)),
            ("samples", _samples(found)),
        )
        if not shown
    ]
    if equal:
        print(f"\nno difference in {', '.join(equal)}")


def _sides(found: RunComparison) -> None:
    rows = []
    for label, side in (("before", found.before), ("after", found.after)):
        rows.append((label, side.id, side.name, side.status, side.started_at, side.host))
    print_rows(("", found.kind, "name", "status", "started", "host"), rows)


def _stages(stages: tuple[StageComparison, ...]) -> None:
    rows = []
    for s in stages:
        what = "same run" if s.same_run else "same bytes" if s.same_outputs else "differs"
        rows.append((s.name, what, s.before_run, s.after_run, s.reason))
    print()
    print_rows(("stage", "outputs", "before", "after", "why"), rows, text=("why",))


def _changes(title: str, changes: tuple[FieldChange, ...]) -> bool:
    if changes:
        print()
        print_rows((title, "before", "after"), [(_name(c), _value(c, c.before), _value(c, c.after)) for c in changes])
    return bool(changes)


def _name(change: FieldChange) -> str:
    known = ("config", "weights", "code", "input")
    return change.field if change.component in known else " ".join(filter(None, (change.component, change.field)))


def _value(change: FieldChange, value: object) -> object:
    return short(str(value)) if change.component in DIGESTS and value is not None else value


def _data(deltas: tuple[DataDelta, ...]) -> bool:
    different = [d for d in deltas if d.before_id != d.after_id or d.note]
    if not different:
        return False
    print()
    columns = ("data", "before", "after", "clips before", "clips after", "added", "removed", "common", "note")
    rows = []
    for d in different:
        place = (d.node_id or d.kind, short(d.before_id), short(d.after_id))
        rows.append((*place, d.before, d.after, d.added, d.removed, d.common, d.note))
    print_rows(columns, rows, text=("note",))
    for d in different:
        for sign, clips in (("+", d.added_examples), ("-", d.removed_examples)):
            for clip in clips[:SHOWN_CLIPS]:
                print(f"  {sign} {clip['clip_id']} {clip['source']}/{clip['source_id']}")
            if len(clips) > SHOWN_CLIPS:
                print(f"  {sign} … (--json names more)")
    return True


def _code(found: RunComparison) -> bool:
    code = found.code
    if not code.files and code.before_commit == code.after_commit and code.before_diff == code.after_diff:
        return False
    print()
    facts: dict[str, object] = {"commits": code.range if code.commits is None else f"{code.range} ({code.commits})"}
    for label, digest in (("before", code.before_diff), ("after", code.after_diff)):
        if digest is not None:
            facts[f"uncommitted {label}"] = f"diff {short(digest)}"
    print_facts({f"code {name}": value for name, value in facts.items()})
    for subject in code.subjects[:SHOWN_FILES]:
        print(f"  {subject}")
    for change in code.files[:SHOWN_FILES]:
        print(f"  {change.words}")
    if len(code.files) > SHOWN_FILES:
        print(f"  and {len(code.files) - SHOWN_FILES} more (--json names them)")
    return True


def _environment(found: RunComparison) -> bool:
    if found.environment:
        print()
        rows = [(d.name, _short(d.before), _short(d.after)) for d in found.environment]
        print_rows(("environment", "before", "after"), rows)
    return bool(found.environment)


def _short(value: object) -> object:
    return short(value) if isinstance(value, str) and len(value) == 64 else value


def _metrics(metrics: tuple[MetricDelta, ...]) -> bool:
    different = [m for m in metrics if m.delta != 0 or m.note]
    if different:
        print()
        print_rows(
            ("metric", "before", "after", "change", "relative", "note"),
            [(m.name, m.before, m.after, _signed(m.delta), _percent(m.relative), m.note) for m in different],
            text=("note",),
        )
    return bool(different)


def _signed(value: float | None) -> str | None:
    return None if value is None else f"{value:+.4g}"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:+.1f} %"


def _samples(found: RunComparison) -> bool:
    different = [pair for pair in found.samples if not pair.same]
    if different:
        print()
        print_rows(
            ("samples", "prompt", "seed", "before", "after"),
            [(p.node_id, p.prompt, p.seed, _path(p.before), _path(p.after)) for p in different],
            text=("prompt", "before", "after"),
        )
    return bool(different)


def _path(file: SampleFile | None) -> str | None:
    return None if file is None else f"{file.uri}/{file.file}"
