"""Reward objective on a tiny model without DeepSpeed: right gradient, rising reward, contained data loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from test_training_units import collator
from torch import Tensor, nn
from training_helpers import TEXT, clips, write_dataset

from m4v.codec import open_codec
from m4v.codec.config import CausalVaeConfig, DctCodecConfig
from m4v.codec.interface import LatentCodec
from m4v.config import ModelConfig, ScheduleConfig
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.core.shard_index import INDEX, read_index
from m4v.flow.schedule import PyramidSchedule
from m4v.model import build_model
from m4v.vae.config import VaeConfig
from m4v.vae.initialise import build_vae
from m4v.vae.weights import save_vae
from training.config import OrderConfig, RewardConfig, RewardTermConfig, weights_of
from training.exposure import rows_of
from training.loader import Batch
from training.objective import FlowObjective, Objective
from training.order import DataOrder
from training.reward.gradient_path import check_gradient_path
from training.reward.objective import RewardObjective
from training.reward.rewards import Rewards, WeightedScore
from training.reward.watch import Watch
from training.reward.watch_config import WatchConfig

ORDER = OrderConfig(frames=17, tokens_per_pack=120, packs=1, image_every=0, high_units=2)
MODEL = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=1, text_dim=TEXT.embedding_dim, pooled_dim=TEXT.pooled_dim,
    text_slots=TEXT.slots, mlp_ratio=2,
)  # fmt: skip


class Redness:
    """A scorer with a known gradient: mean of red minus mean of blue."""

    name, digest = "redness", "0"

    def __init__(self) -> None:
        self.captions: list[str] = []
        self.looks = 0

    def text_features(self, texts: Sequence[str]) -> Tensor:
        self.captions += texts
        return torch.ones(len(texts), 1)

    def image_features(self, frames: Tensor) -> Tensor:
        self.looks += 1
        return frames.mean((2, 3))

    def compare(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        return (image_features[:, 0] - image_features[:, 2]) * text_features[:, 0]

    def score(self, frames: Tensor, text_features: Tensor) -> Tensor:
        return self.compare(self.image_features(frames), text_features)


class PlainEngine:
    """The engine interface around an unsharded module."""

    rank, world_size = 0, 1

    def __init__(self, model: nn.Module, lr: float = 0.0) -> None:
        self.model, self.optimizer = model, torch.optim.AdamW(model.parameters(), lr=lr)

    def __call__(self, *args: object) -> list[Tensor]:
        predictions: list[Tensor] = self.model(*args)
        return predictions

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reward") / "dataset"
    write_dataset(directory, clips(videos=6, images=0))
    return directory


def tiny_vae(folder: Path) -> LatentCodec:
    narrow = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4}
    config = VaeConfig.model_validate({f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in narrow.items()})
    save_vae(folder, build_vae(config))
    return open_codec(CausalVaeConfig(weights="vae"), {"vae": folder})


def objective(weight: float = 1.0, scorer: Redness | None = None, codec: LatentCodec | None = None) -> RewardObjective:
    rewards = Rewards([WeightedScore(scorer or Redness(), 1.0)])
    config = RewardTermConfig(weight=weight)
    return RewardObjective(config, PyramidSchedule(ScheduleConfig()), codec or open_codec(DctCodecConfig()), rewards)


def batches(dataset: Path, order: DataOrder, steps: int, text_drop: float = 0.0) -> list[Batch]:
    collate = collator(dataset, text_drop, window=(0.1, 0.6))
    return [collate(order.pack(step, 0)) for step in range(steps)]


@pytest.fixture
def order(dataset: Path) -> DataOrder:
    return DataOrder(rows_of(read_index(dataset / INDEX)), ORDER, 5, "reward")


def model(seed: int = 1) -> nn.Module:
    made = build_model(MODEL, seed)
    with torch.no_grad():  # the published initialisation has a zero output layer: nothing would reach the blocks
        made.proj_out.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(seed))
    return made


@pytest.mark.parametrize("kind", ["dct", "causal_vae"])
def test_gradient_of_the_reward_equals_finite_differences(
    dataset: Path, order: DataOrder, tmp_path: Path, kind: str
) -> None:
    """The surrogate's parameter gradient is that of `flow - weight * reward`, followed along one direction."""
    batch, size = batches(dataset, order, 1)[0], order.step_size(0)
    codec = tiny_vae(tmp_path) if kind == "causal_vae" else None
    engine, goal = PlainEngine(model()), objective(weight=3.0, codec=codec)
    parameter = engine.model.proj_out.weight  # type: ignore[union-attr]
    assert isinstance(parameter, nn.Parameter)

    def value() -> float:
        terms = goal(engine, batch, size)  # type: ignore[arg-type]
        total, count = terms.logged["reward"]
        assert count == size.high
        return terms.flow / size.samples - 3.0 * total / count

    goal(engine, batch, size).loss.div(size.samples).backward()  # type: ignore[arg-type]
    assert parameter.grad is not None
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.02
    expected = float((parameter.grad * direction).sum())
    with torch.no_grad():
        parameter += direction
        above = value()
        parameter -= 2 * direction
        below = value()
    assert (above - below) / 2 == pytest.approx(expected, rel=2e-2)


