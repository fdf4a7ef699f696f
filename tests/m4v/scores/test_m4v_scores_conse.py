import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.core.asset_catalog import asset_path
from m4v.core.errors import DataIntegrityError, InputError
from m4v.scores import conse as conse_module
from m4v.scores.config import ConseConfig
from m4v.scores.conse import Conse, class_names, open_conse, preprocess
from m4v.scores.efficientnet import SIDE, EfficientNetLite2, load_efficientnet_lite2
from m4v.scores.resizing import resize_by_products
from m4v.scores.self_test import self_test

CAPTIONS = {
    "astronaut.png": "portrait of a smiling astronaut in an orange space suit",
    "coffee.png": "a cup of coffee on a red saucer",
    "chelsea.png": "close-up of a ginger cat",
    "rocket.jpg": "a rocket on its launch pad in the evening",
    "hubble_deep_field.jpg": "many galaxies in dark space",
    "motorcycle_left.png": "a red motorcycle in a garage",
    "camera.png": "black and white photo of a man with a camera on a tripod",
}


@pytest.fixture(scope="module")
def conse() -> Conse:
    return open_conse()


def _photo(name: str, side: int = 320) -> Tensor:
    picture = cv2.cvtColor(cv2.imread(str(asset_path(f"corpus/photos/{name}"))), cv2.COLOR_BGR2RGB)
    scale = side / min(picture.shape[:2])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def test_network_knows_its_classes():
    """Tags and probabilities that the packaged model gives; the cheetah's was also found elsewhere (.92)."""
    network, names = load_efficientnet_lite2(asset_path("efficientnet-lite2")), class_names()
    expected = {"cheetah.jpg": ("cheetah", 0.92), "lion.jpg": ("lion", 0.76), "coffee.png": ("espresso", 0.5)}
    for file, (name, least) in expected.items():
        with torch.no_grad():
            probabilities = network(preprocess(_photo(file), "crop")).softmax(-1)[0]
        assert names[int(probabilities.argmax())] == name
        assert float(probabilities.max()) > least - 0.15


def test_class_names_are_a_thousand_different_ones():
    names = class_names()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[292], names[999]) == ("tench", "tiger", "toilet tissue")


def test_the_right_caption_wins_on_most_photos(conse):
    text = conse.text_features(list(CAPTIONS.values()))
    with torch.no_grad():
        scores = torch.stack([conse.image_features(_photo(name))[0] @ text.T for name in CAPTIONS])
    right = scores.diagonal()
    won = (scores.argmax(1) == torch.arange(len(CAPTIONS))).sum().item()
    assert won >= 5
    wrong = (scores.sum() - right.sum()) / (scores.numel() - len(right))
    assert right.mean() > wrong + 0.2


def test_golden_scores(conse):
    names = ("coffee.png", "chelsea.png", "rocket.jpg")
    with torch.no_grad():
        scores = [conse.score(_photo(n), conse.text_features([CAPTIONS[n]])).item() for n in names]
    assert scores == pytest.approx(GOLDEN, abs=2e-3)


# Made with this construction from the packaged weights; photos shrunk to 320 pixels a side.
GOLDEN = [0.3738, 0.4276, 0.1774]


def test_gradient_reaches_the_frames_and_raises_the_score(conse):
    frames = _photo("coffee.png", 128).requires_grad_()
    text = conse.text_features(["close-up of a ginger cat"])
    score = conse.score(frames, text)
    (gradient,) = torch.autograd.grad(score.sum(), frames)
    assert gradient.isfinite().all()
    assert gradient.norm() > 0
    with torch.no_grad():
        raised = conse.score((frames + 0.5 * gradient / gradient.norm()).clamp(0, 1), text)
    assert raised.item() > score.item() + 0.01


def test_a_frame_scores_the_same_alone_and_in_a_batch(conse):
    frames = torch.cat([_photo("coffee.png")[..., :320, :320], _photo("chelsea.png")[..., :320, :320]])
    text = conse.text_features(["a cup of coffee", "a cat"])
    with torch.no_grad():
        together = conse.score(frames, text)
        alone = torch.cat([conse.score(frames[i : i + 1], text[i : i + 1]) for i in range(2)])
    assert together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-5)


def test_nothing_of_the_score_is_trained(conse):
    assert not any(p.requires_grad for p in conse._network.parameters())
    assert not conse._network.training


@pytest.mark.parametrize(("how", "size"), [("squash", (SIDE, SIDE)), ("crop", (SIDE, SIDE)), ("whole", (208, 320))])
def test_preprocessing_sizes(how, size):
    out = preprocess(torch.rand(1, 3, 128, 192), how)
    assert out.shape[-2:] == size


@pytest.mark.parametrize("size", [(64, 96), (260, 260), (720, 1283), (31, 47)])
def test_resizing_by_products_is_interpolation(size):
    frames = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    exact = F.interpolate(frames, (224, 240), mode="bilinear", antialias=True)
    assert float((resize_by_products(frames, (224, 240)) - exact).abs().max()) < 1e-6


def test_preprocessing_keeps_an_even_picture():
    for how in ("whole", "squash", "crop"):
        assert torch.allclose(preprocess(torch.full((1, 3, 96, 64), 0.25), how), torch.tensor(0.25))


def test_batches_of_two_sizes_are_refused(conse):
    with pytest.raises(ValueError, match="2 frames"):
        conse.score(torch.zeros(2, 3, 64, 64), conse.text_features(["a"]))


def test_self_test_refuses_a_network_without_gradient(conse):
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.sum((1, 2, 3))[:, None] * 0 + torch.arange(1000.0)

    broken = Conse(ConseConfig(), Constant(), conse._encoder, conse._classes)
    with pytest.raises(DataIntegrityError, match="self-test"):
        self_test(broken)


def test_other_weights_are_refused(tmp_path):
    torch.save({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DataIntegrityError, match="another model"):
        load_efficientnet_lite2(tmp_path / "other.pth")
    assert sum(p.numel() for p in EfficientNetLite2().parameters()) == 6_092_072


def test_missing_weights_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("M4V_ASSETS", str(tmp_path))
    with pytest.raises(InputError, match=r"dataprep\.assets fetch"):
        open_conse()


def test_class_vectors_are_kept_and_a_damaged_copy_is_made_anew(conse, tmp_path, monkeypatch):
    """A short list of names keeps this quick; the cache itself is the real one."""

    class Counting:
        digest, texts = conse._encoder.digest, 0

        def encode(self, texts):
            self.texts += len(texts)
            return conse._encoder.encode(texts)

    monkeypatch.setenv("M4V_ASSETS", str(tmp_path))
    monkeypatch.setattr(conse_module, "CLASSES", 3)
    monkeypatch.setattr(conse_module, "class_names", lambda: ["tench", "goldfish", "tiger"])
    encoder = Counting()
    first = conse_module._class_vectors(encoder)
    assert torch.equal(conse_module._class_vectors(encoder), first)
    assert encoder.texts == 3
    (kept,) = (tmp_path / "derived").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-4] + b"\0\0\0\1")
    assert torch.equal(conse_module._class_vectors(encoder), first)
    assert encoder.texts == 6
    np.testing.assert_allclose(first.norm(dim=1), 1, atol=1e-6)
