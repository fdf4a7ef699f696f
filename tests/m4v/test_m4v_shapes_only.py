import subprocess
import sys

import torch
from torch import nn

from m4v.shapes_only import give_memory, shapes_only

PROGRAM = """
import sys
from m4v.config import ModelConfig
from m4v.model import build_model
from m4v.shapes_only import shapes_only
from torch import nn
build_model(ModelConfig(width=64, heads=2, double_blocks=1, single_blocks=1, text_dim=8, pooled_dim=8, text_slots=4))
with shapes_only():
    nn.Embedding(3, 4)
compilers = {"sympy", "torch._dynamo", "torch.nn.attention.flex_attention"}
assert not (compilers | {"mamba_ssm", "triton"}) & {*sys.modules}
"""


def test_modules_have_shapes_then_memory_and_drawing_comes_back() -> None:
    with shapes_only():
        model = nn.Sequential(nn.Embedding(3, 4), nn.BatchNorm1d(4))
    assert all(value.is_meta for value in model.state_dict().values())
    give_memory(model)
    assert {k: (tuple(v.shape), v.dtype, v.device.type) for k, v in model.state_dict().items()} == {
        "0.weight": ((3, 4), torch.float32, "cpu"),
        **{f"1.{n}": ((4,), torch.float32, "cpu") for n in ("weight", "bias", "running_mean", "running_var")},
        "1.num_batches_tracked": ((), torch.int64, "cpu"),
    }
    assert nn.Embedding(30, 40).weight.std() > 0.5


def test_neither_a_model_nor_an_embedding_imports_a_compiler_or_kernel_libraries() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=300)
