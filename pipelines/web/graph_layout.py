"""Places of a lineage graph's nodes, layer below layer, and the curves between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

BOX_WIDTH, BOX_HEIGHT = 148, 46
GAP_X, GAP_Y = 22, 34
MARGIN = 10
ROW_LIMIT = 4  # boxes side by side: what fits beside the details without scrolling
_SWEEPS = 6


@dataclass(frozen=True)
class PlacedNode:
    id: str
    x: float
    y: float


@dataclass(frozen=True)
class PlacedEdge:
    source: str
    target: str
    path: str


@dataclass(frozen=True)
class GraphLayout:
    width: float
    height: float
    nodes: tuple[PlacedNode, ...]
    edges: tuple[PlacedEdge, ...]


def reduce_edges(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Edges without those that a longer way implies (the transitive reduction), in the order given."""
    known = set(nodes)
    unique = [e for e in dict.fromkeys(edges) if e[0] in known and e[1] in known and e[0] != e[1]]
    below: dict[str, set[str]] = {n: set() for n in nodes}
    for source, target in unique:
        below[source].add(target)

    def reaches(start: str, goal: str, skip: tuple[str, str]) -> bool:
        stack, seen = [start], {start}
        while stack:
            here = stack.pop()
            for following in below[here]:
                if (here, following) == skip or following in seen:
                    continue
                if following == goal:
                    return True
                seen.add(following)
                stack.append(following)
        return False

    return [e for e in unique if not reaches(e[0], e[1], e)]


def lay_out(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> GraphLayout:
    """Layers by the longest way to an end, order in a layer by the mean place of the neighbours."""
    shown = reduce_edges(nodes, edges)
    layer = _layers(nodes, shown)
    rows: list[list[str]] = [[] for _ in range(max(layer.values(), default=0) + 1)]
    for node in nodes:
        rows[layer[node]].append(node)
    _order(rows, shown)
    rows = [part for row in rows for part in _broken(row)]
    widest = max((len(r) for r in rows), default=0)
    width = 2 * MARGIN + max(widest * BOX_WIDTH + (widest - 1) * GAP_X, BOX_WIDTH)
    height = 2 * MARGIN + len(rows) * BOX_HEIGHT + (len(rows) - 1) * GAP_Y
    placed = {}
    for depth, row in enumerate(rows):
        row_width = len(row) * BOX_WIDTH + (len(row) - 1) * GAP_X
        for place, node in enumerate(row):
            x = (width - row_width) / 2 + place * (BOX_WIDTH + GAP_X)
            placed[node] = PlacedNode(node, x, MARGIN + depth * (BOX_HEIGHT + GAP_Y))
    return GraphLayout(
        width,
        height,
        tuple(placed[n] for n in nodes),
        tuple(_edge(placed[a], placed[b], list(placed.values())) for a, b in shown),
    )


def _layers(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """As low as possible: every node stands right above the highest thing it feeds, so that the two arms of
    a comparison lie side by side."""
    height = dict.fromkeys(nodes, 0)
    for _ in nodes:  # at most one pass per node in a graph without cycles
        changed = False
        for source, target in edges:
            if height[source] < height[target] + 1:
                height[source], changed = height[target] + 1, True
        if not changed:
            break
    top = max(height.values(), default=0)
    return {node: top - height[node] for node in nodes}


def _broken(row: list[str]) -> list[list[str]]:
    """A wide layer as several rows of about equal length, one above the other."""
    count = max(1, -(-len(row) // ROW_LIMIT))
    bounds = [len(row) * i // count for i in range(count + 1)]
    return [row[a:b] for a, b in pairwise(bounds)]


def _order(rows: Sequence[list[str]], edges: Sequence[tuple[str, str]]) -> None:
    """Sort rows in place by the mean place of their neighbours, down and up a few times."""
    near: dict[str, list[str]] = {n: [] for row in rows for n in row}
    for source, target in edges:
        near[source].append(target)
        near[target].append(source)
    place = {n: i for row in rows for i, n in enumerate(row)}
    centre = {n: i - (len(row) - 1) / 2 for row in rows for i, n in enumerate(row)}
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            row.sort(key=lambda n: (sum(centre[m] for m in near[n]) / len(near[n]) if near[n] else 0.0, place[n]))
            for i, node in enumerate(row):
                place[node], centre[node] = i, i - (len(row) - 1) / 2


def _edge(source: PlacedNode, target: PlacedNode, nodes: Sequence[PlacedNode]) -> PlacedEdge:
    x0, y0 = source.x + BOX_WIDTH / 2, source.y + BOX_HEIGHT
    x1, y1 = target.x + BOX_WIDTH / 2, target.y
    middle = (y0 + y1) / 2
    between = [n for n in nodes if y0 <= n.y and n.y + BOX_HEIGHT <= y1]
    if not between:
        path = f"M{x0:.0f} {y0:.0f}C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"
    else:
        bend = _free_column(x0, x1, between)
        upper, lower = y0 + GAP_Y / 2, y1 - GAP_Y / 2
        path = (
            f"M{x0:.0f} {y0:.0f}C{x0:.0f} {upper:.0f} {bend:.0f} {upper:.0f} {bend:.0f} {y0 + GAP_Y:.0f}"
            f"L{bend:.0f} {y1 - GAP_Y:.0f}C{bend:.0f} {lower:.0f} {x1:.0f} {lower:.0f} {x1:.0f} {y1:.0f}"
        )
    return PlacedEdge(source.id, target.id, path)


def _free_column(x0: float, x1: float, between: Sequence[PlacedNode]) -> float:
    """Where a vertical line passes all boxes between two layers: straight down if it can, else the way round
    that strays least."""
    side = BOX_WIDTH / 2 + GAP_X / 2
    centres = [n.x + BOX_WIDTH / 2 for n in between]
    columns = [x0, x1, *(c + s for c in centres for s in (-side, side))]
    free = [x for x in columns if all(abs(x - c) > BOX_WIDTH / 2 for c in centres)]
    return min(free, key=lambda x: (abs(x - x0) + abs(x - x1), x))
