"""VBench as a suite: its needs, one child process a dimension, what came of each. Torch-free."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from eval.records import SampleSet
from eval.suites import (
    Aggregate,
    DimensionResult,
    Requirement,
    SuiteInputs,
    SuiteVideo,
    Tooling,
    check_dimensions,
)
from eval.vbench.aggregate import fast_figures, standard_figures
from eval.vbench.child import run_worker
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.environment import SPECS, EnvironmentName, EnvironmentRecord, environment_of, find_record
from eval.vbench.inputs import suite_inputs
from eval.vbench.links import Links, lay_links, visible_device
from eval.vbench.preflight import environments, preflight, weights
from eval.vbench.prompt_suite import FULL_INFO, SAMPLES, STATIC_DIMENSION, packaged
from eval.vbench.reader import Unusable, read_answer
from eval.vbench.weights import catalogue, stand_ins
from m4v.core.canonical import digest_json
from m4v.core.storage import write_atomic

OUTCOME = "outcome.json"
PACKAGE = "vbench-pruna"


@dataclass(frozen=True)
class VBenchSuite:
    """See `eval.suites.Suite`. `devices`: `cpu`, or `cuda:N` of each GPU that may be used: one dimension at a time on
    each, never one dimension on several (VBench then averages otherwise)."""

    places: Places
    config: VBenchConfig = field(default_factory=VBenchConfig)
    devices: tuple[str, ...] = ("cpu",)
    threads: int = 1
    should_stop: Callable[[], bool] = field(default=lambda: False)

    @property
    def name(self) -> str:
        return self.config.suite

    @property
    def dimensions(self) -> tuple[str, ...]:
        return self.config.known

    def requirements(self, dimensions: Sequence[str]) -> tuple[Requirement, ...]:
        """Environments and weight files, present or not, every byte read; raises ConfigError for no dimension."""
        wanted = check_dimensions(self.name, self.dimensions, dimensions)
        config = self.config.model_copy(update={"dimensions": wanted})
        return preflight(config, self.places, hashing=True).requirements

    def inputs(
        self, samples: SampleSet, samples_id: str, dimensions: Sequence[str], *, partial: bool = False
    ) -> SuiteInputs:
        """See `suite_inputs`."""
        return suite_inputs(
            samples, samples_id, dimensions, self.config.mode, partial=partial,
            static_filter=self.config.static_filter, suite=self.config.suite,
        )  # fmt: skip

    def tooling(self, dimensions: Sequence[str]) -> Tooling:
        """VBench's version, what is installed beside it, every byte of the weights."""
        names = dict.fromkeys(self._environment(d) for d in dimensions)
        records = [r for n in names if (r := find_record(n, self.places.python(n))) is not None]
        versions = sorted({self._version_of(r) for r in records})
        options: dict[str, JsonValue] = {
            "mode": self.config.mode, "static_filter": any(self._filters(d) for d in dimensions),
            "published_weights": self.config.published_weights, "device": self.devices[0].partition(":")[0],
        }  # fmt: skip
        stand_in = stand_ins(
            dimensions, self.places, published=self.config.published_weights, variant=self.config.variant
        )
        if stand_in:
            options["stand_in"] = list(stand_in)
        return Tooling(
            suite=self.name,
            version=", ".join(versions) or "unknown",
            environments=environments(dimensions, self.places, self.config.suite),
            weights=weights(dimensions, self.places, variant=self.config.variant),
            options={**options, **self._more_options()},
        )

    def run(self, inputs: SuiteInputs, videos: Path, folder: Path) -> Iterator[DimensionResult]:
        """Results as they come. What a folder has measured is not measured again while videos, environment and weights
        are the same; what failed is tried anew."""
        free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for device in self.devices:
            free.put(device)
        halt = threading.Event()

        def measure(dimension: str) -> DimensionResult | None:
            device = free.get()
            try:
                return None if halt.is_set() else self._measure(inputs, dimension, videos, folder, device, halt)
            finally:
                free.put(device)

        with ThreadPoolExecutor(len(self.devices), thread_name_prefix="vbench") as pool:
            try:
                for future in as_completed([pool.submit(measure, d) for d in inputs.by_dimension]):
                    if (result := future.result()) is not None:
                        yield result
            finally:
                halt.set()  # who reads no further wants no further children

    def _measure(
        self, inputs: SuiteInputs, dimension: str, videos: Path, folder: Path, device: str, halt: threading.Event
    ) -> DimensionResult | None:
        """One dimension; None when it was stopped half-way."""
        mine = inputs.by_dimension[dimension]
        if not mine:
            return DimensionResult(
                dimension=dimension, status="refused", expected=0, reason="no video is of its prompts"
            )
        key = digest_json([
            dimension, [v.canonical() for v in mine], inputs.samples,
            environments([dimension], self.places, self.config.suite),
            weights([dimension], self.places, variant=self.config.variant), self._filters(dimension),
            dimension in self.config.allow_zero, device.partition(":")[0], self._more_options(),
        ])  # fmt: skip
        place = folder / dimension
        if (known := read_outcome(place, key)) is not None:
            return known
        links = lay_links(place, dimension, mine, videos, self.places, variant=self.config.variant)
        request = self._request(dimension, mine, links, place, device)
        variables = {
            **links.variables, "CUDA_VISIBLE_DEVICES": visible_device(device), "OMP_NUM_THREADS": str(self.threads),
        }  # fmt: skip
        name = self._environment(dimension)
        ended = run_worker(
            self.places.python(name), request, place, variables, self.config.limit_s,
            lambda: halt.is_set() or self.should_stop(), worker=SPECS[name].workers[-1],
        )  # fmt: skip
        self._clear(place)
        if ended.end == "stopped":
            return None
        if ended.end != "answered" or ended.answer is None:
            return failed(dimension, mine, f"{ended.end}: {ended.reason}")
        try:
            self._check_installed(dimension, ended.answer)
            result = self._read(ended.answer, dimension, mine, links)
        except Unusable as error:
            return failed(dimension, mine, str(error))
        write_outcome(place, key, result)
        return result

    def _read(
        self, answer: Mapping[str, Any], dimension: str, videos: Sequence[SuiteVideo], links: Links
    ) -> DimensionResult:
        return read_answer(
            answer, dimension, videos, links.path_of, links.frames, self.config.allow_zero,
            filtered=self._filters(dimension),
        )  # fmt: skip

    def _clear(self, place: Path) -> None:
        """Remove what the worker made for itself."""

    def _more_options(self) -> dict[str, JsonValue]:
        """What else can move a number, beside `tooling`'s."""
        return {}

    def _version_of(self, record: EnvironmentRecord) -> str:
        return record.packages.get(PACKAGE) or record.packages.get("vbench", "unknown")

    def _environment(self, dimension: str) -> EnvironmentName:
        return environment_of(dimension, self.config.suite)

    def _request(
        self, dimension: str, videos: Sequence[SuiteVideo], links: Links, place: Path, device: str
    ) -> dict[str, object]:
        request: dict[str, object] = {
            "task": "evaluate", "dimension": dimension, "device": device.partition(":")[0], "threads": self.threads,
            "entries": _entries(dimension, videos, links.path_of), "full_info": str(place / "full_info.json"),
            "picture": str(links.picture),
        }  # fmt: skip
        if self._filters(dimension):
            raft = Path(links.variables["VBENCH_CACHE_DIR"]) / catalogue().files["raft"].below
            request["static_filter"] = {"weights": str(raft), "most": SAMPLES}
        return request

    def _filters(self, dimension: str) -> bool:
        return self.config.static_filter and dimension == STATIC_DIMENSION

    def _check_installed(self, dimension: str, answer: Mapping[str, object]) -> None:
        """What measured must be what the identity says."""
        name = self._environment(dimension)
        record = find_record(name, self.places.python(name))
        if record is None or (record.python, record.packages) != (answer.get("python"), answer.get("packages")):
            raise Unusable(
                f"the packages of the {name} environment are others than its record says; set it up again: "
                f"m4v evaluate setup {name}"
            )

    def aggregate(self, results: Sequence[DimensionResult]) -> Aggregate:
        """Total, Quality and Semantic of the suite's prompts, the fast protocol's averages of others."""
        return standard_figures(results) if self.config.mode == "standard" else fast_figures(results)


