import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from m4v.checkpoint import load_checkpoint
from m4v.core.artifacts import ArtifactKind, build_manifest
from m4v.core.errors import DataIntegrityError, Drained, InputError
from m4v.core.stage import OutputRef, StageContext, StageRequest
from m4v.vae.weights import load_vae
from m4v.weights.catalogue import CatalogueEntry, CatalogueFile, entry
from m4v.weights.check import check
from m4v.weights.convert import convert
from m4v.weights.record import read_record
from m4v.weights.stage import run

DIT, VAE, TEXT = (entry(f"pyramidflow-{part}") for part in ("dit-768p", "vae", "text"))
Change = Callable[[dict[str, Tensor]], object]


def published_dit(oracles: Path, folder: Path, change: Change | None = None) -> Path:
    """The tiny reference transformer as the hub publishes its large ones; returns the repository's folder."""
    home = folder / "diffusion_transformer_768p"
    home.mkdir(parents=True)
    config = json.loads((oracles / "pyramidflow/flux_tiny/config.json").read_text())
    (home / "config.json").write_text(json.dumps({"_class_name": "PyramidFluxTransformer", **config}))
    state = load_file(oracles / "pyramidflow/flux_tiny/state_dict.safetensors")
    if change is not None:
        change(state)
    save_file(state, home / "diffusion_pytorch_model.safetensors")
    return folder


def published_vae(oracles: Path, folder: Path) -> dict[str, Tensor]:
    home = folder / "causal_video_vae"
    home.mkdir(parents=True)
    shutil.copy(oracles / "pyramidflow/vae_tiny/config.json", home)
    state = load_file(oracles / "pyramidflow/vae_tiny/state_dict.safetensors")
    torch.save(state, home / "diffusion_pytorch_model.bin")
    return state


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_transformer_becomes_a_loadable_attention_checkpoint(oracles: Path, tmp_path: Path) -> None:
    source = published_dit(oracles, tmp_path / "hub")
    record = convert(DIT, source, tmp_path / "out")
    model, config = load_checkpoint((tmp_path / "out").joinpath)
    state = load_file(oracles / "pyramidflow/flux_tiny/state_dict.safetensors")
    assert config.model.mixer == "attention"
    assert (config.model.width, config.model.heads, config.model.rope_axes) == (32, 2, (4, 6, 6))
    assert config.schedule.corruption == "constant"
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert (record.tensors, record.parameters) == (len(state), 122_256)
    assert record.parameters == sum(p.numel() for p in model.parameters())
    raw = source / "diffusion_transformer_768p/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out/model.safetensors").read_bytes() == raw.read_bytes(), "no change is needed, so none is made"


def test_record_names_every_source_file_with_its_digest(oracles: Path, tmp_path: Path) -> None:
    source = published_dit(oracles, tmp_path / "hub")
    convert(DIT, source, tmp_path / "out")
    record = read_record(tmp_path / "out")
    assert (record.entry, record.hub, record.licence) == ("pyramidflow-dit-768p", DIT.hub, "Apache-2.0")
    assert len(record.source) == 2
    for file in record.source:
        data = (source / file.path).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_training_checkpoint_loses_its_prefix_and_other_models(oracles: Path, tmp_path: Path) -> None:
    def as_saved_in_training(state: dict[str, Tensor]) -> None:
        for key in list(state):
            state[f"dit.{key}"] = state.pop(key).to(torch.bfloat16)
        state["vae.encoder.conv_in.weight"] = torch.zeros(3)
        state["text_encoder.shared.weight"] = torch.zeros(3)

    convert(DIT, published_dit(oracles, tmp_path / "hub", as_saved_in_training), tmp_path / "out")
    model, _ = load_checkpoint((tmp_path / "out").joinpath)
    state = load_file(oracles / "pyramidflow/flux_tiny/state_dict.safetensors")
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].to(torch.bfloat16).float())


def test_own_fine_tune_in_shards_is_merged(oracles: Path, tmp_path: Path) -> None:
    source = published_dit(oracles, tmp_path / "hub") / "diffusion_transformer_768p"
    whole = source / "diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    whole.unlink()
    names = sorted(state)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: state[key] for key in keys}, source / shard)
    weight_map = {key: shard for shard, keys in shards.items() for key in keys}
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(
        InputError, match=r"is not there: 'diffusion_transformer_768p/diffusion_pytorch_model\.safetensors'"
    ):
        convert(DIT, source, tmp_path / "out")
    convert(DIT, source, tmp_path / "out", published=False)
    model, _ = load_checkpoint((tmp_path / "out").joinpath)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not read_record(tmp_path / "out").published
    index.write_text(json.dumps({"weight_map": {**weight_map, names[0]: "model-2.safetensors"}}))
    with pytest.raises(DataIntegrityError, match="index and shards differ on 1 tensors"):
        convert(DIT, source, tmp_path / "other", published=False)


