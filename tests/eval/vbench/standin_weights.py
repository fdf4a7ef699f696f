"""Run in the core environment: `python standin_weights.py CACHE TORCH_HOME [FLOW]`. Random weights in the formats that
VBench reads, each as small as the format allows. They say nothing of any video; only tests use them.

With FLOW only RAFT's are made anew: each of its steps then adds FLOW pixels to the flow, whatever the pictures. With
`dreamsim` in its place DreamSim's are made, at their real size (a gigabyte), and DINO's, which it reads.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("worker", os.environ["M4V_WORKER"])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)

HUB = '''
"""STAND-IN of a test for facebookresearch/dino: a tiny network, loaded as DINO's hubconf loads its own."""
import torch
from vision_transformer import Tiny

dependencies = ["torch"]


def dino_vitb16(pretrained=True, **kwargs):
    model = Tiny()
    url = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
    model.load_state_dict(torch.hub.load_state_dict_from_url(url, map_location="cpu"))
    return model.eval()
'''
HUB_V2 = '''
"""STAND-IN of a test for facebookresearch/dinov2: a tiny network, loaded as its hubconf loads its own."""
import torch

dependencies = ["torch"]


class Tiny(torch.nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu().mean(dim=(2, 3))


def dinov2_vitb14(pretrained=True, **kwargs):
    model = Tiny(3, 32, 14, 14)
    url = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth"
    model.load_state_dict(torch.hub.load_state_dict_from_url(url, map_location="cpu"))
    return model.eval()
'''
HUB_WHOLE = '''
"""STAND-IN of a test for facebookresearch/dino: its architecture, as DreamSim carries it."""
import torch
from dreamsim.feature_extraction.vision_transformer import vit_base

dependencies = ["torch"]


def dino_vitb16(pretrained=True, **kwargs):
    model = vit_base(patch_size=16)
    url = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
    model.load_state_dict(torch.hub.load_state_dict_from_url(url, map_location="cpu"))
    return model.eval()
'''
NETWORK = """
import torch


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 32, 16, 16)

    def forward(self, x):
        return self.patches(x).relu().mean(dim=(2, 3))
"""


def main(cache: Path, torch_home: Path) -> None:
    vocabulary = Path(importlib.util.find_spec("clip").origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    shutil.copy(vocabulary, place(cache / "ViCLIP") / vocabulary.name)
    os.environ["VBENCH_CACHE_DIR"] = str(cache)
    worker.import_torchvision("cpu")
    import torch

    torch.manual_seed(0)
    for folder in (cache, torch_home):
        (place(folder) / "STAND-IN-WEIGHTS").touch()
    dino(torch, cache, torch_home)
    dinov2(torch, torch_home)
    clip_archive(torch, place(cache / "clip_model") / "ViT-B-32.pt", embedding=512)
    clip_archive(torch, cache / "clip_model" / "ViT-L-14.pt", embedding=768)
    torch.save(
        torch.nn.Linear(768, 1).state_dict(),
        place(cache / "aesthetic_model" / "emb_reader") / "sa_0_4_vit_l_14_linear.pth",
    )
    flow(torch, cache)
    interpolation(torch, cache)
    from pyiqa.archs.musiq_arch import MUSIQ

    torch.save(MUSIQ(pretrained=False).state_dict(), place(cache / "pyiqa_model") / "musiq_spaq_ckpt-358bb6af.pth")
    from vbench.third_party.ViCLIP.simple_tokenizer import SimpleTokenizer
    from vbench.third_party.ViCLIP.viclip import ViCLIP

    model = ViCLIP(tokenizer=SimpleTokenizer(str(cache / "ViCLIP" / vocabulary.name)), pretrain=None)
    for weight in model.parameters():  # some are left as memory was
        torch.nn.init.normal_(weight, std=0.02)
    torch.save({"model": model.state_dict()}, cache / "ViCLIP" / "ViClip-InternVid-10M-FLT.pth")


def place(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def dino(torch, cache: Path, torch_home: Path) -> None:
    repository = place(cache / "dino_model" / "facebookresearch_dino_main")
    (repository / "hubconf.py").write_text(HUB)
    (repository / "vision_transformer.py").write_text(NETWORK)
    (repository / "utils.py").write_text("")
    sys.path.insert(0, str(repository))
    from vision_transformer import Tiny

    torch.save(Tiny().state_dict(), place(torch_home / "hub" / "checkpoints") / "dino_vitbase16_pretrain.pth")


def dinov2(torch, torch_home: Path) -> None:
    """A repository in torch hub's folder, as a download would leave it."""
    repository = torch_home / "hub" / "facebookresearch_dinov2_main"
    for part in ("dinov2/hub/backbones.py", "dinov2/models/vision_transformer.py"):
        (place((repository / part).parent) / Path(part).name).write_text("")
    (repository / "hubconf.py").write_text(HUB_V2)
    weights = {"weight": torch.randn(32, 3, 14, 14), "bias": torch.randn(32)}
    torch.save(weights, torch_home / "hub" / "checkpoints" / "dinov2_vitb14_pretrain.pth")


def dreamsim(torch, cache: Path, torch_home: Path) -> None:
    """The four parts of its zip; the adapter is saved by the package itself."""
    import json

    from dreamsim import dreamsim as load
    from dreamsim.feature_extraction.vision_transformer import DINOHead, vit_base

    folder, repository = place(cache / "dreamsim_model"), cache / "dino_model" / "facebookresearch_dino_main"
    (repository / "hubconf.py").write_text(HUB_WHOLE)
    checkpoint = torch_home / "hub" / "checkpoints" / "dino_vitbase16_pretrain.pth"
    torch.save(vit_base(patch_size=16).state_dict(), checkpoint)
    parts = {f"module.head.{name}": value for name, value in DINOHead(768, 2048).state_dict().items()}
    parts["module.head.last_layer.weight"] = torch.randn(2048, 256)
    torch.save({"student": parts}, folder / "dino_vitb16_pretrain.pth")
    for name in ("clip", "open_clip"):
        model = vit_base(patch_size=16)
        model.pos_drop = torch.nn.LayerNorm(768)
        state = {**model.state_dict(), "proj": torch.randn(768, 512)}
        torch.save({"state_dict": state}, folder / f"{name}_vitb16_pretrain.pth.tar")
    config = {"r": 4, "lora_alpha": 1, "lora_dropout": 0.0, "bias": "none", "target_modules": ["qkv"]}
    (place(folder / "ensemble_lora") / "adapter_config.json").write_text(json.dumps(config))
    hub = place(cache / "hub-of-a-test")
    for part in folder.iterdir():
        (hub / part.name).symlink_to(part)
    (hub / "facebookresearch_dino_main").symlink_to(repository)
    (place(hub / "checkpoints") / checkpoint.name).symlink_to(checkpoint)
    load(pretrained=False, device="cpu", cache_dir=str(hub))[0].save_pretrained(folder / "ensemble_lora")


def clip_archive(torch, path: Path, embedding: int) -> None:
    """A TorchScript archive, as OpenAI publishes them; one narrow layer, from whose shapes the package learns sizes."""
    from clip.model import CLIP

    model = CLIP(embedding, 224, 1, 64, 32, 77, 49408, 64, 1, 1).eval()
    example = (torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long))
    torch.jit.save(torch.jit.trace(model, example, check_trace=False), str(path))


def flow(torch, cache: Path, step: float | None = None) -> None:
    from easydict import EasyDict
    from vbench.third_party.RAFT.core.raft import RAFT

    raft = RAFT(EasyDict(small=False, mixed_precision=False, alternate_corr=False))
    if step is not None:
        last = raft.update_block.flow_head.conv2
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, step)
    weights = {f"module.{name}": value for name, value in raft.state_dict().items()}
    torch.save(weights, place(cache / "raft_model" / "models") / "raft-things.pth")


def interpolation(torch, cache: Path) -> None:
    import vbench
    from omegaconf import OmegaConf
    from vbench.third_party.amt.utils.build_utils import build_from_cfg

    config = Path(vbench.__file__).parent / "third_party" / "amt" / "cfgs" / "AMT-S.yaml"
    amt = build_from_cfg(OmegaConf.load(config).network)
    torch.save({"state_dict": amt.state_dict()}, place(cache / "amt_model") / "amt-s.pth")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        os.environ["VBENCH_CACHE_DIR"] = sys.argv[1]
        worker.import_torchvision("cpu")
        import torch

        if sys.argv[3] == "dreamsim":
            torch.manual_seed(0)
            dreamsim(torch, Path(sys.argv[1]), Path(sys.argv[2]))
        else:
            flow(torch, Path(sys.argv[1]), float(sys.argv[3]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
