"""Telling clip ids, sources, URLs and hashes apart."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from m4v.core.errors import InputError
from pipelines.membership import ClipSelector, parse_selector

CLIP, DIGEST, WORD = "0123456789abcdef" * 2, "ab" * 32, "00ff00ff00ff00ff"


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (CLIP, f"clip:{CLIP}"),
        (CLIP.upper(), f"clip:{CLIP}"),
        ("abcdef", "clip:abcdef"),
        ("abcde", "source:abcde"),
        ("clip:ab", "clip:ab"),
        ("webvid", "source:webvid"),
        ("webvid/page/1", "source:webvid/page/1"),
        ("source:abcdef", "source:abcdef"),
        ("source:Web:2", "source:Web:2"),
        ("https://host/A.mp4", "url:https://host/A.mp4"),
        ("s3://bucket/a", "url:s3://bucket/a"),
        ("url://host/a", "url:url://host/a"),
        ("url:host/a", "url:host/a"),
        (DIGEST, f"sha256:{DIGEST}"),
        (f"sha256:{DIGEST.upper()}", f"sha256:{DIGEST}"),
        (f"{WORD}-{WORD}", f"phash:{WORD}-{WORD}"),
        (f"phash:{WORD}", f"phash:{WORD}"),
        (WORD, f"clip:{WORD}"),  # one word alone reads as the beginning of a clip id
    ],
)
def test_terms_are_told_apart(term: str, expected: str) -> None:
    selector = parse_selector([term])
    assert selector.terms() == [expected]
    assert parse_selector(selector.terms()) == selector


def test_order_and_repeats_do_not_matter() -> None:
    assert parse_selector(["b/c", "a", "a"]) == parse_selector(["a", "b/c"])


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "names no clip"),
        (["  "], "a term is empty"),
        (["clip:xyz"], "clip id is not of lower-case hex digits as it should be: 'xyz'"),
        (["clip:" + "a" * 33], "clip id is not of"),
        (["sha256:ab"], "sha256 is not of lower-case hex"),
        (["phash:12"], "perceptual hash is not of"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_forms_there_are(terms: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        parse_selector(terms)
    assert "CLIP, SOURCE, SOURCE/SOURCE_ID, URL, sha256:HEX or phash:WORD" in str(refused.value)


def test_a_selector_is_frozen_and_knows_its_fields() -> None:
    selector = ClipSelector(sources=("b", "a"))
    assert selector.sources == ("a", "b")
    with pytest.raises(ValidationError):
        ClipSelector(sources=("a",), source="b")  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        ClipSelector(sources=("a",), phash_bits=40)
