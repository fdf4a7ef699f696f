"""Clips that show the same thing: cosine similarity of embeddings inside k-means clusters (SemDeDup, Abbas 2023).

Vectors are int8, so dot products of up to 1,000 components are whole numbers that float32 holds exactly: neither the
order of the rows nor threads nor the machine can move a clip over the threshold.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataprep.dedup.near import leaders
from m4v.core.rng import generator

Vectors = NDArray[np.int8]
Places = NDArray[np.int64]

CLUSTER = 2000  # clips of a cluster, about
HOMES = 2  # nearest clusters in which a clip is compared
_SAMPLED = 32  # rows a cluster that the centres are fitted on
_ROUNDS = 8
_BLOCK = 1024
_MOST_COMPONENTS = 1024
_MOST = 127


class Similar(NamedTuple):
    """Rows that are dropped, the row of each that stays, and their cosine."""

    rows: Places
    of: Places
    cosines: NDArray[np.float64]


def quantised(vectors: NDArray[np.floating]) -> Vectors:
    """(n, d) vectors as int8, each by its own scale: only their direction is kept. Zero stays zero."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scale = np.divide(_MOST, largest, out=np.zeros_like(largest, dtype=np.float64), where=largest > 0)
    return np.asarray(np.rint(vectors * scale), dtype=np.int8)


