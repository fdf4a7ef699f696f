"""A recipe whose transformer, VAE and text encoders are imported, from published folders to generated videos."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from e2e_support import artifact_ids, m4v, read_json, run_json, statuses

from m4v.config import ModelConfig
from m4v.vae.autoencoder import CausalVideoVae
from m4v.vae.config import VaeConfig

pytestmark = [pytest.mark.deep, pytest.mark.timeout(900)]
TESTS = Path(__file__).parents[1]
SIZES = ModelConfig(
    width=64, heads=2, double_blocks=1, single_blocks=2, text_dim=32, pooled_dim=24, text_slots=24, mixer="attention"
)
RECIPE = """
extends: micro
name: imported
weights:
  - {{name: dit, entry: pyramidflow-dit-768p, location: {hub}}}
  - {{name: vae, entry: pyramidflow-vae, location: {hub}}}
  - {{name: text, entry: pyramidflow-text, location: {hub}}}
init: {{weights: dit, convert: attention_to_mamba}}
model: {{mlp_ratio: 4, text_dim: 32, pooled_dim: 24}}
encode:
  reconstructions: 1
  codec: {{kind: causal_vae, weights: vae, logvar: true}}
  text_encoder:
    {{kind: t5_clip, weights: text, slots: 24, clip_slots: 16, embedding_dim: 32, pooled_dim: 24, dtype: float32}}
sources:
  - {{name: street, remove: true}}
  - {{name: shapes, adapter: {{count: 3, stills: 0, frames: 17}}}}
train:
  - {{name: t2i, remove: true}}
  - {{name: 9f, steps: 2}}
  - {{name: 17f, remove: true}}
  - {{name: 33f, remove: true}}
reward: null
"""
UNTIL = ("--no-prefect", "--until", "generate.trained")


def helper(path: str) -> ModuleType:
    """A module of another test folder, which pytest has not put on the path."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, TESTS / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published repository, every network tiny."""
    root = tmp_path_factory.mktemp("hub")
    helper("pipelines/published_weights.py").write_published(root, SIZES)
    helper("m4v/conftest.py").write_tiny_text(root)
    widths = (8, 8, 16, 16)
    config = VaeConfig(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        encoder_norm_num_groups=4, decoder_norm_num_groups=4,
    )  # fmt: skip
    folder = root / "causal_video_vae"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "CausalVideoVAE", **config.canonical()}))
    torch.manual_seed(5)
    torch.save(CausalVideoVae(config).state_dict(), folder / "diffusion_pytorch_model.bin")
    return root


def test_from_published_folders_to_videos_and_back_by_lineage(hub: Path, tmp_path: Path) -> None:
    recipe, home = tmp_path / "imported.yaml", tmp_path / "home"
    recipe.write_text(RECIPE.format(hub=hub))
    nodes = run_json(home, str(recipe), *UNTIL)
    assert statuses(nodes) == {"ran"}
    made = artifact_ids(nodes)
    weights = {name: made[f"weights.{name}.weights"] for name in ("dit", "vae", "text")}

    samples = read_json(home, "lineage", "up", made["generate.trained.samples"])
    assert set(weights.values()) <= {artifact["artifact_id"] for artifact in samples["artifacts"]}
    checkpoint = Path(nodes["train.9f"]["outputs"]["checkpoint"]["uri"])
    assert json.loads((checkpoint / "config.json").read_text())["weights"] == {n: weights[n] for n in ("vae", "text")}
    below = m4v(home, "lineage", "down", weights["vae"]).stdout
    assert all(made[name][:12] in below for name in ("encode.dataset", "generate.trained.samples"))

    assert statuses(run_json(home, str(recipe), *UNTIL)) == {"hit"}
    (plain,) = (s for s in read_json(home, "plan", str(recipe))["steps"] if s["node_id"] == "report")
    assert plain["status"] == "blocked-on"
    other = ("--set", "encode.codec.decode_window=2", "--set", f"weights.vae.location={hub / 'causal_video_vae'}")
    steps = {s["node_id"]: s for s in read_json(home, "plan", str(recipe), *other)["steps"]}
    assert steps["weights.vae"]["status"] == "hit", "the place of the files is in no key"
    assert steps["encode"]["reason"] == "config codec.decode_window: 1 -> 2"
    out = tmp_path / "videos"
    said = m4v(home, "generate", made["train.9f.checkpoint"], "--prompt", "a red star", "--out", str(out)).stdout
    assert len(list(out.glob("*.mp4"))) == 1, said
