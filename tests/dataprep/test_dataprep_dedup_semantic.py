"""Semantic dedup: the definition on small sets, clusters on larger ones, the same whatever the order and the blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from curation_runs import CHEAP, context, curated, inputs, list_source
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from dataprep.curate_config import CurateConfig, DedupConfig, FilterConfig
from dataprep.curation.candidates import EMBEDDINGS, HASHES, read_candidates
from dataprep.curation.filters import decide
from dataprep.curation.table import CLIPS
from dataprep.dedup import semantic
from dataprep.dedup.semantic import quantised, semantic_copies
from dataprep.signals.embedding import COMPONENTS
from m4v.core.asset_catalog import asset_path
from m4v.core.errors import ConfigError


def collection(seed: int, count: int, copies: int, angle: float, components: int = 64) -> NDArray[np.int8]:
    """Random directions around twenty themes; the first `copies` come again, turned by about `angle` radians."""
    generator = np.random.default_rng(seed)
    themes = generator.standard_normal((20, components))
    one = themes[generator.integers(0, 20, count)] + generator.standard_normal((count, components))
    length = np.linalg.norm(one[:copies], axis=1, keepdims=True) / np.sqrt(components)
    again = one[:copies] + angle * length * generator.standard_normal((copies, components))
    return quantised(np.concatenate([one, again]))


def by_definition(vectors: NDArray[np.int8], order: NDArray[np.int64], threshold: float) -> dict[int, int]:
    """Row -> row that stays: each is held against those kept before it, the first that is similar counts."""
    exact = vectors.astype(np.int64)
    kept: list[int] = []
    found: dict[int, int] = {}
    for row in order.tolist():
        for other in kept:
            cosine = exact[row] @ exact[other] / np.sqrt((exact[row] @ exact[row]) * (exact[other] @ exact[other]))
            if cosine >= threshold:
                found[row] = other
                break
        else:
            kept.append(row)
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.97])
def test_one_cluster_is_the_definition(monkeypatch: pytest.MonkeyPatch, threshold: float) -> None:
    monkeypatch.setattr(semantic, "_BLOCK", 37)
    vectors = collection(1, 250, 80, 0.2)
    order = np.random.default_rng(2).permutation(len(vectors))
    found = semantic_copies(vectors, order, threshold)
    expected = by_definition(vectors, order, threshold)
    assert dict(zip(found.rows.tolist(), found.of.tolist(), strict=True)) == expected
    assert len(expected) >= 75
    assert (found.cosines >= threshold).all()


def test_clusters_find_the_copies_of_a_larger_collection() -> None:
    vectors = collection(3, 9000, 1000, 0.1)
    found = semantic_copies(vectors, np.arange(10_000), 0.97)
    assert found.rows.tolist() == list(range(9000, 10_000))
    assert np.array_equal(found.of, found.rows - 9000)


def test_neither_rows_nor_blocks_change_who_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "CLUSTER", 200)
    vectors = collection(4, 1500, 400, 0.3)
    names = np.arange(len(vectors))

    def found(order: NDArray[np.int64]) -> set[tuple[int, int]]:
        """Rows lie in `order`, names decide."""
        copies = semantic_copies(vectors[order], np.argsort(order), 0.9)
        return set(zip(order[copies.rows].tolist(), order[copies.of].tolist(), strict=True))

    expected = found(names)
    assert len(expected) > 350
    monkeypatch.setattr(semantic, "_BLOCK", 333)
    assert found(np.random.default_rng(5).permutation(names)) == expected


def test_what_was_not_measured_is_no_copy_and_equal_vectors_are() -> None:
    vectors = np.zeros((5, 8), dtype=np.int8)
    vectors[3:] = 7
    found = semantic_copies(vectors, np.arange(5)[::-1], 0.99)
    assert (found.rows.tolist(), found.of.tolist(), found.cosines.tolist()) == ([3], [4], [1.0])
    assert not len(semantic_copies(vectors[:0], np.arange(0), 0.9).rows)


def test_a_cluster_of_thousands_of_equal_clips_costs_one_comparison_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "CLUSTER", 500)
    vectors = np.tile(collection(6, 1, 0, 0.0), (20_000, 1))
    found = semantic_copies(vectors, np.arange(20_000), 0.95)
    assert found.rows.tolist() == list(range(1, 20_000))
    assert not found.of.any()


def photos(folder: Path) -> Path:
    """A frame of film, the same mirrored (another grey hash, the same content), and one of something else."""
    folder.mkdir()
    for name, path in (("man", "corpus/street/carphone_pristine.mp4"), ("card", "corpus/street/a.mp4")):
        with av.open(asset_path(path)) as container:
            picture = next(container.decode(video=0)).to_image()
        picture.save(folder / f"{name}.png")
        if name == "man":
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    for picture in folder.iterdir():
        picture.with_suffix(".txt").write_text(f"a photo of {picture.stem}")
    return folder


def test_the_stage_drops_what_shows_the_same_and_keeps_the_embeddings(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    listed = list_source(tmp_path / "listed", "photos", folder, {"kind": "images", "licence": "none"})
    cheap: dict[str, Any] = CHEAP
    config = {**cheap, "filters": {**cheap["filters"], "min_sharpness": None}}
    plain = curated(context(tmp_path / "plain", "curate", config, inputs(listed), {"photos": str(folder)}))
    assert [c["drop_rule"] for c in plain.clips] == [None] * 3
    assert not (plain.directory / EMBEDDINGS).exists()
    with_semantic = {
        **config, "signals": {**cheap["signals"], "embedding": True}, "dedup": {"semantic": True, "min_cosine": 0.9}
    }  # fmt: skip
    result = curated(context(tmp_path / "run", "curate", with_semantic, inputs(listed), {"photos": str(folder)}))
    ids = {c["path"]: c["clip_id"] for c in result.clips}
    assert {c["path"]: (c["drop_rule"], c["duplicate_of"]) for c in result.clips} == {
        "card.png": (None, None), "man.png": (None, None), "mirrored.png": ("duplicate_semantic", ids["man.png"]),
    }  # fmt: skip
    stored = pq.read_table(result.directory / EMBEDDINGS).to_pylist()
    assert [row["clip_id"] for row in stored] == [c["clip_id"] for c in result.clips]
    assert all(len(row["embedding"]) == COMPONENTS for row in stored)
    paths = [result.directory / name for name in (CLIPS, HASHES, EMBEDDINGS)]
    rules = FilterConfig.model_validate(config["filters"])
    again = decide(read_candidates(*paths), rules, DedupConfig(semantic=True, min_cosine=0.9))
    assert again.drop_rules == [c["drop_rule"] for c in result.clips]
    assert again.duplicate_of == [c["duplicate_of"] for c in result.clips]
    strict = decide(read_candidates(*paths), rules, DedupConfig(semantic=True, min_cosine=1.0))
    assert strict.drop_rules == [None] * 3
    with pytest.raises(ConfigError, match="none were measured"):
        decide(read_candidates(*paths[:2]), rules, DedupConfig(semantic=True))


def test_semantic_dedup_needs_the_measurement() -> None:
    with pytest.raises(ValidationError, match=r"needs signals\.embedding"):
        CurateConfig.model_validate({"dedup": {"semantic": True}})
