"""Which file is which video: by prompt, by index, by a map; what is missing and what is of no prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from eval.importing.config import ImportVideosConfig
from eval.importing.names import Assigned, assign, collection_state, shown
from m4v.core.errors import InputError
from m4v.core.storage import Storage

A, B = "a fantasy landscape", "A fantasy landscape"


def config(**given: Any) -> ImportVideosConfig:
    facts = {"system": "Wan 2.1", "source": "its page", "licence": "CC BY 4.0", "state": "0" * 64}
    return ImportVideosConfig.model_validate({**facts, "prompts": [A, B], **given})


def test_names_are_prompt_and_sample_to_the_letter() -> None:
    found = assign(config(samples_per_prompt=2), [f"{A}-0.mp4", f"{B}-1.mp4", f"{A} -1.mp4", "README.md", f"{B}-2.mp4"])
    assert found.files == {(0, 0): f"{A}-0.mp4", (1, 1): f"{B}-1.mp4"}
    assert found.missing == {(0, 1): f"{A}-1.mp4", (1, 0): f"{B}-0.mp4"}
    assert found.strange == (f"{B}-2.mp4", f"{A} -1.mp4")


def test_a_lengthened_prompt_is_named_by_what_it_is_scored_as_and_numbered_as_its_suite_says() -> None:
    prompts = [{"text": "A long wording.", "scored_as": A, "number": 7}]
    assert assign(config(prompts=prompts), [f"{A}-0.mp4"]).files == {(7, 0): f"{A}-0.mp4"}
    assert assign(config(prompts=prompts, names="index"), ["0007-0000.mp4"]).files == {(7, 0): "0007-0000.mp4"}


def test_long_prompts_are_named_by_their_first_180_characters_where_they_are_vbench_2_s() -> None:
    long = "a very long story " * 20
    found = assign(config(prompts=[long], names="prompt180"), [f"{long[:180]}-0.mp4"])
    assert (found.files, found.missing) == ({(0, 0): f"{long[:180]}-0.mp4"}, {})
    other = long[:300] + "that ends otherwise"
    with pytest.raises(InputError, match="two prompts are scored as the same words"):
        assign(config(prompts=[long, other], names="prompt180"), [])


def test_a_map_says_the_prompt_and_the_order_of_names_the_sample() -> None:
    files = {"z.mp4": A, "b.mp4": A, "other.mp4": B}
    found = assign(config(names="map", files=files, samples_per_prompt=2), ["z.mp4", "b.mp4", "other.mp4"])
    assert found == Assigned(
        {(0, 0): "b.mp4", (0, 1): "z.mp4", (1, 0): "other.mp4"}, {(1, 1): f"sample 1 of '{B}'"}, ()
    )  # fmt: skip
    with pytest.raises(InputError, match=r"none of the list's: 'C' \(in x\.mp4\)"):
        assign(config(names="map", files={"x.mp4": "C"}), ["x.mp4"])
    with pytest.raises(ValidationError, match="given with `names: map`"):
        config(files=files)


def test_a_mapped_file_of_another_suffix_is_there_and_cannot_be_taken() -> None:
    found = assign(config(names="map", files={"a.webm": A, "b.mp4": B, "c.webm": B}), ["a.webm", "b.mp4"])
    assert (found.files, found.missing, found.strange) == ({(1, 0): "b.mp4"}, {(0, 0): "a.webm"}, ())
    assert found.unfit == {"a.webm": "is there, and is no .mp4"}


def test_one_name_is_never_the_file_of_two_prompts() -> None:
    prompts = [{"text": "Long.", "scored_as": A}, {"text": "Longer.", "scored_as": A}]
    with pytest.raises(
        InputError, match=r"two prompts are scored .* \['Long\.', 'Longer\.'\] .*-0\.mp4.*--names index"
    ):
        assign(config(prompts=prompts), [f"{A}-0.mp4"])
    assert len(assign(config(prompts=prompts, names="index"), ["0000-0000.mp4", "0001-0000.mp4"]).files) == 2
    files = {"x.mp4": "Long.", "y.mp4": "Longer."}
    assert assign(config(prompts=prompts, names="map", files=files), list(files)).files == {
        (0, 0): "x.mp4", (1, 0): "y.mp4",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"two of the list's are scored as: .* \(in y\.mp4\)"):
        assign(config(prompts=prompts, names="map", files={**files, "y.mp4": A}), list(files))


def test_names_are_shown_as_text_on_one_line() -> None:
    assert shown("a caf\udce9\n\u3000é-0.mp4") == "a caf\\xe9\\n\\u3000é-0.mp4"


def test_the_state_changes_with_any_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        collection_state(Storage(str(tmp_path / "none")))
    (tmp_path / "a.mp4").write_bytes(b"1")
    first = collection_state(Storage(str(tmp_path)))
    assert collection_state(Storage(str(tmp_path))) == first
    (tmp_path / "b.mp4").write_bytes(b"2")
    assert collection_state(Storage(str(tmp_path))) != first
