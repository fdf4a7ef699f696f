import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

SENTENCES = [
    f"{size} {colour} {shape} moves {way} over the {ground} sky"
    for size in ("a small", "a large")
    for colour in ("red", "green", "blue")
    for shape in ("square", "circle", "star")
    for way in ("left", "right")
    for ground in ("white", "black")
]


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `text_encoder`, `text_encoder_2`, `tokenizer`, `tokenizer_2` as PyramidFlow publishes them,
    with random networks of width 32 (T5) and 24 (CLIP) and vocabularies learnt from `SENTENCES`."""
    folder = tmp_path_factory.mktemp("tiny_text")
    write_tiny_text(folder)
    return folder


def write_tiny_text(folder: Path) -> None:
    pieces = _t5_tokenizer(folder / "tokenizer_2")
    words = _clip_tokenizer(folder / "tokenizer")
    torch.manual_seed(7)
    _t5(folder / "text_encoder_2", pieces)
    _clip(folder / "text_encoder", words)


@pytest.fixture
def text_source(tiny_text: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a fresh copy of `tiny_text` that a test may change."""
    return lambda: Path(shutil.copytree(tiny_text, tmp_path / "published"))


def _t5_tokenizer(folder: Path) -> int:
    import sentencepiece
    from transformers import T5Tokenizer

    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(folder / "spiece"), vocab_size=120, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=4)
    tokenizer.save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})
    )
    return len(tokenizer)


def _clip_tokenizer(folder: Path) -> int:
    from tokenizers.pre_tokenizers import ByteLevel

    folder.mkdir()
    letters = sorted(ByteLevel.alphabet())
    merges = ["r e", "re d</w>", "s t", "st a", "sta r</w>", "t h", "th e</w>", "o v", "ov e", "ove r</w>"]
    names = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    special["unk_token"] = "<|endoftext|>"
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 16})
    )
    return len(names)


def _t5(folder: Path, vocabulary: int) -> None:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    model = T5EncoderModel(config)
    model.save_pretrained(folder, max_shard_size="60KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def _clip(folder: Path, vocabulary: int) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=24, intermediate_size=48, projection_dim=24, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=16, bos_token_id=vocabulary - 2, eos_token_id=2,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder)
    path = folder / "model.safetensors"
    # Published files carry the prefix and the position ids that newer library versions leave out.
    state = {"text_model." + key.removeprefix("text_model."): value for key, value in load_file(path).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(state, path)
