"""Clips by id, source, URL and hash, with what overlaps them; errors that name what is near."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from clip_material import TestClip, random_clips, shards_of, write_dataset, write_listing, write_table

from m4v.core.errors import InputError
from m4v.core.storage import Storage
from pipelines.ledger import Ledger
from pipelines.membership import ClipFacts, ClipSelector, parse_selector
from pipelines.store import ArtifactRecord

S = 1_000_000


def take_in(ledger: Ledger, record: ArtifactRecord) -> None:
    ledger.import_artifact(record)
    ledger.index_members(record.artifact_id, record.kind, Storage(record.uri))


def ids(found: list[ClipFacts]) -> set[str]:
    return {c.clip_id for c in found}


def ask(ledger: Ledger, *terms: str, bits: int = 8) -> set[str]:
    return ids(ledger.find_clips(parse_selector(terms, phash_bits=bits)))


FIRST = TestClip("web", "page/1", 0, 4 * S)
MIDDLE = TestClip("web", "page/1", 3 * S, 6 * S)
LAST = TestClip("web", "page/1", 6 * S, 9 * S)
OTHER = TestClip("web", "page/2", 0, 4 * S)
NAMESAKE = TestClip("open", "page/1", 0, 4 * S)
STILL = TestClip("web", "page/3", 0, 0, size=(1, 8, 8))
ALL = [FIRST, MIDDLE, LAST, OTHER, NAMESAKE, STILL]


@pytest.fixture
def filled(ledger: Ledger, tmp_path: Path) -> Ledger:
    take_in(ledger, write_table(tmp_path / "clips", ALL))
    return ledger


def test_a_clip_is_found_by_its_id_or_the_beginning_with_what_overlaps_it(filled: Ledger) -> None:
    found = filled.find_clips(parse_selector([LAST.clip_id]))
    assert [(c.clip_id, c.matched_by) for c in found] == [(LAST.clip_id, (f"clip:{LAST.clip_id}",))]
    found = filled.find_clips(parse_selector([MIDDLE.clip_id[:9]]))
    assert {c.clip_id: c.matched_by for c in found} == {
        FIRST.clip_id: (f"overlaps {MIDDLE.clip_id}",),
        MIDDLE.clip_id: (f"clip:{MIDDLE.clip_id[:9]}",),
    }


def test_facts_of_a_clip(filled: Ledger) -> None:
    (found,) = filled.find_clips(parse_selector([STILL.clip_id]))
    assert found == ClipFacts(
        clip_id=STILL.clip_id, source="web", source_id="page/3", start_us=0, end_us=0,
        source_digests=(STILL.digest,), phash=STILL.phash, matched_by=(f"clip:{STILL.clip_id}",),
    )  # fmt: skip
    assert found.is_image
    assert filled.clip_facts([STILL.clip_id, "0" * 32])[STILL.clip_id].source_digests == (STILL.digest,)


def test_a_source_or_one_file_of_it(filled: Ledger) -> None:
    assert ask(filled, "open") == {NAMESAKE.clip_id}
    assert ask(filled, "web") == {c.clip_id for c in ALL if c.source == "web"}
    assert ask(filled, "web/page/1") == {FIRST.clip_id, MIDDLE.clip_id, LAST.clip_id}


def test_of_a_whole_source_the_first_clips_can_be_had(filled: Ledger) -> None:
    of_web = {c.clip_id for c in ALL if c.source == "web"}
    some = ids(filled.find_clips(parse_selector(["source:web"]), of_source=2))
    assert len(some) == 2
    assert some < of_web
    assert ids(filled.find_clips(parse_selector(["source:web"]), of_source=9)) == of_web
    one_more = ids(filled.find_clips(parse_selector(["source:web", NAMESAKE.clip_id]), of_source=2))
    assert one_more == some | {NAMESAKE.clip_id}  # other terms are not cut short


def test_sources_with_a_slash_in_their_name(ledger: Ledger, tmp_path: Path) -> None:
    clips = [TestClip("a", "b/c"), TestClip("a/b", "c")]
    take_in(ledger, write_table(tmp_path / "clips", clips))
    assert ask(ledger, "a/b") == {clips[1].clip_id}
    assert ask(ledger, "a/b/c") == {c.clip_id for c in clips}  # either reading


def test_a_url_leads_to_the_clips_of_the_file_from_there(filled: Ledger, tmp_path: Path) -> None:
    urls = {"page/1": "https://host/1.mp4", "page/2": "https://host/2.mp4", "page/3": None}
    take_in(filled, write_listing(tmp_path / "listing", "web", urls))
    assert ask(filled, "https://host/2.mp4") == {OTHER.clip_id}
    assert ask(filled, " https://host/1.mp4 ") == {FIRST.clip_id, MIDDLE.clip_id, LAST.clip_id}
    with pytest.raises(InputError, match=r"no clip of this URL is indexed: 'https://host/9.mp4'"):
        ask(filled, "https://host/9.mp4")


def test_a_listed_file_without_a_clip_is_told_apart_from_an_unknown_one(filled: Ledger, tmp_path: Path) -> None:
    take_in(filled, write_listing(tmp_path / "listing", "web", {"page/7": "https://host/7.mp4"}))
    with pytest.raises(InputError, match="Next: web lists it, but no clip was cut from its file"):
        ask(filled, "https://host/7.mp4")


def test_a_lone_hash_word_is_read_as_an_id_and_says_so(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="Next: phash:00ff00ff00ff00ff if it is a perceptual hash"):
        ask(ledger, "00ff00ff00ff00ff")


def test_a_url_that_is_the_source_id(ledger: Ledger, tmp_path: Path) -> None:
    one = TestClip("laion", "https://host/picture.jpg", 0, 0)
    take_in(ledger, write_table(tmp_path / "clips", [one]))
    assert ask(ledger, "https://host/picture.jpg") == {one.clip_id}


def test_a_url_may_be_indexed_before_the_clips(ledger: Ledger, tmp_path: Path) -> None:
    take_in(ledger, write_listing(tmp_path / "listing", "web", {"page/2": "https://host/2.mp4"}))
    take_in(ledger, write_table(tmp_path / "clips", ALL))
    assert ask(ledger, "https://host/2.mp4") == {OTHER.clip_id}


def test_the_digest_of_a_file_also_of_one_that_was_replaced(ledger: Ledger, tmp_path: Path) -> None:
    before, after = TestClip("web", "p", file="old"), TestClip("web", "p", file="new")
    twin = TestClip("open", "q", file="old")
    take_in(ledger, write_table(tmp_path / "one", [before, twin]))
    take_in(ledger, write_table(tmp_path / "two", [after]))
    assert before.clip_id == after.clip_id
    assert ask(ledger, before.digest) == {before.clip_id, twin.clip_id}
    assert ask(ledger, f"sha256:{after.digest}") == {after.clip_id}
    (facts,) = ledger.find_clips(parse_selector([after.digest]))
    assert set(facts.source_digests) == {before.digest, after.digest}


@pytest.mark.parametrize("seed", range(3))
def test_perceptual_hashes_within_bits_equal_brute_force(ledger: Ledger, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    clips = random_clips(rng, 50)
    take_in(ledger, write_table(tmp_path / "one", clips[:30]))
    take_in(ledger, write_dataset(tmp_path / "two", shards_of(clips)))
    take_in(ledger, write_table(tmp_path / "three", clips))
    for bits in (0, 3, 12):
        one = rng.choice(clips)
        words = [int(w, 16) for w in one.phash.split("-")]
        asked = [w ^ sum(1 << b for b in rng.sample(range(64), rng.randrange(14))) for w in words]
        text = "-".join(f"{w:016x}" for w in asked)
        expected = {c.clip_id for c in clips if close(asked, c, bits)}
        found = ledger.find_clips(parse_selector([f"phash:{text}"], phash_bits=bits), missing_ok=True)
        assert {c.clip_id for c in found if any(m.startswith("phash:") for m in c.matched_by)} == expected


def close(asked: list[int], clip: TestClip, bits: int) -> bool:
    own = [int(w, 16) for w in clip.phash.split("-")]
    near = sum(any((a ^ w).bit_count() <= bits for w in own) for a in asked)
    return near >= 0.5 * len(asked)


def test_hashes_of_pictures_without_structure_match_nothing(ledger: Ledger, tmp_path: Path) -> None:
    black = TestClip("web", "black", phash="0000000000000000-0000000000000000")
    mixed = TestClip("web", "mixed", phash="0000000000000000-00ff00ff00ff00ff")
    take_in(ledger, write_table(tmp_path / "clips", [black, mixed]))
    assert ask(ledger, "phash:00ff00ff00ff00fe") == {mixed.clip_id}
    with pytest.raises(InputError, match="no clip of this perceptual hash is indexed"):
        ask(ledger, "phash:0000000000000000")
    assert ledger.clip_facts([black.clip_id])[black.clip_id].phash == black.phash


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_equal_brute_force(ledger: Ledger, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    clips = random_clips(rng, 60)
    take_in(ledger, write_table(tmp_path / "clips", clips))
    named = rng.sample(clips, 5)
    expected = {
        c.clip_id
        for c in clips
        for n in named
        if (c.source, c.source_id) == (n.source, n.source_id)
        and (c.clip_id == n.clip_id or 0 in (c.end_us, n.end_us) or (c.start_us < n.end_us and n.start_us < c.end_us))
    }
    assert ask(ledger, *(n.clip_id for n in named)) == expected


def test_a_prefix_of_several_clips_is_refused_with_their_ids(ledger: Ledger, tmp_path: Path) -> None:
    clips = [TestClip("web", str(n)) for n in range(40)]
    take_in(ledger, write_table(tmp_path / "clips", clips))
    first = min(c.clip_id for c in clips if sum(o.clip_id[0] == c.clip_id[0] for o in clips) > 1)
    with pytest.raises(InputError, match=f"more than one clip begins so: '{first[0]}' .*Next: one of {first}"):
        ask(ledger, f"clip:{first[0]}")


def test_unknown_terms_are_told_with_what_is_near(filled: Ledger) -> None:
    wrong = FIRST.clip_id[:10] + ("0" if FIRST.clip_id[10] != "0" else "1")
    with pytest.raises(
        InputError, match=f"no clip of this id is indexed: '{wrong}'. Next: did you mean {FIRST.clip_id}"
    ):
        ask(filled, wrong)
    with pytest.raises(InputError, match=r"no clip of this source is indexed: 'wep'. Next: did you mean web\?"):
        ask(filled, "wep")
    with pytest.raises(InputError, match=r"'web/page/9'. Next: m4v data inspect lists the files of web"):
        ask(filled, "web/page/9")
    found = filled.find_clips(parse_selector([wrong, OTHER.clip_id]), missing_ok=True)
    assert ids(found) == {OTHER.clip_id}


def test_a_clip_that_several_terms_name_says_so(filled: Ledger) -> None:
    selector = ClipSelector(clips=(OTHER.clip_id,), sources=("web/page/2",), digests=(OTHER.digest,))
    (found,) = filled.find_clips(selector)
    assert set(found.matched_by) == set(selector.terms())


def test_an_empty_index_points_to_the_verb_that_fills_it(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="Next: m4v ledger index"):
        ask(ledger, "abcdef12")
    with pytest.raises(InputError, match="Next: m4v ledger index"):
        ask(ledger, "web")
