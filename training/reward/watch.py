"""The hacking watch: does the reward rise at the cost of what it does not measure? Torch-free.

Everything follows from the rows of the metrics, which are equal on all ranks and come again after a kill, so that a
resumed run decides alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from m4v.core.errors import M4VError
from training.reward.watch_config import WatchConfig

REWARD, HELD_OUT = "reward", "held_out_"
SATURATION, CONTRAST, GRID, MOTION, SIMILARITY = (
    "frame_saturation", "frame_contrast", "frame_grid_energy", "frame_difference", "frame_similarity"
)  # fmt: skip
FRAME_NAMES = (SATURATION, CONTRAST, GRID, MOTION, SIMILARITY)
# Changes of the probe's measures since the start model, in the row of a save's last step, each with its standard error.
DRIFT, PROBE_LOSS, SEEDS = "velocity_drift", "probe_loss_rise", "seed_similarity_rise"
PROBE_NAMES, ERROR = (DRIFT, PROBE_LOSS, SEEDS), "_error"
_IN_A_ROW = 2
_ERRORS = 2.0  # standard errors that a departure must stand out by
_TINY = 1e-9
Row = Mapping[str, object]


@dataclass(frozen=True)
class Level:
    """Mean of a measure over some steps and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Level | None:
        if len(values) < 2:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)))


