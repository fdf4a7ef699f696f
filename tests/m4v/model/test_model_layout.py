"""Tables of a layout against the formulas they stand for."""

import numpy as np
import pytest
import torch

from m4v.model.layout import BatchLayout, Clip, Column, forget_layouts, image_ids, layouts_age, rotary
from m4v.model.tables import temporal_table
from m4v.model.token_runs import TILE, packed_runs, piece_lists, token_runs

PYRAMID = Column(2, (Clip(3, 6, 10), Clip(1, 12, 20), Clip(2, 24, 40)))
LAYOUTS = [
    BatchLayout((PYRAMID,), 7),
    BatchLayout((Column(0, (Clip(2, 6, 10),)), Column(1, (Clip(3, 6, 10), Clip(1, 12, 20)))), 3),
]


@pytest.mark.parametrize("double", [False, True], ids=["complex64", "complex128"])
@pytest.mark.parametrize("registers", [False, True], ids=["image", "registers"])
@pytest.mark.parametrize("axes", [(16, 24, 24), (0, 8, 8), (4, 0, 0)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["one column", "two"])
def test_rotations_are_those_of_every_token(
    layout: BatchLayout, axes: tuple[int, int, int], registers: bool, double: bool
) -> None:
    """Each token's angle by itself: the table puts them together from few."""
    ids = [np.zeros((layout.text_tokens, 3)), *(image_ids(column) for column in layout.columns)]
    if registers:
        ids += [np.arange(column.frames)[:, None] * np.array([[1, 0, 0]]) for column in layout.columns]
    positions = np.concatenate(ids).astype(np.float64)
    angles = [
        positions[:, axis, None] * 10000.0 ** (-np.arange(0, size, 2) / size) for axis, size in enumerate(axes) if size
    ]
    angle = torch.from_numpy(np.concatenate(angles, axis=1))
    expected = torch.polar(torch.ones_like(angle), angle).to(torch.complex128 if double else torch.complex64)
    found = rotary(layout, axes, 10000.0, registers, "cpu", double)
    assert found.is_contiguous()
    assert torch.equal(found, expected)


def test_runs_are_cut_into_tiles() -> None:
    lengths = ((3, 1), (0, 0), (2 * TILE + 1, 0), (TILE, 1))
    runs = token_runs(lengths, 3, "cpu")
    begin, tiles = 0, []
    for length, column in lengths:
        for first in range(begin, begin + length, TILE):
            tiles.append([first, min(first + TILE, begin + length), column])
        begin += length
    assert runs.tiles.tolist() == tiles
    assert runs.rows == begin
    assert [tiles[i][2] for i in runs.order.tolist()] == [0, 0, 0, 1, 1]
    assert runs.bounds.tolist() == [0, 3, 5, 5]
    assert {u.dtype for u in runs[:3]} == {torch.int32}


def test_forgetting_is_counted() -> None:
    before = layouts_age()
    forget_layouts()
    assert layouts_age() == before + 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=["one column", "two"])
def test_tables_are_constants_to_a_compiler(layout: BatchLayout) -> None:
    """Each layout has its own; none is made in the graph."""

    def read(x: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        device = str(x.device)
        runs, lists, table = packed_runs(layout, device, 3), piece_lists(layout, device), temporal_table(layout, device)
        return x + runs.tiles.sum() * table.places[0] + lists.members[lists.bounds[1]] + table.back.sum()

    nodes: list[int] = []

    def counted(graph: torch.fx.GraphModule, _: object) -> object:
        nodes.append(len(graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(read, fullgraph=True, dynamic=False, backend=counted)
    for one in (layout, layout._replace(text_slots=2), layout):
        assert torch.equal(compiled(torch.zeros(3), one), read(torch.zeros(3), one))
    assert nodes
    assert max(nodes) < 20