def train(
    goal: Objective, data: list[Batch], order: DataOrder, steps: int
) -> tuple[PlainEngine, list[float], list[float]]:
    engine = PlainEngine(model(), lr=2e-3)
    rewards, flows = [], []
    for step in range(steps):
        size = order.step_size(step % len(data))
        terms = goal(engine, data[step % len(data)], size)  # type: ignore[arg-type]
        total, count = terms.logged.get("reward", (0.0, 1))
        rewards.append(total / count)
        flows.append(terms.flow / size.samples)
        engine.backward(terms.loss / size.samples)
        engine.step()
    return rewards, flows


def test_a_few_steps_raise_the_reward_and_keep_the_data_loss(dataset: Path, order: DataOrder) -> None:
    data, steps = batches(dataset, order, 3), 24
    rewards, flows = train(objective(weight=1.0), data, order, steps)
    _, plain = train(FlowObjective(1000), data, order, steps)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.02
    assert sum(flows[-3:]) < sum(flows[:3])
    assert sum(flows[-3:]) < 1.5 * sum(plain[-3:])


def test_dropped_captions_and_early_frames_are_not_scored(dataset: Path, order: DataOrder) -> None:
    engine, scorer = PlainEngine(model()), Redness()
    goal, size = objective(scorer=scorer), order.step_size(0)
    dropped = batches(dataset, order, 1, text_drop=1.0)[0]
    terms = goal(engine, dropped, size)  # type: ignore[arg-type]
    assert "reward" not in terms.logged
    assert float(terms.loss.detach()) == terms.flow
    assert scorer.captions == []
    batch = batches(dataset, order, 1)[0]
    goal(engine, batch, size)  # type: ignore[arg-type]
    assert set(scorer.captions) == {batch.captions[i] for i in range(3, len(batch.captions), 4)}
    last_only = RewardObjective(
        RewardTermConfig(last_latents=1), PyramidSchedule(ScheduleConfig()), open_codec(DctCodecConfig()),
        Rewards([WeightedScore(Redness(), 1.0)]),
    )  # fmt: skip
    for pack in (order.pack(s, 0) for s in range(4)):
        terms = last_only(engine, collator(dataset)(pack), size)  # type: ignore[arg-type]
        assert ("reward" in terms.logged) == (pack.columns[3].unit == pack.stream.t)


def test_a_probe_scores_as_a_step_does(dataset: Path, order: DataOrder) -> None:
    goal, engine = objective(), PlainEngine(model())
    batch = batches(dataset, order, 1)[0]
    total, count = goal(engine, batch, order.step_size(0)).logged["score_redness"]  # type: ignore[arg-type]
    found = goal.scores(engine, batch)
    assert set(found) == set(goal.scorers) == {"score_redness"}
    assert len(found["score_redness"]) == count
    assert float(found["score_redness"].double().sum()) == pytest.approx(total, rel=1e-6)
    assert not found["score_redness"].requires_grad
    assert goal.scores(engine, batches(dataset, order, 1, text_drop=1.0)[0]) == {}


