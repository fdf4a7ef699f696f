"""What a source stage would list, told row by row before a byte of media is read: what is usable, what is
rejected and why, and what it would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from dataprep.sources.adapter import ScanContext
from dataprep.sources.config import AdapterConfig, SyntheticConfig
from dataprep.sources.digests import NoDigests
from dataprep.sources.keys import KeySet, key_of
from dataprep.sources.listing import Entry, ListedFile, Rejected
from m4v.core.storage import Storage

EXAMPLES = 5  # kept of every reason


@dataclass(frozen=True)
class Example:
    """A rejected row. `detail` carries the table, row number and byte offset where they are known."""

    path: str
    row: int | None
    detail: str


@dataclass
class Estimate:
    """What there is to curate and encode, by the claims of the collection; nothing is measured.

    `clips` are spans or whole files before shots are cut. `hours` are those of videos with a claimed length;
    `hours_expected` adds the mean length for the `without_length` others. `to_fetch` files are named by tables, with
    a URL, and are not there; their bytes are expected at the mean size of those that are.
    """

    clips: int = 0
    images: int = 0
    size_bytes: int = 0
    hours: float = 0.0
    without_length: int = 0
    to_fetch: int = 0
    to_fetch_hours: float = 0.0
    hours_expected: float | None = None
    to_fetch_bytes_expected: int | None = None
    gpu_hours: float | None = None


@dataclass
class Report:
    """`rows` counts table rows where the collection has tables, else files."""

    kind: str
    rows: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    estimate: Estimate = field(default_factory=Estimate)

    def to_json(self) -> dict[str, object]:
        made = asdict(self)
        made["rejected"], made["counts"] = dict(sorted(self.rejected.items())), dict(sorted(self.counts.items()))
        return made


def validate(
    config: AdapterConfig, location: Storage | None, *, encoder_fps: float | None = None, sample_fps: float = 24.0
) -> Report:
    """Scan a collection without reading its media. `encoder_fps`: frames that one GPU encodes in a second, for the
    estimate of GPU hours at `sample_fps` frames a second of video.

    Raises InputError when the collection as a whole cannot be used.
    """
    report = Report(config.kind)
    if isinstance(config, SyntheticConfig):
        _drawn(config, report)
    else:
        if location is None:
            raise ValueError("a collection that is not drawn has a location")
        paths = KeySet()
        for entry in _entries(config, location):
            _count(entry, report, paths)
    estimate, known = report.estimate, report.estimate.clips - report.estimate.images
    known -= estimate.without_length
    if known or not estimate.without_length:
        estimate.hours_expected = estimate.hours * (1 + estimate.without_length / known if known else 1)
    files = report.counts["distinct_files"]
    if estimate.to_fetch and files:
        estimate.to_fetch_bytes_expected = round(estimate.to_fetch * estimate.size_bytes / files)
    if encoder_fps is not None and estimate.hours_expected is not None:
        total = estimate.hours_expected + estimate.to_fetch_hours
        estimate.gpu_hours = total * sample_fps / encoder_fps
    report.rows = report.counts["rows"] or report.accepted + sum(report.rejected.values())
    return report


def _entries(config: AdapterConfig, location: Storage) -> Iterator[Entry]:
    from dataprep.sources import entries  # the package imports this module

    with NoDigests() as digests:
        yield from entries(config, location, ScanContext(digests))


def _drawn(config: SyntheticConfig, report: Report) -> None:
    report.accepted = config.count + config.stills
    report.estimate.clips, report.estimate.images = report.accepted, config.stills
    report.estimate.hours = config.count * config.frames / config.fps / 3600


def _count(entry: Entry, report: Report, paths: KeySet) -> None:
    if isinstance(entry, ListedFile):
        report.accepted += 1
        _add(entry, report, paths)
    elif isinstance(entry, Rejected):
        report.rejected[entry.reason] += 1
        examples = report.examples.setdefault(entry.reason, [])
        if len(examples) < EXAMPLES:
            examples.append(Example(entry.path, entry.row, entry.detail))
        if entry.wanted is not None:
            report.estimate.to_fetch += 1
            seconds = entry.wanted.claims.get("duration_s")
            if isinstance(seconds, float):
                report.estimate.to_fetch_hours += seconds / 3600
    else:
        report.counts[entry.name] += entry.number


def _add(file: ListedFile, report: Report, paths: KeySet) -> None:
    estimate = report.estimate
    estimate.clips += 1
    if paths.add(key_of(file.path)):
        report.counts["distinct_files"] += 1
        estimate.size_bytes += file.size_bytes
    if file.media == "image":
        estimate.images += 1
        return
    seconds = file.duration_s
    if file.first_frame is not None and file.last_frame is not None:  # the claim is of the whole file
        seconds = (file.last_frame - file.first_frame + 1) / file.fps if file.fps else None
    if seconds is None:
        estimate.without_length += 1
    else:
        estimate.hours += seconds / 3600
