"""In torch's deterministic mode every part that trains runs on CUDA, and a second run gives the same bytes."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ROOT = Path(__file__).parents[2]
PROCESS = """
import json
from tests.gpu.test_gpu_deterministic import digests
print(json.dumps(digests()))
"""


def digest(tensors: list[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        assert bool(tensor.isfinite().all())
        found.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digests() -> dict[str, str]:
    """Part -> digest of outputs and gradients, in a process that has promised equal bytes."""
    from m4v.deterministic import use_deterministic

    use_deterministic()
    found = {
        f"{mixer} {ssm} {dtype}": transformer(mixer, ssm, dtype)
        for mixer, ssm in (("attention", "ssd"), ("mm_dim", "ssd"), ("mm_dim", "mamba1"))
        for dtype in ("float32", "bfloat16", "autocast")
        # mamba-ssm's Mamba-1 gradient is refused in this mode; float32 runs on plain torch.
        if ssm == "ssd" or dtype == "float32"
    }
    return found | {"dct decode": dct(), "vae": vae(), "resize": resize()}


def transformer(mixer: str, ssm: str, dtype: str) -> str:
    from m4v.config import ModelConfig
    from m4v.flow.packing import history_shape
    from m4v.model import build_model

    sizes = {"width": 128, "heads": 2, "double_blocks": 1, "single_blocks": 3, "latent_channels": 4, "dt_rank": 8}
    text = {"text_dim": 8, "pooled_dim": 6, "text_slots": 19}
    model = build_model(ModelConfig.model_validate(sizes | text | {"mixer": mixer, "ssm": ssm}), 0).cuda()
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = model.cast(kind)
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).cuda().to(kind)

    columns = [
        [normal(2, 4, n, 24 >> (2 - s), 40 >> (2 - s)) for s, n in [*history_shape(stage, unit), (stage, 1)]]
        for stage, unit in ((0, 9), (1, 1), (2, 4))
    ]
    length = torch.tensor([[0], [19], [3], [7], [1], [12]])
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "autocast"):
        outs = model(
            columns, (torch.rand(6, generator=generator) * 1000).cuda(), normal(6, 19, 8),
            (torch.arange(19) < length).cuda(), normal(6, 6), stages=[0, 1, 2],
        )  # fmt: skip
    sum(out.float().square().sum() for out in outs).backward()
    return digest([*outs, *(p.grad for p in model.parameters() if p.grad is not None)])


def dct() -> str:
    from m4v.codec import open_codec
    from m4v.codec.config import DctCodecConfig

    codec = open_codec(DctCodecConfig(), device="cuda")
    latent = torch.randn(1, 16, 2, 8, 12, generator=torch.Generator().manual_seed(2)).cuda().requires_grad_()
    frames = codec.decode_tensor(latent)
    frames.square().sum().backward()
    assert latent.grad is not None
    return digest([frames, latent.grad])


def vae() -> str:
    from m4v.vae.config import VaeConfig
    from m4v.vae.initialise import build_vae

    channels = {"encoder_block_out_channels": (32, 32, 32, 32), "decoder_block_out_channels": (32, 32, 32, 32)}
    model = build_vae(VaeConfig.model_validate(channels), 0).cuda()
    pixels = torch.randn(1, 3, 9, 64, 96, generator=torch.Generator().manual_seed(3)).cuda()
    mean = model.encode(pixels).mean
    latent = mean.detach().requires_grad_()
    frames = model.decode(latent)
    frames.square().sum().backward()
    assert latent.grad is not None
    return digest([mean, frames, latent.grad])


def resize() -> str:
    from m4v.scores.conse import preprocess

    frames = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(4)).cuda().requires_grad_()
    small = preprocess(frames, "squash")
    small.square().sum().backward()
    assert frames.grad is not None
    return digest([small, frames.grad])


@pytest.mark.parametrize(
    "choice",
    [{}, {"M4V_KERNELS": "torch"}, {"M4V_KERNELS": "triton"}, {"M4V_ATTENTION": "flex"}, {"M4V_ATTENTION": "frames"}],
    ids=str,
)
def test_two_processes_give_the_same_bytes(choice: dict[str, str]) -> None:
    def run() -> dict[str, str]:
        found = subprocess.run(
            [sys.executable, "-c", PROCESS], cwd=ROOT, env=os.environ | choice,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        answer: dict[str, str] = json.loads(found.stdout.splitlines()[-1])
        return answer

    assert run() == run()
