"""What the generation benchmark runs: samplers of the real sizes with random weights, and models in several forms."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from kernel_choices import Choice, attention_words, ours, plain, stock
from random_model import random_model
from speed_clock import Unavailable
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from m4v.codec import open_codec
from m4v.codec.config import CausalVaeConfig, DctCodecConfig
from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.flow.schedule import PyramidSchedule
from m4v.launches import Launches
from m4v.launching import Launching
from m4v.model import M4VTransformer, attention, blocks, layers
from m4v.sampling import CheckpointSampler
from m4v.text.config import MiniLmConfig, T5ClipConfig
from m4v.text.t5_clip import Networks, T5Clip
from m4v.vae.config import VaeConfig
from m4v.vae.initialise import build_vae
from m4v.vae.weights import save_vae

DENSE_KERNELS = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
]  # fmt: skip
TINY = ModelConfig(
    width=64, heads=2, double_blocks=1, single_blocks=2, text_dim=384, pooled_dim=384, text_slots=8, chunk_size=16
)


class Form(NamedTuple):
    """A model and how it is run. `unmasked`: attention sees every score on cuDNN's kernel (not what the model means,
    but the quickest dense one); `compiled`: its norms, modulations and rotations through torch.compile with dynamic
    shapes, rotations in a form that the compiler fuses. Whole blocks would be compiled for every shape of a video.
    `launched`: small forwards as CUDA graphs; a real run decodes beside denoising, too."""

    name: str
    switches: dict[str, Any]
    choice: Callable[[], Choice]
    unmasked: bool = False
    compiled: bool = False
    launched: bool = False


ATTENTION = {"mixer": "attention"}
OURS, STOCK = "M4V, ours", "M4V, stock (mamba-ssm, plain glue)"
LAUNCHED = f"{OURS}, CUDA graphs, decoding beside"
RELEASED, COMPILED, FLEX = "attention, as released", "attention, compiled, all scores", "attention, FlexAttention"


def forms() -> Iterator[Form]:
    """Most wanted first."""
    yield Form(OURS, {}, ours)
    yield Form(LAUNCHED, {}, ours, launched=True)
    yield Form(RELEASED, ATTENTION, plain)
    yield Form(COMPILED, ATTENTION, plain, unmasked=True, compiled=True)
    yield Form(FLEX, ATTENTION, flex, compiled=True)
    yield Form(STOCK, {}, stock)
    for word in attention_words():
        if word not in ("dense", "flex"):
            yield Form(f"attention, ours: {word}", ATTENTION, lambda word=word: {"attention": word})
    yield Form("M4V, auto", {}, dict)
    yield Form(f"{FLEX}, blocks eager", ATTENTION, flex)


def flex() -> Choice:
    return {**plain(), "attention": "flex"}


@contextmanager
def formed(form: Form, model: M4VTransformer) -> Iterator[None]:
    """The model runs in this form inside the block."""
    with ExitStack() as stack:
        if form.unmasked:
            if not hasattr(attention, "attention_masks"):
                raise Unavailable("no place to leave the masks out")
            stack.enter_context(mock.patch.object(attention, "attention_masks", no_masks))
            stack.enter_context(sdpa_kernel(DENSE_KERNELS, set_priority=True))
        if form.compiled:
            backend = "inductor" if next(model.parameters()).is_cuda else "eager"
            for owner, name, function in ((attention, "rotate", rotate_real), (blocks, "modulate", layers.modulate),
                                          (layers.RMSNorm, "forward", layers.RMSNorm.forward)):  # fmt: skip
                if hasattr(owner, name):
                    fused = torch.compile(function, dynamic=True, backend=backend)
                    stack.enter_context(mock.patch.object(owner, name, fused))
        yield


def rotate_real(x: Tensor, turn: Tensor) -> Tensor:
    """`m4v.model.layers.rotate` without complex numbers."""
    cos, sin = torch.view_as_real(turn)[:, None].unbind(-1)
    first, second = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def no_masks(layout: Any, *_: object, **__: object) -> list[Tensor | None]:
    """In the place of `m4v.model.attention.attention_masks`."""
    return [None] * len(layout.columns)


class WordCounter:
    """In the place of a tokenizer, whose vocabulary is not here: a number for each word, padded to the slots."""

    def __call__(self, text: str, *, max_length: int, **_: object) -> Any:
        count = min(max_length, 1 + len(text.split()))
        ids = torch.zeros(1, max_length, dtype=torch.long)
        ids[0, :count] = torch.arange(1, count + 1)
        mask = (torch.arange(max_length)[None] < count).long()
        return type("Tokens", (), {"input_ids": ids, "attention_mask": mask})()


def random_text_encoder(device: str) -> T5Clip:
    """T5 v1.1 XXL's encoder and CLIP ViT-L/14's text tower at their sizes."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    t5 = T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu",
        vocab_size=32128, tie_word_embeddings=False,
    )  # fmt: skip
    clip = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, eos_token_id=2
    )
    made = []
    for network, config in ((T5EncoderModel, t5), (CLIPTextModel, clip)):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(device):
                made.append(network(config).eval().requires_grad_(False))
        finally:
            torch.set_default_dtype(before)
    return T5Clip(T5ClipConfig(weights="text"), Networks(*made, WordCounter(), WordCounter()), {}, device)


class RandomSampler(CheckpointSampler):
    """The product's sampler around a model, codec and text encoder that were not loaded."""

    def __init__(
        self, model: M4VTransformer, codec: Any, encoder: Any, device: torch.device, launched: bool = False
    ) -> None:
        self.device, self.dtype = device, torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model, self.codec, self.encoder = model.eval(), codec, encoder
        self.checkpoint = CheckpointConfig(
            model=model.config, schedule=ScheduleConfig(), codec=DctCodecConfig().model_dump(mode="json"),
            text_encoder=MiniLmConfig().model_dump(mode="json"),
        )  # fmt: skip
        self.schedule = PyramidSchedule(self.checkpoint.schedule)
        self._negative = None
        # There are no graphs on a CPU; decoding beside it is rehearsed.
        how = Launches(graphs=launched and device.type == "cuda", overlap=launched)
        self._launching = Launching(self.model, device, how)


def random_codec(device: torch.device) -> Any:
    """The causal VAE at its published size; on the CPU the transform codec."""
    if device.type == "cpu":
        return open_codec(DctCodecConfig())
    with tempfile.TemporaryDirectory() as folder:
        save_vae(Path(folder), build_vae(VaeConfig()))
        return open_codec(CausalVaeConfig(weights="vae", dtype="bfloat16"), {"vae": Path(folder)}, "cuda")


def random_encoder(device: torch.device) -> Any:
    from m4v.text import open_text_encoder

    return open_text_encoder(MiniLmConfig(slots=8), {}, "cpu") if device.type == "cpu" else random_text_encoder("cuda")


def model_of(form: Form, device: torch.device) -> M4VTransformer:
    base = TINY if device.type == "cpu" else ModelConfig()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return random_model(base.model_copy(update=form.switches), device, dtype).eval()
