"""Stage `import_videos`: bytes kept, everything counted, what cannot be taken named; its samples are measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_support import publish, stage_context

from eval.config import EvaluateConfig
from eval.importing.config import ImportVideosConfig
from eval.importing.names import collection_state
from eval.importing.records import IMPORT, ImportRecord
from eval.importing.streams import Stream, read_stream
from eval.records import SAMPLES, SCORES, SampleSet, ScoreSet, read_record
from eval.stages import evaluate, import_videos
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.canonical import digest_file
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import Storage
from m4v.video_io import encode_mp4

PROMPTS = ("a red ball", "a blue box", "a green car")


def video(shade: int, frames: int = 6, size: int = 32, fps: int = 8) -> bytes:
    rng = np.random.default_rng(shade)
    return encode_mp4(rng.integers(0, 256, (frames, size, size, 3)).astype(np.uint8), fps)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "given"
    place.mkdir()
    for number, prompt in enumerate(PROMPTS):
        for sample in range(2):
            (place / f"{prompt}-{sample}.mp4").write_bytes(video(10 * number + sample))
    (place / "LICENCE.txt").write_text("as you like")
    return place


Import = Callable[..., Artifact]


@pytest.fixture
def take(tmp_path: Path, folder: Path) -> Import:
    attempts = iter(range(100))

    def run(**given: Any) -> Artifact:
        config = ImportVideosConfig.model_validate({
            "system": "Wan 2.1", "source": "https://example.org", "licence": "CC BY 4.0", "prompts": list(PROMPTS),
            "samples_per_prompt": 2, "state": collection_state(Storage(str(folder))), **given,
        })  # fmt: skip
        context = stage_context(
            tmp_path, "import_videos", config, {}, "samples", ArtifactKind.SAMPLES, attempt=str(next(attempts))
        )
        context.request = context.request.model_copy(update={"locations": {import_videos.LOCATION: str(folder)}})
        import_videos.run(context)
        return publish(context.output("samples"), ArtifactKind.SAMPLES)

    return run


def test_a_folder_becomes_samples_with_its_bytes_and_its_origin(take: Import, folder: Path) -> None:
    artifact = take()
    samples = read_record(SampleSet, artifact, SAMPLES)
    assert samples.checkpoint == "system:Wan 2.1"
    assert samples.origin is not None
    assert (samples.origin.licence, samples.video_codec) == ("CC BY 4.0", "h264 yuv420p, as imported")
    assert [(v.prompt, v.sample_index, v.seed) for v in samples.videos] == [
        (p, n, None) for p in PROMPTS for n in (0, 1)
    ]
    assert {(v.frames, v.height, v.width, v.fps) for v in samples.videos} == {(6, 32, 32, 8.0)}
    record = read_record(ImportRecord, artifact, IMPORT)
    assert [v.imported_as for v in record.videos] == [f"{p}-{n}.mp4" for p in PROMPTS for n in (0, 1)]
    assert all(
        digest_file(artifact.path(v.file)) == digest_file(folder / v.imported_as) == v.sha256 for v in record.videos
    )
    assert record.left == ()
    assert take().id == artifact.id, "the same folder again is the same artifact"


def test_imported_samples_are_measured_and_never_subtracted(take: Import, folder: Path, tmp_path: Path) -> None:
    scores = []
    for name in ("one", "two"):
        context = stage_context(
            tmp_path / name, "evaluate", EvaluateConfig(metrics=("local.flicker", "local.sharpness")),
            {"samples": take()}, "scores", ArtifactKind.SCORES,
        )  # fmt: skip
        evaluate.run(context)
        scores.append(ScoreSet.model_validate_json((context.output("scores") / SCORES).read_bytes()))
        (folder / f"{PROMPTS[0]}-0.mp4").write_bytes(video(99))  # another collection from here on
    one, two = (found.identity for found in scores)
    assert one.system == "Wan 2.1"
    assert one.differences(one) == []
    assert one.differences(two) == ["sampler"]
    assert one.differences(one.model_copy(update={"checkpoint": "c" * 64, "sampler": {"steps": 20}})) == ["sampler"]


def broken(folder: Path) -> None:
    whole = (folder / "a red ball-0.mp4").read_bytes()
    (folder / "a red ball-0.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "a blue box-1.mp4").rename(folder / "a blue  box-1.mp4")


def test_what_cannot_be_taken_is_named_and_nothing_is_made(
    take: Import, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken(folder)
    with pytest.raises(DataIntegrityError) as caught:
        take()
    told = caught.value.message
    assert told.startswith("3 videos cannot be taken, of 6 that are expected: a red ball-0.mp4: does not decode")
    assert "a blue  box-1.mp4: is of no prompt and sample of the list" in told
    assert "a blue box-1.mp4: missing" in told
    assert "--quarantine" in told
    assert len([each for each in caplog.records if each.name == import_videos.__name__]) == 3
    with pytest.raises(DataIntegrityError, match="not what it was when the import was asked for"):
        take(state="0" * 64)


def test_names_of_which_none_fits_are_told_how_to_be_named(take: Import, folder: Path) -> None:
    for number, file in enumerate(sorted(folder.glob("*.mp4"))):
        file.rename(folder / f"clip {number}.mp4")
    with pytest.raises(DataIntegrityError, match=r"\(--names\), and which prompts they are of \(--prompts\)"):
        take()


def test_a_quarantine_leaves_prompts_out_whole(take: Import, folder: Path) -> None:
    whole = read_record(SampleSet, take(), SAMPLES)
    broken(folder)
    artifact = take(bad="quarantine")
    samples, record = read_record(SampleSet, artifact, SAMPLES), read_record(ImportRecord, artifact, IMPORT)
    assert {v.prompt for v in samples.videos} == {"a green car"}
    assert list(artifact.names("videos/")) == ["videos/0002-0000.mp4", "videos/0002-0001.mp4"]
    assert samples.expected() == [(2, 0), (2, 1)]
    assert samples.prompt_set != whole.prompt_set
    assert (record.left_out_prompts, len(record.left)) == (2, 3)
    (folder / "a green car-1.mp4").unlink()
    with pytest.raises(DataIntegrityError, match="4 videos cannot be taken"):
        take(bad="quarantine")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (video(1, frames=5), "is 32x32, 5 frames at 8 fps; most are 32x32, 6 frames at 8 fps"),
        (video(1, fps=9), "is 32x32, 6 frames at 9 fps"),
        (b"<html>not found</html>", "does not decode"),
        (b"", "does not decode"),
    ],
)
def test_a_video_that_is_not_like_the_others_is_named(take: Import, folder: Path, data: bytes, words: str) -> None:
    (folder / "a red ball-1.mp4").write_bytes(data)
    with pytest.raises(DataIntegrityError) as caught:
        take()
    assert caught.value.message.startswith("1 video cannot be taken")
    assert words in caught.value.message


def test_of_two_prompts_with_the_same_bytes_neither_is_believed(take: Import, folder: Path) -> None:
    (folder / "a blue box-1.mp4").write_bytes((folder / "a red ball-0.mp4").read_bytes())
    with pytest.raises(DataIntegrityError, match="2 videos cannot be taken") as caught:
        take()
    assert "a red ball-0.mp4: has the bytes of a blue box-1.mp4" in caught.value.message
    assert "a blue box-1.mp4: has the bytes of a red ball-0.mp4" in caught.value.message
    samples = read_record(SampleSet, take(bad="quarantine"), SAMPLES)
    assert {v.prompt for v in samples.videos} == {"a green car"}


def test_names_that_no_record_can_hold_are_told_in_escapes(take: Import, folder: Path) -> None:
    (folder / "notes \\ of \udce9.txt").write_text("left alone")
    assert read_record(ImportRecord, take(), IMPORT).left == ()
    (folder / "caf\udce9-0.mp4").write_bytes(video(50))
    (folder / "a\\b-0.mp4").write_bytes(video(51))
    with pytest.raises(DataIntegrityError) as caught:
        take()
    assert "a\\b-0.mp4: is of no prompt" in caught.value.message
    assert "caf\\xe9-0.mp4: is of no prompt" in caught.value.message
    record = read_record(ImportRecord, take(bad="quarantine"), IMPORT)
    assert [each.file for each in record.left] == ["a\\b-0.mp4", "caf\\xe9-0.mp4"]


def test_a_prompt_whose_file_name_holds_a_backslash_is_left_out_by_name(take: Import, folder: Path) -> None:
    for sample in range(2):
        (folder / f"{PROMPTS[0]}-{sample}.mp4").rename(folder / f"either\\or-{sample}.mp4")
    prompts = ["either\\or", *PROMPTS[1:]]
    with pytest.raises(DataIntegrityError, match=r"either\\or-0\.mp4: has a backslash in its name"):
        take(prompts=prompts)
    artifact = take(prompts=prompts, bad="quarantine")
    assert {v.prompt for v in read_record(SampleSet, artifact, SAMPLES).videos} == set(PROMPTS[1:])
    assert len(read_record(ImportRecord, artifact, IMPORT).left) == 2


class Killed(BaseException):
    """Ends an import as a signal does: nothing in it may catch this."""


def test_a_killed_import_goes_on_and_decodes_nothing_twice(take: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def watched(path: Path) -> Stream:
        if len(decoded) == 4:
            decoded.append("killed")
            raise Killed
        decoded.append(digest_file(path))
        return read_stream(path)

    monkeypatch.setattr(import_videos, "read_stream", watched)
    with pytest.raises(Killed):
        take()
    samples = read_record(SampleSet, take(), SAMPLES)
    decoded.remove("killed")
    assert sorted(decoded) == sorted(v.sha256 for v in samples.videos)