@dataclass(frozen=True)
class Alarm:
    """`reasons` in words; `good` is the step of the last save before the first departure (0: the start itself)."""

    step: int
    good: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What the watch says of one measure: its level at the start and at the last save (of the probe's measures, the
    changes since the start model), how far it may go (0: it is not held to anything), and the saves at which it was
    out of bounds."""

    name: str
    start: float | None
    last: float | None
    limit: float
    departed: tuple[int, ...]


class WatchFinished(M4VError):
    """Leaves the loop of a trainer whose stage ends with its last good save. Never leaves the stage."""

    def __init__(self, alarm: Alarm) -> None:
        super().__init__(f"step {alarm.step} ends the stage with the save of step {alarm.good}")
        self.alarm = alarm


class Watch:
    """Watches one stage whose saves are `every` steps apart; `rows` are those of the steps behind it."""

    def __init__(self, config: WatchConfig, every: int, rows: Iterable[Row] = ()) -> None:
        self._config, self._every = config, every
        self._start: dict[str, Level] = {}
        self._window: list[Row] = []
        self._last: dict[str, Level] = {}
        self._answers: Row = {}  # of the probe at the last save
        self._departed: list[tuple[int, frozenset[str], dict[str, str]]] = []  # by save: step, measures, words
        self.alarm: Alarm | None = None  # the first one
        for row in rows:
            self.add(row)

    @property
    def on_alarm(self) -> str:
        return self._config.on_alarm

    def add(self, row: Row) -> Alarm | None:
        """Count a finished step; the alarm that it raises."""
        self._window.append(row)
        done = int(str(row["step"])) + 1
        if done % self._every:
            return None
        levels, self._window = _levels(self._window), []
        self._last, self._answers = levels, row
        words = dict(self._probed(row))
        if not self._start:
            self._start = levels
        else:
            words |= self._departures(levels)
        self._departed.append((done, frozenset(words), words))
        return self._judge(done)

    def verdicts(self) -> tuple[Verdict, ...]:
        """Of everything that was measured, in one order."""
        found = []
        for name, (down, up) in self._limits(self._start).items():
            if name in self._start:
                last = self._last[name].mean if name in self._last else None
                found.append(self._verdict(name, self._start[name].mean, last, max(down, up)))
        for name, limit in self._probe_limits().items():
            if isinstance(value := self._answers.get(name), int | float):
                found.append(self._verdict(name, None, float(value), limit))
        return tuple(found)

    def _verdict(self, name: str, start: float | None, last: float | None, limit: float) -> Verdict:
        return Verdict(name, start, last, limit, tuple(step for step, names, _ in self._departed if name in names))

    def _judge(self, done: int) -> Alarm | None:
        last = self._departed[-_IN_A_ROW:]
        again = frozenset.intersection(*(names for _, names, _ in last)) if len(last) == _IN_A_ROW else frozenset()
        if not again or self.alarm is not None:
            return None
        good = last[0][0] - self._every
        self.alarm = Alarm(done, good, tuple(last[-1][2][name] for name in sorted(again)))
        return self.alarm

    def _departures(self, levels: Mapping[str, Level]) -> Iterable[tuple[str, str]]:
        """Measures that are out of bounds now, each with words for it."""
        config, reward = self._config, self._change(REWARD, levels)
        rises = reward is not None and reward.mean > _ERRORS * reward.error
        for name, (down, up) in self._limits(levels).items():
            change = self._change(name, levels)
            if change is None or name == SIMILARITY or (name.startswith(HELD_OUT) and not rises):
                continue
            level = max(abs(self._start[name].mean), _TINY)
            beyond = max(-change.mean - down * level if down else 0, change.mean - up * level if up else 0)
            if beyond > _ERRORS * change.error:
                yield name, self._words(name, levels[name])
        change = self._change(SIMILARITY, levels)
        if change is not None and config.similarity:  # a share of the way that is left to 1
            room = max(1 - self._start[SIMILARITY].mean, _TINY)
            if change.mean - config.similarity * room > _ERRORS * change.error:
                yield SIMILARITY, self._words(SIMILARITY, levels[SIMILARITY])

    def _limits(self, measured: Iterable[str]) -> dict[str, tuple[float, float]]:
        """How far down and up each measure may go, as a share of its start; of the likeness, of the way left to 1."""
        config = self._config
        return {
            REWARD: (0.0, 0.0),
            **{name: (config.held_out_fall, 0.0) for name in measured if name.startswith(HELD_OUT)},
            "loss": (0.0, config.data_loss),
            MOTION: (config.freezing, 0.0),
            SATURATION: (config.saturation, config.saturation),
            CONTRAST: (config.contrast, config.contrast),
            GRID: (0.0, config.grid_energy),
            SIMILARITY: (0.0, config.similarity),
        }

    def _probe_limits(self) -> dict[str, float]:
        config = self._config
        return {DRIFT: config.drift, PROBE_LOSS: config.data_loss, SEEDS: config.seed_similarity}

    def _probed(self, row: Row) -> Iterable[tuple[str, str]]:
        """Measures of the probe that are out of bounds; they are changes since the start model already."""
        for name, limit in self._probe_limits().items():
            value, error = row.get(name), row.get(name + ERROR)
            if not limit or not isinstance(value, int | float) or not isinstance(error, int | float):
                continue
            if value - limit > _ERRORS * error:
                yield name, f"{name} is {value:.4g}, at most {limit:.4g} is allowed"

    def _change(self, name: str, levels: Mapping[str, Level]) -> Level | None:
        """From the start's level to now, with the standard error of the difference."""
        if name not in levels or name not in self._start:
            return None
        before, now = self._start[name], levels[name]
        return Level(now.mean - before.mean, math.hypot(before.error, now.error))

    def _words(self, name: str, now: Level) -> str:
        return f"{name} is {now.mean:.4g}, at the start {self._start[name].mean:.4g}"


def _levels(rows: Sequence[Row]) -> dict[str, Level]:
    """Levels of what the rows have numbers for; steps without an update count too, since they were measured."""
    found: dict[str, Level] = {}
    names = {
        name for row in rows for name in row if name in (REWARD, "loss", *FRAME_NAMES) or name.startswith(HELD_OUT)
    }
    for name in sorted(names):
        values = [float(value) for row in rows if isinstance(value := row.get(name), int | float)]
        level = Level.of(values)
        if level is not None:
            found[name] = level
    return found