def test_vae_pickle_becomes_safetensors_with_the_same_values(oracles: Path, tmp_path: Path) -> None:
    state = published_vae(oracles, tmp_path / "hub")
    record = convert(VAE, tmp_path / "hub", tmp_path / "out")
    vae = load_vae(tmp_path / "out")
    assert vae.state_dict().keys() == state.keys()
    assert all(torch.equal(vae.state_dict()[key], value) for key, value in state.items())
    assert record.parameters == 351_719
    assert sorted(tree(tmp_path / "out")) == ["config.json", "diffusion_pytorch_model.safetensors", "weights.json"]


def test_vae_pickle_with_code_is_refused_and_nothing_runs(oracles: Path, tmp_path: Path) -> None:
    published_vae(oracles, tmp_path / "hub")
    target, path = tmp_path / "ran", tmp_path / "hub/causal_video_vae/diffusion_pytorch_model.bin"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return Path.write_text, (target, "ran")

    torch.save({"weight": torch.ones(2), "extra": Bomb()}, path)
    with pytest.raises(DataIntegrityError, match=r"holds code and was not read: '\S+'.*diffusion_pytorch_model\.bin"):
        convert(VAE, tmp_path / "hub", tmp_path / "out")
    assert not target.exists()
    assert not (tmp_path / "out").exists() or not tree(tmp_path / "out")


def test_text_encoders_are_taken_over_byte_by_byte(tiny_text: Path, tmp_path: Path) -> None:
    record = convert(TEXT, tiny_text, tmp_path / "out")
    published = {name: data for name, data in tree(tiny_text).items() if name in {f.path for f in record.source}}
    assert len(published) == len(TEXT.files)
    converted = tree(tmp_path / "out")
    converted.pop("weights.json")
    assert converted == published


