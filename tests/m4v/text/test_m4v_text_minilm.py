import pytest
import torch

from m4v.core.asset_catalog import asset_folder
from m4v.core.errors import DataIntegrityError
from m4v.text import open_text_encoder
from m4v.text.bert import load_bert
from m4v.text.config import MiniLmConfig
from m4v.text.interface import TextEncoder, TextFeatures

TEXTS = ["a red circle moves left", "", "three rodents laugh and point from the roots of a tree"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return open_text_encoder(MiniLmConfig(slots=16))


def _equal(a: TextFeatures, b: TextFeatures) -> bool:
    pairs = ((a.embedding, b.embedding), (a.mask, b.mask), (a.pooled, b.pooled))
    return all(torch.equal(x, y) for x, y in pairs)


def test_shapes_and_padding(encoder):
    features = encoder.encode(TEXTS)
    assert features.embedding.shape == (3, 16, 384)
    assert features.embedding.dtype == features.pooled.dtype == torch.float32
    assert features.mask.dtype == torch.bool
    assert features.mask.sum(1).tolist() == [7, 2, 13]  # [CLS] and [SEP] beside the words
    assert not features.embedding[~features.mask].any()
    assert torch.allclose(features.pooled.pow(2).mean(1), torch.ones(3))


def test_equal_to_the_published_model(encoder):
    from transformers import AutoTokenizer, BertModel

    folder = asset_folder("minilm")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder, local_files_only=True)
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True, truncation=True, max_length=16)
    with torch.no_grad():
        hidden = model.eval()(**inputs).last_hidden_state
    features = encoder.encode(TEXTS)
    width = hidden.shape[1]
    assert torch.equal(features.mask[:, :width], inputs["attention_mask"].bool())
    assert (hidden - features.embedding[:, :width])[features.mask[:, :width]].abs().max() < 1e-5
    weight = inputs["attention_mask"][..., None]
    mean = (hidden * weight).sum(1) / weight.sum(1)
    cosine = torch.nn.functional.cosine_similarity(mean, features.pooled)
    assert torch.allclose(cosine, torch.ones(3), atol=1e-6)


def test_features_do_not_depend_on_neighbours_order_slots_or_threads(encoder):
    together = encoder.encode(TEXTS)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fresh = open_text_encoder(MiniLmConfig(slots=24))
        for i in reversed(range(3)):
            alone = fresh.encode([TEXTS[i]])
            assert torch.equal(alone.embedding[:, :16], together.embedding[i : i + 1])
            assert torch.equal(alone.pooled, together.pooled[i : i + 1])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert _equal(encoder.encode(TEXTS), together)  # now from memory


def test_long_texts_are_cut_to_the_slots(encoder):
    features = encoder.encode(["word " * 100])
    assert features.mask.all()
    assert torch.equal(features.embedding, encoder.encode(["word " * 50]).embedding)


def test_meaning_is_in_the_pooled_vector(encoder):
    cat, kitten, car = encoder.encode(["a cat", "a little kitten", "a fast car"]).pooled
    similar = torch.nn.functional.cosine_similarity
    assert similar(cat, kitten, dim=0) > similar(cat, car, dim=0) + 0.2


def test_slicing_and_joining(encoder):
    features = encoder.encode(TEXTS)
    assert len(features) == 3
    assert _equal(TextFeatures.cat([features[:1], features[1:]]), features)


def test_nothing_to_encode(encoder):
    with pytest.raises(ValueError, match="no text"):
        encoder.encode([])


def test_digest_holds_slots_and_weights(encoder):
    assert encoder.digest == open_text_encoder(MiniLmConfig(slots=16)).digest
    assert encoder.digest != open_text_encoder(MiniLmConfig(slots=17)).digest
    assert set(MiniLmConfig().weights()) == {"minilm", "minilm/config", "minilm/tokenizer"}


def test_weights_of_another_model_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"embeddings.word_embeddings.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(DataIntegrityError, match="another model"):
        load_bert(asset_folder("minilm") / "config.json", tmp_path / "w.safetensors")
