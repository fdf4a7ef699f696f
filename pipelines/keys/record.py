"""Identity of one stage execution: the key and the record of everything that went into it (DESIGN, Identity)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from m4v.core.canonical import digest_json
from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError
from pipelines.environment import Target, file_digest, numerics_record
from pipelines.keys.code import CODE_ROOT, reachable_files
from pipelines.spec import StageNode, StageSpec, load_function

SeenCode = dict[tuple[str, str, tuple[str, ...]], dict[str, str]]  # source files by stage function, model, data files


class KeyRecord(FrozenModel):
    """All components of a stage key, kept so that a plan can say which one changed, from what to what.

    `inputs` maps input names to artifact ids, `code` file paths to sha256, `weights` asset names to sha256.
    """

    stage: str
    stage_version: int
    config: dict[str, object]
    inputs: dict[str, str]
    seed: int
    code: dict[str, str]
    lock_digest: str | None = None
    weights: dict[str, str] = {}
    numerics: dict[str, object] | None = None
    probe: str | None = None

    @property
    def config_digest(self) -> str:
        return digest_json(self.config)

    @property
    def code_digest(self) -> str:
        return digest_json(self.code)

    @property
    def stage_key(self) -> str:
        return digest_json(
            {
                "stage": self.stage,
                "version": self.stage_version,
                "config": self.config_digest,
                "inputs": self.inputs,
                "seed": self.seed,
                "code": self.code_digest,
                "lock": self.lock_digest,
                "weights": self.weights,
                "numerics": self.numerics,
                "probe": self.probe,
            }
        )


def key_record(
    node: StageNode,
    inputs: Mapping[str, str],
    target: Target,
    probe: str | None = None,
    code_root: Path = CODE_ROOT,
    seen: SeenCode | None = None,
) -> KeyRecord:
    """Record of `node` on input artifacts (input name -> artifact id) for a launcher's target.

    `probe` is the value of `probe_value(node)`: the caller evaluates it, since it may read a whole folder. `seen`
    keeps what a walk over the source files found for the next node of the same stage.
    Raises ConfigError when the function, the lock file or a weights function cannot be found.
    """
    spec = node.spec
    return KeyRecord(
        stage=spec.name,
        stage_version=spec.version,
        config=node.config.key_config(),
        inputs=dict(inputs),
        seed=node.seed,
        code=_code(node.spec, code_root, seen if seen is not None else {}),
        lock_digest=None if target.lock_file is None else file_digest(Path(target.lock_file)),
        weights=_weights(node),
        numerics=_numerics(node, target) if spec.numeric else None,
        probe=probe,
    )


def _code(spec: StageSpec, root: Path, seen: SeenCode) -> dict[str, str]:
    wanted = (spec.function, spec.config_model, spec.data_files)
    if wanted not in seen:
        seen[wanted] = reachable_files(wanted[:2], spec.data_files, root)
    return dict(seen[wanted])


def _numerics(node: StageNode, target: Target) -> dict[str, object]:
    record = numerics_record(node.config, node.resources, target).canonical()
    return {name: value for name, value in record.items() if name != "world_size" or not node.spec.sharded}


def probe_value(node: StageNode) -> str | None:
    """What the node's probe says of the mutable things it reads (a source folder); None without a probe."""
    if node.spec.probe is None:
        return None
    value = load_function(node.spec.probe)(node.config, dict(node.locations))
    if not isinstance(value, str):
        raise ConfigError("a probe returns a digest", value=value, where=node.spec.probe)
    return value


def _weights(node: StageNode) -> dict[str, str]:
    named = {} if node.spec.weights is None else load_function(node.spec.weights)(node.config)
    return {str(name): str(digest) for name, digest in {**named, **node.weights}.items()}
