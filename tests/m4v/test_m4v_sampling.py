"""`m4v.sampling`: a video from a checkpoint in a few lines, image to video, streaming decode."""

import gc
import json
import shutil
import sys
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "eval"))

from eval_checkpoint import SAMPLER, tiny_checkpoint
from tiny_vae import write_tiny_vae

from m4v.codec.config import CausalVaeConfig, DctCodecConfig
from m4v.codec.dct import DctCodec
from m4v.config import SamplerConfig, VideoConfig
from m4v.core.artifacts import Artifact
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.image_io import cover, read_image
from m4v.model.layout import rotary
from m4v.model.mamba import FLOAT32_PARAMETERS
from m4v.sampling import CheckpointSampler
from m4v.video_io import encode_mp4, read_mp4, stream_mp4

PROMPT = "a red circle moves up"
STEPS = SamplerConfig.model_validate(SAMPLER)
SIZE = {"frames": 17, "height": 64, "width": 64, "sampler": STEPS}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def sampler(checkpoint: Artifact) -> CheckpointSampler:
    return CheckpointSampler.open(checkpoint.storage.local_root)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y, x = np.mgrid[:90, :160]
    pixels = np.stack([x, 2 * y, 255 - x], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_a_few_lines_make_a_video(sampler: CheckpointSampler, tmp_path: Path) -> None:
    done: list[int] = []
    video = sampler.generate(PROMPT, seed=1, fps=8, on_frame=done.append, **SIZE)
    path = video.save(tmp_path / "out.mp4")
    frames, fps = read_mp4(path)
    assert frames.shape == video.frames.shape == (17, 64, 64, 3)
    assert fps == 8
    assert video.latent.shape == (16, 3, 8, 8)
    assert done == [1, 2, 3]
    assert np.array_equal(sampler.codec.decode(video.latent), video.frames)


def test_a_video_is_its_prompts_and_seeds_alone(sampler: CheckpointSampler, checkpoint: Artifact) -> None:
    def latent(prompt: str, seed: int, **options: object) -> np.ndarray:
        return sampler.generate(prompt, seed=seed, **{**SIZE, **options}).latent  # type: ignore[arg-type]

    first, other, blurry = latent(PROMPT, 1), latent(PROMPT, 2), latent(PROMPT, 1, negative="blurry")
    assert np.array_equal(latent(PROMPT, 1), first), "after other seeds and another negative prompt"
    fresh = CheckpointSampler.open(checkpoint).generate(PROMPT, seed=1, **SIZE)  # type: ignore[arg-type]
    assert np.array_equal(fresh.latent, first)
    assert not np.allclose(first, other)
    assert not np.allclose(first, blurry)
    assert np.array_equal(latent(PROMPT, 1, frames=25)[:, :3], first), "a longer video begins like the shorter"


def test_image_to_video_begins_with_the_picture(sampler: CheckpointSampler, picture: Path) -> None:
    codec, fitted = DctCodec(DctCodecConfig()), cover(read_image(picture), 64, 64)
    video = sampler.generate(PROMPT, seed=1, image=picture, **SIZE)
    expected = codec.encode(fitted[None])
    np.testing.assert_allclose(video.latent[:, :1], expected, rtol=1e-5, atol=1e-5)
    shown = codec.decode(expected)[0].astype(int)
    assert np.abs(video.frames[0].astype(int) - shown).max() <= 1
    assert np.abs(shown - fitted).mean() < 8, "the codec itself keeps the picture"
    again = sampler.generate(PROMPT, seed=1, image=fitted, **SIZE)
    assert np.array_equal(again.frames, video.frames)
    without = sampler.generate(PROMPT, seed=1, **SIZE)
    assert np.abs(video.latent[:, 1:] - without.latent[:, 1:]).max() > 0.1, "later frames follow the picture"


def test_guidance_of_image_to_video_is_its_own(sampler: CheckpointSampler, picture: Path) -> None:
    def latent(image: Path | None, **options: float) -> np.ndarray:
        size = {**SIZE, "sampler": STEPS.model_copy(update=options)}
        return sampler.generate(PROMPT, seed=1, image=image, **size).latent  # type: ignore[arg-type]

    assert not np.allclose(latent(picture, guidance_image=4.0), latent(picture, guidance_image=1.0))
    assert np.array_equal(latent(picture, guidance_later=9.0), latent(picture, guidance_later=1.0))
    assert np.array_equal(latent(None, guidance_image=9.0), latent(None, guidance_image=1.0))


def test_streamed_frames_are_those_of_the_whole(sampler: CheckpointSampler, tmp_path: Path) -> None:
    video = sampler.generate(PROMPT, seed=3, **SIZE)
    config = VideoConfig.model_validate(SIZE)
    chunks = list(sampler.stream(PROMPT, 3, config))
    assert len(chunks) == 3
    assert np.array_equal(np.concatenate(chunks), video.frames)
    stream_mp4(tmp_path / "a.mp4", sampler.stream(PROMPT, 3, config), 24)
    assert (tmp_path / "a.mp4").read_bytes() == encode_mp4(video.frames, 24)


def test_memory_does_not_grow_with_length(sampler: CheckpointSampler, tmp_path: Path) -> None:
    """Frames and latents die as they are written: at most two pieces live, and the peak stays."""
    peaks, quick = {}, STEPS.model_copy(update={"guidance_first": 0.0, "guidance_later": 0.0})
    for frames in (17, 65):
        config = VideoConfig(frames=frames, height=128, width=128, sampler=quick)
        alive: list[weakref.ref[np.ndarray]] = []
        most = 0

        def watched(config: VideoConfig = config, alive: list[weakref.ref[np.ndarray]] = alive):  # type: ignore[no-untyped-def]
            nonlocal most
            for chunk in sampler.stream(PROMPT, 1, config, on_latent=lambda _, x: alive.append(weakref.ref(x))):
                alive.append(weakref.ref(chunk))
                most = max(most, sum(r() is not None for r in alive))
                yield chunk

        gc.collect()
        tracemalloc.start()
        stream_mp4(tmp_path / "a.mp4", watched(), 24)
        peaks[frames] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most <= 4, "a latent and a chunk, and those before them"
        assert rotary.cache_info().currsize <= 6, "tables of one frame's three stages, with and without registers"
    one_chunk = 8 * 128 * 128 * 3
    assert peaks[65] < peaks[17] + one_chunk


def test_decoding_starts_before_sampling_ends(sampler: CheckpointSampler) -> None:
    latents: list[int] = []
    config = VideoConfig.model_validate(SIZE)
    chunks = sampler.stream(PROMPT, 1, config, on_latent=lambda index, _: latents.append(index))
    assert next(chunks).shape == (1, 64, 64, 3)
    assert latents == [0]
    assert next(chunks).shape == (8, 64, 64, 3)
    assert latents == [0, 1]


def test_bfloat16_is_near_float32(checkpoint: Artifact, sampler: CheckpointSampler) -> None:
    low = CheckpointSampler.open(checkpoint, dtype="bfloat16")
    types = {name: p.dtype for name, p in low.model.named_parameters()}
    exact_ones = {name for name in types if name.rpartition(".")[2] in FLOAT32_PARAMETERS}
    assert exact_ones
    assert {types[name] for name in exact_ones} == {torch.float32}
    assert {types[name] for name in set(types) - exact_ones} == {torch.bfloat16}
    found, exact = (s.generate(PROMPT, seed=1, **SIZE).latent for s in (low, sampler))
    assert 0 < np.abs(found - exact).mean() < 0.1


def test_wrong_calls_say_what_helps(sampler: CheckpointSampler, checkpoint: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="checkpoint folder does not exist"):
        CheckpointSampler.open(tmp_path / "none")
    with pytest.raises(DataIntegrityError, match=r"config\.json"):
        CheckpointSampler.open(tmp_path)
    with pytest.raises(ConfigError, match="no device has this name: 'gpu'"):
        CheckpointSampler.open(checkpoint, device="gpu")
    with pytest.raises(ConfigError, match="CUDA devices: 'cuda:99'"):
        CheckpointSampler.open(checkpoint, device="cuda:99")
    with pytest.raises(ConfigError, match="use 9 or 17"):
        sampler.generate(PROMPT, **{**SIZE, "frames": 10})
    with pytest.raises(ConfigError, match="use 64 or 128"):
        sampler.generate(PROMPT, **{**SIZE, "width": 100})


def test_numbers_that_are_not_finite_end_the_video(checkpoint: Artifact) -> None:
    broken = CheckpointSampler.open(checkpoint)
    with torch.no_grad():
        broken.model.proj_out.weight.fill_(float("nan"))
    with pytest.raises(DataIntegrityError, match=r"not finite: 'a red circle moves up'.*latent frame 0"):
        broken.generate(PROMPT, seed=1, **SIZE)


def test_a_gpu_that_is_too_small_is_told(checkpoint: Artifact) -> None:
    sampler = CheckpointSampler.open(checkpoint)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    sampler.model.register_forward_pre_hook(full)
    with pytest.raises(ConfigError, match=r"too little memory for 17 frames of 64x64 \(CUDA out of memory\)"):
        sampler.generate(PROMPT, **SIZE)


@pytest.fixture(scope="module")
def with_vae(checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint whose codec is the causal VAE `wide`, and the folder of its weights."""
    root = tmp_path_factory.mktemp("vae")
    shutil.copytree(checkpoint.storage.local_root, root / "checkpoint")
    path = root / "checkpoint" / "config.json"
    codec = CausalVaeConfig(weights="wide").canonical()
    path.write_text(json.dumps({**json.loads(path.read_text()), "codec": codec}))
    return root / "checkpoint", write_tiny_vae(root / "weights")


def test_imported_vae_streams_and_takes_an_image(with_vae: tuple[Path, Path], picture: Path) -> None:
    checkpoint, weights = with_vae
    sampler = CheckpointSampler.open(checkpoint, folders={"wide": weights})
    video = sampler.generate(PROMPT, seed=1, image=picture, **SIZE)
    assert video.frames.shape == (17, 64, 64, 3)
    chunks = list(sampler.stream(PROMPT, 1, VideoConfig.model_validate(SIZE), image=read_image(picture)))
    assert len(chunks) > 1
    assert np.array_equal(np.concatenate(chunks), sampler.codec.decode(video.latent))
    mean = sampler.codec.encode(cover(read_image(picture), 64, 64)[None])
    np.testing.assert_allclose(video.latent[:, :1], mean, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="wide"):
        CheckpointSampler.open(checkpoint)
