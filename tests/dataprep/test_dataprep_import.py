"""Latents that others computed: what is taken, what is refused, and that they are what they are claimed to be."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encode_support import drawn
from safetensors.torch import load

import dataprep.stages.import_latents as stage
from dataprep.encode.jobs import codec_of, text_encoder_of
from dataprep.quarantine import read_quarantine
from dataprep.shards import SHARDS
from dataprep.sources.rows import tree_digest
from dataprep.stages.import_latents import run
from m4v.codec.config import DctCodecConfig
from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.core.items import ItemStore
from m4v.core.shard_index import INDEX, iterate, member, read_index, read_member
from m4v.core.stage import OutputRef, Resources, StageContext, StageRequest
from m4v.core.storage import Storage
from m4v.flow.latents import normalise
from m4v.text.config import MiniLmConfig
from m4v.video_io import write_mp4

CODEC, TEXT = {"kind": "dct"}, {"kind": "minilm", "slots": 8}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path_factory.mktemp("cache")))


def encoded(seed: int, frames: int = 17) -> torch.Tensor:
    return torch.from_numpy(codec_of(DctCodecConfig()).encode(drawn(frames, 64, 64, seed))).to(torch.bfloat16)


def features(*texts: str) -> dict[str, torch.Tensor]:
    made = text_encoder_of(MiniLmConfig(slots=8)).encode(texts)
    return {
        "prompt_embed": made.embedding, "prompt_attention_mask": made.mask.long(), "pooled_prompt_embed": made.pooled,
    }  # fmt: skip


def collection(root: Path, count: int = 3, media: bool = True) -> list[dict[str, Any]]:
    """Clips with latents and texts in PyramidFlow's form; its rows."""
    rows = []
    for n in range(count):
        path = root / f"v/{n}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if media:
            write_mp4(path, drawn(17, 64, 64, n), 24, crf=4)
        torch.save(encoded(n)[None], root / f"v/{n}-latent-384-0.pt")
        torch.save(features(f"clip {n}"), root / f"v/{n}-text.pt")
        rows.append({"video": f"v/{n}.mp4", "text": f"clip {n}", "latent": f"v/{n}-latent-384-0.pt",
                     "text_fea": f"v/{n}-text.pt"})  # fmt: skip
    return rows


