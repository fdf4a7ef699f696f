"""Dedup: the index against brute force, exact and near copies, who stays."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dataprep.curate_config import DedupConfig
from dataprep.dedup import EXACT, NEAR, Fingerprints, Signature, find_duplicates, sketches, spill
from dataprep.dedup.hash_index import HashIndex
from dataprep.dedup.near import near_copies
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


def copies(clips: list[Signature], config: DedupConfig = CONFIG) -> dict[str, tuple[str, str]]:
    """Name -> rule and name of the clip that stays."""
    found = find_duplicates(Fingerprints.of(clips), config)
    return {
        clips[row].clip_id: (rule, clips[stays].clip_id)
        for row, rule, stays in zip(found.rows.tolist(), found.rules.tolist(), found.of.tolist(), strict=True)
    }


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
    expected = {"a": (EXACT, "b"), "c": (EXACT, "b")}
    assert copies(clips) == expected
    assert copies(clips[::-1]) == expected
    assert copies(clips, DedupConfig(exact=False, perceptual=False)) == {}


def test_a_cut_of_a_longer_clip_is_found_whatever_its_ends() -> None:
    film = random_hashes(3, 200)
    trailer = disturbed(film[83:131], 4)
    clips = [clip("film", film, preference=(-2.0,)), clip("trailer", trailer), clip("other", random_hashes(4, 60))]
    assert copies(clips) == {"trailer": (NEAR, "film")}


def test_the_preferred_stays_even_when_it_is_the_shorter() -> None:
    film = random_hashes(3, 200)
    clips = [clip("film", film), clip("sharp-cut", film[50:90], preference=(-1.0,))]
    assert copies(clips) == {"film": (NEAR, "sharp-cut")}


def test_a_few_common_frames_are_not_enough() -> None:
    one, two = random_hashes(5, 64), random_hashes(6, 64)
    two[:20] = one[:20]
    assert copies([clip("one", one), clip("two", two)]) == {}


def test_black_frames_match_nothing() -> None:
    dark = np.zeros(64, dtype=np.uint64)
    assert copies([clip("one", dark), clip("two", dark)]) == {}
    half = random_hashes(7, 64)
    mostly_dark = np.where(np.arange(64) < 40, 0, half).astype(np.uint64)
    assert copies([clip("one", mostly_dark), clip("two", half[40:], sampled=mostly_dark[::4])]) == {}


def test_chains_keep_one_of_each_neighbourhood() -> None:
    """b is close to a and to c, but a and c are not close: a stays, b goes, c stays."""
    a = random_hashes(8, 40)
    b = disturbed(a, 5, seed=1)
    c = disturbed(b, 5, seed=2)
    clips = [clip(n, h, preference=(float(k),)) for k, (n, h) in enumerate({"a": a, "b": b, "c": c}.items())]
    assert copies(clips) == {"b": (NEAR, "a")}


def test_shots_of_one_file_drawings_and_stills_are_not_compared() -> None:
    hashes = random_hashes(9, 40)
    same_file = [clip("one", hashes, file="f"), clip("two", hashes, file="f")]
    assert copies(same_file) == {}
    drawn = [clip("one", hashes, perceptual=False), clip("two", hashes, perceptual=False)]
    assert copies(drawn) == {}
    still = [clip("film", hashes), clip("still", hashes[:1], media="image", preference=(-9.0,))]
    assert copies(still) == {}


def test_nothing_to_compare() -> None:
    assert copies([]) == {}


def collection(clips: int, frames: int, copies_: int, bits: int) -> list[Signature]:
    """Clips of random frames; the first `copies_` come again with `bits` bits of every frame flipped."""
    hashes = random_hashes(11, clips * frames).reshape(clips, frames)
    again = disturbed(hashes[:copies_].ravel(), bits, seed=bits).reshape(copies_, frames)
    return [
        clip(f"{kind}{number:05d}", row, sampled=row[::2], preference=(float(kind == "copy"),))
        for kind, rows in (("clip", hashes), ("copy", again))
        for number, row in enumerate(rows)
    ]


def random_collection(seed: int) -> list[Signature]:
    """Cuts of each other, dark frames, equal contents, stills, drawings, shared files, ties of preference."""
    generator = np.random.default_rng(seed)
    clips: list[Signature] = []
    for number in range(60):
        hashes = generator.integers(1, 2**64, int(generator.integers(1, 50)), dtype=np.uint64)
        if clips and number % 2:
            whole = clips[int(generator.integers(len(clips)))].dense
            start = int(generator.integers(len(whole)))
            hashes = disturbed(whole[start : start + 30], int(generator.integers(0, 9)), seed=number)
        hashes = np.where(generator.random(len(hashes)) < generator.random() * 0.7, 0, hashes).astype(np.uint64)
        clips.append(
            clip(
                f"{generator.integers(1 << 30):x}-{number}", hashes, sampled=hashes[::3],
                content=str(generator.integers(80)), preference=(float(generator.integers(3)), float(number % 2)),
                media=str(generator.choice(["video", "video", "image"])),
                file=str(generator.choice(["", "f", "g", "h"])),
                perceptual=bool(generator.random() < 0.9),
            )
        )  # fmt: skip
    return clips


def by_definition(clips: list[Signature], config: DedupConfig) -> dict[str, tuple[str, str]]:
    """The rule, clip by clip and frame by frame."""

    def contains(one: Signature, other: Signature) -> bool:
        asked, answers = one.sampled[one.sampled != 0], other.dense[other.dense != 0]
        if not len(asked) or not len(answers) or 2 * len(asked) < len(one.sampled):
            return False
        matched = (distance(asked[:, None], answers[None]) <= config.max_distance).any(1)
        return bool(matched.sum() >= config.min_match * len(asked))

    found: dict[str, tuple[str, str]] = {}
    ordered = sorted(clips, key=lambda c: (c.preference, c.clip_id))
    for place, one in enumerate(ordered):
        equal = [c for c in ordered[:place] if (c.media, c.content) == (one.media, one.content)]
        if equal:
            found[one.clip_id] = (EXACT, equal[0].clip_id)
    for place, one in enumerate(ordered):
        for other in ordered[:place]:
            alone = (one.file == other.file and one.file) or one.media != other.media
            if alone or {one.clip_id, other.clip_id} & set(found) or not (one.perceptual and other.perceptual):
                continue
            if contains(one, other) or contains(other, one):
                found[one.clip_id] = (NEAR, other.clip_id)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_copies_are_those_of_the_definition_in_any_order_of_rows(seed: int) -> None:
    clips = random_collection(seed)
    config = DedupConfig(max_distance=seed % 8, min_match=(0.3, 0.6, 1.0)[seed % 3])
    expected = by_definition(clips, config)
    assert copies(clips, config) == expected
    shuffled = [clips[k] for k in np.random.default_rng(seed).permutation(len(clips))]
    assert copies(shuffled, config) == expected


@pytest.mark.parametrize(("bits", "recall"), [(0, 1.0), (3, 1.0), (4, 0.99), (5, 0.9), (6, 0.7)])
def test_a_large_collection_finds_what_a_complete_search_does(bits: int, recall: float) -> None:
    """Every frame of a copy is off by so many bits; nothing is found that the definition does not have."""
    clips = collection(1500, 16, 300, bits)
    prints = Fingerprints.of(clips)
    every = np.ones(len(clips), dtype=np.bool_)
    rows, of = near_copies(prints, every, CONFIG, complete=False)
    assert len(rows) >= recall * 300
    assert np.array_equal(rows, of + 1500)
    complete_rows, complete_of = near_copies(prints, every, CONFIG, complete=True)
    assert complete_rows.tolist() == list(range(1500, 1800))
    assert np.array_equal(complete_of, complete_rows - 1500)


def test_a_large_search_does_not_depend_on_rows_or_on_where_hashes_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = collection(400, 16, 200, 2)
    everywhere = np.ones(len(clips), dtype=np.bool_)
    order = np.random.default_rng(0).permutation(len(clips))

    def found(places: NDArray[np.intp]) -> set[tuple[str, str]]:
        rows, of = near_copies(Fingerprints.of(clips[k] for k in places), everywhere, CONFIG, complete=False)
        return {(clips[places[r]].clip_id, clips[places[o]].clip_id) for r, o in zip(rows, of, strict=True)}

    expected = found(np.arange(len(clips)))
    assert len(expected) == 200
    monkeypatch.setattr(spill, "_SPILL_BYTES", 1000)
    monkeypatch.setattr(sketches, "_RUN", 64)
    assert found(order) == expected


@pytest.mark.parametrize("spill_bytes", [8, 1 << 20])
def test_texts_are_read_back_by_place_from_memory_or_a_file(monkeypatch: pytest.MonkeyPatch, spill_bytes: int) -> None:
    monkeypatch.setattr(spill, "_SPILL_BYTES", spill_bytes)
    batches = [["one", "", "é"], [], ["a longer one", "x"]]
    texts = spill.Texts()
    for batch in batches:
        texts.add(batch)
    expected = [text for batch in batches for text in batch]
    assert len(texts) == len(expected)
    assert list(texts) == expected
    assert (texts[-1], texts[1:3]) == ("x", ["", "é"])
    with pytest.raises(ValueError, match="being read"):
        texts.add(["late"])


def test_a_frame_that_thousands_of_clips_share_costs_little_and_makes_no_copies() -> None:
    hashes = random_hashes(12, 2000 * 8).reshape(2000, 8)
    hashes[:, 0] = 12345
    prints = Fingerprints.of(clip(f"{k:05d}", row, sampled=row) for k, row in enumerate(hashes))
    rows, _ = near_copies(prints, np.ones(2000, dtype=np.bool_), CONFIG, complete=False)
    assert not len(rows)