def failed(dimension: str, videos: Sequence[SuiteVideo], reason: str) -> DimensionResult:
    return DimensionResult(dimension=dimension, status="failed", expected=len(videos), reason=reason)


def read_outcome(folder: Path, key: str) -> DimensionResult | None:
    """A finished dimension of the same question; None when there is none."""
    path = folder / OUTCOME
    if not path.is_file():
        return None
    data = json.loads(path.read_bytes())
    return DimensionResult.model_validate(data["result"]) if data["key"] == key else None


def write_outcome(folder: Path, key: str, result: DimensionResult) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / OUTCOME, json.dumps({"key": key, "result": result.canonical()}, sort_keys=True).encode())


def _entries(dimension: str, videos: Sequence[SuiteVideo], path_of: Mapping[str, str]) -> list[dict[str, object]]:
    """Prompts with their videos as VBench reads them, and what it asks of a prompt beside its words."""
    auxiliary = {
        e["prompt_en"]: e["auxiliary_info"]
        for e in json.loads(packaged(FULL_INFO))
        if dimension in e["dimension"] and "auxiliary_info" in e
    }
    paths: dict[str, list[str]] = {}
    for video in videos:
        paths.setdefault(video.prompt, []).append(path_of[video.file])
    return [
        {"prompt_en": prompt, "dimension": [dimension], "video_list": files,
         **({"auxiliary_info": auxiliary[prompt]} if prompt in auxiliary else {})}
        for prompt, files in paths.items()
    ]  # fmt: skip


__all__ = ["VBenchSuite", "failed", "read_outcome", "write_outcome"]
