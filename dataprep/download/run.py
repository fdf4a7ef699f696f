"""A download: worker threads fetch what is wanted and not there, this thread keeps the books and reports."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dataprep.download.client import Client
from dataprep.download.config import DownloadConfig
from dataprep.download.disk import Disk
from dataprep.download.fetch import Fetcher, Stopped
from dataprep.download.outcome import Fetched, FetchError, WantedFile
from dataprep.download.schedule import Bandwidth, Schedule, Task
from dataprep.download.state import DownloadState
from m4v.core.errors import InfrastructureError
from m4v.core.rng import generator

_POLL_S = 0.2
_STOP_S = 5.0
_THROTTLED = 4.0  # times the usual wait after "too many requests" and "not now"
_FEW = 20  # of a handful of files one that is unreachable is no outage
Tick = Callable[["Report"], None]
Outcome = tuple[Task, Fetched | FetchError | BaseException]


@dataclass
class Report:
    """Figures of one download. `wanted`: files that were missing; `skipped`: of them, those known to fail for good;
    `failed`: by reason; `unreachable`: how many of these a later download tries again."""

    wanted: int = 0
    skipped: int = 0
    fetched: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    unreachable: int = 0
    retries: int = 0
    received_bytes: int = 0
    resumed_bytes: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        return self.skipped + self.fetched + sum(self.failed.values())

    def add(self, later: Report) -> None:
        """Add the figures of a later round over the same files."""
        self.wanted, self.skipped = later.wanted, later.skipped
        self.failed.update(later.failed)
        self.fetched += later.fetched
        self.unreachable, self.retries = later.unreachable, self.retries + later.retries
        self.received_bytes += later.received_bytes
        self.resumed_bytes += later.resumed_bytes
        self.seconds += later.seconds

    def figures(self) -> dict[str, object]:
        """For the ledger."""
        return {**vars(self), "failed": dict(sorted(self.failed.items())), "seconds": round(self.seconds, 3)}

    def words(self) -> str:
        """One line: fetched, failed by reason, bytes and bytes a second."""
        parts = [f"{self.fetched} fetched"]
        if self.failed:
            parts.append("failed: " + ", ".join(f"{n} {reason}" for reason, n in self.failed.most_common(4)))
        if self.skipped:
            parts.append(f"{self.skipped} failed before")
        rate = self.received_bytes / self.seconds if self.seconds > 0 else 0.0
        parts.append(f"{self.received_bytes / 1e6:.1f} MB at {rate / 1e6:.1f} MB/s")
        return "; ".join(parts)


class Downloader:
    """Fetches the files that `state` holds as pending. `tick` is called some times a second with the figures and may
    raise to stop (Drained, KeyboardInterrupt): parts of files are kept and the next run goes on with them."""

    def __init__(
        self, config: DownloadConfig, state: DownloadState, *, seed: int = 0, tick: Tick = lambda report: None,
        client: Client | None = None,
    ) -> None:  # fmt: skip
        self._config, self._state, self._seed, self._tick = config, state, seed, tick
        self._client = client or Client(config)
        self._stop = threading.Event()
        self._schedule = Schedule(config)
        bandwidth = Bandwidth(config.bytes_per_s)
        local, stopped = state.location.is_local, self._stop.is_set
        disk = Disk(config, state.parts, kept=state.fetched_bytes() if local else 0, stays=local, stopped=stopped)
        self._fetcher = Fetcher(self._client, config, state.location, state.parts, bandwidth.spend, stopped, disk)
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.report = Report()

    def run(self) -> Report:
        """Raises InfrastructureError when the disk is too full, or disk or store fail; ConfigError when it may hold no
        more on disk; what `tick` raises."""
        counts = self._state.counts()
        self.report.wanted = sum(counts.values())
        self.report.skipped = counts.get("failed", 0)
        threads = [
            threading.Thread(target=self._work, name=f"download-{n}", daemon=True)
            for n in range(min(self._config.concurrency, max(1, counts.get("pending", 0))))
        ]
        for thread in threads:
            thread.start()
        try:
            self._keep_books()
        finally:
            self._stop.set()
            self._schedule.close()
            deadline = time.monotonic() + _STOP_S  # one that hangs in a read is left behind: it only has a part to lose
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            self._client.close()
            self._drain_outcomes()
            self._state.write_failures()
        if not self.report.unreachable:
            self._state.clear_parts()
        return self.report

    def _keep_books(self) -> None:
        begun = time.monotonic()
        pending, more = self._state.pending(), True
        while more or self._schedule.held:
            for _ in range(self._schedule.room if more else 0):
                wanted = next(pending, None)
                if wanted is None:
                    more = False
                    break
                self._schedule.add(Task(wanted))
            self._settle(timeout_s=_POLL_S)
            self.report.seconds = time.monotonic() - begun
            self._tick(self.report)

    def _settle(self, timeout_s: float) -> None:
        """Book one outcome, waiting for it, and those that are there already."""
        try:
            outcome = self._outcomes.get(timeout=timeout_s)
            while True:
                self._book(*outcome)
                outcome = self._outcomes.get_nowait()
        except queue.Empty:
            return

    def _drain_outcomes(self) -> None:
        """Book what ended while stopping: a file in its place must not stand as pending."""
        while not self._outcomes.empty():
            task, result = self._outcomes.get()
            if isinstance(result, Fetched):
                self._state.fetched(task.wanted.path, result, task.attempts)

    def _book(self, task: Task, result: Fetched | FetchError | BaseException) -> None:
        path = task.wanted.path
        if isinstance(result, Fetched):
            self._state.fetched(path, result, task.attempts)
            self.report.fetched += 1
            self.report.received_bytes += result.received
            self.report.resumed_bytes += result.resumed
        elif isinstance(result, FetchError):
            wait = self._retry_in_s(task, result)
            if wait is not None:
                self.report.retries += 1
                self._schedule.finish(task, retry_in_s=wait)
                return
            self._state.failed(path, result, task.attempts)
            self.report.failed[result.reason] += 1
            self.report.unreachable += result.retry
        elif not isinstance(result, Stopped):
            raise result
        self._schedule.finish(task)

    def _retry_in_s(self, task: Task, error: FetchError) -> float | None:
        """Seconds until the next try: the server's own word, or exponential backoff with full jitter's upper half;
        None when there is none."""
        config = self._config
        if not error.retry or task.attempts >= config.attempts:
            return None
        if error.after_s is not None and error.after_s > config.retry_after_max_s:
            return None
        return max(error.after_s or 0.0, self._backoff_s(task, error))

    def _backoff_s(self, task: Task, error: FetchError) -> float:
        """Longer where the server said that it is asked too much than where a connection broke."""
        config = self._config
        base = config.backoff_s * (_THROTTLED if error.host else 1.0)
        jitter = float(generator(self._seed, task.wanted.path, task.attempts, "download-backoff").uniform(0.5, 1.0))
        return min(config.backoff_max_s, base * 2.0 ** (task.attempts - 1)) * jitter

    def _work(self) -> None:
        while (task := self._schedule.take()) is not None:
            task.attempts += 1
            try:
                self._outcomes.put((task, self._fetcher.fetch(task.wanted)))
            except BaseException as error:
                if isinstance(error, FetchError) and error.host:
                    after = self._backoff_s(task, error) if error.after_s is None else error.after_s
                    self._schedule.pause(task, min(after, self._config.retry_after_max_s))
                self._outcomes.put((task, error))


def download(
    config: DownloadConfig, wanted: Iterable[WantedFile], state: DownloadState, *, seed: int = 0,
    tick: Tick = lambda report: None, again: bool = False, client: Client | None = None,
) -> Report:  # fmt: skip
    """Fetch `wanted` files that are not there into the collection of `state`; `again` also tries those that failed
    for good.

    Raises InfrastructureError when more than `config.max_unreachable` of them were unreachable: most are then in
    their place, and another run goes on with the rest.
    """
    state.want(wanted, again=again)
    report = Downloader(config, state, seed=seed, tick=tick, client=client).run()
    tried = report.wanted - report.skipped
    if report.unreachable == tried > 0 or (tried >= _FEW and report.unreachable > config.max_unreachable * tried):
        reasons = ", ".join(f"{n} {reason}" for reason, n in report.failed.most_common(3))
        raise InfrastructureError(
            f"{report.unreachable} of {tried} files could not be reached ({reasons})", where=state.location.uri,
            next_step="check the network and run again: it goes on where it ended; or raise download.max_unreachable",
        )  # fmt: skip
    return report


__all__ = ["DownloadState", "Downloader", "Report", "download"]
