"""What differs between two key records, in words: the reason that a plan gives for running a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from m4v.core.config import FrozenModel
from pipelines.keys.record import KeyRecord

MAX_SHOWN = 4
_MISSING = "(absent)"
SHORT = 12
TAKEDOWNS = "takedowns:"  # how the digest of a block list begins where a probe's value stands


class Change(FrozenModel):
    """One differing component; `old` or `new` is None where the component is absent on that side."""

    component: str  # stage | config | input | seed | code | lock | weights | numerics | probe
    field: str
    old: object = None
    new: object = None

    def words(self) -> str:
        match self.component:
            case "config" | "numerics":
                return f"{self.component} {self.field}: {_show(self.old)} -> {_show(self.new)}"
            case "stage":
                return f"stage version {self.old} -> {self.new}"
            case "seed":
                return f"seed {self.old} -> {self.new}"
            case "lock":
                return f"lock file: {_digest(self.old)} -> {_digest(self.new)}"
            case "probe" if str(self.new or self.old).startswith(TAKEDOWNS):
                return "the block list of takedowns changed (m4v takedown list)"
            case "probe":
                return f"files outside the store: {_digest(self.old)} -> {_digest(self.new)}"
            case "code":
                return self._file()
            case _:
                return f"{self.component} {self._file(': ')}"

    def _file(self, separator: str = " ") -> str:
        """A thing known by its digest: which one was there, and which is there now."""
        if self.old is None or self.new is None:
            verb, digest = ("added", self.new) if self.old is None else ("removed", self.old)
            return f"{self.field} {verb} ({_digest(digest)})"
        digests = f"{_digest(self.old)} -> {_digest(self.new)}"
        return f"{self.field}{separator}{digests}" if separator == ": " else f"{self.field} ({digests})"


def changes(old: KeyRecord, new: KeyRecord) -> list[Change]:
    """Every differing component, in the order in which a person would ask."""
    found = list(differing("config", flatten(old.config), flatten(new.config)))
    found += differing("input", old.inputs, new.inputs)
    for component, before, after in (
        ("seed", old.seed, new.seed),
        ("probe", old.probe, new.probe),
        ("stage", old.stage_version, new.stage_version),
        ("lock", old.lock_digest, new.lock_digest),
    ):
        if before != after:
            found.append(Change(component=component, field="", old=before, new=after))
    found += differing("code", old.code, new.code)
    found += differing("weights", old.weights, new.weights)
    found += differing("numerics", flatten(old.numerics or {}), flatten(new.numerics or {}))
    return found


def summarise(found: list[Change]) -> str:
    """One line: the first few changes of each component, the rest counted."""
    parts = []
    for component in dict.fromkeys(change.component for change in found):
        group = [change for change in found if change.component == component]
        if component == "code":
            files = ", ".join(change.words() for change in group[:MAX_SHOWN])
            parts.append(f"code changed: {files}{_more(group)}")
        else:
            parts.append("; ".join(change.words() for change in group[:MAX_SHOWN]) + _more(group))
    return "; ".join(parts)


def flatten(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings and lists as `a.b.0 -> leaf`; empty ones stay as leaves."""
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flatten_item(f"{prefix}{key}", item)
    return flat


def _flatten_item(path: str, item: object) -> dict[str, object]:
    if isinstance(item, Mapping) and item:
        return flatten(item, f"{path}.")
    if isinstance(item, list | tuple) and item:
        return flatten({str(i): v for i, v in enumerate(item)}, f"{path}.")
    return {path: item}


def differing(component: str, old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[Change]:
    """Every field that differs between two flat mappings, in order of name."""
    for field in sorted(old.keys() | new.keys()):
        before, after = old.get(field, _MISSING), new.get(field, _MISSING)
        # 24 and 24.0 are one number in canonical JSON; True and 1 are not.
        if before != after or isinstance(before, bool) is not isinstance(after, bool):
            is_value = component in ("config", "numerics")
            yield Change(
                component=component,
                field=field,
                old=before if field in old or is_value else None,
                new=after if field in new or is_value else None,
            )


def _more(group: list[Change]) -> str:
    return f" and {len(group) - MAX_SHOWN} more" if len(group) > MAX_SHOWN else ""


def _show(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _digest(value: object) -> str:
    return "(none)" if value in (None, "") else str(value)[:SHORT]
