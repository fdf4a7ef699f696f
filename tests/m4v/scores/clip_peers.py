"""Scores of `hpsv2x` and `open_clip` for a test, in a process that has them: `python clip_peers.py CASE OUT`.

CASE (torch file): `weights` (safetensors under open_clip's names), `config` (open_clip's form), `texts`, `pictures`
(uint8, H, W, 3). OUT gets for each package its tokens, its features, and for HPSv2 the scores of picture i, text i.
"""

import sys

import torch
from PIL import Image
from safetensors.torch import load_file

# The registry's torchvision is built for CUDA: beside another torch its import fails without these two names.
LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def main(case_file: str, out: str) -> None:
    import open_clip
    from hpsv2.src.open_clip import get_tokenizer
    from hpsv2.src.open_clip import model as hps_model
    from hpsv2.src.open_clip.transform import image_transform

    case = torch.load(case_file, weights_only=True)
    state, config, texts = load_file(case["weights"]), case["config"], case["texts"]
    found = {}
    transform = image_transform(224, is_train=False, resize_longest_max=True)
    pixels = torch.stack([transform(Image.fromarray(p.numpy())) for p in case["pictures"]])
    tokenizers = {"hpsv2": get_tokenizer("ViT-H-14"), "open_clip": open_clip.get_tokenizer("ViT-H-14")}
    for name, model_class in (("hpsv2", hps_model.CLIP), ("open_clip", open_clip.CLIP)):
        model = model_class(**config, output_dict=True).eval()
        model.load_state_dict(state)
        tokens = tokenizers[name](texts)
        with torch.no_grad():
            outputs = model(pixels, tokens[: len(pixels)])
            text = torch.cat([model.encode_text(row[None], normalize=True) for row in tokens])
        images = outputs["image_features"]
        found[name] = {"tokens": tokens, "image": images, "text": text, "pixels": pixels,
                       "scores": (images * outputs["text_features"]).sum(-1)}  # fmt: skip
    torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
