"""What VBench needs on a machine: looked at, told, part of the key; environments that are made or refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from fake_interpreter import fake_environment

from eval.vbench import setup
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.constants import DIMENSIONS
from eval.vbench.environment import RECORD, SPECS, read_record
from eval.vbench.i2v_prompts import I2V_DIMENSIONS
from eval.vbench.preflight import chosen, preflight, probe
from eval.vbench.v2_prompts import V2_DIMENSIONS
from eval.vbench.weights import catalogue, find, requirements
from m4v.core.canonical import digest_bytes
from m4v.core.errors import ConfigError, InfrastructureError, InputError


def put(cache: Path, *names: str) -> None:
    for name in names:
        file = cache / catalogue().files[name].below
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)


def test_every_dimension_has_an_environment_and_known_files() -> None:
    new, old = set(catalogue().core_environment), set(catalogue().legacy_environment)
    assert sorted([*new, *old]) == sorted(DIMENSIONS)
    assert {name: set(spec.dimensions) for name, spec in SPECS.items()} == {
        "core": new, "legacy": old, "long": new, "long-legacy": old, "vbench2": set(V2_DIMENSIONS),
        "i2v": set(I2V_DIMENSIONS),
    }  # fmt: skip
    assert all(n in catalogue().files for d in DIMENSIONS for n in catalogue().needs[d])
    assert all(n in catalogue().files for names in catalogue().clip_to_clip_needs.values() for n in names)
    assert all(n in catalogue().files for names in catalogue().vbench2_needs.values() for n in names)
    assert set(catalogue().vbench2_needs) == set(V2_DIMENSIONS)
    assert set(catalogue().i2v_needs) == set(I2V_DIMENSIONS)
    assert all(n in catalogue().files for names in catalogue().i2v_needs.values() for n in names)
    for spec in SPECS.values():
        pins = [line for line in spec.lock.decode().splitlines() if line and not line.startswith("#")]
        assert all(line.count("==") == 1 for line in pins)
        assert "setuptools==80.9.0" in pins


def test_what_is_missing_is_told_with_its_address_and_place(tmp_path: Path) -> None:
    places = Places.of({"core_python": str(fake_environment(tmp_path / "env")), "cache_dir": str(tmp_path),
                        "torch_home": str(tmp_path / "torch"), "hf_home": str(tmp_path / "hf")})  # fmt: skip
    wanted = ("temporal_flickering", "motion_smoothness", "scene")
    found = preflight(VBenchConfig(dimensions=wanted), places)
    assert found.available == ("temporal_flickering",)
    assert found.refused["motion_smoothness"] == (f"amt is not there ({tmp_path}/amt_model/amt-s.pth)",)
    assert [r.name for r in found.requirements if r.problem] == [
        "legacy", "amt", "tag2text", "bert_tokenizer", "bert_weights"
    ]  # fmt: skip
    row = next(r for r in found.requirements if r.name == "amt")
    assert (row.variable, row.source) == ("VBENCH_CACHE_DIR", catalogue().files["amt"].url)
    with pytest.raises(InputError, match=r"2 of 3 dimensions here \(motion_smoothness, scene\).*dimensions: available"):
        chosen(VBenchConfig(dimensions=wanted), found)


def test_an_environment_of_another_python_is_told_with_one(tmp_path: Path) -> None:
    steps = {}
    for suite in ("vbench2", "vbench-i2v"):
        found = preflight(
            VBenchConfig(suite=suite), Places.of({f"{n}_python": str(tmp_path) for n in ("vbench2", "i2v")})
        )
        steps |= {r.name: r.next_step for r in found.requirements if r.kind == "environment"}
    assert steps == {
        "vbench2": "m4v evaluate setup vbench2 --python python3.10", "i2v": "m4v evaluate setup i2v"
    }  # fmt: skip


def test_a_judge_whose_download_was_cut_short_is_not_here(tmp_path: Path) -> None:
    given = {name: str(tmp_path) for name in ("cache_dir", "vbench2_cache_dir", "torch_home", "hf_home")}
    places, rows = Places.of(given), catalogue().files

    def put_in(name: str, part: str, text: str = "x") -> None:
        file = tmp_path / rows[name].below / part
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    put_in("qwen_judge", "config.json")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    put_in("qwen_judge", "model.safetensors.index.json", json.dumps({"weight_map": shards}))
    put_in("qwen_judge", "model-1.safetensors")
    put_in("llava_video", "config.json")
    put_in("siglip", "refs/main", "abc")
    put_in("siglip", "snapshots/abc/model.safetensors")
    put_in("instance_detector", "args.json")
    put_in("i2v_data", "vbench2_i2v_full_info.json", json.dumps([{"image_name": "a.jpg"}]))
    lacking = {
        "qwen_judge": "model-2.safetensors", "llava_video": "model.safetensors", "siglip": "snapshots/abc/config.json",
        "instance_detector": "adapter_model.safetensors", "i2v_data": "crop/1-1/a.jpg",
    }  # fmt: skip
    needs = requirements(("complex_plot",), places, variant=VBenchConfig(suite="vbench2").variant)
    assert {r.name: r.problem for r in needs}["qwen_judge"] == "is not whole: it lacks model-2.safetensors"
    for name, part in lacking.items():
        assert find(name, places) is None, name
        put_in(name, part)
        assert find(name, places) is not None, name


def test_another_file_under_a_published_name_is_refused(tmp_path: Path) -> None:
    places = Places.of({"cache_dir": str(tmp_path)})
    put(tmp_path, "clip_b32", "musiq", "amt")
    wanted = ("background_consistency", "imaging_quality", "motion_smoothness")
    found = {r.name: r for r in requirements(wanted, places, hashing=True)}
    assert (found["clip_b32"].problem or "").startswith("is not the published file: its sha256 is")
    assert (found["musiq"].problem or "").startswith("is not the published file"), "its name carries the beginning"
    assert found["amt"].problem is None, "nothing is known of its digest"
    assert found["amt"].sha256 == digest_bytes(b"amt")
    assert not any(r.problem for r in requirements(wanted, places, hashing=True, published=False))


def test_weights_lie_where_each_library_keeps_them(tmp_path: Path) -> None:
    places = Places.of({"cache_dir": str(tmp_path), "torch_home": str(tmp_path), "hf_home": str(tmp_path / "hf")})
    copy = tmp_path / "dino_model" / "dino_vitbase16_pretrain.pth"
    copy.parent.mkdir()
    copy.write_text("x")
    assert find("dino", places) == copy
    put(tmp_path, "dino")
    assert find("dino", places) == tmp_path / "hub" / "checkpoints" / copy.name
    snapshot = tmp_path / "hf" / "hub" / "models--bert-base-uncased" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "vocab.txt").write_text("x")
    assert find("bert_tokenizer", places) == snapshot
    assert find("bert_weights", places) is None


def test_the_key_knows_what_measures_and_not_where_it_lies(tmp_path: Path) -> None:
    config = VBenchConfig(dimensions=("motion_smoothness",))

    def digest(root: Path) -> str:
        return probe(config, {"core_python": str(root / "env" / "bin" / "python"), "cache_dir": str(root / "cache")})

    first, second = tmp_path / "a", tmp_path / "b"
    fake_environment(first / "env")
    put(first / "cache", "amt")
    shutil.copytree(first, second)
    here = digest(first)
    assert digest(second) == here
    (second / "cache" / catalogue().files["amt"].below).write_text("other weights")
    assert digest(second) != here
    assert "limit_s" not in config.key_config()


def test_a_record_that_was_changed_is_no_record(tmp_path: Path) -> None:
    fake_environment(tmp_path / "env")
    place = tmp_path / "env" / RECORD
    data = json.loads(place.read_text())
    place.write_text(json.dumps({**data, "packages": {"torch": "9"}}))
    with pytest.raises(ConfigError, match="its digest is of other packages"):
        read_record(tmp_path / "env")


def test_setup_refuses_before_it_fetches_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(InputError, match="taken by something that is no environment"):
        setup.set_up("core", tmp_path / "taken")
    with pytest.raises(InfrastructureError, match=r"detectron2 cannot be fetched.*--detectron2 PATH"):
        setup.set_up("legacy", tmp_path / "new", python=Path(sys.executable), extra=f"git+file://{tmp_path}/none@abc")
    with pytest.raises(InputError, match=r"the vbench2 environment has no detectron2.*leave --detectron2 out"):
        setup.set_up("vbench2", tmp_path / "env", extra=str(tmp_path))
    with pytest.raises(InputError, match="no such source of detectron2"):
        setup.set_up("legacy", tmp_path / "new", python=Path(sys.executable), extra=str(tmp_path / "none.whl"))
    with pytest.raises(ConfigError, match="no Python that runs"):
        setup.set_up("core", tmp_path / "new", python=tmp_path / "python")
    other = tmp_path / "python3.9"
    other.write_text("#!/bin/sh\necho 3 9\n")
    other.chmod(0o755)
    with pytest.raises(ConfigError, match=r"needs Python 3\.11 or 3\.12: '3\.9'"):
        setup.set_up("core", tmp_path / "new", python=other)
    assert not (tmp_path / "new").exists()


def test_setup_leaves_a_sound_environment_as_it_is_and_says_when_no_registry_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "core"
    fake_environment(place)
    record = json.loads((place / RECORD).read_text())
    (place / RECORD).write_text(json.dumps({**record, "lock": digest_bytes(SPECS["core"].lock)}))
    assert setup.set_up("core", place).already
    # Another torch is asked for: it is built beside the old one, which stays when that fails.
    (tmp_path / "python").write_text(
        "#!/bin/sh\ncase \"$*\" in\n  *sys.version_info*) echo 3 11 ;;\n  *venv*) mkdir -p \"$3/bin\"; cp \"$0\" "
        "\"$3/bin/python\" ;;\n  *) echo 'ERROR: Could not find a version that satisfies torch==9'; exit 1 ;;\nesac\n"
    )  # fmt: skip
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(InfrastructureError, match=r"no package registry is reached.*Could not find a version"):
        setup.set_up("core", place, python=tmp_path / "python", torch="9")
    assert setup.set_up("core", place).already