def test_high_columns_can_be_kept_to_the_last_latents(order: DataOrder) -> None:
    units = [c.unit for pack in order.streams[0].cycle for c in pack if c.stage == 2]
    assert set(units) == {2, 3}
    assert {c.unit for pack in order.streams[0].cycle for c in pack if c.stage < 2} == {1, 2, 3}


def test_a_reward_with_a_cheap_way_up_trips_the_watch_and_an_honest_stage_does_not(
    dataset: Path, order: DataOrder
) -> None:
    """Redness is raised by painting everything red: the frames' saturation gives it away."""
    data, every = batches(dataset, order, 3), 6

    def watched(weight: float) -> Watch:
        engine, goal, watch = PlainEngine(model(), lr=5e-3), objective(weight=weight), Watch(WatchConfig(), every)
        for step in range(8 * every):
            batch, size = data[step % len(data)], order.step_size(step % len(data))
            terms = goal(engine, batch, size)  # type: ignore[arg-type]
            means = {name: total / count for name, (total, count) in terms.logged.items() if count}
            watch.add({"step": step, "loss": terms.flow / size.samples, **means})
            engine.backward(terms.loss / size.samples)
            engine.step()
        return watch

    alarm = watched(weight=30.0).alarm
    assert alarm is not None
    assert "frame_saturation" in " ".join(alarm.reasons)
    assert watched(weight=1e-6).alarm is None


class NoGradient:
    """A codec whose decode forgets where its frames came from."""

    def __init__(self, codec: LatentCodec) -> None:
        self.codec, self.constants = codec, codec.constants

    @torch.no_grad()
    def decode_tensor(self, latents: Tensor, context: int = 0) -> Tensor:
        return self.codec.decode_tensor(latents, context)


class Deaf(Redness):
    def compare(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        return 0 * super().compare(image_features, text_features)


def test_a_reward_that_cannot_reach_the_model_is_refused_before_the_first_step() -> None:
    codec, heard = open_codec(DctCodecConfig()), Rewards([WeightedScore(Redness(), 1.0)])
    check_gradient_path(codec, heard)
    with pytest.raises(DataIntegrityError, match="the codec decodes without a gradient"):
        check_gradient_path(NoGradient(codec), heard)  # type: ignore[arg-type]
    with pytest.raises(DataIntegrityError, match="the gradient at the latent is zero"):
        check_gradient_path(codec, Rewards([WeightedScore(Deaf(), 1.0)]))


def test_scorers_held_out_are_told_without_a_gradient_and_every_network_runs_once() -> None:
    own, watched = Redness(), Deaf()
    rewards = Rewards([WeightedScore(own, 2.0)], [WeightedScore(watched, 0.0)])
    assert rewards.names == ("score_redness", "held_out_redness")
    frames = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    scored = rewards(frames, ["a", "b"])
    assert (own.looks, watched.looks) == (1, 1)
    assert torch.equal(scored.reward, 2 * scored.by_scorer["score_redness"])
    assert scored.by_scorer["held_out_redness"].tolist() == [0, 0]
    assert not any(t.requires_grad for t in (*scored.by_scorer.values(), scored.features))
    with pytest.raises(ConfigError, match="one name"):
        Rewards([WeightedScore(own, 1.0), WeightedScore(Redness(), 1.0)])


def test_a_watch_that_could_compare_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="save_every"):
        RewardConfig(name="reward", steps=4, save_every=1)


def test_weights_of_the_reward_enter_the_stage_key() -> None:
    assert "efficientnet-lite2" in weights_of(RewardConfig(name="reward", steps=1))


def test_null_text_is_read_from_the_dataset(dataset: Path) -> None:
    null = load_file(dataset / "null_text.safetensors")
    assert torch.equal(collator(dataset).null_text.pooled, null["pooled"][0])
