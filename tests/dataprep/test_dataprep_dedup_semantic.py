"""Semantic dedup: the definition on small sets, clusters on larger ones, the same whatever the order and the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dataprep.dedup import semantic
from dataprep.dedup.semantic import quantised, semantic_copies


def collection(seed: int, count: int, copies: int, angle: float, components: int = 64) -> NDArray[np.int8]:
    """Random directions around twenty themes; the first `copies` come again, turned by about `angle` radians."""
    generator = np.random.default_rng(seed)
    themes = generator.standard_normal((20, components))
    one = themes[generator.integers(0, 20, count)] + generator.standard_normal((count, components))
    length = np.linalg.norm(one[:copies], axis=1, keepdims=True) / np.sqrt(components)
    again = one[:copies] + angle * length * generator.standard_normal((copies, components))
    return quantised(np.concatenate([one, again]))


def by_definition(vectors: NDArray[np.int8], order: NDArray[np.int64], threshold: float) -> dict[int, int]:
    """Row -> row that stays: each is held against those kept before it, the first that is similar counts."""
    exact = vectors.astype(np.int64)
    kept: list[int] = []
    found: dict[int, int] = {}
    for row in order.tolist():
        for other in kept:
            cosine = exact[row] @ exact[other] / np.sqrt((exact[row] @ exact[row]) * (exact[other] @ exact[other]))
            if cosine >= threshold:
                found[row] = other
                break
        else:
            kept.append(row)
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.97])
def test_one_cluster_is_the_definition(monkeypatch: pytest.MonkeyPatch, threshold: float) -> None:
    monkeypatch.setattr(semantic, "_BLOCK", 37)
    vectors = collection(1, 250, 80, 0.2)
    order = np.random.default_rng(2).permutation(len(vectors))
    found = semantic_copies(vectors, order, threshold)
    expected = by_definition(vectors, order, threshold)
    assert dict(zip(found.rows.tolist(), found.of.tolist(), strict=True)) == expected
    assert len(expected) >= 75
    assert (found.cosines >= threshold).all()


def test_clusters_find_the_copies_of_a_larger_collection() -> None:
    vectors = collection(3, 9000, 1000, 0.1)
    found = semantic_copies(vectors, np.arange(10_000), 0.97)
    assert found.rows.tolist() == list(range(9000, 10_000))
    assert np.array_equal(found.of, found.rows - 9000)


def test_neither_rows_nor_blocks_change_who_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "CLUSTER", 200)
    vectors = collection(4, 1500, 400, 0.3)
    names = np.arange(len(vectors))

    def found(order: NDArray[np.int64]) -> set[tuple[int, int]]:
        """Rows lie in `order`, names decide."""
        copies = semantic_copies(vectors[order], np.argsort(order), 0.9)
        return set(zip(order[copies.rows].tolist(), order[copies.of].tolist(), strict=True))

    expected = found(names)
    assert len(expected) > 350
    monkeypatch.setattr(semantic, "_BLOCK", 333)
    assert found(np.random.default_rng(5).permutation(names)) == expected


def test_what_was_not_measured_is_no_copy_and_equal_vectors_are() -> None:
    vectors = np.zeros((5, 8), dtype=np.int8)
    vectors[3:] = 7
    found = semantic_copies(vectors, np.arange(5)[::-1], 0.99)
    assert (found.rows.tolist(), found.of.tolist(), found.cosines.tolist()) == ([3], [4], [1.0])
    assert not len(semantic_copies(vectors[:0], np.arange(0), 0.9).rows)


def test_a_cluster_of_thousands_of_equal_clips_costs_one_comparison_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "CLUSTER", 500)
    vectors = np.tile(collection(6, 1, 0, 0.0), (20_000, 1))
    found = semantic_copies(vectors, np.arange(20_000), 0.95)
    assert found.rows.tolist() == list(range(1, 20_000))
    assert not found.of.any()
