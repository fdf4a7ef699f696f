"""Schedule, packing, training step and sampler against numbers made with the reference implementation."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from m4v.config import ModelConfig, SamplerConfig, ScheduleConfig
from m4v.flow.latents import double, normalise, pyramid
from m4v.flow.loss import flow_loss, predict
from m4v.flow.packing import ColumnDraws, PackedColumn, history_shape, pack_column, reference_units
from m4v.flow.sampler import generate
from m4v.flow.schedule import PyramidSchedule
from m4v.model import M4VTransformer

SCHEDULES = ["default", "shift3", "two_stage", "single_stage", "gamma_quarter"]
CONSTANT = ScheduleConfig(corruption="constant")


def load(oracles: Path, name: str) -> dict[str, Tensor]:
    return load_file(oracles / "pyramidflow" / name)


def load_json(oracles: Path, name: str) -> dict:
    return json.loads((oracles / "pyramidflow" / name).read_text())


def schedule_of(facts: dict) -> PyramidSchedule:
    config = facts["config"]
    return PyramidSchedule(
        ScheduleConfig(
            train_steps=config["num_train_timesteps"],
            shift=config["shift"],
            stages=config["stages"],
            stage_range=tuple(config["stage_range"]),
            gamma=config["gamma"],
        )
    )


def tiny_model(oracles: Path) -> M4VTransformer:
    """The reference's tiny transformer with its random weights."""
    with torch.device("meta"):
        model = M4VTransformer(
            ModelConfig(
                width=32, heads=2, double_blocks=2, single_blocks=2, latent_channels=4, text_dim=24, pooled_dim=20,
                text_slots=6, rope_axes=(4, 6, 6), mixer="attention",
            )
        )  # fmt: skip
    model.load_state_dict(load(oracles, "flux_tiny/state_dict.safetensors"), assign=True)
    return model


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_summary(oracles: Path, oracle_close: Callable[..., None], name: str) -> None:
    facts = load_json(oracles, "scheduler/summary.json")[name]
    schedule = schedule_of(facts)
    pairs: list[tuple[object, object]] = [
        (schedule.original_start, facts["ori_start_sigmas"]),
        (schedule.start, facts["start_sigmas"]),
        (schedule.end, facts["end_sigmas"]),
        (schedule.timestep_ratios, facts["timestep_ratios"]),
        ([[float(t[0]), float(t[-1])] for t in schedule.timesteps], facts["timesteps_first_last"]),
    ]
    for entry in facts["renoise_at_stage_entry"]:
        pairs.append((schedule.renoise_factors(entry["stage"]), (entry["alpha"], entry["beta"])))
    for found, expected in pairs:
        oracle_close("scheduler/summary.json", found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_tables(oracles: Path, oracle_close: Callable[..., None], name: str) -> None:
    tables = load(oracles, "scheduler/tables.safetensors")
    schedule = schedule_of(load_json(oracles, "scheduler/summary.json")[name])
    checked = 0
    for key, expected in tables.items():
        parts = key.split(".")
        if parts[0] != name:
            continue
        if parts[1] == "timesteps_per_stage":
            found = schedule.timesteps[int(parts[2])]
        elif parts[1] == "sigmas_per_stage":
            found = schedule.sigmas[int(parts[2])]
        elif parts[1] == "inference":
            timesteps, sigmas = schedule.sampling(int(parts[2].removeprefix("stage")), int(parts[3].removeprefix("n")))
            found = torch.tensor(timesteps if parts[4] == "timesteps" else sigmas, dtype=torch.float64)
        else:
            continue
        oracle_close("scheduler/tables.safetensors", found, expected.to(found.dtype), rtol=1e-5, atol=1e-9)
        checked += 1
    assert checked >= schedule.stages * 14


def test_euler_steps(oracles: Path, oracle_close: Callable[..., None]) -> None:
    tables = load(oracles, "scheduler/tables.safetensors")
    x = tables["step.in.sample"]
    _, sigmas = PyramidSchedule(ScheduleConfig()).sampling(1, 4)
    for number in range(4):
        x = x + (sigmas[number + 1] - sigmas[number]) * tables[f"step.in.model_output.{number}"]
        oracle_close("scheduler/tables.safetensors", x, tables[f"step.out.{number}"], rtol=1e-5, atol=1e-6)


class Draws:
    """The recorded draws in the order the reference made them."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.queue = [tensors[key] for key in sorted(k for k in tensors if k.startswith("rng."))]

    def next(self) -> Tensor:
        return self.queue.pop(0)


def pack_recorded(
    schedule: PyramidSchedule, raw: Tensor, units: list[int], ratios: list[int], draws: Draws, whole: bool
) -> list[PackedColumn]:
    """All columns of a recorded batch: column c takes the rows c, c + C, ..."""
    latents, full = normalise(raw), draws.next()
    stages = [stage for stage, count in enumerate(ratios) for _ in range(count)]
    columns = []
    for number, stage in enumerate(stages):
        rows, unit = slice(number, None, len(stages)), units[stage]
        step, sigma = draws.next(), draws.next()
        history = [] if whole else [draws.next() for _ in history_shape(stage, unit)]
        noise = full[rows, :, :unit] if whole else full[rows, :, unit - 1 : unit]
        drawn = ColumnDraws(noise, step, sigma, torch.zeros_like(sigma), tuple(reversed(history)))
        columns.append(pack_column(schedule, latents[rows], stage, unit, drawn, whole=whole))
    assert not draws.queue
    return columns


PACKS = ["t7_r0", "t7_r3", "t8_r7", "t16_r5", "t6_bs2", "t1_image", "t4_noar", "t1_image_noar"]


@pytest.mark.parametrize("name", PACKS)
def test_train_pack(
    oracles: Path, oracle_close: Callable[..., None], oracle_error: Callable[..., None], name: str
) -> None:
    facts = load_json(oracles, "train_pack/index.json")[name]
    tensors = load(oracles, f"train_pack/{name}.safetensors")

    def check(found: Tensor, key: str) -> None:
        oracle_close(f"train_pack/{name}.safetensors", found, tensors[key], rtol=1e-5, atol=1e-5)

    normalised = normalise(tensors["in.raw_latent"])
    check(normalised, "mid.normalized")
    for level, found in enumerate(pyramid(normalised)):
        check(found, f"mid.pyramid.{level}")
    units = facts.get("units_low_mid_high") or [facts["T"]] * 3
    columns = pack_recorded(
        PyramidSchedule(CONSTANT), tensors["in.raw_latent"], units, facts["sample_ratios"], Draws(tensors),
        whole="noar" in name,
    )  # fmt: skip
    for number, column in enumerate(columns):
        expected = [k for k in sorted(tensors) if k.startswith(f"out.noisy.{number}.")]
        assert len(column.clips) == len(expected)
        for clip, wanted in zip(column.clips, expected, strict=True):
            check(clip, wanted)
        check(column.target, f"out.targets.{number}")
        check(column.timestep, f"out.timesteps.{number}")
        check(column.sigma.reshape(tensors[f"out.ratios.{number}"].shape), f"out.ratios.{number}")
    assert [[list(clip.shape) for clip in column.clips] for column in columns] == facts["input_shapes_per_column"]
    oracle_error("train_pack/index.json", 0, "exact")


def test_units_of_the_published_trainer(oracles: Path, oracle_error: Callable[..., None]) -> None:
    rows = load_json(oracles, "train_pack/stage_length_table.json")
    assert len(rows) > 100
    for row in rows:
        found = reference_units(row["rank"], row["call_index"], row["max_temporal_length"], row["video_sync_group"])
        assert list(found) == row["low_mid_high"], row
    oracle_error("train_pack/stage_length_table.json", 0, "exact")


def test_train_step(oracles: Path, oracle_close: Callable[..., None], oracle_error: Callable[..., None]) -> None:
    tensors, meta = load(oracles, "train_step/step.safetensors"), load_json(oracles, "train_step/meta.json")
    draws = Draws(tensors)
    dropped = draws.next() <= meta["cfg_rate"]
    text = {}
    for mine, theirs, null in (
        ("embedding", "prompt_embeds", "prompt_embed"),
        ("mask", "prompt_attention_mask", "attention_mask"),
        ("pooled", "pooled_prompt_embeds", "pooled"),
    ):
        given = tensors[f"in.text.{theirs}"]
        condition = dropped.reshape(-1, *[1] * (given.dim() - 1))
        text[mine] = torch.where(condition, tensors[f"in.null.{null}"], given)
    torch.testing.assert_close(text["embedding"], tensors["mid.encoder_hidden_states"])
    shapes = meta["input_shapes_per_column"]
    units = [sum(clip[2] for clip in column) for column in shapes]
    columns = pack_recorded(
        PyramidSchedule(CONSTANT), tensors["in.raw_latent"], [units[0], units[1], units[3]], meta["sample_ratios"],
        draws, whole=False,
    )  # fmt: skip
    assert [[list(clip.shape) for clip in column.clips] for column in columns] == shapes
    oracle_error("train_step/meta.json", 0, "exact")
    model = tiny_model(oracles)
    predictions = predict(model, columns, text["embedding"], text["mask"], text["pooled"])
    for number, prediction in enumerate(predictions):
        oracle_close("train_step/step.safetensors", prediction, tensors[f"out.pred.{number}"], atol=2e-5, rtol=1e-4)
    loss = flow_loss(predictions, columns)
    oracle_close("train_step/step.safetensors", loss, tensors["out.loss"][0], atol=1e-5, rtol=1e-5)
    loss.backward()
    gradients = load(oracles, "train_step/grads.safetensors")
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    prefix = "grad." if next(iter(gradients)).startswith("grad.") else ""
    assert {prefix + name for name in found} == set(gradients)
    for name, gradient in found.items():
        oracle_close("train_step/grads.safetensors", gradient, gradients[prefix + name], atol=2e-5, rtol=1e-3)


class RecordedNoise:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.first = tensors["in.initial_noise"]
        self.blocks = [tensors[k] for k in sorted(tensors) if k.startswith("rng.block_noise.")]

    def initial(self, frame: int, shape: tuple[int, ...]) -> Tensor:
        noise = self.first[:, :, frame : frame + 1]
        assert (noise.shape[1], *noise.shape[3:]) == shape
        return noise

    def block(self, frame: int, stage: int, shape: tuple[int, ...]) -> Tensor:
        noise = self.blocks.pop(0)
        assert noise.shape[1] == shape[0]
        assert noise.shape[3:] == shape[1:]
        return noise


def test_generate(oracles: Path, oracle_close: Callable[..., None], oracle_error: Callable[..., None]) -> None:
    tensors, meta = load(oracles, "inference/generate.safetensors"), load_json(oracles, "inference/meta.json")
    model, calls = tiny_model(oracles), []

    def recording(columns, timesteps, *rest):  # type: ignore[no-untyped-def]
        calls.append(([list(c.shape) for c in columns[0]], float(timesteps[0]), model(columns, timesteps, *rest)[0]))
        return [calls[-1][2]]

    config = SamplerConfig(
        steps_first=tuple(meta["num_inference_steps"]),
        steps_later=tuple(meta["video_num_inference_steps"]),
        guidance_first=meta["guidance_scale"],
        guidance_later=meta["video_guidance_scale"],
    )
    prompts = ["a test" + config.prompt_suffix, config.negative_prompt]
    assert prompts == meta["prompts_seen"]
    positive = SimpleNamespace(
        embedding=tensors["in.prompt_embeds"], mask=tensors["in.prompt_mask"], pooled=tensors["in.pooled"]
    )
    negative = SimpleNamespace(
        embedding=tensors["in.neg_embeds"], mask=tensors["in.neg_mask"], pooled=tensors["in.neg_pooled"]
    )
    noise = RecordedNoise(tensors)
    latents = generate(
        recording,
        PyramidSchedule(ScheduleConfig()),
        config,
        positive,
        negative,
        (5, 16, 24),
        [0],
        channels=4,
        noise=noise,
    )
    assert not noise.blocks
    assert [call[0] for call in calls] == [call["shapes"] for call in meta["calls"]]
    assert [call[1] for call in calls] == pytest.approx([call["t"] for call in meta["calls"]], rel=1e-6)
    differences = [abs(found[1] - call["t"]) for found, call in zip(calls, meta["calls"], strict=True)]
    oracle_error("inference/meta.json", max(differences), "0 / 1e-06")
    recorded = "inference/generate.safetensors"
    oracle_close(recorded, calls[0][2], tensors["mid.pred.00"], atol=2e-5, rtol=1e-4)
    for number, (_, _, prediction) in enumerate(calls):
        oracle_close(recorded, prediction, tensors[f"mid.pred.{number:02d}"], atol=2e-3, rtol=2e-3)
    oracle_close(recorded, normalise(latents), tensors["out.latents"], atol=2e-3, rtol=1e-4)


def test_renoising_uses_nearest_neighbours() -> None:
    small = torch.arange(4.0).reshape(1, 1, 1, 2, 2)
    assert double(small)[0, 0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