def test_pickled_text_tower_of_ones_own_becomes_safetensors(text_source: Callable[[], Path], tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    source = text_source()
    path = source / "text_encoder/model.safetensors"
    state = load_file(path)
    torch.save(state, source / "text_encoder/pytorch_model.bin")
    path.unlink()
    convert(TEXT, source, tmp_path / "out", published=False)
    model, facts = CLIPTextModel.from_pretrained(tmp_path / "out/text_encoder", output_loading_info=True)
    assert not facts["missing_keys"]
    assert torch.equal(model.final_layer_norm.weight, state["text_model.final_layer_norm.weight"])
    assert not list((tmp_path / "out").rglob("*.bin"))


def test_equal_sources_give_equal_bytes(oracles: Path, tmp_path: Path) -> None:
    for number in "12":
        published_vae(oracles, tmp_path / number)
        convert(VAE, tmp_path / number, tmp_path / f"out{number}")
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")


def remove(key: str) -> Change:
    return lambda state: state.pop(key)


def reshape(key: str) -> Change:
    return lambda state: state.update({key: state[key][:-1].clone()})


def add(key: str) -> Change:
    return lambda state: state.update({key: torch.zeros(2)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove("proj_out.bias"), r"1 tensor missing: proj_out\.bias"),
        (reshape("x_embedder.weight"), r"1 tensor of another shape: x_embedder\.weight: \[31, 16\].*needs \[32, 16\]"),
        (add("guidance.weight"), r"1 tensor unknown: guidance\.weight"),
    ],
)
def test_another_model_is_refused_with_a_readable_difference(
    oracles: Path, tmp_path: Path, change: Change, words: str
) -> None:
    source = published_dit(oracles, tmp_path / "hub", change)
    with pytest.raises(DataIntegrityError, match=words):
        convert(DIT, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_and_truncated_files_are_refused_by_name(oracles: Path, tmp_path: Path) -> None:
    source = published_dit(oracles, tmp_path / "hub")
    path = source / "diffusion_transformer_768p/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataIntegrityError, match=r"diffusion_pytorch_model\.safetensors has \d+ bytes where"):
        convert(DIT, source, tmp_path / "out")
    path.unlink()
    with pytest.raises(InputError, match=r"diffusion_pytorch_model\.safetensors.*hf download"):
        convert(DIT, source, tmp_path / "out")


def stated(**facts: object) -> CatalogueEntry:
    """The HPSv2 entry with one more or other fact about its file."""
    found = entry("hpsv2.1")
    file = CatalogueFile.model_validate({"file": found.files[0].file, **facts})
    return found.model_copy(update={"files": (file,)})


def test_stated_sizes_and_digests_are_held(tmp_path: Path) -> None:
    path = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": {"visual.proj": torch.ones(2, 3)}}, path)
    data = path.read_bytes()
    sha256, md5 = hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest()
    good = stated(size_bytes=len(data), sha256=sha256, md5=md5)
    convert(good, tmp_path, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")["visual.proj"], torch.ones(2, 3))
    for wrong, words in (
        (stated(size_bytes=len(data) + 1), "wrong size"),
        (stated(sha256="0" * 64), "differ from the published digest"),
        (stated(md5="0" * 32), "differ from the published digest"),
        (entry("hpsv2.1"), "differ from the published digest"),
    ):
        with pytest.raises(DataIntegrityError, match=words):
            convert(wrong, tmp_path, tmp_path / "refused")
        convert(wrong, tmp_path, tmp_path / "own", published=False)


def stage_context(config: dict[str, object], source: Path, work: Path) -> StageContext:
    request = StageRequest(
        stage="weights", stage_version=1, function="m4v.weights.stage:run",
        config_model="m4v.weights.config:WeightsConfig", stage_key="0" * 64, attempt_id="a", config=config, seed=0,
        inputs=(), outputs=(OutputRef(name="weights", kind=ArtifactKind.WEIGHTS),), store_uri=str(work / "store"),
        work_dir=str(work), state_uri=str(work / "state"), items_uri=str(work / "items"),
        locations={"dit": str(source)},
    )  # fmt: skip
    return StageContext(request)


def test_stage_leaves_an_artifact_and_its_facts(oracles: Path, tmp_path: Path) -> None:
    source = published_dit(oracles, tmp_path / "hub")
    context = stage_context({"name": "dit", "entry": DIT.name}, source, tmp_path / "work")
    run(context)
    manifest = build_manifest(context.output("weights"), ArtifactKind.WEIGHTS, context.summaries()["weights"])
    assert [f.path for f in manifest.files] == ["config.json", "model.safetensors", "weights.json"]
    assert manifest.summary["entry"] == "pyramidflow-dit-768p"
    assert manifest.summary["parameters"] == 122_256
    assert not context.collected_metrics().keys() - {"parameters", "source_bytes"}
    progress = json.loads((tmp_path / "work/progress.json").read_text())
    assert progress["unit"] == "bytes"


def test_report_says_what_is_wrong_with_which_file(oracles: Path, tmp_path: Path) -> None:
    def several(state: dict[str, Tensor]) -> None:
        for key in sorted(state)[:8]:
            state[f"old.{key}"] = state.pop(key)

    source = published_dit(oracles, tmp_path / "hub", several)
    report = check(DIT, source)
    (part,) = report.components
    assert not report.ok
    assert report.present
    assert (len(part.missing), len(part.unknown), part.tensors) == (8, 8, part.tensors)
    text = "\n".join(report.lines())
    assert "8 tensors missing:" in text
    assert "… and 3 more" in text
    (source / "diffusion_transformer_768p/config.json").unlink()
    report = check(DIT, source)
    assert not report.present
    assert not report.components
    assert "missing      diffusion_transformer_768p/config.json" in "\n".join(report.lines())


def test_files_of_no_use_are_lines_of_the_report(oracles: Path, tmp_path: Path) -> None:
    source = published_dit(oracles, tmp_path / "hub")
    home = source / "diffusion_transformer_768p"
    (home / "config.json").write_text('{"_class_name": "PyramidFluxTransformer"}')
    (part,) = check(DIT, source).components
    assert "config lacks a size" in part.lines()[0]
    (home / "config.json").write_text("{")
    report = check(DIT, source)
    assert [f.state for f in report.files] == ["no JSON", "ok"]
    assert not report.components
    with pytest.raises(DataIntegrityError, match=r"\(no JSON\): 'diffusion_transformer_768p/config\.json'"):
        convert(DIT, source, tmp_path / "out")


def test_lfs_pointers_are_recognised(oracles: Path, tmp_path: Path) -> None:
    source = published_dit(oracles, tmp_path / "hub")
    pointer = source / "diffusion_transformer_768p/diffusion_pytorch_model.safetensors"
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 7888321464\n")
    assert [f.state for f in check(DIT, source).files] == ["ok", "LFS pointer"]
    with pytest.raises(DataIntegrityError, match=r"LFS pointer.*git lfs pull"):
        convert(DIT, source, tmp_path / "out")


def test_drain_stops_an_import(oracles: Path, tmp_path: Path) -> None:
    context = stage_context(
        {"name": "dit", "entry": DIT.name}, published_dit(oracles, tmp_path / "hub"), tmp_path / "work"
    )
    context.request_drain()
    with pytest.raises(Drained):
        run(context)


def test_report_digests_are_those_of_the_files(oracles: Path, tmp_path: Path) -> None:
    source = published_dit(oracles, tmp_path / "hub")
    seen: list[int] = []
    report = check(DIT, source, hashing=True, progress=lambda done, total, _: seen.append(done * 100 // total))
    for state in report.files:
        assert state.sha256 == hashlib.sha256(Path(state.path).read_bytes()).hexdigest()
    assert seen == sorted(seen)
    assert report.ok
    assert check(stated(sha256="0" * 64), tmp_path).files[0].state == "missing"
