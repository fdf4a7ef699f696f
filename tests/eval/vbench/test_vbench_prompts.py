"""VBench's prompts: the counts of the published suite, wordings line by line, numbers that a part keeps."""

import json
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from eval.config import GenerateConfig
from eval.prompts import jobs, numbers, prompt_set_digest, set_name
from eval.vbench import prompt_suite
from eval.vbench.constants import DIMENSIONS
from eval.vbench.prompt_suite import SETS, packaged, prompts_of, suite_prompts, wording
from m4v.core.config import parse
from m4v.core.errors import ConfigError, DataIntegrityError

SIZE = {"frames": 9, "height": 64, "width": 64, "samples_per_prompt": 5}
COUNTS = {
    "temporal_flickering": 75, "subject_consistency": 72, "dynamic_degree": 72, "motion_smoothness": 72, "scene": 86,
    "background_consistency": 86, "overall_consistency": 93, "aesthetic_quality": 93, "imaging_quality": 93,
    "human_action": 100, "temporal_style": 100, "appearance_style": 90, "color": 85, "spatial_relationship": 84,
    "multiple_objects": 82, "object_class": 79,
}  # fmt: skip


def config(prompts: object) -> GenerateConfig:
    return parse(GenerateConfig, {**SIZE, "prompts": prompts}, "recipe")


def test_the_suite_is_the_published_one(oracles: Path) -> None:
    entries = json.loads((oracles / "vbench/VBench_full_info.json").read_text())
    assert packaged("full_info.json") == (oracles / "vbench/VBench_full_info.json").read_bytes()
    assert packaged("longer.txt") == (oracles / "vbench/all_dimension_longer.txt").read_bytes()
    assert packaged("wanx.txt") == (oracles / "vbench/all_dimension_aug_wanx_seed42.txt").read_bytes()
    found = suite_prompts()
    assert (len(entries), len(found)) == (946, 944)
    assert all(entries[p.number]["prompt_en"] == p.prompt for p in found)
    assert Counter(d for p in found for d in p.dimensions) == Counter(d for e in entries for d in e["dimension"])
    assert {d: len(prompts_of(d)) for d in DIMENSIONS} == COUNTS


def test_fast_set_is_the_frozen_one(oracles: Path) -> None:
    golden = json.loads((oracles / "vbench/fast50.json").read_text())
    assert [p.text for p in config("vbench-fast50").prompts] == [e["prompt"] for e in golden["prompts"]]


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_set_is_4720_videos_and_says_its_name(name: str) -> None:
    found = config(name)
    assert len(jobs(found.prompts, found.samples_per_prompt)) == 4720
    assert [p.scored_as or p.text for p in found.prompts] == [p.prompt for p in suite_prompts()]
    assert any(p.scored_as for p in found.prompts) == (name != "vbench")
    assert set_name(prompt_set_digest(found.prompts)) == name
    assert parse(GenerateConfig, found.canonical(), "again") == found


def test_lengthened_prompts_stand_on_the_line_of_their_short_one(oracles: Path) -> None:
    lines = (oracles / "vbench/all_dimension_longer.txt").read_text().splitlines()
    assert wording("longer") == {p.number: lines[p.number] for p in suite_prompts()}


def test_a_part_keeps_the_numbers_of_the_whole() -> None:
    whole = dict(zip(numbers(config("vbench").prompts), config("vbench").prompts, strict=True))
    part = config({"suite": "vbench", "dimensions": ["scene"], "samples": {"scene": 2}})
    assert len(part.prompts) == COUNTS["scene"]
    assert all(whole[p.number].text == p.text for p in part.prompts if p.number is not None)
    assert jobs(part.prompts, 5)[:3] == [(part.prompts[0].number, 0), (part.prompts[0].number, 1),
                                         (part.prompts[1].number, 0)]  # fmt: skip
    assert set_name(prompt_set_digest(part.prompts)) is None


def test_static_filter_wants_25_of_its_prompts() -> None:
    found = config({"suite": "vbench", "samples": {prompt_suite.STATIC_DIMENSION: prompt_suite.STATIC_SAMPLES}})
    assert len(jobs(found.prompts, found.samples_per_prompt)) == 6220


def test_plain_prompts_keep_their_canonical_form() -> None:
    assert config(["one", "two"]).canonical()["prompts"] == [{"text": "one", "facts": None},
                                                             {"text": "two", "facts": None}]  # fmt: skip


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"suite": "vbench", "dimensions": ["colour"]}, "no dimension 'colour'"),
        ({"suite": "vbench", "variant": "tall"}, "variant"),
        ({"suite": "wbench"}, "suite"),
        ([{"text": "a", "number": 1}, "b"], "two prompts have one number"),
        ([{"text": "a", "samples": 0}], "samples"),
    ],
)
def test_wrong_parts_are_refused(prompts: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(prompts)


def test_damaged_prompts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = resources.files("eval.vbench.data.prompts")
    for name in ("files.json", "longer.txt"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    (tmp_path / "longer.txt").write_text("A cat.\n")
    monkeypatch.setattr(prompt_suite.resources, "files", lambda _: tmp_path)
    with pytest.raises(DataIntegrityError, match=r"longer\.txt"):
        packaged("longer.txt")
