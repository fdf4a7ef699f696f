import json
from pathlib import Path

import pytest

from m4v.core.config import parse
from m4v.core.errors import ConfigError, InputError
from m4v.weights.catalogue import CatalogueEntry, entries, entry, weights_root
from m4v.weights.config import WeightsConfig
from m4v.weights.source import probe, read_index, sampled_digest, source_files


def test_every_place_below_the_root_is_one_file() -> None:
    places = [f"{e.place}/{f.place}" for e in entries() for f in e.files]
    assert len(places) == len(set(places)) > 80


def test_entries_that_the_product_needs_are_there() -> None:
    formats = {e.name: e.format for e in entries()}
    for part in ("dit-384p", "dit-768p", "dit-image", "vae", "text"):
        assert f"pyramidflow-{part}" in formats
    for size in ("1.3b", "14b"):
        assert formats[f"wan2.1-t2v-{size}"] == "wan_diffusers"
        assert formats[f"wan2.1-t2v-{size}-original"] == "wan_original"
    assert {"hpsv2.1", "clip-vit-l-14"} <= set(formats)


def test_vbench_files_are_those_of_its_own_list(oracles: Path) -> None:
    listed = json.loads((oracles / "vbench" / "weights.json").read_text())["files"]
    ours = {f.place: (e, f) for e in entries() if e.name.startswith("vbench-") for f in e.files}
    for row in listed.values():
        place = row["place"]
        if not place.startswith(("$VBENCH_CACHE_DIR/", "$TORCH_HOME/")) or place.endswith("/"):
            continue
        found, file = ours[place.split("/", 1)[1]]
        assert found.place == ("torch" if place.startswith("$TORCH_HOME") else "vbench")
        assert file.sha256 == row.get("sha256")
        assert row["url"] in (found.url, f"https://huggingface.co/{found.hub}/resolve/main/{file.file}")


def test_digests_are_only_those_that_somebody_stated() -> None:
    stated = {e.name for e in entries() for f in e.files if f.sha256 or f.md5}
    assert stated == {"hpsv2.1", "vbench-clip-b32", "vbench-clip-l14"}


def test_published_sizes_add_up() -> None:
    assert entry("wan2.1-t2v-1.3b").bytes_to_fetch == 28_928_887_859
    assert entry("vbench-viclip").licence is None


def test_near_names_are_offered() -> None:
    with pytest.raises(InputError, match=r"no such weights entry: 'pyramidflow-dit'.*pyramidflow-dit-768p"):
        entry("pyramidflow-dit")
    with pytest.raises(ConfigError, match=r"entry.*pyramidflow-dit-768p"):
        parse(WeightsConfig, {"name": "dit", "entry": "pyramidflow-dit"}, "recipe")
    with pytest.raises(ConfigError, match=r"vbench-amt.*used in place"):
        parse(WeightsConfig, {"name": "amt", "entry": "vbench-amt"}, "recipe")


def test_fetch_command_puts_files_where_they_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("M4V_WEIGHTS", str(tmp_path))
    found = entry("pyramidflow-vae")
    assert weights_root() == tmp_path
    assert found.folder() == tmp_path / "rain1011" / "pyramid-flow-miniflux"
    assert (
        "--include 'causal_video_vae/*' --local-dir $M4V_WEIGHTS/rain1011/pyramid-flow-miniflux" in found.fetch_command
    )
    assert "--revision 0fad780a" in entry("wan2.1-t2v-1.3b").fetch_command
    assert entry("vbench-umt").fetch_command.endswith("--local-dir $M4V_WEIGHTS/vbench/umt_model")
    assert "so that $M4V_WEIGHTS/vbench/clip_model/ViT-B-32.pt is there" in entry("vbench-clip-b32").fetch_command


def test_fetched_files_of_a_hub_lie_where_they_are_looked_for() -> None:
    for found in entries():
        if found.hub is not None:
            target = found.fetch_command.split("--local-dir $M4V_WEIGHTS/")[1]
            assert {f"{target}/{f.file}" for f in found.files} == {f"{found.place}/{f.place}" for f in found.files}


