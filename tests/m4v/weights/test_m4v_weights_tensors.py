import json
import os
import pickle
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from m4v.core.errors import DataIntegrityError
from m4v.weights.components import open_tensors
from m4v.weights.pickles import PickledFile
from m4v.weights.tensors import SafetensorsFile, TensorFile, TensorInfo, write_tensors

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def states() -> st.SearchStrategy[dict[str, Tensor]]:
    shapes = st.lists(st.integers(0, 5), max_size=4)
    tensor = st.builds(lambda s, d, n: (torch.rand(s, generator=torch.Generator().manual_seed(n)) * 9).to(d),
                       shapes, st.sampled_from(DTYPES), st.integers(0, 999))  # fmt: skip
    return st.dictionaries(st.text("abc.é_0", min_size=1, max_size=8), tensor, min_size=1, max_size=6)


def rewrite(source: TensorFile, target: Path) -> None:
    write_tensors(target, source.tensors, {name: source.chunks(name) for name in source.tensors})


@settings(max_examples=40)
@given(states())
def test_headers_and_rewritten_files_are_those_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]
) -> None:
    folder = tmp_path_factory.mktemp("tensors")
    save_file(state, folder / "a.safetensors")
    torch.save(OrderedDict(reversed(state.items())), folder / "a.bin")
    for name in ("a.safetensors", "a.bin"):
        source = open_tensors(folder / name)
        assert {key: info.shape for key, info in source.tensors.items()} == {
            k: tuple(v.shape) for k, v in state.items()
        }
        rewrite(source, folder / f"{name}.out")
        found = load_file(folder / f"{name}.out")
        assert found.keys() == state.keys()
        for key, value in state.items():
            assert found[key].dtype == value.dtype
            assert torch.equal(found[key], value)
    assert (folder / "a.safetensors.out").read_bytes() == (folder / "a.bin.out").read_bytes()


def test_bytes_equal_the_librarys_own(tmp_path: Path) -> None:
    state = {"b": torch.ones(3), "a": torch.zeros(2, 2, dtype=torch.bfloat16), "c": torch.arange(5)}
    save_file(state, tmp_path / "a.safetensors")
    rewrite(SafetensorsFile(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_every_truncation_is_refused_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(2, 3)}, path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataIntegrityError, match=r"model\.safetensors"):
            _ = SafetensorsFile(path).tensors
    path.write_bytes(whole + b"x")
    with pytest.raises(DataIntegrityError, match="bytes where its header needs"):
        _ = SafetensorsFile(path).tensors


def row(begin: int, end: int, **changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [begin, end], **changes}


@pytest.mark.parametrize(
    "header",
    [
        {"a": row(0, 8), "b": row(4, 12)},
        {"a": row(0, 8), "b": row(12, 20)},
        {"a": row(0, 4)},
        {"a": row(0, 8, dtype="F99")},
        {"a": row(0, 8, shape=[-2])},
        {"a": row(0, 8, shape="2")},
        {"a": {"dtype": "F32"}},
        {"a": 3},
        [],
        {"a": row(-8, 0)},
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(20))
    with pytest.raises(DataIntegrityError, match=r"model\.safetensors"):
        _ = SafetensorsFile(path).tensors


def test_writer_refuses_another_number_of_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensor a has 4 bytes, not 8"):
        write_tensors(tmp_path / "x", {"a": TensorInfo("F32", (2,))}, {"a": iter([b"1234"])})


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"echo ran > {self.target}",)


def test_pickle_with_code_is_refused_names_the_global_and_runs_nothing(tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "model.bin"
    torch.save({"weight": torch.ones(2), "extra": Bomb(target)}, path)
    with pytest.raises(DataIntegrityError, match=r"holds code and was not read: '(posix|os|nt)\.system'.*model\.bin"):
        _ = PickledFile(path).tensors
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the pickle would have run"


def test_bare_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "model.bin"
    path.write_bytes(pickle.dumps({"weight": Bomb(target)}, protocol=2))
    with pytest.raises(DataIntegrityError, match=r"model\.bin"):
        _ = PickledFile(path).tensors
    assert not target.exists()


@pytest.mark.parametrize("name", ["whole.bin", "cut.bin", "empty.bin", "text.bin", "old.bin"])
def test_files_that_torch_cannot_map_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=name != "old.bin")
    whole = path.read_bytes()
    changed = {"cut.bin": whole[:2000], "empty.bin": b"", "text.bin": b"no weights at all"}.get(name, whole)
    path.write_bytes(changed)
    if name == "whole.bin":
        assert PickledFile(path).tensors == {"a": TensorInfo("F32", (1000,))}
        return
    with pytest.raises(DataIntegrityError, match=name.replace(".", r"\.")):
        _ = PickledFile(path).tensors


def test_wrapped_state_dicts_and_views_are_read(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"turned": base.T, "part": base[1:3, ::2], "same": base, "scalar": torch.tensor(3.0)}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pt")
    source = PickledFile(tmp_path / "a.pt")
    rewrite(source, tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], value) for name, value in state.items())
    module = torch.nn.Linear(2, 3)
    for saved in (module.state_dict(), dict(module.named_parameters())):  # an OrderedDict with metadata; parameters
        torch.save(saved, tmp_path / "c.pt")
        assert PickledFile(tmp_path / "c.pt").tensors["weight"] == TensorInfo("F32", (3, 2))
        assert b"".join(PickledFile(tmp_path / "c.pt").chunks("bias")) == module.bias.detach().numpy().tobytes()
    for strange in ({"a": 3}, {"a": torch.ones(2, 2).to_sparse()}, [torch.ones(2)], {}):
        torch.save(strange, tmp_path / "b.pt")
        with pytest.raises(DataIntegrityError, match=r"b\.pt"):
            _ = PickledFile(tmp_path / "b.pt").tensors


@pytest.mark.parametrize("name", ["large.bin", "large.safetensors"])
def test_a_large_tensor_is_never_whole_in_memory(tmp_path: Path, name: str) -> None:
    state = {"large": torch.zeros(4096, 4096), "small": torch.ones(3)}  # 64 MiB
    if name.endswith("bin"):
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    tracemalloc.start()
    rewrite(open_tensors(tmp_path / name), tmp_path / "out.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out.safetensors").stat().st_size > 64 << 20
    assert peak < 16 << 20
