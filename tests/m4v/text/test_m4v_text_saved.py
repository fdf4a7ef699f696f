import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m4v.core.errors import DataIntegrityError, InputError
from m4v.text.saved import read_saved_features


def saved() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "prompt_embed": torch.randn(1, 8, 6).to(torch.bfloat16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]]),
        "pooled_prompt_embed": torch.randn(1, 4).to(torch.bfloat16),
    }


def test_features_are_read_in_float32_with_zeros_at_pads(tmp_path: Path) -> None:
    torch.save(saved(), tmp_path / "a.pt")
    found = read_saved_features(tmp_path / "a.pt")
    assert found.embedding.dtype == found.pooled.dtype == torch.float32
    assert torch.equal(found.embedding[:, :3], saved()["prompt_embed"][:, :3].float())
    assert (found.embedding[:, 3:] == 0).all()
    assert found.mask.tolist() == [[True] * 3 + [False] * 5]
    assert torch.equal(found.pooled, saved()["pooled_prompt_embed"].float())


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({**saved(), "more": Bomb()}, tmp_path / "a.pt")
    with pytest.raises(DataIntegrityError, match=r"holds code and was not read: '(posix|nt)\.mkdir'.*a\.pt"):
        read_saved_features(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_attention_mask": torch.ones(1, 7)}, "do not fit"),
        ({"pooled_prompt_embed": torch.ones(2, 4)}, "do not fit"),
        ({"prompt_embed": torch.ones(8, 6)}, "do not fit"),
        ({"prompt_embed": "text"}, "need the tensors prompt_embed"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    torch.save({**saved(), **change}, tmp_path / "a.pt")
    with pytest.raises(DataIntegrityError, match=words):
        read_saved_features(tmp_path / "a.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b\.pt"):
        read_saved_features(tmp_path / "b.pt")
