"""Declarations of every stage; functions and config models stand as strings, so that plan and ledger
never import them."""

from __future__ import annotations

from m4v.core.artifacts import ArtifactKind as Kind
from m4v.core.stage import WEIGHTS_INPUT
from pipelines.spec import ANY_NAME, InputSpec, StageSpec

# Inputs `weights.NAME`, exactly those that the node's codec, text encoder or start name in the recipe.
_IMPORTED = {WEIGHTS_INPUT: InputSpec(Kind.WEIGHTS, many=True, optional=True)}

SOURCE = StageSpec(
    name="source",
    version=1,
    function="dataprep.stages.source:run",
    config_model="dataprep.sources.config:SourceConfig",
    outputs={"source": Kind.SOURCE},
    probe="dataprep.sources:probe",
)
WEIGHTS = StageSpec(
    name="weights",
    version=1,
    function="m4v.weights.stage:run",
    config_model="m4v.weights.config:WeightsConfig",
    outputs={"weights": Kind.WEIGHTS},
    probe="m4v.weights.source:probe",
    data_files=("m4v/weights/catalogue.json",),
)
CURATE = StageSpec(
    name="curate",
    version=1,
    function="dataprep.stages.curate:run",
    config_model="dataprep.curate_config:CurateConfig",
    inputs={"source": InputSpec(Kind.SOURCE, many=True), **_IMPORTED},
    outputs={"clips": Kind.CLIPS},
    weights="dataprep.curate_config:weights_of",
    takedowns=True,
)
ENCODE = StageSpec(
    name="encode",
    version=1,
    function="dataprep.stages.encode:run",
    config_model="dataprep.encode_config:EncodeConfig",
    inputs={"clips": InputSpec(Kind.CLIPS), "source": InputSpec(Kind.SOURCE, many=True), **_IMPORTED},
    outputs={"dataset": Kind.DATASET},
    numeric=True,
    weights="dataprep.encode_config:weights_of",
)
IMPORT = StageSpec(
    name="import",
    version=1,
    function="dataprep.stages.import_latents:run",
    config_model="dataprep.import_config:ImportConfig",
    inputs=_IMPORTED,
    outputs={"dataset": Kind.DATASET},
    numeric=True,
    weights="dataprep.import_config:weights_of",
    takedowns=True,
)
REDACT = StageSpec(
    name="redact",
    version=1,
    function="dataprep.stages.redact:run",
    config_model="dataprep.redact_config:RedactConfig",
    inputs={"clips": InputSpec(Kind.CLIPS)},
    outputs={"clips": Kind.CLIPS},
)
VERSION = StageSpec(
    name="version",
    version=1,
    function="dataprep.stages.version:run",
    config_model="dataprep.versions.config:VersionConfig",
    inputs={"dataset": InputSpec(Kind.DATASET, many=True)},
    outputs={"dataset": Kind.DATASET},
)
INIT = StageSpec(
    name="init",
    version=1,
    function="training.stages.init:run",
    config_model="training.config:InitConfig",
    inputs=_IMPORTED,
    outputs={"checkpoint": Kind.CHECKPOINT},
    numeric=True,
)
CONVERT = StageSpec(
    name="convert",
    version=1,
    function="training.stages.convert:run",
    config_model="training.config:ConvertConfig",
    inputs={"checkpoint": InputSpec(Kind.CHECKPOINT)},
    outputs={"checkpoint": Kind.CHECKPOINT},
    numeric=True,
)
# Neither `train` nor `generate` declares `weights`: their configs name none. Training reads features that the
# dataset holds; what encodes a prompt is named in the checkpoint, so the graph writes it into the node's key.
TRAIN = StageSpec(
    name="train",
    version=1,
    function="training.stages.train:run",
    config_model="training.config:TrainConfig",
    inputs={"dataset": InputSpec(Kind.DATASET), "checkpoint": InputSpec(Kind.CHECKPOINT)},
    outputs={"checkpoint": Kind.CHECKPOINT},
    numeric=True,
    distributed=True,
)
REWARD = StageSpec(
    name="reward",
    version=1,
    function="training.stages.reward:run",
    config_model="training.config:RewardConfig",
    inputs={"dataset": InputSpec(Kind.DATASET), "checkpoint": InputSpec(Kind.CHECKPOINT), **_IMPORTED},
    outputs={"checkpoint": Kind.CHECKPOINT},
    numeric=True,
    distributed=True,
    weights="training.config:weights_of",
    data_files=("m4v/scores/imagenet_names.txt",),
)
GENERATE = StageSpec(
    name="generate",
    version=1,
    function="eval.stages.generate:run",
    config_model="eval.config:GenerateConfig",
    inputs={"checkpoint": InputSpec(Kind.CHECKPOINT), **_IMPORTED},
    outputs={"samples": Kind.SAMPLES},
    numeric=True,
    distributed=True,
    sharded=True,
)
IMPORT_VIDEOS = StageSpec(
    name="import_videos",
    version=1,
    function="eval.stages.import_videos:run",
    config_model="eval.importing.config:ImportVideosConfig",
    outputs={"samples": Kind.SAMPLES},
)
EVALUATE = StageSpec(
    name="evaluate",
    version=1,
    function="eval.stages.evaluate:run",
    config_model="eval.config:EvaluateConfig",
    inputs={"samples": InputSpec(Kind.SAMPLES), **_IMPORTED},
    outputs={"scores": Kind.SCORES},
    weights="eval.config:weights_of",
    data_files=("m4v/scores/imagenet_names.txt",),
)
VBENCH = StageSpec(
    name="vbench",
    version=1,
    function="eval.stages.vbench:run",
    config_model="eval.vbench.config:VBenchConfig",
    inputs={"samples": InputSpec(Kind.SAMPLES)},
    outputs={"scores": Kind.SCORES},
    numeric=True,
    probe="eval.vbench.preflight:probe",
    data_files=("eval/vbench/data/*.json", "eval/vbench/data/prompts/*"),
)
GATE = StageSpec(
    name="gate",
    version=1,
    function="eval.stages.gate:run",
    config_model="eval.config:GateConfig",
    inputs={
        "scores": InputSpec(Kind.SCORES),
        "baseline": InputSpec(Kind.SCORES),
        "suite": InputSpec(Kind.SCORES, optional=True),
    },
    outputs={"scores": Kind.SCORES},
)
_VARIANTS = InputSpec(Kind.CHECKPOINT, many=True)
ABLATION = StageSpec(
    name="ablation",
    version=1,
    function="eval.stages.ablation:run",
    config_model="eval.ablation.config:AblationStageConfig",
    inputs={
        "start": _VARIANTS,
        "trained": _VARIANTS,
        "checkpoint": _VARIANTS,
        "scores": InputSpec(Kind.SCORES, many=True),
        "vbench": InputSpec(Kind.SCORES, many=True, optional=True),
    },
    outputs={"scores": Kind.SCORES},
)
STUDY = StageSpec(
    name="study",
    version=1,
    function="eval.stages.study:run",
    config_model="eval.study.config:StudyConfig",
    inputs={"samples": InputSpec(Kind.SAMPLES, many=True)},
    outputs={"study": Kind.REPORT},
)
STUDY_RESULTS = StageSpec(
    name="study_results",
    version=1,
    function="eval.stages.study_results:run",
    config_model="eval.study.config:ResultsConfig",
    inputs={"study": InputSpec(Kind.REPORT)},
    outputs={"scores": Kind.SCORES},
)
REPORT = StageSpec(
    name="report",
    version=1,
    function="pipelines.web.report:run",
    config_model="pipelines.web.config:ReportConfig",
    inputs={ANY_NAME: InputSpec(None, many=True)},
    outputs={"report": Kind.REPORT},
    data_files=("pipelines/web/templates/report/*", "pipelines/web/static/report.*"),  # not the server's pages
)

ALL = (
    SOURCE, WEIGHTS, CURATE, REDACT, ENCODE, IMPORT, VERSION, INIT, CONVERT, TRAIN, REWARD, GENERATE,
    IMPORT_VIDEOS, EVALUATE, VBENCH, GATE, ABLATION, STUDY, STUDY_RESULTS, REPORT,
)  # fmt: skip
