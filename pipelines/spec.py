"""Declarations: a stage (StageSpec), a stage at its place in one pipeline (StageNode), and checks of the graph.

Everything here is torch-free; the stage's function, models and probes are strings `package.module:name`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from m4v.core.artifacts import ArtifactKind
from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError
from m4v.core.stage import Resources

ANY_NAME = "*"


@dataclass(frozen=True)
class InputSpec:
    """One declared input. `kind` None takes any kind; `many`: a node names it `name.0`, `name.1`, … or `name.LABEL`.

    Declared under the name `*`, it admits inputs of any name (the report takes everything by node id).
    """

    kind: ArtifactKind | None
    many: bool = False
    optional: bool = False


@dataclass(frozen=True)
class StageSpec:
    """What a stage is, declared once in `pipelines/stages`.

    - function: `StageContext -> None`; every rank runs it.
    - config_model: a FrozenModel; the node's config is an instance of it.
    - numeric: the numerics record (device, world size, …) belongs to the key.
    - distributed: may run with more than one rank (torchrun).
    - sharded: ranks share out whole items, so their number is not in the numerics record.
    - weights: `config -> {asset name: sha256}` of packaged third-party models that the stage's config names. Imported
      ones are inputs of kind `weights`; those that an input names stand at the node (`StageNode.weights`).
    - probe: `(config, locations) -> digest` of mutable things outside (a source folder), torch-free and
      quick; evaluated at plan time, so that a changed folder is seen without running.
    - data_files: globs below the directory that holds our packages (`dataprep/data/*.tsv`); their bytes
      count as code.
    - takedowns: the stage keeps out what takedowns block; their list is attached to its request and, unless it is
      empty, stands in the key where a probe's value does.
    """

    name: str
    version: int
    function: str
    config_model: str
    inputs: Mapping[str, InputSpec] = field(default_factory=dict)
    outputs: Mapping[str, ArtifactKind] = field(default_factory=dict)
    numeric: bool = False
    distributed: bool = False
    sharded: bool = False
    weights: str | None = None
    probe: str | None = None
    data_files: tuple[str, ...] = ()
    takedowns: bool = False

    def input_spec(self, name: str) -> InputSpec | None:
        """Declaration of a node's input name (`source.0` -> `source`), None when there is none."""
        if name in self.inputs and not self.inputs[name].many:
            return self.inputs[name]
        base, _, label = name.partition(".")
        if label and base in self.inputs and self.inputs[base].many:
            return self.inputs[base]
        return self.inputs.get(ANY_NAME)


@dataclass(frozen=True)
class StageNode:
    """A stage in a pipeline. `inputs` maps the stage's input name to (node id, output name); list inputs
    are `name.0`, `name.1`, … `locations` says where mutable collections lie and is not in the key. `weights`:
    packaged models (asset name -> sha256) that the stage reads because an input says so: the checkpoint's text
    encoder is known when the graph is built, and its digest belongs to the key of whoever encodes a prompt."""

    id: str
    spec: StageSpec
    config: FrozenModel
    inputs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    seed: int = 0
    resources: Resources = field(default_factory=lambda: Resources(ranks=1, threads=1, workers=1))
    locations: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def upstream(self) -> list[str]:
        """Ids of the nodes this one reads from, each once, in order of the inputs."""
        return list(dict.fromkeys(node for node, _ in self.inputs.values()))


def load_object(reference: str) -> Any:
    """The object behind `package.module:name`; raises ConfigError when there is none."""
    module_name, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"cannot load it: {error}",
            value=reference,
            where="stage declaration",
            next_step="write package.module:name",
        ) from error


def load_function(reference: str) -> Callable[..., Any]:
    return cast(Callable[..., Any], load_object(reference))


def topological_order(nodes: Sequence[StageNode]) -> list[StageNode]:
    """Nodes with every upstream first, otherwise in the order given; checks the graph.

    Raises ConfigError for doubled ids, unknown nodes or outputs, wrong kinds, missing inputs and cycles.
    """
    by_id = {node.id: node for node in nodes}
    if len(by_id) != len(nodes):
        doubled = next(n.id for i, n in enumerate(nodes) if n.id in {m.id for m in nodes[:i]})
        raise ConfigError("two nodes have one id", value=doubled, where="pipeline graph")
    for node in nodes:
        _check_node(node, by_id)
    order: list[StageNode] = []
    done: set[str] = set()
    waiting = list(nodes)
    while waiting:
        ready = [n for n in waiting if all(u in done for u in n.upstream)]
        if not ready:
            raise ConfigError("nodes wait for each other", value=[n.id for n in waiting], where="pipeline graph")
        order.extend(ready)
        done.update(n.id for n in ready)
        waiting = [n for n in waiting if n.id not in done]
    return order


def _check_node(node: StageNode, by_id: Mapping[str, StageNode]) -> None:
    where = f"node {node.id}"
    if node.resources.ranks > 1 and not node.spec.distributed:
        raise ConfigError("stage runs on one rank only", value=node.resources.ranks, where=where)
    for name, (source, output) in node.inputs.items():
        declared = node.spec.input_spec(name)
        if declared is None:
            raise ConfigError(
                "stage has no such input", value=name, where=where, next_step=_near(name, node.spec.inputs)
            )
        if source not in by_id:
            raise ConfigError(
                "input comes from an unknown node", value=source, where=where, next_step=_near(source, by_id)
            )
        outputs = by_id[source].spec.outputs
        if output not in outputs:
            raise ConfigError(
                f"node {source} has no such output", value=output, where=where, next_step=_near(output, outputs)
            )
        if declared.kind is not None and outputs[output] != declared.kind:
            raise ConfigError(f"input {name} takes {declared.kind}, {source} makes {outputs[output]}", where=where)
    for name, declared in node.spec.inputs.items():
        given = any(node.spec.input_spec(i) is declared for i in node.inputs)
        if not given and not declared.optional and name != ANY_NAME:
            raise ConfigError("input is not connected", value=name, where=where)


def _near(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"


def until_node(nodes: Sequence[StageNode], until: str | None) -> list[StageNode]:
    """Nodes that `until` needs, itself included; all of them for None. Raises ConfigError for an unknown id."""
    if until is None:
        return list(nodes)
    by_id = {node.id: node for node in nodes}
    if until not in by_id:
        raise ConfigError("there is no such stage", value=until, next_step=f"use one of {', '.join(by_id)}")
    needed, waiting = set[str](), [until]
    while waiting:
        node_id = waiting.pop()
        if node_id not in needed:
            needed.add(node_id)
            waiting.extend(by_id[node_id].upstream)
    return [node for node in nodes if node.id in needed]
