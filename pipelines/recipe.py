"""Recipes: one YAML for a whole pipeline, resolved to a frozen, printable, hashable model.

    m4v plan demo --set train.57f.steps=3

A recipe may extend another (`extends: demo`) with a few deltas; lists whose items carry a `name` merge by
that name, and an item with `remove: true` goes. Unknown keys are refused with near names, and rules between
sections are checked on loading.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from dataprep.config import AdapterConfig, CurateConfig, EncodeConfig, SourceConfig
from dataprep.encode_config import BucketConfig
from eval.config import EvaluateConfig, GateConfig, GenerateConfig
from eval.prompts import PromptList
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.long import Rate, problem_of_length
from eval.vbench.prompt_suite import STATIC_DIMENSION, STATIC_SAMPLES, prompts_of
from eval.vbench.v2 import INSTANCE, problem_of_prompts, problem_of_seconds
from m4v.codec.config import PIXEL_MULTIPLE
from m4v.codec.shape import CHANNELS
from m4v.config import AnySchedule
from m4v.core.config import FrozenModel, parse, weights_names
from m4v.core.errors import ConfigError
from m4v.core.stage import Resources
from m4v.family import AnyModel
from m4v.wan.config import WanConfig
from m4v.weights import catalogue
from m4v.weights.config import WeightsConfig
from pipelines.ablation.config import AblationConfig
from pipelines.ablation.variants import variants_of
from pipelines.before_reward import BeforeRewardEntry
from pipelines.launchers.slurm_config import SlurmConfig
from pipelines.recipe_files import apply_override, read_recipe, shipped_recipes
from pipelines.vbench_gate import check_vbench_rules
from pipelines.web.config import ReportConfig
from training.config import RewardConfig, StartConfig, TrainConfig, check_families, check_start
from training.heartbeat import HangLimits

REWARD_STAGE = "reward"

__all__ = ["Profile", "Recipe", "SourceEntry", "WeightsEntry", "load_recipe", "shipped_recipes"]


class SourceEntry(FrozenModel):
    """A collection and where it lies. `location` (a directory, `s3://…` or `asset:…`) is never in a key."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    location: str | None = None
    adapter: AdapterConfig

    @property
    def config(self) -> SourceConfig:
        return SourceConfig(name=self.name, adapter=self.adapter)


class WeightsEntry(WeightsConfig):
    """Third-party weights to import, and where their published files lie.

    `name` is what `encode.codec.weights`, `encode.text_encoder.weights`, `init.weights` and the reward's scorers say;
    `entry` is a row of `m4v weights list`. `location` (a directory, else the entry's place below the weights root)
    is never in a key: the files' bytes are. `artifact:ID` takes an import that the ledger has; the published files may
    be gone. `published` false takes a model of one's own in the same format.
    """

    location: str | None = None

    @property
    def config(self) -> WeightsConfig:
        return WeightsConfig(name=self.name, entry=self.entry, published=self.published)


class Profile(FrozenModel):
    """How stages are launched on one kind of machine.

    `lock_file` names the target's environment, `slurm` what jobs ask for, `hang` when silent ranks are started anew.
    """

    launcher: Literal["local", "slurm"] = "local"
    lock_file: str | None = "constraints.txt"
    slurm: SlurmConfig | None = None
    hang: HangLimits = HangLimits()
    gpu: str | None = None  # type of the GPUs, as `training.preflight` knows them; None: memory is not checked
    default: Resources = Resources(ranks=1, threads=1, workers=1)
    stages: dict[str, Resources] = {}  # by node id (`train.57f`) or stage (`train`); the former goes first

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.launcher != "slurm" and self.slurm is not None:
            raise ValueError("slurm is set, and the launcher is local: set launcher: slurm")
        for config in (self.default, *self.stages.values()) if self.launcher == "slurm" else ():
            try:
                self.slurm_config.nodes(config.ranks)
            except ConfigError as error:
                raise ValueError(error.message) from None
        return self

    @property
    def slurm_config(self) -> SlurmConfig:
        return self.slurm or SlurmConfig()

    def resources(self, stage: str, node_id: str = "") -> Resources:
        return self.stages.get(node_id, self.stages.get(stage, self.default))


