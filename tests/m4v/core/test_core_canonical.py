"""Canonical JSON (RFC 8785), digests and Merkle roots."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m4v.core.canonical import FileEntry, canonical_json, digest_bytes, digest_file, digest_json, merkle_root

text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


def test_the_rfcs_own_example() -> None:
    """RFC 8785 section 3.2.2 and its expected output in section 3.2.3 and 3.2.4."""
    sample = json.loads(
        r"""{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
             "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]}"""
    )
    assert canonical_json(sample).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_keys_sort_by_utf16_units() -> None:
    """RFC 8785 section 3.2.3: an emoji (surrogates) sorts before U+FB33."""
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    assert list(json.loads(canonical_json(dict.fromkeys(keys, 0)))) == [
        "\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ("0000000000000000", "0"), ("8000000000000000", "0"), ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"), ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"), ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"), ("44b52d02c7e14af6", "1e+23"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"), ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"), ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"), ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)  # fmt: skip
def test_numbers_of_the_rfcs_appendix_b(bits: str, expected: str) -> None:
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(value).decode() == expected


@given(json_values)
def test_canonical_text_is_stable_json(value: object) -> None:
    encoded = canonical_json(value)
    assert canonical_json(json.loads(encoded)) == encoded
    assert digest_json(value) == hashlib.sha256(encoded).hexdigest() == digest_bytes(encoded)


@given(st.dictionaries(text, st.integers(0, 9), min_size=2))
def test_the_order_of_keys_does_not_matter(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@given(st.integers(2**53, 10**25) | st.integers(-(10**25), -(2**53)))
def test_large_integers_are_accepted_only_as_the_text_of_a_double(value: int) -> None:
    rounded = json.loads(canonical_json(float(value)))
    assert canonical_json({"flops": [rounded]}) == canonical_json({"flops": [float(value)]})
    if isinstance(rounded, float) or rounded != value:
        with pytest.raises(ValueError, match="exceeds safe integer"):
            canonical_json({"flops": [value]})


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 2**53 + 1, -(2**64), b"bytes", {1: 2}, {1, 2}, "\ud800", Path()]
)
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        canonical_json({"a": [value]})


def test_an_empty_root_and_one_by_hand() -> None:
    assert merkle_root([]) == hashlib.sha256(b"").hexdigest()
    row = b'["a/b.bin",3,"' + b"0" * 64 + b'"]\n'
    assert merkle_root([FileEntry("a/b.bin", 3, "0" * 64)]) == hashlib.sha256(row).hexdigest()


entries = st.builds(FileEntry, text, st.integers(0, 2**40), text)


@given(st.lists(entries, max_size=6), st.randoms())
def test_a_root_does_not_depend_on_order(files: list[FileEntry], random: object) -> None:
    shuffled = list(files)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert merkle_root(shuffled) == merkle_root(files)


@given(st.lists(entries, max_size=4), st.lists(entries, max_size=4))
def test_different_files_have_different_roots(a: list[FileEntry], b: list[FileEntry]) -> None:
    assert (merkle_root(a) == merkle_root(b)) == (sorted(a) == sorted(b))


def test_no_path_can_imitate_a_row() -> None:
    two = [FileEntry("a", 1, "x"), FileEntry("b", 2, "y")]
    forged = [FileEntry('a",1,"x"]\n["b', 2, "y")]
    assert merkle_root(two) != merkle_root(forged)


def test_a_file_is_digested_in_pieces(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000  # more than two chunks, and a part
    (tmp_path / "f").write_bytes(data)
    assert digest_file(tmp_path / "f") == digest_bytes(data) == hashlib.sha256(data).hexdigest()