def semantic_copies(vectors: Vectors, order: Places, threshold: float) -> Similar:
    """Copies among the rows of `vectors` (n, d), which may lie in a mapped file, taken in `order` of preference.

    A clip is dropped when its cosine with one that stays reaches `threshold`. Rows of zeros are never copies. Raises
    ValueError for vectors that are too long for exact sums.
    """
    if vectors.shape[1] > _MOST_COMPONENTS:
        raise ValueError(f"{vectors.shape[1]} components are too many for exact sums")
    norms = _norms(vectors)
    order = order[norms[order] > 0]
    homes = _homes(vectors, norms, order)
    pairs = [np.zeros((0, 2), np.int64)]
    by_home = np.argsort(homes.ravel(), kind="stable")
    bounds = np.searchsorted(homes.ravel()[by_home], np.arange(int(homes.max(initial=-1)) + 2))
    for begin, end in pairwise(bounds.tolist()):
        places = np.unique(by_home[begin:end] // homes.shape[1])
        pairs.append(places[_led(vectors, norms, order[places], threshold)])
    places, stays = leaders(np.unique(np.concatenate(pairs), axis=0), len(order))
    rows, of = order[places], order[stays]
    return Similar(rows, of, _cosines(vectors, norms, rows, of))


def _norms(vectors: Vectors) -> NDArray[np.float64]:
    squares = [np.square(vectors[k : k + _BLOCK].astype(np.int32)).sum(axis=1) for k in range(0, len(vectors), _BLOCK)]
    return np.asarray(np.sqrt(np.concatenate([np.zeros(0), *squares])), dtype=np.float64)


def _cosines(vectors: Vectors, norms: NDArray[np.float64], one: Places, other: Places) -> NDArray[np.float64]:
    found = np.zeros(len(one))
    for k in range(0, len(one), _BLOCK):
        left, right = one[k : k + _BLOCK], other[k : k + _BLOCK]
        products = (vectors[left].astype(np.int32) * vectors[right].astype(np.int32)).sum(axis=1)
        found[k : k + _BLOCK] = products / (norms[left] * norms[right])
    return found


def _homes(vectors: Vectors, norms: NDArray[np.float64], order: Places) -> Places:
    """(n, HOMES) clusters of the rows in `order`."""
    clusters = -(-len(order) // CLUSTER)
    if clusters < 2:
        return np.zeros((len(order), 1), dtype=np.int64)
    count = min(len(order), clusters * _SAMPLED)
    chosen = np.sort(generator(0, "semantic", "sample").choice(len(order), count, replace=False))
    centres = _fitted(vectors[order[chosen]], norms[order[chosen]], clusters)
    homes = np.zeros((len(order), min(HOMES, clusters)), dtype=np.int64)
    for k in range(0, len(order), _BLOCK):
        scores = _scores(vectors[order[k : k + _BLOCK]], centres)
        for home in range(homes.shape[1]):
            homes[k : k + _BLOCK, home] = nearest = scores.argmax(axis=1)
            scores[np.arange(len(scores)), nearest] = -np.inf
    return homes


def _scores(vectors: Vectors, centres: Vectors) -> NDArray[np.float64]:
    """(n, k) dot products with unit centres."""
    return np.asarray(_products(vectors, centres) / np.maximum(_norms(centres), 1.0))


def _products(left: Vectors, right: Vectors) -> NDArray[np.float64]:
    """(n, m) exact dot products."""
    return np.asarray(left.astype(np.float32) @ right.astype(np.float32).T, dtype=np.float64)


def _fitted(vectors: Vectors, norms: NDArray[np.float64], clusters: int) -> Vectors:
    """Centres of spherical k-means, begun by k-means++ (Arthur and Vassilvitskii 2007). An empty cluster keeps its
    centre."""
    centres = _begun(vectors, norms, clusters)
    directions = np.rint(vectors * (_MOST / norms)[:, None] * 8).astype(np.int64)  # of one length, whole numbers
    for _ in range(_ROUNDS):
        nearest = np.concatenate(
            [_scores(vectors[k : k + _BLOCK], centres).argmax(axis=1) for k in range(0, len(vectors), _BLOCK)]
        )
        sums = np.zeros((clusters, vectors.shape[1]), dtype=np.int64)
        np.add.at(sums, nearest, directions)
        used = np.asarray(sums.any(axis=1), dtype=np.bool_)
        centres = np.where(used[:, None], quantised(sums.astype(np.float64)), centres).astype(np.int8)
    return centres


def _begun(vectors: Vectors, norms: NDArray[np.float64], clusters: int) -> Vectors:
    draws = generator(0, "semantic", "centres").random(clusters)
    chosen = [int(draws[0] * len(vectors))]
    apart = np.full(len(vectors), np.inf)
    floats = vectors.astype(np.float32)
    for draw in draws[1:]:
        products = (floats @ floats[chosen[-1]]).astype(np.float64)
        apart = np.minimum(apart, np.maximum(0.0, 1 - products / (norms * norms[chosen[-1]])))
        sums = np.cumsum(apart)
        # Rows that all lie on centres: any will do.
        place = np.searchsorted(sums, draw * sums[-1], side="right") if sums[-1] > 0 else int(draw * len(vectors))
        chosen.append(min(int(place), len(vectors) - 1))
    return vectors[chosen]


def _led(vectors: Vectors, norms: NDArray[np.float64], rows: Places, threshold: float) -> Places:
    """(n, 2) places in `rows` of a member and a later one it is similar to, where the first is led by no other."""
    kept = np.zeros(0, dtype=np.int64)
    pairs = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(rows), _BLOCK):
        own = np.arange(start, min(start + _BLOCK, len(rows)))
        block = vectors[rows[own]]
        led = np.zeros(len(own), dtype=np.bool_)
        for k in range(0, len(kept), _BLOCK):
            leading = kept[k : k + _BLOCK]
            later, first = np.nonzero(_alike(block, vectors[rows[leading]], norms, rows[own], rows[leading], threshold))
            pairs.append(np.stack([leading[first], own[later]], axis=1))
            led[later] = True
        later_only = ~np.tri(len(own), dtype=np.bool_)
        alike = np.logical_and(_alike(block, block, norms, rows[own], rows[own], threshold), later_only)
        for place in np.flatnonzero(alike.any(axis=1)):
            if not led[place]:
                followers = np.flatnonzero(alike[place])
                led[followers] = True
                pairs.append(np.stack([np.full(len(followers), own[place]), own[followers]], axis=1))
        kept = np.concatenate([kept, own[~led]])
    return np.concatenate(pairs)


def _alike(
    left: Vectors, right: Vectors, norms: NDArray[np.float64], one: Places, other: Places, threshold: float
) -> NDArray[np.bool_]:
    return np.asarray(_products(left, right) >= threshold * norms[one][:, None] * norms[other][None], dtype=np.bool_)
