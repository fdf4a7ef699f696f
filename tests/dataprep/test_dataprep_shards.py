import json
import tarfile
from pathlib import Path

import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from dataprep.shards import SHARDS, Sample, ShardWriter, shard_name, verify_shards
from m4v.core.canonical import digest_file
from m4v.core.errors import DataIntegrityError
from m4v.core.shard_index import INDEX, MEMBERS, iterate, member, read_index, read_member, write_index


def _sample(number: int, group: str = "9x64x64", size: int = 4) -> Sample:
    latent = save({"mean": torch.full((16, 2, size, size), float(number)).bfloat16()})
    text = save({"embedding": torch.full((1, 4, 8), float(number))})
    return Sample(f"{number:032x}", group, {"latent": latent, "text": text, "meta": json.dumps({"n": number}).encode()})


def _write(directory: Path, made: list[Sample], **limits: int) -> list[dict[str, object]]:
    rows = []
    with ShardWriter(directory / SHARDS, **({"samples": 1000, "size_bytes": 1 << 30} | limits)) as writer:
        for sample in made:
            row: dict[str, object] = {"sample_id": sample.key, "clip_id": sample.key}
            for name, reference in writer.add(sample).items():
                row |= {
                    "shard": reference.shard, f"{name}_offset": reference.offset,
                    f"{name}_size": reference.size_bytes, f"{name}_sha256": reference.sha256,
                }  # fmt: skip
            rows.append(row)
    return rows


def test_read_by_the_webdataset_library(tmp_path):
    _write(tmp_path, [_sample(n) for n in range(5)], samples=3)
    urls = [str(p) for p in sorted((tmp_path / SHARDS).glob("*.tar"))]
    assert [Path(u).name for u in urls] == [shard_name(0), shard_name(1)]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in found] == [f"{n:032x}" for n in range(5)]
    assert [json.loads(s["json"])["n"] for s in found] == list(range(5))
    assert [load(s["latent.safetensors"])["mean"].flatten()[0].item() for s in found] == [0, 1, 2, 3, 4]


def test_read_by_seeking_through_the_index(tmp_path):
    samples = [_sample(n) for n in range(7)]
    write_index(tmp_path / INDEX, _write(tmp_path, samples, samples=2))
    by_key = {s.key: s for s in samples}
    for row in iterate(read_index(tmp_path / INDEX)):
        for name in MEMBERS:
            assert read_member(tmp_path / SHARDS, member(row, name)) == by_key[str(row["sample_id"])].members[name]


def test_headers_tell_nothing_of_time_or_owner(tmp_path):
    _write(tmp_path, [_sample(0)])
    with tarfile.open(tmp_path / SHARDS / shard_name(0)) as tar:
        headers = {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode, i.type) for i in tar}
    assert headers == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}


def test_same_samples_same_bytes(tmp_path):
    samples = [_sample(n) for n in range(4)]
    digests = []
    for name in ("a", "b"):
        _write(tmp_path / name, samples)
        digests.append(digest_file(tmp_path / name / SHARDS / shard_name(0)))
    assert digests[0] == digests[1]
    # Written once; a change of the format must be meant, since it changes every dataset's identity.
    assert digests[0] == GOLDEN


GOLDEN = "aba492e0aa4f8b699585a1a129f4695384225faff05553c765d2b8b84d3baaf7"


def test_a_shard_ends_with_its_group(tmp_path):
    rows = _write(tmp_path, [_sample(0, "a"), _sample(1, "a"), _sample(2, "b")])
    assert [r["shard"] for r in rows] == [shard_name(0), shard_name(0), shard_name(1)]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 4), st.integers(4_096, 40_000))
def test_limits_hold_and_no_sample_is_lost(tmp_path_factory, sides, samples, size_bytes):
    directory = tmp_path_factory.mktemp("limits")
    made = [_sample(n, size=side) for n, side in enumerate(sides)]
    rows = _write(directory, made, samples=samples, size_bytes=size_bytes)
    assert [r["sample_id"] for r in rows] == [s.key for s in made]
    verify_shards(directory / SHARDS, rows)
    for shard in (directory / SHARDS).glob("*.tar"):
        held = sum(r["shard"] == shard.name for r in rows)
        assert 1 <= held <= samples
        # tar pads its end to 20 blocks, which the limit does not count.
        assert held == 1 or shard.stat().st_size <= size_bytes + tarfile.RECORDSIZE


def test_members_and_keys_are_checked(tmp_path):
    with ShardWriter(tmp_path, samples=10, size_bytes=1 << 20) as writer:
        writer.add(_sample(1))
        with pytest.raises(ValueError, match="twice"):
            writer.add(_sample(1))
        with pytest.raises(ValueError, match="members"):
            writer.add(Sample("k", "g", {"latent": b"", "meta": b""}))


@pytest.mark.parametrize("position", ["data", "header", "end"])
def test_verify_finds_damage(tmp_path, position):
    rows = _write(tmp_path, [_sample(n) for n in range(3)])
    verify_shards(tmp_path / SHARDS, rows)
    shard = tmp_path / SHARDS / shard_name(0)
    data = bytearray(shard.read_bytes())
    if position == "end":
        data = data[: int(str(rows[-1]["meta_offset"]))]
    else:
        place = int(str(rows[1]["text_offset"]))
        data[place + 3 if position == "data" else place - 512] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(DataIntegrityError):
        verify_shards(tmp_path / SHARDS, rows)


def test_verify_finds_a_shard_too_many(tmp_path):
    rows = _write(tmp_path, [_sample(0)])
    (tmp_path / SHARDS / shard_name(7)).write_bytes(b"")
    with pytest.raises(DataIntegrityError, match="differ"):
        verify_shards(tmp_path / SHARDS, rows)
