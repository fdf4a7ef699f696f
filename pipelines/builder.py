"""What collects the nodes of a recipe's graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from m4v.core.config import FrozenModel
from pipelines.imported import Inputs
from pipelines.spec import StageNode, StageSpec

if TYPE_CHECKING:
    from pipelines.recipe import Recipe


class Builder:
    """Nodes in the order they were added, with the recipe's seed and each with the resources of its profile."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.nodes: list[StageNode] = []

    def add(
        self,
        node_id: str,
        spec: StageSpec,
        config: FrozenModel,
        inputs: Inputs,
        locations: dict[str, str] | None = None,
        weights: Mapping[str, str] | None = None,
        like: str | None = None,
    ) -> str:
        """Add a node; returns its id. `like`: the node of the profile whose resources this one gets, if not its own."""
        self.nodes.append(
            StageNode(
                id=node_id,
                spec=spec,
                config=config,
                inputs=inputs,
                seed=self.recipe.seed,
                resources=self.recipe.active_profile.resources(spec.name, like or node_id),
                locations=locations or {},
                weights=weights or {},
            )
        )
        return node_id
