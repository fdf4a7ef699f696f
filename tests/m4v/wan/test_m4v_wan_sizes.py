"""Published sizes on the meta device: diffusers' parameters exactly, and a forward at 720p."""

import subprocess
import sys

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch.utils.flop_counter import FlopCounterMode

from m4v.model.layout import Clip
from m4v.wan.config import wan_preset
from m4v.wan.initialise import empty_wan
from m4v.wan.mixer import clip_layout, mix_context


@pytest.mark.parametrize(("name", "count"), [("1.3B", 1_418_996_800), ("14B", 14_288_491_584)])
def test_published_sizes_have_diffusers_parameters(name: str, count: int) -> None:
    model = empty_wan(wan_preset(name, mixer="attention"))
    with torch.device("meta"):
        twin = WanTransformer3DModel(**{key: value for key, value in model.config.items() if not key.startswith("_")})
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert ours == {key: value.shape for key, value in twin.state_dict().items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", ["1.3B", "14B"])
def test_mm_dim_parameters_are_those_of_its_parts(name: str) -> None:
    config = wan_preset(name)
    width, heads = config.width, config.heads
    attention = 3 * (width * width + width) + 2 * width  # q, k, v and two norms; the output projection stays
    mamba = 4 * (width * width + width) + 2 * width + 5 * width + heads * width + 3 * heads + width
    temporal = 3 * (width * width + width) + 2 * config.head_dim + 1
    base = sum(parameter.numel() for parameter in empty_wan(wan_preset(name, mixer="attention")).parameters())
    expected = base + config.blocks * (mamba + temporal + 1 - attention)
    assert sum(parameter.numel() for parameter in empty_wan(config).parameters()) == expected


@pytest.mark.parametrize(("name", "saved"), [("1.3B", 5.0), ("14B", 2.5)])
def test_published_sizes_run_at_720p(name: str, saved: float) -> None:
    """81 frames on the meta device through eight blocks, one per scan path: shapes, and what the linear mixer saves."""
    counted = []
    for mixer in ("attention", "mm_dim"):
        model = empty_wan(wan_preset(name, mixer=mixer, blocks=8))
        model.rope.to("meta")
        latents, text = (torch.empty(shape, device="meta") for shape in ((1, 16, 21, 90, 160), (1, 512, 4096)))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            found = model(latents, torch.empty(1, device="meta"), text).sample
        assert found.shape == latents.shape
        counted.append(counter.get_total_flops())
    assert counted[0] > saved * counted[1]


@pytest.mark.parametrize("name", ["1.3B", "14B"])
def test_mixers_rotate_as_wan_does(name: str) -> None:
    """C and B turn by diffusers' angles at the published head size; a register by its frame's time, at place zero."""
    config = wan_preset(name, text_recomposition=False)
    layout = clip_layout(Clip(3, 4, 5), 0)
    turn = mix_context(config, layout, torch.ones(1, 0, dtype=torch.bool), torch.zeros(1, 60, 1)).turn
    cos, sin = WanRotaryPosEmbed(config.head_dim, (1, 2, 2), 1024)(torch.zeros(1, 16, 3, 8, 10))
    torch.testing.assert_close(turn[:60].real, cos[0, :, 0, 0::2])
    torch.testing.assert_close(turn[:60].imag, sin[0, :, 0, 1::2])
    torch.testing.assert_close(turn[60:], turn[0:60:20])


def test_config_loads_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys, m4v.wan, m4v.wan.config, m4v.wan.keys, m4v.wan.published_config;"
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
