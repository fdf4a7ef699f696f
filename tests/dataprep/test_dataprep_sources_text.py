import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprep.sources.listing import Rejected
from dataprep.sources.tables import Record, read_csv, read_json, read_json_lines
from dataprep.sources.text import clean_caption, decode, path_problem, printable


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("  a cat \n sits\t", "a cat sits"),
        ("cats &amp; dogs", "cats & dogs"),
        ("zero\u200bwidth and \u202ebidi\u202c marks", "zerowidth and bidi marks"),
        ("bell\x07 and nul\x00", "bell and nul"),
        ("cafe\u0301", "café"),
        ("\ufeffmarked", "marked"),
        ("one \ufffd of very many characters in a caption", "one of very many characters in a caption"),
    ],
)
def test_captions_become_plain_text(raw: str, text: str) -> None:
    assert clean_caption(raw, 100) == (text, None, raw.split() != text.split())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [("", "missing_caption"), (" \u200b\n", "missing_caption"), ("\ufffd\ufffd cat", "caption_encoding")],
)
def test_unusable_captions_say_why(raw: str, reason: str) -> None:
    assert clean_caption(raw, 100).problem == reason


def test_long_captions_are_cut_at_a_word() -> None:
    assert clean_caption("word " * 1000, 23).text == "word word word word"
    assert clean_caption("x" * 50, 20).text == "x" * 20


@given(st.text(), st.integers(16, 60))
def test_cleaning_is_idempotent_and_bounded(raw: str, limit: int) -> None:
    clean = clean_caption(raw, limit)
    assert len(clean.text) <= limit or clean.problem == "caption_encoding"
    if clean.problem is None and "&" not in clean.text:
        assert clean_caption(clean.text, limit).text == clean.text


@pytest.mark.parametrize("data", ["grün".encode("utf-8-sig"), "grün".encode("utf-16"), "grün".encode()])
def test_texts_decode_by_their_mark(data: bytes) -> None:
    assert decode(data) == "grün"


def test_undecodable_bytes_are_marked_not_raised() -> None:
    assert decode(b"gr\xfcn") == "gr\ufffdn"


@pytest.mark.parametrize("path", ["-a.mp4", "--x", "a.b.c.mp4", "two words/ä 🎬.mp4", "CON", "#?%20"])
def test_odd_but_honest_names_pass(path: str) -> None:
    assert path_problem(path) is None


@pytest.mark.parametrize(
    "path", ["", "/etc/x", "../x", "a/../b", "a//b", "C:\\x", "C:/x", "a\\b", "a\nb", "a\x00b", "bad\udcff"]
)
def test_unsafe_names_are_told(path: str) -> None:
    assert path_problem(path)
    printable(path).encode("utf-8")


def table(text: str | bytes) -> list[Record | Rejected]:
    return list(read_csv(io.BytesIO(text if isinstance(text, bytes) else text.encode()), "t.csv"))


def test_csv_rows_carry_number_and_byte_offset() -> None:
    rows = table('a,b\n1,"x\ny"\n2,z\n')
    assert rows == [Record(1, 4, {"a": "1", "b": "x\ny"}), Record(2, 12, {"a": "2", "b": "z"})]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiter_comes_from_the_header(delimiter: str) -> None:
    (row,) = table(f"file{delimiter}cap tion\na.mp4{delimiter}x y\n")
    assert isinstance(row, Record)
    assert row.fields == {"file": "a.mp4", "cap tion": "x y"}


def test_csv_mark_is_no_part_of_the_first_column() -> None:
    (row,) = table(b"\xef\xbb\xbffile,caption\r\na,b\r\n")
    assert isinstance(row, Record)
    assert dict(row.fields) == {"file": "a", "caption": "b"}


def test_lines_after_an_open_quote_are_read_again() -> None:
    rows = table('a,b\n1,"open\n2,y\n3,z,extra\n4,ok\n')
    assert [r.row for r in rows] == [1, 2, 3, 4]
    assert [type(r) for r in rows] == [Rejected, Record, Rejected, Record]
    assert isinstance(rows[0], Rejected)
    assert rows[0].reason == "bad_row"
    assert rows[0].detail.startswith("byte 4:")
    assert rows[2] == Rejected("t.csv", 3, "bad_row", "byte 16: 3 fields instead of 2")


def test_an_open_quote_in_a_long_table_costs_one_row() -> None:
    lines = ["a,b", *(f"{i},x" for i in range(9000))]
    lines[5] = '4,"open'
    rows = table("\n".join(lines))
    assert sum(isinstance(r, Rejected) for r in rows) == 1
    assert len(rows) == 9000


def test_doubled_column_is_a_bad_table() -> None:
    assert table("a,a\n1,2\n") == [Rejected("t.csv", None, "bad_table", "header: a column stands twice")]


@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), min_size=2, max_size=2)
    )
)
def test_csv_written_by_a_real_writer_reads_back(rows: list[list[str]]) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["a", "b"], *rows])
    read = table(out.getvalue())
    assert [list(r.fields.values()) for r in read if isinstance(r, Record)] == rows


@given(st.binary(max_size=400))
def test_any_bytes_end_in_rows_or_rejections(data: bytes) -> None:
    for row in [
        *table(b"file,caption\n" + data),
        *table(data),
        *read_json(data, "t"),
        *read_json_lines(io.BytesIO(data), "t"),
    ]:
        assert isinstance(row, Record | Rejected)


def test_json_forms() -> None:
    assert [dict(r.fields) for r in read_json(b'[{"path": "a", "cap": ["x"]}]', "t") if isinstance(r, Record)] == [
        {"path": "a", "cap": ["x"]}
    ]
    assert [dict(r.fields) for r in read_json(b'{"a.mp4": "x"}', "t") if isinstance(r, Record)] == [
        {"file": "a.mp4", "caption": "x"}
    ]
    assert [dict(r.fields) for r in read_json(b'{"caption": "x"}', "t") if isinstance(r, Record)] == [{"caption": "x"}]
    assert [r.row for r in read_json(b'[{"a": 1}, 3]', "t")] == [1, 2]
    assert next(iter(read_json(b"{", "t"))).row is None


def test_json_lines_reject_single_lines() -> None:
    rows = list(read_json_lines(io.BytesIO(b'{"file": "a"}\n\n{bad\n[1]\n{"file": "b"}'), "t.jsonl"))
    assert [(r.row, type(r).__name__) for r in rows] == [(1, "Record"), (2, "Rejected"), (3, "Rejected"), (4, "Record")]
    assert isinstance(rows[1], Rejected)
    assert rows[1].detail.startswith("byte 15:")
