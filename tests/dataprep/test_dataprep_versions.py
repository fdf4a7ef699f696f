"""Dataset versions: what they keep, what they share with their parents, and what they refuse."""

import json
import tarfile
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from version_support import SIZES, Clip, Versions, facts_of, rows_of, shard_digests, videos

from dataprep.quarantine import QUARANTINE, read_quarantine
from dataprep.versions.config import VersionConfig
from m4v.core.artifacts import verify
from m4v.core.canonical import digest_json
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.shard_index import INDEX, MEMBERS, member, read_index, read_member
from m4v.core.storage import Storage

MERGE = {"kind": "merge"}
NAMES = [f"v{n}" for n in range(9)]


@pytest.fixture(params=["local", "s3"])
def versions(request: pytest.FixtureRequest, tmp_path: Path) -> Versions:
    root = str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3_root")
    return Versions(tmp_path, root)


@pytest.fixture
def local(tmp_path: Path) -> Versions:
    return Versions(tmp_path, str(tmp_path / "store"))


def _check_members(artifact, clips: list[Clip]) -> None:
    """Every clip is there with the bytes it was drawn with, and nothing else is."""
    rows = rows_of(artifact)
    assert sorted(rows) == sorted(c.source_id for c in clips)
    shards = artifact.folder() / "shards"
    for clip in clips:
        row = rows[clip.source_id]
        for name in MEMBERS:
            assert read_member(shards, member(row, name)) == clip.sample().members[name]


def test_removing_a_clip_rewrites_its_shard_alone(versions: Versions):
    clips = videos(*NAMES)
    parent = versions.dataset(clips)
    victim = clips[4]
    touched = rows_of(parent)["v4"]["shard"]
    child = versions.apply({"kind": "remove", "clips": [victim.clip_id]}, parent)
    verify(child.storage, child.id)
    _check_members(child, [c for c in clips if c is not victim])
    before, after = shard_digests(parent), shard_digests(child)
    assert {before[d] for d in before.keys() & after.keys()} == set(before.values()) - {f"shards/{touched}"}
    assert (versions.metrics["shards_shared"], versions.metrics["shards_written"]) == (2, 1)
    assert (versions.metrics["samples_untouched"], versions.metrics["samples_moved"]) == (6, 2)
    removed = pq.read_table(child.path("removed.parquet")).to_pylist()
    assert [(r["clip_id"], r["reason"]) for r in removed] == [(victim.clip_id, "clip")]


def test_shared_shards_take_no_second_copy_on_disk(local: Versions):
    clips = videos(*NAMES)
    parent = local.dataset(clips)
    child = local.apply({"kind": "remove", "clips": [clips[0].clip_id]}, parent)
    before, after = shard_digests(parent), shard_digests(child)
    shared = before.keys() & after.keys()
    assert len(shared) == 2
    for digest in shared:
        assert child.path(after[digest]).samefile(parent.path(before[digest]))
    assert child.path("null_text.safetensors").samefile(parent.path("null_text.safetensors"))
    # What one version no longer holds the other keeps.
    parent.storage.delete()
    verify(child.storage, child.id)


def test_shared_shards_do_not_pass_through_the_stage(versions: Versions):
    clips = videos(*NAMES)
    parent = versions.dataset(clips)
    output = versions.stage({"kind": "remove", "clips": [clips[0].clip_id]}, parent)
    staged = {p.name for p in (Path(output.staging) / "shards").iterdir()}
    assert staged == {"000002.tar"}
    assert {f.path for f in output.shared if f.path.endswith(".tar")} == {"shards/000000.tar", "shards/000001.tar"}
    if not parent.storage.is_local:
        fetched = {p.name for p in versions.root.rglob("work-*/cache/**/*.tar")}
        assert fetched == {str(rows_of(parent)["v0"]["shard"])}, "only the shard that is rewritten was read"


def test_a_damaged_shard_is_not_shared(local: Versions):
    clips = videos(*NAMES)
    parent = local.dataset(clips)
    kept = next(r["shard"] for r in rows_of(parent).values() if r["shard"] != rows_of(parent)["v0"]["shard"])
    path = parent.path(f"shards/{kept}")
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataIntegrityError, match="differ"):
        local.apply({"kind": "remove", "clips": [clips[0].clip_id]}, parent)
    assert len(list(local.store.list())) == 1


def test_the_same_operation_gives_the_same_version(local: Versions, tmp_path: Path):
    clips = videos(*NAMES)
    operation = {"kind": "remove", "clips": [clips[1].clip_id, clips[7].clip_id]}
    first = local.apply(operation, local.dataset(clips))
    other = Versions(tmp_path / "elsewhere", str(tmp_path / "elsewhere/store"))
    assert other.apply(operation, other.dataset(clips)).id == first.id


