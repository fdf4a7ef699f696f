"""What a running stage shows: step times, event files, the Prometheus endpoint, heartbeats and stacks."""

from __future__ import annotations

import json
import signal
import struct
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from m4v.config import ModelConfig
from m4v.core.errors import ConfigError, DataIntegrityError
from training import hardware
from training.clock import StepClock, Timing
from training.config import OrderConfig
from training.exporter import PORT_VARIABLE, Exporter
from training.hardware import StepCosts, memory_in_use, peak_flops
from training.heartbeat import HangLimits, Heartbeat, Pulse, dump_stacks, find_hang, read_heartbeats
from training.metrics import Speed
from training.monitor import Monitor, scalars
from training.order import DataOrder
from training.samples import SampleRow
from training.template import Column
from training.tensorboard import EventFile, masked_crc, read_records

CPU = torch.device("cpu")


def event_class() -> type:
    """The message that TensorBoard reads, from its published field numbers, by protobuf's own parser."""
    file = descriptor_pb2.FileDescriptorProto(name="event_test.proto", package="m4v_test", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    value = file.message_type.add(name="Value")
    value.field.add(name="tag", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    value.field.add(name="simple_value", number=2, type=kinds.TYPE_FLOAT, label=kinds.LABEL_OPTIONAL)
    summary = file.message_type.add(name="Summary")
    summary.field.add(
        name="value", number=1, type=kinds.TYPE_MESSAGE, type_name=".m4v_test.Value", label=kinds.LABEL_REPEATED
    )
    event = file.message_type.add(name="Event")
    event.field.add(name="wall_time", number=1, type=kinds.TYPE_DOUBLE, label=kinds.LABEL_OPTIONAL)
    event.field.add(name="step", number=2, type=kinds.TYPE_INT64, label=kinds.LABEL_OPTIONAL)
    event.field.add(name="file_version", number=3, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    event.field.add(
        name="summary", number=5, type=kinds.TYPE_MESSAGE, type_name=".m4v_test.Summary", label=kinds.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found: type = message_factory.GetMessageClass(pool.FindMessageTypeByName("m4v_test.Event"))
    return found


def events_of(folder: Path) -> list[tuple[int, dict[str, float]]]:
    (path,) = folder.glob("events.out.tfevents.*")
    parsed = [event_class().FromString(record) for record in read_records(path)]  # type: ignore[attr-defined]
    assert parsed[0].file_version == "brain.Event:2"
    return [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in parsed[1:]]


def test_checksums_are_those_of_the_format() -> None:
    """CRC-32C of nine digits is the published check value; the mask is its rotation by 15 plus a constant."""
    crc = 0xE3069283
    expected = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked_crc(b"123456789") == expected


def test_event_files_parse_and_tell_damage(tmp_path: Path) -> None:
    events = EventFile(tmp_path, 1000.5, "test")
    events.write(1001.0, 300, {"train/loss": 0.25, "train/lr": 1e-4})
    events.close()
    assert events_of(tmp_path) == [(300, {"train/loss": 0.25, "train/lr": pytest.approx(1e-4)})]
    data = events.path.read_bytes()
    events.path.write_bytes(data[:-3])
    assert len(list(read_records(events.path))) == 1  # the last one is still being written
    events.path.write_bytes(data[:-6] + b"\0\0" + data[-4:])
    with pytest.raises(DataIntegrityError, match="checksum"):
        list(read_records(events.path))
    (size,) = struct.unpack_from("<Q", data)
    assert size == len(next(read_records_of(data, tmp_path)))


def read_records_of(data: bytes, folder: Path) -> Iterator[bytes]:
    path = folder / "whole"
    path.write_bytes(data)
    return read_records(path)


def test_a_monitor_shows_saved_and_new_steps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PORT_VARIABLE, "0")
    before = [{"step": 0, "loss": 2.0, "media": "video"}]
    for attempt in range(2):  # the second attempt starts from the same save
        folder = tmp_path / str(attempt)
        folder.mkdir()
        monitor = Monitor(folder, "57f", before)
        monitor.step({"step": 1, "loss": 1.5, "media": "video"}, {"total": 0.5, "tokens_per_second": 100.0})
        address = f"http://127.0.0.1:{monitor.port}/metrics"
        with urllib.request.urlopen(address, timeout=300) as response:
            text = response.read().decode()
        monitor.close()
        assert 'm4v_training_loss{stage="57f"} 1.5' in text
        assert 'm4v_training_step{stage="57f"} 2.0' in text
        assert 'm4v_training_tokens_per_second{stage="57f"} 100.0' in text
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [r["step"] for r in rows] == [0, 1]
        shown = events_of(folder / "tensorboard")
        assert shown[0] == (0, {"train/loss": 2.0})
        assert shown[1] == (1, {"train/loss": 1.5, "speed/total": 0.5, "speed/tokens_per_second": 100.0})


def test_no_endpoint_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PORT_VARIABLE, raising=False)
    assert Exporter.from_environment("57f") is None
    monkeypatch.setenv(PORT_VARIABLE, "seventy")
    with pytest.raises(ConfigError, match="port of the metrics endpoint"):
        Exporter.from_environment("57f")
    taken = Exporter("57f", 0, "127.0.0.1")
    with pytest.raises(ConfigError, match="cannot listen"):
        Exporter("57f", taken.port, "127.0.0.1")
    taken.close()


def test_scalars_leave_out_text_and_missing_values() -> None:
    assert scalars({"step": 3, "loss": None, "media": "video", "lr": 1, "flag": True}) == {"lr": 1.0}


def test_communication_is_taken_out_of_the_part_around_it() -> None:
    with StepClock(CPU) as clock:
        with clock.part("backward"):
            StepClock.collective(lambda: sum(range(1000)))
        with clock.part("optimizer"):
            pass
    timing = clock.read()
    assert timing.communication > 0
    assert timing.backward > 0
    # The parts are cut out of one line of time: none is counted twice.
    (_, _, begin, end) = next(span for span in clock._spans if span[0] == "backward")
    assert timing.backward + timing.communication == pytest.approx(begin.seconds_to(end))
    assert StepClock.collective(lambda: 7) == 7  # outside a step nothing is counted


def test_speed_names_where_the_time_went() -> None:
    steps = [Timing(total=9), Timing(total=2, forward=0.5, communication=1.0), Timing(total=2, data=1.0)]
    summary = Speed(steps, tokens=26, mfu=[0.4, 0.5, 0.6], memory={"rss_bytes": 5}).summary()
    shares = summary["step_shares"]
    assert isinstance(shares, dict)
    assert (shares["communication"], shares["data"], shares["forward"]) == (0.25, 0.25, 0.125)
    assert (summary["mfu_median"], summary["rss_bytes"], summary["tokens_per_second"]) == (0.5, 5, 2.0)


def test_mfu_needs_a_published_peak() -> None:
    assert peak_flops("NVIDIA H200", "bfloat16") == 989.4e12
    assert peak_flops("NVIDIA H200", "float32") == 66.9e12
    assert peak_flops("Unheard-of 9000", "bfloat16") is None
    assert memory_in_use(CPU)["rss_peak_bytes"] >= memory_in_use(CPU)["rss_bytes"] // 2 > 0


def test_operations_of_a_step_are_three_forwards_of_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one forward costs is tested with the preflight; here each shape has a number of its own."""
    counted: dict[tuple[int, ...], int] = {}

    def count(_: object, column: Column, height: int, width: int) -> float:
        return float(counted.setdefault((*column, height, width), 10 ** (2 * len(counted))))

    monkeypatch.setattr(hardware, "forward_flops", count)
    rows = [SampleRow(f"s{n}", "a", "video", 2, 8, 8) for n in range(4)]
    order = DataOrder(rows, OrderConfig(frames=9, tokens_per_pack=40, packs=2, image_every=0), 1, "x")
    costs = StepCosts(ModelConfig(), order)
    assert len(counted) == 6  # three pyramid stages, two units
    for step in (0, 1):
        packs = order.packs(step)
        assert costs.of_step(step) == 3 * sum(p.stream.batch * counted[*c, 8, 8] for p in packs for c in p.columns)


def beat(rank: int, step: int, at: float, median: float | None = 2.0, phase: str = "step") -> Heartbeat:
    return Heartbeat.model_validate(
        {"rank": rank, "pid": 1, "step": step, "phase": phase, "at": at, "median_s": median}
    )


def test_a_hang_is_told_when_no_rank_goes_on() -> None:
    limits = HangLimits(factor=10, least_s=5, phase_s=100)
    assert find_hang([], 1e9, limits) is None
    beats = [beat(0, 7, 1000.0), beat(1, 6, 990.0), beat(2, 7, 999.0)]
    assert find_hang(beats, 1020.0, limits) is None
    hang = find_hang(beats, 1020.5, limits)
    assert hang is not None
    assert (hang.step, hang.ranks, hang.limit_s) == (6, (1,), 20)
    assert "no step for 20 s (limit 20 s) after step 6: rank 1" in hang.message
    quick = [beat(0, 7, 1000.0, median=0.01)]
    assert find_hang(quick, 1005.0, limits) is None
    assert find_hang(quick, 1005.1, limits) is not None


def test_a_long_phase_has_its_own_patience() -> None:
    limits = HangLimits(factor=10, least_s=5, phase_s=100)
    saving = [beat(0, 7, 1000.0, phase="save"), beat(1, 7, 1000.0)]
    assert find_hang(saving, 1099.0, limits) is None
    assert find_hang(saving, 1101.0, limits) is not None
    starting = [beat(0, 0, 1000.0, median=None, phase="start")]
    assert find_hang(starting, 1099.0, limits) is None


def test_a_rank_tells_its_steps_and_its_stacks(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    pulse = Pulse(tmp_path, 3, 10)
    try:
        for step in (11, 12, 13):
            pulse.enter("save")  # a change of phase is written at once
            pulse.finished(step, seconds=float(step))
        (found,) = read_heartbeats(tmp_path)
        assert (found.rank, found.step, found.phase, found.median_s) == (3, 13, "step", 12.5)
        (tmp_path / "heartbeat.9.json").write_text("{")  # half-written: its rank shows by its silence
        assert dump_stacks(read_heartbeats(tmp_path)) == [3]
        stacks = (tmp_path / "stacks.3.txt").read_text()
        # faulthandler shows the newest 100 threads, and those of other tests may still be alive.
        assert "test_a_rank_tells_its_steps_and_its_stacks" in stacks or stacks.count("Thread 0x") == 100
    finally:
        pulse.close()
        signal.signal(signal.SIGUSR1, before)
    assert read_heartbeats(tmp_path)[0].phase == "end"