def write_lines(root: Path, rows: list[dict[str, Any]]) -> Path:
    (root / "video_text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def imported(work: Path, root: Path | str, **config: object) -> tuple[Path, dict[str, Any]]:
    given = {
        "name": "theirs", "layout": "pyramidflow", "codec": CODEC, "text_encoder": TEXT, "texts": "reuse",
        "state": tree_digest(Storage(str(root)), "import"), "scale": (0.1, 4.0), **config,
    }  # fmt: skip
    context = StageContext(StageRequest(
        stage="import", stage_version=1, function="", config_model="", stage_key="k", attempt_id="a", config=given,
        seed=0, inputs=(), outputs=(OutputRef(name="dataset", kind=ArtifactKind.DATASET),),
        store_uri=str(work / "store"), work_dir=str(work), state_uri=str(work / "state"),
        items_uri=str(work / "items"), locations={"theirs": str(root)}, resources=Resources(),
    ))  # fmt: skip
    try:
        run(context)
    finally:
        context.progress.close()
    out = context.output("dataset")
    return out, json.loads((out / "dataset.json").read_bytes())


def members(out: Path) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    """Latent and text tensors by path."""
    found = {}
    for row in iterate(read_index(out / INDEX)):
        meta = json.loads(read_member(out / SHARDS, member(row, "meta")))
        found[meta["path"]] = {n: load(read_member(out / SHARDS, member(row, n))) for n in ("latent", "text")}
    return found


def metas(out: Path) -> list[dict[str, Any]]:
    return [json.loads(read_member(out / SHARDS, member(row, "meta"))) for row in iterate(read_index(out / INDEX))]


def test_pyramidflow_files_become_a_dataset(tmp_path: Path) -> None:
    rows = collection(tmp_path / "in")
    torch.save(features("said otherwise"), tmp_path / "in/v/0-more.pt")
    rows.append({**rows[0], "text": "said otherwise", "text_fea": "v/0-more.pt"})
    out, facts = imported(tmp_path / "w", write_lines(tmp_path / "in", rows))
    found = members(out)
    assert sorted(found) == ["v/0.mp4", "v/1.mp4", "v/2.mp4"]
    assert torch.equal(found["v/1.mp4"]["latent"]["mean"], encoded(1))
    assert found["v/0.mp4"]["text"]["embedding"].shape == (2, 8, 384)
    assert torch.equal(found["v/0.mp4"]["text"]["pooled"][1:], features("said otherwise")["pooled_prompt_embed"])
    assert facts["codec"]["digest"] == codec_of(DctCodecConfig()).digest
    assert facts["samples"] == 3
    assert facts["captions"] == 4
    assert {meta["frame_times_us"] and tuple(meta["frame_times_us"]) for meta in metas(out)} == {None}
    assert {meta["codec"]["digest"] for meta in metas(out)} == {facts["codec"]["digest"]}
    assert len(facts["imported"]["compared"]["latents"]) == len(facts["imported"]["compared"]["texts"]) == 3
    assert max(facts["imported"]["compared"]["latents"]) < 0.2
    assert load((out / "null_text.safetensors").read_bytes())["embedding"].shape == (1, 8, 384)
    again, _ = imported(tmp_path / "w2", tmp_path / "in")
    assert (again / INDEX).read_bytes() == (out / INDEX).read_bytes()


def test_latents_of_another_vae_are_refused(tmp_path: Path) -> None:
    rows = collection(tmp_path / "in")
    torch.save(encoded(1).flip(0)[None], tmp_path / "in/v/1-latent-384-0.pt")
    with pytest.raises(DataIntegrityError, match=r"encoded again differs by .* another encoder made it"):
        imported(tmp_path / "w", write_lines(tmp_path / "in", rows))
    torch.save(encoded(1)[None], tmp_path / "in/v/1-latent-384-0.pt")
    torch.save(features("something else entirely"), tmp_path / "in/v/1-text.pt")
    with pytest.raises(DataIntegrityError, match="a caption encoded again differs"):
        imported(tmp_path / "w", tmp_path / "in")


def test_latents_that_were_normalised_before_are_refused_by_their_scale(tmp_path: Path) -> None:
    rows = collection(tmp_path / "in", media=False)
    _, facts = imported(tmp_path / "w", write_lines(tmp_path / "in", rows))
    right = facts["imported"]["deviation"]
    assert facts["imported"]["compared"]["latents"] == []
    for n in range(3):
        torch.save(normalise(encoded(n)[None].float()), tmp_path / f"in/v/{n}-latent-384-0.pt")
    with pytest.raises(DataIntegrityError, match="un-normalised latents of the codec"):
        imported(tmp_path / "w2", tmp_path / "in", scale=(0.7 * right, 1.5 * right))


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_bad_rows_are_quarantined_with_their_reasons(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    rows = collection(root, 10, media=False)
    good = encoded(0).float()
    for number, value in {1: good[:8], 2: good[:, :, :, :4], 3: good * float("nan"), 4: {"a": good}}.items():
        torch.save(value, root / f"v/{number}-latent-384-0.pt")
    (root / "v/5-latent-384-0.pt").write_bytes(pickle.dumps(_Code()))
    (root / "v/6-latent-384-0.pt").unlink()
    rows[7]["latent"] = "../../secret.pt"
    del rows[8]["latent"]
    torch.save({**features("x"), "prompt_embed": torch.zeros(1, 8, 12)}, root / "v/9-text.pt")
    out, _ = imported(tmp_path / "w", write_lines(root, rows), max_rejected=0.95)
    reasons = {row.path: row.reason for row in read_quarantine(out / "quarantine.parquet")}
    assert reasons == {
        **{f"v/{n}.mp4": "bad_latent" for n in (1, 2, 3, 4, 5)}, "v/6.mp4": "missing_file", "v/7.mp4": "unsafe_name",
        "v/8.mp4": "missing_latent", "v/9.mp4": "bad_text",
    }  # fmt: skip
    assert list(members(out)) == ["v/0.mp4"]
    assert "run" not in capfd.readouterr().out
    with pytest.raises(DataIntegrityError, match=r"9 of 10 items were quarantined.*raise max_rejected"):
        imported(tmp_path / "w2", root)


def test_fastvideo_tables(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    rows = []
    for n in range(3):
        latent = encoded(n).float().numpy()
        rows.append({
            "id": f"clip{n}", "vae_latent_bytes": latent.tobytes(), "vae_latent_shape": list(latent.shape),
            "vae_latent_dtype": "float32", "text_embedding_bytes": b"", "file_name": f"{n}.mp4", "caption": f"c {n}",
            "num_frames": 17, "fps": 16.0,
        })  # fmt: skip
    rows[1]["num_frames"] = 9  # four frames a latent: Wan's VAE
    rows[2]["vae_latent_shape"] = [16, 3, 8, 9]
    pq.write_table(pa.Table.from_pylist(rows), root / "data.parquet")
    out, facts = imported(tmp_path / "w", root, layout="fastvideo", texts="encode", max_rejected=0.7)
    found = members(out)
    assert np.allclose(found["0.mp4"]["latent"]["mean"].float(), encoded(0).float())
    assert torch.equal(found["0.mp4"]["text"]["embedding"], features("c 0")["prompt_embed"])
    (row,) = iterate(read_index(out / INDEX))
    assert row["end_us"] == round(17 / 16 * 1e6)
    held = {r.path: r.reason for r in read_quarantine(out / "quarantine.parquet")}
    assert held == {"1.mp4": "other_vae", "2.mp4": "bad_latent"}
    assert facts["imported"]["layout"] == "fastvideo"


def test_a_collection_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    root = write_lines(tmp_path / "in", collection(tmp_path / "in", 1))
    with pytest.raises(DataIntegrityError, match=r"not what it was.*m4v data import again"):
        imported(tmp_path / "w", root, state="0" * 64)
    with pytest.raises(InputError, match="no table of latents found"):
        imported(tmp_path / "w", root, tables=("none/*.jsonl",))


def test_frames_that_a_row_names_have_their_times(tmp_path: Path) -> None:
    rows = collection(tmp_path / "in", 1, media=False)
    rows[0]["frames"] = list(range(8, 25))
    out, _ = imported(tmp_path / "w", write_lines(tmp_path / "in", rows))
    (meta,) = metas(out)
    assert meta["frame_times_us"] == [round(frame / 24 * 1e6) for frame in range(8, 25)]
    assert meta["start_us"] == meta["frame_times_us"][0]


DIGEST = codec_of(DctCodecConfig()).digest
FOLDERS = {"layout": "folders", "codec_digest": DIGEST}


def folders(root: Path, count: int = 3) -> list[dict[str, Any]]:
    """The same clips in FastVideo's folders, with pooled vectors; rows of `videos2caption.json`."""
    rows = []
    for n in range(count):
        parts = {"latent": encoded(n), **{name: value[0] for name, value in features(f"clip {n}").items()}}
        for folder, tensor in parts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            torch.save(tensor.clone(), root / folder / f"{n}.pt")
        rows.append({
            "latent_path": f"{n}.pt", "prompt_embed_path": f"{n}.pt", "prompt_attention_mask": f"{n}.pt",
            "pooled_prompt_embed_path": f"{n}.pt", "caption": f"clip {n}", "length": 3,
        })  # fmt: skip
    return rows


def write_folders(root: Path, rows: list[dict[str, Any]]) -> Path:
    (root / "videos2caption.json").write_text(json.dumps(rows))
    return root


def test_folders_of_tensors_become_a_dataset(tmp_path: Path) -> None:
    rows = folders(tmp_path / "in")
    rows[2]["path"] = "v.mp4"
    root = write_folders(tmp_path / "in", rows)
    write_mp4(root / "v.mp4", drawn(17, 64, 64, 2), 24, crf=4)
    out, facts = imported(tmp_path / "w", root, **FOLDERS)
    found = members(out)
    assert sorted(found) == ["latent/0.pt", "latent/1.pt", "v.mp4"]
    assert len(facts["imported"]["compared"]["latents"]) == 1
    assert torch.equal(found["latent/1.pt"]["latent"]["mean"], encoded(1))
    expected = features("clip 1")
    assert torch.equal(found["latent/1.pt"]["text"]["embedding"], expected["prompt_embed"])
    assert torch.equal(found["latent/1.pt"]["text"]["mask"].long(), expected["prompt_attention_mask"])
    assert torch.equal(found["latent/1.pt"]["text"]["pooled"], expected["pooled_prompt_embed"])
    assert (facts["samples"], facts["imported"]["layout"], facts["codec"]["digest"]) == (3, "folders", DIGEST)
    anew, _ = imported(tmp_path / "w2", root, **FOLDERS, texts="encode")
    assert torch.equal(members(anew)["latent/1.pt"]["text"]["pooled"], expected["pooled_prompt_embed"])


def test_bad_rows_of_folders_are_quarantined(tmp_path: Path) -> None:
    root = tmp_path / "in"
    rows = folders(root, 10)
    good = encoded(0).float()
    torch.save(good.long(), root / "latent/1.pt")
    torch.save(good[:8], root / "latent/2.pt")
    rows[3]["length"] = 5
    (root / "latent/4.pt").unlink()
    rows[5]["latent_path"] = "../../secret.pt"
    del rows[6]["latent_path"]
    del rows[7]["pooled_prompt_embed_path"]
    torch.save(torch.ones(5), root / "prompt_attention_mask/8.pt")
    rows[9]["caption"] = ""
    out, _ = imported(tmp_path / "w", write_folders(root, rows), **FOLDERS, max_rejected=0.95)
    reasons = {row.path: row.reason for row in read_quarantine(out / "quarantine.parquet")}
    assert reasons == {
        **{f"latent/{n}.pt": "bad_latent" for n in (1, 2, 3)}, "latent/4.pt": "missing_file",
        "../../secret.pt": "unsafe_name", "videos2caption.json row 7": "missing_latent", "7.pt": "missing_text",
        "latent/8.pt": "bad_text", "9.pt": "missing_caption",
    }  # fmt: skip
    assert list(members(out)) == ["latent/0.pt"]


def test_folders_whose_codec_nobody_states_are_refused(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "in", folders(tmp_path / "in", 1))
    with pytest.raises(ConfigError, match=rf"nothing says which codec.*codec_digest={DIGEST}"):
        imported(tmp_path / "w", root, layout="folders")
    with pytest.raises(ConfigError, match="of another codec than the one that is opened"):
        imported(tmp_path / "w", root, layout="folders", codec_digest="0" * 64)


def test_an_import_from_a_store_that_is_killed_goes_on(
    tmp_path: Path, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 between two items; the second run adds what is missing and ends with the bytes of a local import."""
    root = write_folders(tmp_path / "in", folders(tmp_path / "in", 4))
    place = Storage(s3_root)
    for path in root.rglob("*"):
        if path.is_file():
            place.put_file(path, path.relative_to(root).as_posix())

    def killed() -> None:
        put, done = ItemStore.put, []

        def die(self: ItemStore, key: str, payload: bytes) -> None:
            if len(done) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(put(self, key, payload))

        stage.ItemStore.put = die  # type: ignore[method-assign]
        imported(tmp_path / "w", s3_root, **FOLDERS)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(600)
    assert child.exitcode == -signal.SIGKILL
    state = tmp_path / "w" / "state"
    kept = {p: p.stat().st_mtime_ns for p in state.rglob("*") if p.is_file()}
    assert len(kept) == 5
    out, _ = imported(tmp_path / "w", s3_root, **FOLDERS)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "what was there is not made again"
    local, _ = imported(tmp_path / "local", root, **FOLDERS)
    for name in ("index.parquet", "dataset.json", "shards/000000.tar"):
        assert (out / name).read_bytes() == (local / name).read_bytes()