class EncodingEntry(FrozenModel):
    """The same clips encoded to other buckets, for the training stages `stages`; all else is as in `encode`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    buckets: BucketConfig
    stages: tuple[str, ...] = Field(min_length=1)


class VBenchEntry(VBenchConfig):
    """VBench on the trained model: its prompts are sampled as `generate` says, then measured.

    `core_python` and `legacy_python` are the interpreters that have VBench, `long_python` and `long_legacy_python`
    those with VBench-Long, `vbench2_python` with VBench-2.0 (default: what `m4v evaluate setup` made); `cache_dir`,
    `vbench2_cache_dir`, `torch_home` and `hf_home` hold weights. No place is in a key: what is installed there is.

    With `suite: vbench2`, prompts and samples_per_prompt are `vbench2` and 3 where they are left out.
    """

    prompts: PromptList = Field(default="vbench", validate_default=True)  # type: ignore[assignment]
    samples_per_prompt: int = Field(default=5, ge=1)
    core_python: str | None = None
    legacy_python: str | None = None
    long_python: str | None = None
    long_legacy_python: str | None = None
    vbench2_python: str | None = None
    i2v_python: str | None = None
    cache_dir: str | None = None
    vbench2_cache_dir: str | None = None
    torch_home: str | None = None
    hf_home: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_the_suite(cls, value: object) -> object:
        if isinstance(value, Mapping) and value.get("suite") == "vbench-i2v":
            raise ValueError(
                "suite: videos of VBench-I2V begin with its pictures, and a recipe samples from prompts alone; make "
                "them with m4v generate, import them, and measure those with m4v evaluate run --suite vbench-i2v"
            )
        if isinstance(value, Mapping) and value.get("suite") == "vbench2":
            return {"prompts": "vbench2", "samples_per_prompt": 3, **value}
        return value

    @model_validator(mode="after")
    def _filter_has_enough(self) -> Self:
        """Told before the first video is sampled."""
        if not self.static_filter or self.partial or STATIC_DIMENSION not in self.wanted or self.suite != "vbench":
            return self
        read = {each.prompt for each in prompts_of(STATIC_DIMENSION)}
        for prompt in self.prompts:
            count = prompt.samples or self.samples_per_prompt
            if (prompt.scored_as or prompt.text) in read and count < STATIC_SAMPLES:
                raise ValueError(
                    f"static_filter chooses among {STATIC_SAMPLES} videos of a prompt; {prompt.text!r} gets {count}: "
                    "say prompts: {suite: vbench, samples: {temporal_flickering: 25}}"
                )
        return self

    @model_validator(mode="after")
    def _prompts_are_read(self) -> Self:
        if self.suite == "vbench2":
            problem = problem_of_prompts(self.wanted, {p.scored_as or p.text for p in self.prompts})
            if problem is not None:
                raise ValueError(f"prompts: {problem}; leave prompts out, or say prompts: vbench2")
        return self

    @property
    def config(self) -> VBenchConfig:
        return VBenchConfig.model_validate({name: getattr(self, name) for name in VBenchConfig.model_fields})

    @property
    def locations(self) -> dict[str, str]:
        """The places that are named."""
        return {name: place for name in Places._fields if (place := getattr(self, name)) is not None}


class EvaluationConfig(FrozenModel):
    """What the trained model is measured by, beside the local metrics of `evaluate`: suites, and the comparison with
    the checkpoint that the reward stage started from."""

    vbench: VBenchEntry | None = None
    before_reward: BeforeRewardEntry | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # Asked for later than recipes were first recorded: they keep their digests.
        return {name: value for name, value in handler(self).items() if name != "before_reward" or value is not None}


class PromoteConfig(FrozenModel):
    """A run whose gate passed promotes its checkpoint to `channel`, or asks for the approvals that it takes."""

    channel: str = Field(pattern=r"^[a-z][a-z0-9._-]{0,62}$")


class Recipe(FrozenModel):
    """A resolved recipe; `digest()` is its identity, the YAML it came from is not."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    description: str = ""
    seed: int = Field(0, ge=0)
    sources: tuple[SourceEntry, ...] = Field(min_length=1)
    weights: tuple[WeightsEntry, ...] = ()
    curate: CurateConfig
    encode: EncodeConfig
    encodings: tuple[EncodingEntry, ...] = ()
    model: AnyModel
    schedule: AnySchedule
    init: StartConfig | None = None  # absent: the model starts from the seed
    train: tuple[TrainConfig, ...] = Field(min_length=1)
    attention_until: str | None = None  # stage up to which the model mixes with attention, then is converted
    reward: RewardConfig | None = None
    generate: GenerateConfig
    evaluate: EvaluateConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig
    promote: PromoteConfig | None = None
    ablation: AblationConfig | None = None
    report: ReportConfig
    profile: str = "local"
    profiles: dict[str, Profile] = {"local": Profile()}

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # What came later stands in the canonical form only when used, so that recorded recipes keep their digests.
        return {k: v for k, v in handler(self).items() if k != "ablation" or v is not None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _unique("sources", [s.name for s in self.sources])
        _unique("train", [t.name for t in self.train])
        _unique("weights", [w.name for w in self.weights])
        self._check_family()
        self._check_ladder()
        self._check_weights()
        self._check_encoded()
        if self.evaluation.before_reward is not None and self.reward is None:
            raise ValueError(
                "evaluation.before_reward: the recipe has no reward stage; set it to null, or add `reward`"
            )
        check_vbench_rules(self.gate, self.evaluation.vbench)
        self._check_suite_length()
        variants_of(self)
        if self.profile not in self.profiles:
            raise ValueError(f"profile {self.profile!r} is not one of {', '.join(sorted(self.profiles))}")
        return self

    @property
    def start_model(self) -> AnyModel:
        """The model that the first stage trains: with attention where it is converted later (paper D.2)."""
        return self.model if self.attention_until is None else self.model.model_copy(update={"mixer": "attention"})

    def _check_suite_length(self) -> None:
        """Told before the first video is sampled."""
        entry = self.evaluation.vbench
        if entry is not None and entry.suite == "vbench-long":
            problem = problem_of_length(Rate(self.generate.frames, self.generate.fps))
            if problem is not None:
                raise ValueError(
                    f"evaluation.vbench.suite: {problem}; use suite: vbench, or set generate.frames and fps"
                )
        if entry is not None and entry.suite == "vbench2":
            self._check_vbench2(entry)

    def _check_vbench2(self, entry: VBenchEntry) -> None:
        bare = entry.gpu_only if self.active_profile.resources("vbench").device == "cpu" else ()
        if bare and (entry.dimensions != "available" or len(bare) == len(entry.wanted)):
            raise ValueError(
                f"evaluation.vbench.dimensions: {len(bare)} run on a GPU alone, {bare[0]} among them, and profile "
                f"{self.profile} gives vbench a cpu; set profiles.{self.profile}.stages.vbench.device to cuda, or "
                "dimensions to available"
            )
        left = tuple(d for d in entry.wanted if d not in bare)
        problem = problem_of_seconds(left, self.generate.frames, self.generate.fps)
        if problem is not None:
            raise ValueError(
                f"evaluation.vbench.dimensions: {problem}; leave {INSTANCE} out of them, or set generate.frames and fps"
            )

    def _check_family(self) -> None:
        """Schedule, sampler and orders are of the model's family."""
        check_families(self.model, schedule=self.schedule, **{"generate.sampler": self.generate.sampler})
        is_wan = isinstance(self.model, WanConfig)
        for stage in (*self.train, *([] if self.reward is None else [self.reward])):
            if stage.validation.every and stage.validation.videos:
                check_families(self.model, **{f"{stage.name}: validation.sampler": stage.validation.sampler})
            if is_wan and stage.order.columns:
                raise ValueError(f"{stage.name}: a Wan model trains on whole clips: set order.columns to []")
            if not is_wan and not stage.order.columns:
                raise ValueError(f"{stage.name}: name the pyramid stage of each column in order.columns")

    def _check_ladder(self) -> None:
        names = [t.name for t in self.train]
        _unique("encodings", [e.name for e in self.encodings])
        _unique("encodings: stages", [stage for e in self.encodings for stage in e.stages])
        wanted = [("encodings", stage) for e in self.encodings for stage in e.stages if stage != REWARD_STAGE]
        if self.attention_until is not None:
            wanted.append(("attention_until", self.attention_until))
            if self.model.mixer == "attention":
                raise ValueError("attention_until: model.mixer is 'attention', so there is nothing to convert to")
        for section, stage in wanted:
            if stage not in names:
                raise ValueError(f"{section}: there is no training stage {stage!r}; there are {', '.join(names)}")

    def _check_weights(self) -> None:
        """Every name that is used stands in `weights` with an entry of the right kind, and every entry is used."""
        entries = {w.name: w.entry for w in self.weights}
        text_encoder = self.encode.text_encoder
        uses: dict[str, FrozenModel | None] = {
            "init": self.init, "encode.codec": self.encode.codec, "encode.text_encoder": text_encoder,
        }  # fmt: skip
        if self.curate.captions is not None and self.curate.captions.text_encoder is not None:
            uses["curate.captions.text_encoder"] = self.curate.captions.text_encoder
        if self.reward is not None:
            uses |= {f"reward.reward.scorers.{n}.scorer": w.scorer for n, w in enumerate(self.reward.reward.scorers)}
            uses |= {f"reward.watch.held_out.{n}": scorer for n, scorer in enumerate(self.reward.watch.held_out)}
        used: set[str] = set()
        for section, config in uses.items():
            for name in weights_names(config):
                used.add(name)
                needed = "init wan" if section == "init" and isinstance(self.model, WanConfig) else section
                _check_use(section, name, getattr(config, "kind", needed), entries)
        if self.init is not None:
            check_start(self.init, self.start_model)
        if unused := sorted(entries.keys() - used):
            places = ", ".join(f"{section}.weights" for section in uses)
            raise ValueError(f"weights: nothing uses {unused[0]!r}; name it in one of {places}, or remove it")

    def _check_encoded(self) -> None:
        """The model takes what is encoded: otherwise training would fail after hours of encoding."""
        text, codec = self.encode.text_encoder, self.encode.codec
        pairs = {
            "text_dim": ("text_encoder", text.embedding_dim),
            "pooled_dim": ("text_encoder", text.pooled_dim),
            "text_slots": ("text_encoder", text.slots),
            "latent_channels": (f"codec ({codec.kind})", CHANNELS),
        }
        for key, (section, needs) in pairs.items():
            has = getattr(self.model, key, None)  # Wan has no pooled text
            if has not in (None, needs):
                raise ValueError(f"model.{key} is {has} and encode.{section} gives {needs}: set model.{key} to {needs}")
        for section, buckets in (("encode", self.encode.buckets), *((e.name, e.buckets) for e in self.encodings)):
            buckets.check_codec(codec)
            if isinstance(self.model, WanConfig):
                continue  # what its codec takes it takes
            if wrong := [s for s in buckets.all_sizes if any(side % PIXEL_MULTIPLE for side in s)]:
                raise ValueError(
                    f"{section}.buckets: the pyramid model halves latents twice and needs multiples of "
                    f"{PIXEL_MULTIPLE}, not {list(wrong[0])}"
                )
        for stage in (*self.train, *([] if self.reward is None else [self.reward])):
            if stage.order.time_stride != codec.time_stride:
                raise ValueError(
                    f"{stage.name}: encode.codec ({codec.kind}) has {codec.time_stride} frames a latent and the stage "
                    f"counts {stage.order.time_stride}: set order.time_stride to {codec.time_stride}"
                )

    @property
    def active_profile(self) -> Profile:
        return self.profiles[self.profile]


def _unique(section: str, names: Sequence[str]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"{section}: the name {twice[0]!r} stands twice")


_FORMATS: Mapping[str, tuple[str, ...]] = {
    "init": ("pyramidflow_dit",), "init wan": ("wan_diffusers", "wan_original"), "causal_vae": ("pyramidflow_vae",),
    "wan_vae": ("wan_diffusers", "wan_original"), "umt5": ("wan_diffusers", "wan_original"),
    "t5_clip": ("t5_clip",), "hpsv2": ("state_dict",), "clip": ("state_dict",),
}  # fmt: skip


def _check_use(section: str, name: str, kind: str, entries: Mapping[str, str]) -> None:
    """Raise ValueError when `section` names weights that the recipe does not have, or of the wrong kind."""
    if name not in entries:
        near = difflib.get_close_matches(name, list(entries), n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(entries) or 'none'}"
        raise ValueError(f"{section}.weights: the recipe has no weights called {name!r}; {known}")
    needs, found = _FORMATS[kind], catalogue.entry(entries[name])
    if found.format not in needs:
        fits = ", ".join(e.name for e in catalogue.entries() if e.format in needs)
        raise ValueError(f"{section}.weights: {name!r} is {found.name} ({found.purpose}); use one of {fits}")


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Load a shipped recipe by name or a YAML file by path and apply `a.b=c` overrides.

    Raises ConfigError naming the key, the value and the fix.
    """
    data = read_recipe(name)
    for override in overrides:
        apply_override(data, override)
    return parse(Recipe, data, f"recipe {name}")
