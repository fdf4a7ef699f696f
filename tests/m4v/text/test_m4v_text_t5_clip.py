import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.text import open_text_encoder
from m4v.text.config import MiniLmConfig, T5ClipConfig, TextEncoderConfig
from m4v.text.interface import TextEncoder
from m4v.weights.catalogue import entry
from m4v.weights.convert import convert

TINY = T5ClipConfig(weights="text", slots=24, clip_slots=16, embedding_dim=32, pooled_dim=24, dtype="float32")
TEXTS = ["a red star moves left over the white sky", "", "the blue circle, 12 times " * 9, "ein Stern — ★"]


@pytest.fixture(scope="module")
def imported(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    convert(entry("pyramidflow-text"), tiny_text, folder)
    return folder


@pytest.fixture(scope="module")
def encoder(imported: Path) -> TextEncoder:
    return open_text_encoder(TINY, {"text": imported})


def direct(folder: Path, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Embedding, mask and pooled of the library alone, all texts in one padded batch."""
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).eval()
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = T5Tokenizer.from_pretrained(folder / "tokenizer_2")(texts, max_length=24, **pad)
    clip_ids = CLIPTokenizer.from_pretrained(folder / "tokenizer")(texts, max_length=16, **pad)
    with torch.no_grad():
        hidden = t5(input_ids=ids.input_ids, attention_mask=ids.attention_mask).last_hidden_state
        pooled = clip(**clip_ids).pooler_output
    return hidden, ids.attention_mask.bool(), pooled


def test_features_are_those_of_transformers(encoder: TextEncoder, tiny_text: Path) -> None:
    found = encoder.encode(TEXTS)
    hidden, mask, pooled = direct(tiny_text, TEXTS)
    assert found.embedding.shape == (4, 24, 32)
    assert found.pooled.shape == (4, 24)
    assert found.embedding.dtype == found.pooled.dtype == torch.float32
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.embedding, hidden * mask[..., None], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooled, pooled, atol=1e-5, rtol=1e-5)
    assert not torch.equal(found.pooled[0], found.pooled[1])


def test_embedding_is_zero_where_there_is_no_token(encoder: TextEncoder) -> None:
    found = encoder.encode(TEXTS)
    assert (found.embedding[~found.mask] == 0).all()
    assert (found.embedding[found.mask].abs().amax(-1) > 0).all()


def test_empty_text_is_its_end_token_and_a_long_one_is_cut_to_the_slots(encoder: TextEncoder) -> None:
    mask = encoder.encode(TEXTS).mask
    assert mask[1].tolist() == [True] + [False] * 23
    assert mask[2].all()


@settings(max_examples=25)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_has_finite_features_and_ends_with_its_end_token(encoder: TextEncoder, text: str) -> None:
    found = encoder.encode([text])
    assert found.embedding.isfinite().all()
    assert found.pooled.isfinite().all()
    length = int(found.mask.sum())
    assert found.mask[0, :length].all()
    ids = encoder._networks.t5_tokens(text, max_length=24, truncation=True).input_ids  # type: ignore[attr-defined]
    assert len(ids) == length
    assert ids[-1] == 1


def test_tokens_are_those_of_sentencepiece(encoder: TextEncoder, tiny_text: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(str(tiny_text / "tokenizer_2" / "spiece.model"))
    tokenizer = encoder._networks.t5_tokens  # type: ignore[attr-defined]
    for text in (TEXTS[0], TEXTS[1], "  two   spaces ", "the star"):
        assert tokenizer(text).input_ids == [*pieces.encode(text), pieces.eos_id()]


def test_features_do_not_depend_on_the_texts_beside_or_on_threads(encoder: TextEncoder, imported: Path) -> None:
    together = encoder.encode(TEXTS)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fresh = open_text_encoder(TINY, {"text": imported})
        for number, text in reversed(list(enumerate(TEXTS))):
            alone = fresh.encode([text])
            assert torch.equal(alone.embedding[0], together.embedding[number])
            assert torch.equal(alone.pooled[0], together.pooled[number])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_bf16_features_are_float32_and_near(encoder: TextEncoder, imported: Path) -> None:
    half = open_text_encoder(TINY.model_copy(update={"dtype": "bfloat16"}), {"text": imported})
    found, exact = half.encode(TEXTS), encoder.encode(TEXTS)
    assert found.embedding.dtype == torch.float32
    assert (found.embedding - exact.embedding).abs().max() < 0.1 * exact.embedding.abs().max()
    assert not torch.equal(found.embedding, exact.embedding)
    assert half.digest != encoder.digest


def test_digest_is_of_weights_and_settings_not_of_the_name(encoder: TextEncoder, imported: Path) -> None:
    renamed = open_text_encoder(TINY.model_copy(update={"weights": "other"}), {"other": imported})
    assert renamed.digest == encoder.digest
    assert open_text_encoder(TINY.model_copy(update={"slots": 25}), {"text": imported}).digest != encoder.digest


def test_digest_changes_with_the_weights(encoder: TextEncoder, text_source: Callable[[], Path], tmp_path: Path) -> None:
    source = text_source()
    path = source / "text_encoder" / "model.safetensors"
    state = load_file(path)
    state["text_model.final_layer_norm.bias"] += 1
    save_file(state, path)
    convert(entry("pyramidflow-text"), source, tmp_path / "other")
    other = open_text_encoder(TINY, {"text": tmp_path / "other"})
    assert other.digest != encoder.digest
    assert not torch.equal(other.encode(["a star"]).pooled, encoder.encode(["a star"]).pooled)


def test_no_network_is_asked(imported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert len(open_text_encoder(TINY, {"text": imported}).encode(["a star"])) == 1


def test_missing_weights_name_the_import_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"imported weights that are not here: 'text'.*m4v weights import"):
        open_text_encoder(TINY)
    with pytest.raises(InputError, match="holds no imported weights"):
        open_text_encoder(TINY, {"text": tmp_path})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embedding_dim": 4096}, "embedding_dim .*4096.*set text_encoder.embedding_dim to 32"),
        ({"pooled_dim": 768}, "pooled_dim .*768.*set text_encoder.pooled_dim to 24"),
        ({"clip_slots": 77}, "16 positions.*77"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused(imported: Path, change: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_text_encoder(TINY.model_copy(update=change), {"text": imported})


def test_damaged_weights_are_refused_by_name(tiny_text: Path, tmp_path: Path) -> None:
    convert(entry("pyramidflow-text"), tiny_text, tmp_path)
    shard = tmp_path / "text_encoder_2" / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(DataIntegrityError, match=r"text_encoder_2.*verify"):
        open_text_encoder(TINY, {"text": tmp_path})
    shard.write_bytes(whole)
    clip = tmp_path / "text_encoder" / "model.safetensors"
    save_file({k: v for k, v in load_file(clip).items() if not k.endswith("final_layer_norm.weight")}, clip)
    with pytest.raises(DataIntegrityError, match=r"lacks tensors.*final_layer_norm.weight"):
        open_text_encoder(TINY, {"text": tmp_path})


def test_weights_of_another_entry_are_refused(imported: Path, tmp_path: Path) -> None:
    record = json.loads((imported / "weights.json").read_text())
    (tmp_path / "weights.json").write_text(json.dumps({**record, "format": "state_dict", "entry": "hpsv2.1"}))
    with pytest.raises(InputError, match=r"no text encoder but hpsv2\.1"):
        open_text_encoder(TINY, {"text": tmp_path})
    (tmp_path / "weights.json").write_text('{"entry": 3}')
    with pytest.raises(DataIntegrityError, match=r"record of imported weights.*weights\.json"):
        open_text_encoder(TINY, {"text": tmp_path})


def test_union_takes_either_encoder_and_a_recipe_without_a_kind() -> None:
    parse = TypeAdapter(TextEncoderConfig).validate_python
    assert parse({"slots": 16}) == MiniLmConfig(slots=16)
    assert parse({"kind": "t5_clip", "weights": "text"}) == T5ClipConfig(weights="text")
    assert parse(T5ClipConfig(weights="text")).slots == 128
    assert (T5ClipConfig(weights="text").embedding_dim, T5ClipConfig(weights="text").pooled_dim) == (4096, 768)
    with pytest.raises(ValueError, match=r"bert"):
        parse({"kind": "bert"})


def test_config_needs_no_torch() -> None:
    code = "import sys, m4v.text, m4v.text.config, m4v.weights.source; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