def test_entries_without_an_origin_or_with_paths_that_lead_out_are_refused() -> None:
    row: dict[str, object] = {"name": "x", "format": "state_dict", "purpose": "", "files": [{"file": "a"}]}
    with pytest.raises(ValueError, match="neither hub id nor address"):
        CatalogueEntry.model_validate(row)
    with pytest.raises(InputError, match="plain relative path"):
        CatalogueEntry.model_validate({**row, "hub": "a/b", "files": [{"file": "../a"}]})


DIT = ("config.json", "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("below", ["rain1011/pyramid-flow-miniflux/diffusion_transformer_768p", "my-own-folder"])
def test_files_are_found_from_the_root_the_repository_or_the_folder_itself(tmp_path: Path, below: str) -> None:
    folder = tmp_path / below
    folder.mkdir(parents=True)
    for name in DIT:
        (folder / name).write_text(name)
    found = entry("pyramidflow-dit-768p")
    starts = [folder] if below.startswith("my") else [folder, folder.parent, tmp_path]
    for start in starts:
        assert [f.path for f in source_files(found, start)] == [folder / name for name in DIT]
        assert [f.place for f in source_files(found, start)] == [f"diffusion_transformer_768p/{n}" for n in DIT]


def test_shards_of_a_pattern_are_those_of_the_index(tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"metadata": {}, "weight_map": {"a": names[1], "b": names[0], "c": names[1]}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    found = [f.place for f in source_files(entry("wan2.1-t2v-14b"), tmp_path) if "-of-00002" in f.place]
    assert found == [f"transformer/{name}" for name in names]


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../b.safetensors"}}'])
def test_broken_index_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(Exception, match=r"model\.safetensors\.index\.json") as caught:
        read_index(path)
    assert caught.value.exit_class == 20  # type: ignore[attr-defined]


def test_own_fine_tunes_may_name_and_shard_their_files_otherwise(tmp_path: Path) -> None:
    found = entry("pyramidflow-dit-768p")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert [f.path.name for f in source_files(found, tmp_path, published=False)] == ["config.json", "pytorch_model.bin"]
    assert [f.path.name for f in source_files(found, tmp_path)] == list(DIT)
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    names = [f.path.name for f in source_files(found, tmp_path, published=False)]
    assert names == ["config.json", "model.safetensors.index.json", "model-1.safetensors"]


def test_probe_sees_content_and_nothing_of_the_machine(tmp_path: Path) -> None:
    config = WeightsConfig(name="dit", entry="pyramidflow-dit-768p")
    for side in ("one", "two"):
        (tmp_path / side).mkdir()
        (tmp_path / side / DIT[0]).write_text("{}")
        (tmp_path / side / DIT[1]).write_bytes(bytes(1000))
    first = probe(config, {"dit": str(tmp_path / "one")})
    assert probe(config, {"dit": f"file://{tmp_path / 'two'}"}) == first
    (tmp_path / "two" / DIT[1]).write_bytes(bytes(999) + b"\1")
    assert probe(config, {"dit": str(tmp_path / "two")}) != first
    (tmp_path / "two" / DIT[1]).unlink()
    with pytest.raises(
        InputError, match=r"diffusion_pytorch_model.safetensors.*m4v weights check pyramidflow-dit-768p"
    ):
        probe(config, {"dit": str(tmp_path / "two")})
    with pytest.raises(ConfigError, match="local folder"):
        probe(config, {"dit": "s3://bucket/x"})


def test_probe_falls_back_to_the_weights_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_WEIGHTS", str(tmp_path))
    folder = tmp_path / "xswu" / "HPSv2"
    folder.mkdir(parents=True)
    (folder / "HPS_v2.1_compressed.pt").write_bytes(b"weights")
    assert len(probe(WeightsConfig(name="hps", entry="hpsv2.1"), {})) == 64


def test_sampled_digest_of_a_large_file_sees_length_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "large"
    seen = set()
    for text in (bytes(9 << 20), bytes((9 << 20) + 1), b"\1" + bytes((9 << 20) - 1), bytes((9 << 20) - 1) + b"\1"):
        path.write_bytes(text)
        seen.add(sampled_digest(path))
    assert len(seen) == 4
