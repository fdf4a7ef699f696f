"""Loader, resume state, exposure, EMA, metrics and learning rate, each alone."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import clips, latent_of, write_dataset

from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.core.shard_index import INDEX, read_index
from m4v.core.storage import Storage
from m4v.flow.latents import normalise
from training import state
from training.clock import Timing
from training.config import OptimizerConfig, OrderConfig, RewardTermConfig, latents_of
from training.ema import Ema, decay_at
from training.engine import Fragment
from training.exposure import DebugLog, ExposureState, order_of, seen, steps_that_saw, surviving_line
from training.families.pyramid import PyramidFamily
from training.loader import Batch, Collator, SampleStore, Text
from training.metrics import Speed
from training.order import Pack, check_world_size
from training.prefetch import Prefetcher
from training.state import SaveManifest, Shard, StateFile, StateStore

ORDER = OrderConfig(frames=17, tokens_per_pack=80, image_every=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("units") / "dataset"
    write_dataset(directory, clips(videos=7, images=3))
    return directory


def state_of(cursor: int, seed: int = 5) -> ExposureState:
    return ExposureState(
        stage="17f", dataset_id="d", order=ORDER, seed=seed, global_batch=(), cursor=cursor, init_from=None
    )


def collator(dataset: Path, text_drop: float = 0.0, window: tuple[float, float] | None = None) -> Collator:
    null = load_file(dataset / "null_text.safetensors")
    return Collator(
        store=SampleStore(dataset.joinpath, read_index(dataset / INDEX)),
        packing=PyramidFamily(CheckpointConfig(model=ModelConfig(), schedule=ScheduleConfig())),
        null_text=Text(*(null[key][0] for key in Text._fields)),
        seed=5,
        stage="17f",
        text_drop=text_drop,
        high_window=window,
        with_captions=True,
    )


def test_latent_counts_of_the_ladder() -> None:
    assert [latents_of(f) for f in (1, 57, 121, 241)] == [1, 8, 16, 31]
    with pytest.raises(ValueError, match="8n\\+1"):
        OrderConfig(frames=56)
    with pytest.raises(ValueError, match="noise_window"):
        RewardTermConfig(noise_window=(0.6, 0.1))


def test_learning_rate_warms_up_linearly_then_stays() -> None:
    config = OptimizerConfig(lr=1e-3, warmup_steps=10, warmup_from=0.0)
    assert [config.lr_at(s, 100) for s in (0, 5, 10, 99)] == pytest.approx([0.0, 5e-4, 1e-3, 1e-3])
    assert OptimizerConfig(lr=2e-3, warmup_steps=0).lr_at(0, 1) == 2e-3
    cosine = config.model_copy(update={"decay": "cosine"})
    assert [cosine.lr_at(s, 110) for s in (5, 10, 60, 110)] == pytest.approx([5e-4, 1e-3, 5e-4, 0.0])


def test_config_of_training_is_torch_free() -> None:
    modules = "training.config, training.order, training.exposure, training.preflight"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_sample_meets_the_same_numbers_in_any_batch(dataset: Path) -> None:
    """A pack of several samples gives each what a pack of that sample alone gives it."""
    collate = collator(dataset, text_drop=0.5)
    pack = order_of(state_of(9), read_index(dataset / INDEX)).pack(0, 0)
    whole, count = collate(pack), len(pack.columns)
    assert len(pack.draws) > count
    for row in range(len(pack.draws) // count):
        part = collate(Pack(0, pack.stream, pack.columns, pack.draws[row * count : (row + 1) * count]))
        assert torch.equal(part.text[0], whole.text[row * count])
        assert part.dropped == whole.dropped[row * count : (row + 1) * count]
        for one, many in zip(part.columns, whole.columns, strict=True):
            assert torch.equal(one.target[0], many.target[row])
            assert all(torch.equal(a[0], b[row]) for a, b in zip(one.clips, many.clips, strict=True))


def test_batches_hold_what_the_shards_hold(dataset: Path) -> None:
    index = read_index(dataset / INDEX)
    number = dict(zip(index["sample_id"].to_pylist(), index["source_id"].to_pylist(), strict=True))
    order = order_of(state_of(9), index)
    pack = order.pack(1, 1)
    batch = collator(dataset)(pack)
    for row, draw in enumerate(pack.draws):
        sample, column = divmod(row, len(pack.columns))
        expected = latent_of(clips(7, 3)[int(number[draw.sample_id])]).float()[None]
        assert torch.equal(batch.latents[column][sample], normalise(expected)[0])
    assert batch.columns[3].clips[-1].shape[-2:] == (8, 8)
    assert batch.columns[0].clips[-1].shape[-2:] == (2, 2)


def test_text_drop_gives_the_null_text_at_its_rate(dataset: Path) -> None:
    collate = collator(dataset, text_drop=0.25)
    order = order_of(state_of(9), read_index(dataset / INDEX))
    batches = [collate(p) for s in range(30) for p in order.packs(s)]
    dropped = [d for b in batches for d in b.dropped]
    assert 0.2 < sum(dropped) / len(dropped) < 0.3
    rows = [row for b in batches for row, d in zip(b.text, b.dropped, strict=True) if d]
    assert all(torch.equal(row, collate.null_text.embedding) for row in rows)
    captions = {c for b in batches for c in b.captions}
    assert any(c.endswith("on grey") for c in captions)
    assert any(not c.endswith("on grey") for c in captions)


def test_window_narrows_the_noise_of_high_columns_only(dataset: Path) -> None:
    order = order_of(state_of(9), read_index(dataset / INDEX))
    packs = [p for s in range(12) for p in order.packs(s)]
    free = [collator(dataset)(p) for p in packs]
    tight = [collator(dataset, window=(0.1, 0.6))(p) for p in packs]

    def high(batches: list[Batch]) -> torch.Tensor:
        return torch.cat([b.columns[3].sigma for b in batches])

    assert high(tight).min() >= 0.099
    assert high(tight).max() <= 0.601
    assert high(free).max() > 0.8
    for a, b in zip(free, tight, strict=True):
        assert torch.equal(a.columns[0].sigma, b.columns[0].sigma)


def test_damaged_shard_is_refused_by_name(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", clips(2, 0))
    index = read_index(tmp_path / "d" / INDEX)
    row = index.slice(0, 1).to_pylist()[0]
    with (tmp_path / "d" / "shards" / row["shard"]).open("r+b") as shard:
        shard.seek(row["latent_offset"] + row["latent_size"] - 1)
        shard.write(b"\xff")
    store = SampleStore((tmp_path / "d").joinpath, index)
    with pytest.raises(DataIntegrityError, match=row["sample_id"]):
        store.latent(row["sample_id"], 0, 1, 3)
    store.text(row["sample_id"], 1)


def test_prefetcher_keeps_order_and_hands_errors_over_at_their_step() -> None:
    def make(step: int) -> int:
        if step == 7:
            raise OSError("shard is gone")
        return step * step

    prefetch = Prefetcher(make, 3, 9)
    items = iter(prefetch)
    seen_steps = [next(items) for _ in range(3, 7)]
    with pytest.raises(OSError, match="shard is gone"):
        next(items)
    assert seen_steps == [(s, s * s) for s in range(3, 7)]
    prefetch.close()
    early = Prefetcher(lambda step: step, 0, 10**9)
    next(iter(early))
    early.close()  # returns although the thread still has work


def test_workers_make_the_same_steps_in_the_same_order() -> None:
    together = threading.Barrier(3, timeout=300)

    def make(step: int) -> int:
        if step < 3:
            together.wait()  # passes only when three threads are at it
        return step

    prefetch = Prefetcher(make, 0, 40, 6, workers=3)
    assert list(prefetch) == [(step, step) for step in range(40)]
    prefetch.close()
    made: list[int] = []
    waiting = Prefetcher(made.append, 0, 100, 4, workers=2)
    assert next(iter(waiting)) == (0, None)
    waiting.close()
    assert max(made) <= 1 + 4  # never further ahead than its depth


def test_exposure_is_recomputed_from_the_stored_state(dataset: Path) -> None:
    index = read_index(dataset / INDEX)
    state = ExposureState.model_validate_json(state_of(20).model_dump_json())
    counts = seen(state, index)
    for sample, count in counts.items():
        assert len(steps_that_saw(state, index, sample)) == count
    assert sum(counts.values()) == sum(order_of(state, index).step_size(s).samples for s in range(20))
    with pytest.raises(InputError, match="no such sample"):
        steps_that_saw(state, index, "unknown")
    assert order_of(state_of(1, seed=6), index).pack(0, 0).draws != order_of(state_of(1), index).pack(0, 0).draws


def test_surviving_line_keeps_the_last_run_of_a_step_and_skips_torn_lines(tmp_path: Path) -> None:
    log = DebugLog(tmp_path, "s", 0)
    for step, sample in ((0, "a"), (1, "lost"), (1, "b")):
        log.write(step, 1, [(0, sample, step)])
    with (tmp_path / "s.0.jsonl").open("a") as stream:
        stream.write('{"step": 2, "dra')
    assert surviving_line(tmp_path, "s", 2) == [[(0, "a", 0)], [(0, "b", 1)]]


def shard(name: str, offset: int, values: torch.Tensor) -> Shard:
    return Shard(name, offset, values, (values + 1, values + 2), values + 3)


def commit(store: StateStore, step: int, cuts: list[int], values: torch.Tensor) -> SaveManifest:
    """Save `values` as the parameter `w`, cut at `cuts` into one file a rank."""
    edges = [0, *cuts, values.numel()]
    files = [
        file
        for rank, (first, last) in enumerate(itertools.pairwise(edges))
        for file in store.write_shards(step, rank, [shard("w", first, values[first:last])])
    ]
    manifest = SaveManifest(
        step=step, shapes={"w": (values.numel(),)}, has_ema=True, files=tuple(files),
        metrics=(store.write_metrics([{"step": step}]),), lineage=((0, len(files)),),
    )  # fmt: skip
    store.commit(manifest)
    return manifest


def check_state_store(storage: Storage) -> None:
    store = StateStore(storage, keep=2, token="one")
    values = torch.arange(10, dtype=torch.float32)
    for step in (2, 4, 6):
        newest = commit(store, step, [4, 9], values * step)
    assert store.newest_verified() == newest
    assert [name.split("-")[0] for name in storage.directories("saves")] == ["0000000004", "0000000006"]
    assert torch.equal(store.whole(newest, "ema")["w"], values * 6 + 3)
    own = shard("w", 3, torch.zeros(5))
    store.load_into(newest, [own])
    assert torch.equal(own.moments[1], (values * 6 + 2)[3:8])
    # a damaged newest save is passed over, an unfinished one dropped
    storage.write_bytes(newest.files[1].path, b"torn")
    store.write_shards(8, 0, [shard("w", 0, values)])
    again = StateStore(storage, keep=2, token="two")
    again.drop_unfinished()
    found = again.newest_verified()
    assert found is not None
    assert found.step == 4
    assert json.loads(again.metric_rows(found)) == {"step": 4}
    assert not any(name.startswith("0000000008") for name in storage.directories("saves"))


def test_state_store_on_disk(tmp_path: Path) -> None:
    check_state_store(Storage(str(tmp_path)))


def test_state_store_on_s3(s3_root: str) -> None:
    check_state_store(Storage(f"{s3_root}/state"))


def test_save_with_a_gap_is_refused(tmp_path: Path) -> None:
    store = StateStore(Storage(str(tmp_path)), 2, "t")
    (file,) = store.write_shards(1, 0, [shard("w", 0, torch.ones(3))])
    manifest = SaveManifest(step=1, shapes={"w": (4,)}, has_ema=True, files=(file,), metrics=(), lineage=((0, 1),))
    with pytest.raises(DataIntegrityError, match="all of a parameter"):
        store.whole(manifest, "master")
    assert isinstance(file, StateFile)


def test_a_large_state_lies_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "FILE_BYTES", 4 * 4 * 12)  # four parts of twelve float32
    store = StateStore(Storage(str(tmp_path)), 2, "t")
    values = {name: torch.arange(n, dtype=torch.float32) for name, n in (("a", 5), ("b", 7), ("c", 20), ("d", 1))}
    files = store.write_shards(1, 0, [shard(name, 0, tensor) for name, tensor in values.items()])
    assert [sorted(file.ranges) for file in files] == [["a", "b"], ["c"], ["d"]]
    store.report(1, 0, files)
    assert store.reports(1, 1) == files
    shapes: dict[str, tuple[int, ...]] = {name: (len(tensor),) for name, tensor in values.items()}
    manifest = SaveManifest(step=1, shapes=shapes, has_ema=True, files=files, metrics=(), lineage=((0, 1),))
    store.commit(manifest)
    read = store.whole(manifest, "ema")
    assert all(torch.equal(read[name], tensor + 3) for name, tensor in values.items())
    own = shard("c", 4, torch.zeros(9))
    store.load_into(manifest, [own])
    assert torch.equal(own.moments[0], values["c"][4:13] + 1)
    (tmp_path / files[2].path).write_bytes(b"torn")
    again = StateStore(Storage(str(tmp_path)), 2, "u")
    with pytest.raises(DataIntegrityError, match="every save of the stage is damaged"):
        again.newest_verified()
    assert again.faults(manifest) == [f"{files[2].path}: bytes differ from their digest"]


def test_ema_follows_its_formula() -> None:
    weight = torch.tensor([1.0, 2.0])
    ema = Ema([Fragment("w", (2,), 0, weight, (weight, weight))], decay=0.5)
    expected = weight.clone()
    for step in range(8):
        weight += 1
        ema.update(step)
        decay = decay_at(0.5, step)
        assert decay == min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(ema.averages[0], expected)


def test_speed_summary_leaves_the_first_step_out_of_the_median() -> None:
    speed = Speed([Timing(total=9.0, data=1.0), Timing(total=1.0), Timing(total=2.0), Timing(total=3.0)], tokens=30)
    assert speed.summary()["step_seconds_median"] == 2.0
    assert math.isclose(float(str(speed.summary()["tokens_per_second"])), 2.0)


def test_saves_and_validation_are_no_part_of_a_step_as_the_plan_tells_it() -> None:
    summary = Speed([Timing(total=9.0), Timing(total=40.0, save=32.0, validation=4.0)], tokens=30).summary()
    assert (summary["step_seconds_median"], summary["save_seconds"]) == (4.0, 32.0)


def test_world_size_must_divide_the_packs() -> None:
    with pytest.raises(ConfigError, match="do not divide"):
        check_world_size(OrderConfig(packs=4), 3)
