"""The BERT encoder (Devlin et al. 2018), as much of it as a frozen sentence encoder needs.

Written out because loading the general library costs each stage process two seconds; a test holds it equal
to that library's model. Weights load strictly by the names of the published file.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError
from m4v.shapes_only import shapes_only

_UNUSED = ("pooler.", "embeddings.position_ids")


class BertConfig(FrozenModel):
    """The fields of `config.json` that decide the computation."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.layer_norm_eps
        self.heads = config.num_attention_heads
        self.query, self.key, self.value, self.attended = (nn.Linear(d, d) for _ in range(4))
        self.attended_norm = nn.LayerNorm(d, eps)
        self.expand, self.contract = nn.Linear(d, config.intermediate_size), nn.Linear(config.intermediate_size, d)
        self.output_norm = nn.LayerNorm(d, eps)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(x.shape)
        x = self.attended_norm(x + self.attended(mixed))
        found: Tensor = self.output_norm(x + self.contract(F.gelu(self.expand(x))))
        return found


class Bert(nn.Module):
    """Token ids (n, L), every token real, to last hidden states (n, L, d)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, d)
        self.positions = nn.Embedding(config.max_position_embeddings, d)
        self.types = nn.Embedding(config.type_vocab_size, d)
        self.norm = nn.LayerNorm(d, config.layer_norm_eps)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x: Tensor = self.norm(self.words(ids) + self.positions(places) + self.types.weight[0])
        for layer in self.layers:
            x = layer(x)
        return x


# Our names -> names in the published files.
_EMBEDDINGS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attended_norm": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "output_norm": "output.LayerNorm",
}


def _published_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "layers":
        return f"encoder.layer.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}"
    return f"{_EMBEDDINGS[parts[0]]}.{parts[1]}"


def load_bert(config_file: Path, weights_file: Path) -> Bert:
    """A frozen fp32 model; raises DataIntegrityError when the files do not hold exactly its tensors."""
    raw = json.loads(config_file.read_text())
    with shapes_only():
        model = Bert(BertConfig.model_validate({k: raw[k] for k in BertConfig.model_fields}))
    published = {k: v for k, v in load_file(weights_file).items() if not k.startswith(_UNUSED)}
    own = {_published_name(name): name for name in model.state_dict()}
    if set(own) != set(published):
        raise DataIntegrityError(
            "weights are of another model", value=sorted(set(own) ^ set(published))[0], where=weights_file.name
        )
    state = {own[name]: tensor.to(torch.float32, copy=True) for name, tensor in published.items()}  # not the file's map
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)