def test_a_version_can_go_to_another_store(local: Versions, s3_root: str, tmp_path: Path):
    clips = videos(*NAMES)
    parent = local.dataset(clips)
    remote = Versions(tmp_path / "remote", s3_root)
    child = remote.apply({"kind": "remove", "clips": [clips[0].clip_id]}, parent)
    _check_members(child, clips[1:])
    back = Versions(tmp_path / "back", str(tmp_path / "back/store"))
    again = back.apply({"kind": "subset", "clips": [c.clip_id for c in clips[1:]]}, child)
    _check_members(again, clips[1:])
    verify(again.storage, again.id)


def test_staging_on_another_file_system(tmp_path: Path):
    """Shared shards are linked where the store lies, not copied through staging."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has no second file system to write to")
    clips = videos(*NAMES)
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        versions = Versions(Path(directory), str(tmp_path / "store"))
        parent = versions.dataset(clips)
        child = versions.apply({"kind": "remove", "clips": [clips[0].clip_id]}, parent)
    verify(child.storage, child.id)
    same = [p for p in child.names("shards/") if child.manifest.entry(p).sha256 in shard_digests(parent)]
    assert len(same) == 2
    for path in same:
        assert child.path(path).samefile(parent.path(shard_digests(parent)[child.manifest.entry(path).sha256]))


def test_a_publish_that_died_after_linking_goes_on(local: Versions):
    clips = videos(*NAMES)
    parent = local.dataset(clips)
    output = local.stage({"kind": "remove", "clips": [clips[0].clip_id]}, parent)
    first = next(f for f in output.shared if f.path.endswith(".tar"))
    (Path(output.staging) / first.path).hardlink_to(parent.path(first.source))
    record = local.store.publish(output)
    verify(Storage(record.uri), record.artifact_id)
    assert not list(Path(record.uri).rglob(".*.tmp"))
    assert local.store.publish(output) == record, "and again, with its staging gone"


def test_merge_joins_shards_as_they_are(versions: Versions):
    ours, theirs = videos(*NAMES[:4]), [*videos(*NAMES[4:], source="other"), Clip("p", "other", "image", end_us=0)]
    a, b = versions.dataset(ours), versions.dataset(theirs)
    merged = versions.apply(MERGE, a, b)
    verify(merged.storage, merged.id)
    _check_members(merged, [*ours, *theirs])
    assert shard_digests(merged).keys() == shard_digests(a).keys() | shard_digests(b).keys()
    assert versions.metrics["bytes_written"] == 0
    facts = facts_of(merged)
    assert facts["samples"] == 10
    assert facts["sources"] == {"mine": 4, "other": 6}
    assert {(b["media"], b["frames"], b["samples"]) for b in facts["buckets"]} == {("image", 1, 1), ("video", 17, 9)}
    assert facts["version"]["parents"] == [a.id, b.id]
    assert {r.source for r in read_quarantine(merged.path(QUARANTINE))} == {"mine", "other"}


def test_a_sample_that_two_datasets_hold_stands_once(local: Versions):
    a, b = local.dataset(videos(*NAMES[:5])), local.dataset(videos(*NAMES[3:]))
    _check_members(local.apply(MERGE, a, b), videos(*NAMES))
    child = local.apply({"kind": "remove", "clips": [videos("v0")[0].clip_id]}, a)
    again = local.apply(MERGE, a, child)
    _check_members(again, videos(*NAMES[:5]))
    assert shard_digests(again) == shard_digests(a)


def test_one_sample_with_two_contents_is_refused(local: Versions):
    a = local.dataset(videos("v0", "v1"))
    b = local.dataset([Clip("v1", caption="other words"), Clip("v2")])
    with pytest.raises(InputError, match="1 samples have different bytes") as caught:
        local.apply(MERGE, a, b)
    assert videos("v1")[0].sample_id() in str(caught.value)


def test_other_encoders_are_refused(local: Versions):
    a, b = local.dataset(videos("v0")), local.dataset(videos("v1"), encoder=digest_json("others"))
    with pytest.raises(InputError, match="different encoders"):
        local.apply(MERGE, a, b)


def test_overlapping_spans_are_told(local: Versions, caplog: pytest.LogCaptureFixture):
    one, two = Clip("film", end_us=5_000_000), Clip("film", start_us=4_000_000, end_us=6_000_000)
    after = Clip("film", start_us=6_000_000, end_us=7_000_000)
    merged = local.apply(MERGE, local.dataset([one, after]), local.dataset([two, *videos("v0")]))
    told = facts_of(merged)["version"]["overlaps"]
    assert told == {"count": 1, "examples": [["mine", "film", one.clip_id, two.clip_id]]}
    assert "1 pairs of clips overlap in time" in caplog.text


def test_unknown_names_are_listed(local: Versions):
    parent = local.dataset(videos("v0", "v1"))
    known = videos("v0")[0].clip_id
    for field, names, what in (
        ("clips", [known, "f" * 32, "e" * 32], "2 of 3 clip ids"), ("sources", ["mine", "yours"], "1 of 2 sources"),
        ("caption_digests", ["d"], "1 of 1 caption digests"), ("phashes", ["ff00000000000000"], "1 of 1 perceptual"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=what) as caught:
            local.apply({"kind": "remove", field: names}, parent)
        assert str(names[-1]) in str(caught.value)
    with pytest.raises(InputError, match="1 of 1 clip ids"):
        local.apply({"kind": "subset", "clips": ["f" * 32]}, parent)
    assert len(list(local.store.list())) == 1, "nothing was published"


@pytest.mark.parametrize(
    ("operation", "gone"),
    [
        ({"sources": ["other"]}, {"o"}),
        ({"caption_digests": [digest_json(["a red square"])]}, {"red"}),
        ({"phashes": ["00000000000000fe"]}, {}),
        ({"phashes": ["f0f0f0f0f0f0f0f0-00000000000000fe"], "phash_bits": 1}, {"near", "o", "red", "film", "v0"}),
        ({"clips": [Clip("film", end_us=9).clip_id]}, {"film"}),
    ],
)
def test_what_a_removal_takes(local: Versions, operation: dict[str, object], gone: set[str]):
    clips = [
        Clip("o", "other"), Clip("red", caption="a red square"),
        Clip("near", phash="0f0f0f0f0f0f0f0f-f0f0f0f0f0f0f0f1"),
        Clip("film", end_us=9), Clip("v0"), Clip("flat", phash="0000000000000000"), Clip("none", phash=""),
    ]  # fmt: skip
    parent = local.dataset(clips)
    if not gone:
        with pytest.raises(InputError, match="match nothing"):
            local.apply({"kind": "remove", **operation}, parent)
        return
    child = local.apply({"kind": "remove", **operation}, parent)
    _check_members(child, [c for c in clips if c.source_id not in gone])
    left = {r.source for r in read_quarantine(child.path(QUARANTINE))}
    assert "other" not in left if "sources" in operation else left


def test_a_removal_can_take_overlapping_clips_of_the_same_file(local: Versions):
    named = Clip("film", end_us=5)
    clips = [named, Clip("film", start_us=4, end_us=9), Clip("film", start_us=9, end_us=12), Clip("cut", end_us=5)]
    child = local.apply({"kind": "remove", "clips": [named.clip_id], "overlapping": True}, local.dataset(clips))
    spans = {(r["source_id"], r["start_us"]) for r in read_index(child.path(INDEX)).to_pylist()}
    assert spans == {("film", 9), ("cut", 0)}
    reasons = {r["start_us"]: r["reason"] for r in pq.read_table(child.path("removed.parquet")).to_pylist()}
    assert reasons == {0: "clip", 4: "overlap"}


def test_subset_by_columns_and_clips(local: Versions):
    clips = [*videos("a1", "a2", "b1"), Clip("pic", media="image", end_us=0), *videos("a3", source="other")]
    parent = local.dataset(clips)
    where = [
        {"column": "source_id", "test": "like", "value": "a?"}, {"column": "media", "test": "==", "value": "video"},
        {"column": "source", "test": "not in", "value": ["other"]}, {"column": "end_us", "test": ">=", "value": 5},
    ]  # fmt: skip
    child = local.apply({"kind": "subset", "where": where}, parent)
    _check_members(child, videos("a1", "a2"))
    facts = facts_of(child)
    assert facts["version"]["operation"]["where"] == where
    assert (facts["samples"], facts["images"], facts["version"]["samples_left_out"]) == (2, 0, 3)
    few = local.apply({"kind": "subset", "where": where[:1], "clips": [c.clip_id for c in clips[1:3]]}, parent)
    _check_members(few, videos("a2"))
    with pytest.raises(InputError, match="no sample would be left"):
        local.apply({"kind": "subset", "where": [{"column": "tokens", "test": "<", "value": 0}]}, parent)


def test_scattered_samples_are_packed_into_full_shards(local: Versions):
    clips = videos(*[f"v{n:02d}" for n in range(24)])
    parent = local.dataset(clips, samples=3)
    wanted = [c for c in clips if rows_of(parent)[c.source_id]["latent_offset"] == 512]  # the first of each shard
    child = local.apply({"kind": "subset", "clips": [c.clip_id for c in wanted]}, parent, shards={"samples": 5})
    _check_members(child, wanted)
    held = [r["shard"] for r in rows_of(child).values()]
    assert sorted(held.count(s) for s in set(held)) == [3, 5]


def test_removed_clips_leave_no_trace_in_the_pictures(local: Versions):
    clips = videos(*NAMES)
    parent = local.dataset(clips)
    shown = [c["clip_id"] for c in json.loads(parent.path("reconstructions.json").read_text())["clips"]]
    child = local.apply({"kind": "remove", "clips": shown[:1]}, parent)
    assert [c["clip_id"] for c in json.loads(child.path("reconstructions.json").read_text())["clips"]] == shown[1:]
    assert child.names("reconstructions/") == [f"reconstructions/{shown[1]}.mp4"]
    text = b"".join(child.path(n).read_bytes() for n in child.names("shards/"))
    assert shown[0].encode() not in text
    assert shown[1].encode() in text


def test_mixture_is_recorded_and_must_find_sources(local: Versions):
    a, b = local.dataset(videos("v0")), local.dataset(videos("v1", source="other"))
    mixture = [{"name": "ours", "sources": ["mine"], "weight": 3}, {"name": "rest", "sources": ["oth*"], "weight": 1}]
    assert facts_of(local.apply(MERGE, a, b, mixture=mixture))["version"]["mixture"] == mixture
    wrong = [{"name": "ours", "sources": ["mien"]}]
    with pytest.raises(Exception, match="matches no source") as caught:
        local.apply(MERGE, a, b, mixture=wrong)
    assert "mine, other" in str(caught.value)


def test_number_of_datasets_is_checked(local: Versions):
    a, b = local.dataset(videos("v0")), local.dataset(videos("v1"))
    with pytest.raises(InputError, match="merge takes two or more"):
        local.apply(MERGE, a)
    with pytest.raises(InputError, match="remove takes one"):
        local.apply({"kind": "remove", "sources": ["mine"]}, a, b)


@pytest.mark.parametrize(
    "operation",
    [
        {"kind": "subset"}, {"kind": "remove"}, {"kind": "subset", "clips": []}, {"kind": "melt"},
        {"kind": "subset", "where": [{"column": "tokns", "test": "<", "value": 1}]},
        {"kind": "subset", "where": [{"column": "tokens", "test": "<", "value": "1"}]},
        {"kind": "subset", "where": [{"column": "tokens", "test": "in", "value": 1}]},
        {"kind": "subset", "where": [{"column": "tokens", "test": "like", "value": "1*"}]},
        {"kind": "remove", "phashes": ["0000000000000000"]}, {"kind": "remove", "phashes": ["xyz"]},
    ],
)  # fmt: skip
def test_operations_that_mean_nothing_are_refused(operation: dict[str, object]):
    with pytest.raises(ValueError):
        VersionConfig.model_validate({"operation": operation})


def test_shards_of_a_version_are_plain_tar(local: Versions):
    clips = videos(*NAMES)
    child = local.apply({"kind": "remove", "clips": [clips[2].clip_id]}, local.dataset(clips))
    left = {c.sample_id() for c in clips if c is not clips[2]}
    urls = [str(child.path(name)) for name in child.names("shards/")]
    assert [Path(u).name for u in urls] == ["000000.tar", "000001.tar", "000002.tar"]
    assert {s["__key__"] for s in webdataset.WebDataset(urls, shardshuffle=False)} == left
    names = [name for url in urls for name in tarfile.open(url).getnames()]  # noqa: SIM115
    assert len(names) == 3 * len(left)
    assert {n.split(".")[0] for n in names} == left


def test_index_is_written_as_encode_writes_it(local: Versions):
    """All rows kept: the table's way to disk gives the bytes of the rows' way."""
    parent = local.dataset([*videos(*NAMES), Clip("p", media="image", end_us=0)])
    everything = {"kind": "subset", "where": [{"column": "tokens", "test": ">", "value": 0}]}
    child = local.apply(everything, parent)
    assert child.manifest.entry(INDEX) == parent.manifest.entry(INDEX)
    assert shard_digests(child) == shard_digests(parent)
    assert SIZES.keys() == {b["media"] for b in facts_of(child)["buckets"]}
