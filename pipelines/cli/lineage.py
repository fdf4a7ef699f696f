"""`m4v lineage up|down|exposure`: what an artifact was made from and led to; what a checkpoint consumed."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from pipelines.cli.artifacts import ArtifactArgument
from pipelines.cli.exposure import exposure
from pipelines.cli.output import JsonOption, print_json, short, size
from pipelines.cli.runs import open_ledger
from pipelines.ledger import LineageGraph

lineage = typer.Typer(help="Where an artifact comes from and where it went.", no_args_is_help=True)
lineage.command("exposure")(exposure)


def register(app: typer.Typer) -> None:
    app.add_typer(lineage, name="lineage")


@lineage.command("up")
def up(identity: ArtifactArgument, json_: JsonOption = False) -> None:
    """Everything the artifact was made from, as a tree."""
    _print(identity, "up", json_)


@lineage.command("down")
def down(identity: ArtifactArgument, json_: JsonOption = False) -> None:
    """Everything that was made from the artifact, as a tree."""
    _print(identity, "down", json_)


def _print(identity: str, direction: str, json_: bool) -> None:
    with open_ledger() as ledger:
        root = ledger.artifact(identity).artifact_id
        graph = ledger.lineage_up(root) if direction == "up" else ledger.lineage_down(root)
    if json_:
        print_json(graph.to_json())
        return
    for line in tree_lines(graph):
        print(line)


def tree_lines(graph: LineageGraph) -> Iterator[str]:
    """The graph as an indented tree; what was shown before is named and not unfolded again."""
    seen: set[str] = set()

    def walk(node: str, prefix: str, label: str) -> Iterator[str]:
        again = node in seen
        seen.add(node)
        steps = [] if again else graph.neighbours(node)
        mark = "  (see above)" if again and graph.neighbours(node) else ""
        yield f"{label}{_describe(graph, node)}{mark}"
        for number, (edge, neighbour) in enumerate(steps):
            last = number == len(steps) - 1
            yield from walk(
                neighbour, prefix + ("   " if last else "│  "), f"{prefix}{'└─ ' if last else '├─ '}{edge.name}: "
            )

    return walk(graph.root, "", "")


def _describe(graph: LineageGraph, node: str) -> str:
    if node in graph.runs:
        run = graph.runs[node]
        return f"run {run.run_id} {run.stage}"
    artifact = graph.artifacts[node]
    return f"{artifact.kind} {short(node)} ({size(artifact.size_bytes)})"
