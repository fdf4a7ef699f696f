"""Dedup: the index against brute force, exact and near copies, who stays."""

import numpy as np
import pytest

from dataprep.curate_config import DedupConfig
from dataprep.dedup import Duplicate, HashIndex, Signature, find_duplicates
from dataprep.signals.phash import distance

CONFIG = DedupConfig()


def random_hashes(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**64, count, dtype=np.uint64)


def disturbed(hashes: np.ndarray, bits: int, seed: int = 0) -> np.ndarray:
    """The same hashes with exactly `bits` bits flipped in each."""
    generator = np.random.default_rng(seed)
    flips = [sum(1 << int(b) for b in generator.permutation(64)[:bits]) for _ in hashes]
    return hashes ^ np.array(flips, dtype=np.uint64)


def clip(name: str, hashes: np.ndarray, **options: object) -> Signature:
    values = {"content": name, "preference": (0.0,), "sampled": hashes[::4], "dense": hashes, "file": name, **options}
    return Signature(clip_id=name, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [0, 3, 6, 7])
def test_the_index_misses_nothing_up_to_seven_bits(bits: int) -> None:
    hashes = random_hashes(1, 3000)
    queries = disturbed(hashes[:500], bits, seed=bits)
    asked, found = HashIndex(hashes).within(queries, 7)
    brute = np.argwhere(distance(queries[:, None], hashes[None]) <= 7)
    assert np.array_equal(np.stack([asked, found], axis=1), brute)
    assert set(zip(asked.tolist(), found.tolist(), strict=True)) >= {(k, k) for k in range(500)}


def test_equal_pictures_are_exact_duplicates_of_the_preferred() -> None:
    hashes = random_hashes(2, 40)
    clips = [
        clip("b", hashes, content="same", preference=(1.0,)),
        clip("a", hashes, content="same", preference=(2.0,)),
        clip("c", hashes, content="same", preference=(1.0,)),
    ]
    expected = {"a": Duplicate("duplicate_exact", "b"), "c": Duplicate("duplicate_exact", "b")}
    assert find_duplicates(clips, CONFIG) == expected
    assert find_duplicates(clips[::-1], CONFIG) == expected
    assert find_duplicates(clips, DedupConfig(exact=False, perceptual=False)) == {}


def test_a_cut_of_a_longer_clip_is_found_whatever_its_ends() -> None:
    film = random_hashes(3, 200)
    trailer = disturbed(film[83:131], 4)
    clips = [clip("film", film, preference=(-2.0,)), clip("trailer", trailer), clip("other", random_hashes(4, 60))]
    assert find_duplicates(clips, CONFIG) == {"trailer": Duplicate("duplicate_near", "film")}


def test_the_preferred_stays_even_when_it_is_the_shorter() -> None:
    film = random_hashes(3, 200)
    clips = [clip("film", film), clip("sharp-cut", film[50:90], preference=(-1.0,))]
    assert find_duplicates(clips, CONFIG) == {"film": Duplicate("duplicate_near", "sharp-cut")}


def test_a_few_common_frames_are_not_enough() -> None:
    one, two = random_hashes(5, 64), random_hashes(6, 64)
    two[:20] = one[:20]
    assert find_duplicates([clip("one", one), clip("two", two)], CONFIG) == {}


def test_black_frames_match_nothing() -> None:
    dark = np.zeros(64, dtype=np.uint64)
    assert find_duplicates([clip("one", dark), clip("two", dark)], CONFIG) == {}
    half = random_hashes(7, 64)
    mostly_dark = np.where(np.arange(64) < 40, 0, half).astype(np.uint64)
    assert find_duplicates([clip("one", mostly_dark), clip("two", half[40:], sampled=mostly_dark[::4])], CONFIG) == {}


def test_chains_keep_one_of_each_neighbourhood() -> None:
    """b is close to a and to c, but a and c are not close: a stays, b goes, c stays."""
    a = random_hashes(8, 40)
    b = disturbed(a, 5, seed=1)
    c = disturbed(b, 5, seed=2)
    clips = [clip(n, h, preference=(float(k),)) for k, (n, h) in enumerate({"a": a, "b": b, "c": c}.items())]
    assert find_duplicates(clips, CONFIG) == {"b": Duplicate("duplicate_near", "a")}


def test_shots_of_one_file_drawings_and_stills_are_not_compared() -> None:
    hashes = random_hashes(9, 40)
    same_file = [clip("one", hashes, file="f"), clip("two", hashes, file="f")]
    assert find_duplicates(same_file, CONFIG) == {}
    drawn = [clip("one", hashes, perceptual=False), clip("two", hashes, perceptual=False)]
    assert find_duplicates(drawn, CONFIG) == {}
    still = [clip("film", hashes), clip("still", hashes[:1], media="image", preference=(-9.0,))]
    assert find_duplicates(still, CONFIG) == {}


def test_nothing_to_compare() -> None:
    assert find_duplicates([], CONFIG) == {}
