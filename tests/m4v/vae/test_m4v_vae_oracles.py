"""The causal video VAE against the reference implementation's numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m4v.vae.autoencoder import CausalVideoVae
from m4v.vae.config import VaeConfig, parse_vae_config, read_vae_config
from m4v.vae.initialise import build_vae
from m4v.vae.posterior import Posterior
from m4v.vae.weights import expected_shapes

VIDEO = {"atol": 5e-5, "rtol": 1e-4}
TILED = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def folder(oracles) -> Path:
    return oracles / "pyramidflow" / "vae_tiny"


@pytest.fixture(scope="module")
def vae(folder) -> CausalVideoVae:
    vae = CausalVideoVae(read_vae_config(folder / "config.json"))
    vae.load_state_dict(load_file(folder / "state_dict.safetensors"))
    return vae.eval()


@pytest.fixture
def golden(folder, oracle_close):
    """`golden(case)` loads a case; `golden.check` compares with one of its tensors, and records the error."""

    class Golden(dict):
        def __init__(self, case: str) -> None:
            super().__init__(load_file(folder / f"case_{case}.safetensors"))
            self.name = f"vae_tiny/case_{case}.safetensors"

        def check(self, key: str, found: torch.Tensor, **tolerance: float) -> None:
            oracle_close(self.name, found, self[key].reshape(found.shape), **tolerance)

    return Golden


def test_keys_and_shapes_of_the_published_model(oracles, oracle_close):
    published = json.loads((oracles / "pyramidflow/full_shapes/causal_video_vae_keys.json").read_text())
    config = parse_vae_config(published["config"], "published")
    assert config == VaeConfig()
    shapes = expected_shapes(config)
    tensors = published["shapes"]
    assert shapes == {key: tuple(shape) for key, shape in tensors.items()}
    assert len(shapes) == 260
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    oracle_close("full_shapes/causal_video_vae_keys.json", parameters, 335_402_067, atol=0, rtol=0)


def test_sizes_of_the_tiny_model(folder, vae, oracle_error):
    """The published constructor arguments are read, and every tensor of the reference has its place."""
    stored = json.loads((folder / "config.json").read_text())
    config = read_vae_config(folder / "config.json")
    assert expected_shapes(config) == {
        k: tuple(v.shape) for k, v in load_file(folder / "state_dict.safetensors").items()
    }
    assert vae.encoder.conv_in.conv.weight.shape[:2] == (stored["encoder_block_out_channels"][0], 3)
    assert vae.decoder.conv_in.conv.weight.shape[1] == stored["decoder_in_channels"]
    oracle_error("vae_tiny/config.json", 0, "exact")
    assert sum(p.numel() for p in vae.parameters()) == 351_719
    oracle_error("vae_tiny/state_dict.safetensors", 0, "exact")


def test_initial_statistics(folder, oracle_error):
    stats = json.loads((folder / "init_stats.json").read_text())
    vae = build_vae(read_vae_config(folder / "config.json"), seed=3)
    worst = 0.0
    for name, parameter in vae.requires_grad_(False).named_parameters():
        expected = stats[name]
        assert list(parameter.shape) == expected["shape"]
        if expected["std"] == 0:
            assert float(parameter.abs().max()) == expected["absmax"]
            assert float(parameter.std(correction=0)) == 0
        elif parameter.numel() >= 2000:  # fewer numbers scatter more than the bound
            worst = max(worst, abs(float(parameter.std()) / expected["std"] - 1))
    oracle_error("vae_tiny/init_stats.json", worst, "std within 15 %")
    assert 0 < worst < 0.15


@torch.no_grad()
@pytest.mark.parametrize(("window", "name"), [(None, "full"), (8, "chunk_w8"), (16, "chunk_w16")])
def test_encode_video(vae, golden, window, name):
    case = golden("video")
    posterior = vae.encode(case["in.video"], window=window)
    case.check(f"out.{name}.mean", posterior.mean, **VIDEO)
    case.check(f"out.{name}.logvar", posterior.logvar, **VIDEO)


@torch.no_grad()
@pytest.mark.parametrize(("window", "name"), [(None, "full"), (1, "chunk_w1"), (2, "chunk_w2")])
def test_decode_video(vae, golden, window, name):
    case = golden("video")
    case.check(f"out.{name}.decoded", vae.decode(case["in.latent"], window=window), **VIDEO)


@torch.no_grad()
def test_posterior(vae, golden):
    case = golden("video")
    posterior = Posterior(case["out.full.mean"], case["out.full.logvar"])
    case.check("out.full.sample", posterior.sample(case["rng.posterior_noise"]), **VIDEO)
    case.check("out.full.kl", posterior.kl(), **VIDEO)


@torch.no_grad()
def test_25_frames_end_in_a_shorter_chunk(vae, golden):
    case = golden("video25")
    whole, chunked = vae.encode(case["in.video"]), vae.encode(case["in.video"], window=16)
    case.check("out.full.mean", whole.mean, **VIDEO)
    case.check("out.chunk_w16.mean", chunked.mean, **VIDEO)
    case.check("out.chunk_w16.logvar", chunked.logvar, **VIDEO)
    case.check("out.full.decoded", vae.decode(case["out.full.mean"]), **VIDEO)
    case.check("out.chunk_w2.decoded", vae.decode(case["out.full.mean"], window=2), **VIDEO)


@torch.no_grad()
def test_image(vae, golden):
    case = golden("image")
    posterior = vae.encode(case["in.image"])
    case.check("out.mean", posterior.mean, **VIDEO)
    case.check("out.logvar", posterior.logvar, **VIDEO)
    case.check("out.decoded", vae.decode(case["out.mean"]), **VIDEO)


@torch.no_grad()
def test_tiles(vae, golden):
    case = golden("tiled")
    case.check("out.untiled.mean", vae.encode(case["in.video"]).mean, **TILED)
    case.check("out.untiled.decoded", vae.decode(case["in.latent"]), **TILED)
    posterior = vae.encode(case["in.video"], tile=32)
    case.check("out.tiled.mean", posterior.mean, **TILED)
    case.check("out.tiled.logvar", posterior.logvar, **TILED)
    case.check("out.tiled_chunk_w8.mean", vae.encode(case["in.video"], window=8, tile=32).mean, **TILED)
    case.check("out.tiled.decoded", vae.decode(case["in.latent"], tile=32), **TILED)
    case.check("out.tiled_chunk_w1.decoded", vae.decode(case["in.latent"], window=1, tile=32), **TILED)
    assert not torch.allclose(case["out.tiled.decoded"], case["out.untiled.decoded"], atol=1e-2)


def test_gradients(vae, golden):
    """Loss of the fixture: mean squared error + 1e-3 * mean KL, through the posterior's draw."""
    case = golden("grad")
    video = case["in.video"]
    posterior = vae.encode(video)
    reconstruction = vae.decode(posterior.sample(case["rng.posterior_noise"]))
    loss = (reconstruction - video).square().mean() + 1e-3 * posterior.kl().mean()
    case.check("out.reconstruction", reconstruction, atol=1e-5, rtol=1e-3)
    case.check("out.loss", loss, atol=1e-5, rtol=1e-3)
    names = [key.removeprefix("grad.") for key in case if key.startswith("grad.")]
    assert len(names) == 7
    for name, gradient in zip(names, torch.autograd.grad(loss, [vae.get_parameter(n) for n in names]), strict=True):
        case.check(f"grad.{name}", gradient, atol=1e-5, rtol=1e-3)
