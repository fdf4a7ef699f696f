"""Stage `import_videos`: a folder of another system's videos -> samples. Every video is copied, hashed and decoded;
one that cannot be taken is named. What was decoded is kept, so that a killed import does not decode it again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from eval.importing.config import ImportVideosConfig
from eval.importing.names import Assigned, Job, assign, collection_state, shown
from eval.importing.records import IMPORT, ImportedVideo, ImportRecord, Left
from eval.importing.streams import Stream, read_stream
from eval.prompts import Prompt, numbers, prompt_set_digest, video_name
from eval.records import SAMPLES, SYSTEM, Origin, SampleSet, SampleVideo, write_record
from m4v.core.canonical import canonical_json, digest_file, digest_json
from m4v.core.errors import DataIntegrityError, M4VError
from m4v.core.items import ItemStore
from m4v.core.stage import StageContext
from m4v.core.storage import Storage

LOCATION = "videos"
SEED_RULE = "unknown: drawn by the system that made the videos"
_NAMED = 5  # of what is wrong, in an error; the log has all
_LOG = logging.getLogger(__name__)


class _Taken(NamedTuple):
    name: str
    sha256: str
    size_bytes: int
    stream: Stream


def run(context: StageContext) -> None:
    """Raises DataIntegrityError naming what cannot be taken, or, of a quarantine, when nothing is left."""
    config = context.config(ImportVideosConfig)
    location = context.location(LOCATION)
    if collection_state(location) != config.state:
        raise DataIntegrityError(
            "the folder is not what it was when the import was asked for", where=location.uri,
            next_step="m4v evaluate import again",
        )  # fmt: skip
    assigned = assign(config, [file.path for file in location.list()])
    output = context.output("samples")
    taken, left = _take_all(context, location, assigned, output)
    left += _odd_ones(taken)
    left += [Left(file=shown(n), reason=assigned.unfit.get(n, "missing")) for n in assigned.missing.values()]
    left += [Left(file=shown(n), reason="is of no prompt and sample of the list") for n in assigned.strange]
    left.sort(key=lambda each: (each.reason, each.file))
    for each in left:
        _LOG.warning("cannot be taken: %s: %s", each.file, each.reason)
    if left and config.bad == "refuse":
        raise _refusal(left, len(assigned.files) + len(assigned.missing), bool(assigned.files))
    whole = _whole_prompts(config, taken, {each.file for each in left})
    if not whole:
        raise _refusal(left, len(assigned.files) + len(assigned.missing), bool(assigned.files))
    _publish(context, config, output, whole, taken, tuple(left))


def _take_all(
    context: StageContext, location: Storage, assigned: Assigned, output: Path
) -> tuple[dict[Job, _Taken], list[Left]]:
    """Copies of the videos under the names of samples, those that do not decode left out."""
    kept = ItemStore(context.state.child("streams"))
    taken: dict[Job, _Taken] = {}
    left = []
    for number, (job, name) in enumerate(sorted(assigned.files.items())):
        context.progress.update(number, len(assigned.files), "videos")
        place = location.fetch(name, output / video_name(*job))
        sha256 = digest_file(place)
        try:
            payload = kept.get_or_make(sha256, lambda p=place: canonical_json(read_stream(p).canonical()))  # type: ignore[misc]
        except DataIntegrityError as error:
            left.append(Left(file=shown(name), reason=error.what))
            continue
        taken[job] = _Taken(name, sha256, place.stat().st_size, Stream.model_validate_json(payload))
        context.check_drain()
    context.progress.update(len(assigned.files), len(assigned.files), "videos")
    return taken, left


def _odd_ones(taken: Mapping[Job, _Taken]) -> list[Left]:
    """Videos that are of another size, length or rate than the most, and all that share their bytes with another:
    nobody can tell which of those has the wrong name."""
    if not taken:
        return []
    most = Counter(each.stream.shape for each in taken.values()).most_common(1)[0][0]
    same: dict[str, list[str]] = {}
    for each in taken.values():
        same.setdefault(each.sha256, []).append(each.name)
    found = []
    for each in taken.values():
        reason = f"is {_shape(each.stream.shape)}; most are {_shape(most)}" if each.stream.shape != most else ""
        if not reason and len(alike := same[each.sha256]) > 1:
            reason = f"has the bytes of {shown(alike[each.name == alike[0]])}"  # the first other one
        if reason:
            found.append(Left(file=shown(each.name), reason=reason))
    return found


def _shape(shape: tuple[int, int, int, float]) -> str:
    frames, height, width, fps = shape
    return f"{width}x{height}, {frames} frames at {fps:g} fps"


def _refusal(left: list[Left], expected: int, any_named: bool) -> M4VError:
    named = "; ".join(f"{each.file}: {each.reason}" for each in left[:_NAMED])
    more = f"; and {len(left) - _NAMED} more, all in the stage's log" if len(left) > _NAMED else ""
    videos = "1 video" if len(left) == 1 else f"{len(left)} videos"
    return DataIntegrityError(
        f"{videos} cannot be taken, of {expected} that are expected: {named}{more}",
        next_step="correct the folder and import again, or leave those prompts out with --quarantine"
        if any_named
        else "no name fits: say how files are called (--names), and which prompts they are of (--prompts)",
    )


def _whole_prompts(config: ImportVideosConfig, taken: Mapping[Job, _Taken], bad: set[str]) -> dict[int, Prompt]:
    """Prompts all of whose samples can be taken, by number."""
    by_number = dict(zip(numbers(config.prompts), config.prompts, strict=True))
    good = Counter(job[0] for job, each in taken.items() if shown(each.name) not in bad)
    return {n: p for n, p in by_number.items() if good[n] == (p.samples or config.samples_per_prompt)}


def _publish(
    context: StageContext,
    config: ImportVideosConfig,
    output: Path,
    whole: Mapping[int, Prompt],
    taken: Mapping[Job, _Taken],
    left: tuple[Left, ...],
) -> None:
    videos = {job: each for job, each in taken.items() if job[0] in whole}
    names = {Path(video_name(*job)).name for job in videos}
    for file in (output / "videos").glob("*.mp4"):
        if file.name not in names:
            file.unlink()
    codecs = sorted({each.stream.codec for each in videos.values()})
    origin = Origin(system=config.system, source=config.source, licence=config.licence, video_codec=", ".join(codecs))
    samples = _sample_set(config, whole, videos, origin)
    write_record(output / SAMPLES, samples)
    record = ImportRecord(
        origin=origin, names=config.names, left=left, left_out_prompts=len(config.prompts) - len(whole),
        videos=tuple(
            ImportedVideo(file=video_name(*job), imported_as=each.name, sha256=each.sha256, size_bytes=each.size_bytes,
                          codec=each.stream.codec)
            for job, each in sorted(videos.items())
        ),
    )  # fmt: skip
    write_record(output / IMPORT, record)
    first = samples.videos[0]
    context.summary("samples", {
        "videos": len(videos), "prompts": len(whole), "system": config.system, "source": config.source,
        "licence": config.licence, "frames": first.frames, "height": first.height, "width": first.width,
        "fps": first.fps, "left_out": len(left),
    })  # fmt: skip
    context.metrics({"videos": len(videos), "left_out": len(left)})


def _sample_set(
    config: ImportVideosConfig, whole: Mapping[int, Prompt], videos: Mapping[Job, _Taken], origin: Origin
) -> SampleSet:
    """What is not known of another system is told as unknown; that its sampler is this collection's keeps its scores
    from being subtracted from anybody else's."""
    listed = sorted(videos.items())
    return SampleSet(
        checkpoint=f"{SYSTEM}{config.system}", ema=False,
        sampler={"imported": config.system, "collection": digest_json([each.sha256 for _, each in listed])},
        codec={}, text_encoder={}, crf=None, origin=origin,
        prompt_set=prompt_set_digest(config.prompts if len(whole) == len(config.prompts) else whole.values()),
        seed_rule=SEED_RULE, base_seed=0, prompts=len(whole), samples_per_prompt=config.samples_per_prompt,
        videos=tuple(_video(whole[job[0]], job, each) for job, each in listed),
        counts={n: p.samples or config.samples_per_prompt for n, p in sorted(whole.items())},
    )  # fmt: skip


def _video(prompt: Prompt, job: Job, each: _Taken) -> SampleVideo:
    stream = each.stream
    return SampleVideo(
        file=video_name(*job), prompt=prompt.text, prompt_index=job[0], sample_index=job[1], seed=None,
        facts=prompt.stated, frames=stream.frames, fps=stream.fps, height=stream.height, width=stream.width,
        sha256=each.sha256, scored_as=prompt.scored_as,
    )  # fmt: skip
