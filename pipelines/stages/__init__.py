"""Declarations of every stage; functions and config models stand as strings, so that plan and ledger
never import them."""

from __future__ import annotations

from m4v.core.artifacts import ArtifactKind as Kind
from pipelines.spec import ANY_NAME, InputSpec, StageSpec

SOURCE = StageSpec(
    name="source",
    version=1,
    function="dataprep.stages.source:run",
    config_model="dataprep.sources.config:SourceConfig",
    outputs={"source": Kind.SOURCE},
    probe="dataprep.sources:probe",
)
CURATE = StageSpec(
    name="curate",
    version=1,
    function="dataprep.stages.curate:run",
    config_model="dataprep.curate_config:CurateConfig",
    inputs={"source": InputSpec(Kind.SOURCE, many=True)},
    outputs={"clips": Kind.CLIPS},
    weights="dataprep.curate_config:weights_of",
)
ENCODE = StageSpec(
    name="encode",
    version=1,
    function="dataprep.stages.encode:run",
    config_model="dataprep.encode_config:EncodeConfig",
    inputs={"clips": InputSpec(Kind.CLIPS), "source": InputSpec(Kind.SOURCE, many=True)},
    outputs={"dataset": Kind.DATASET},
    numeric=True,
    weights="dataprep.encode_config:weights_of",
)
INIT = StageSpec(
    name="init",
    version=1,
    function="training.stages.init:run",
    config_model="training.config:InitConfig",
    outputs={"checkpoint": Kind.CHECKPOINT},
    numeric=True,
)
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
    inputs={"dataset": InputSpec(Kind.DATASET), "checkpoint": InputSpec(Kind.CHECKPOINT)},
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
    inputs={"checkpoint": InputSpec(Kind.CHECKPOINT)},
    outputs={"samples": Kind.SAMPLES},
    numeric=True,
)
EVALUATE = StageSpec(
    name="evaluate",
    version=1,
    function="eval.stages.evaluate:run",
    config_model="eval.config:EvaluateConfig",
    inputs={"samples": InputSpec(Kind.SAMPLES)},
    outputs={"scores": Kind.SCORES},
    weights="eval.config:weights_of",
    data_files=("m4v/scores/imagenet_names.txt",),
)
GATE = StageSpec(
    name="gate",
    version=1,
    function="eval.stages.gate:run",
    config_model="eval.config:GateConfig",
    inputs={"scores": InputSpec(Kind.SCORES), "baseline": InputSpec(Kind.SCORES)},
    outputs={"scores": Kind.SCORES},
)
REPORT = StageSpec(
    name="report",
    version=1,
    function="pipelines.web.report:run",
    config_model="pipelines.web.config:ReportConfig",
    inputs={ANY_NAME: InputSpec(None, many=True)},
    outputs={"report": Kind.REPORT},
    data_files=("pipelines/web/templates/**/*", "pipelines/web/static/**/*"),
)

ALL = (SOURCE, CURATE, ENCODE, INIT, TRAIN, REWARD, GENERATE, EVALUATE, GATE, REPORT)
