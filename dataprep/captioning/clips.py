"""Captions of the curate stage's clips: cleaned before the decision, written anew for the clips that it keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from dataprep.captioning.asking import Question
from dataprep.captioning.clean import Words, clean, open_lengths
from dataprep.captioning.config import CaptionConfig, PromptName, RecaptionConfig
from dataprep.captioning.frames import FramesTask
from dataprep.captioning.prompts import prompt_digest
from dataprep.captioning.provenance import Provenance
from dataprep.captioning.recaption import STEP, Recaptioner, Request
from dataprep.curate_config import CurateConfig
from dataprep.curation.captions import covering
from dataprep.curation.table import Clip
from dataprep.engine import Engine
from dataprep.engines.limits import WorkLimits
from dataprep.media.container import Limits
from dataprep.media.location import MediaLocator
from dataprep.quarantine import QuarantineRow, Reason
from dataprep.shots.scenes import Span
from m4v.core.canonical import digest_json
from m4v.core.stage import StageContext

FAILED = "recaption_failed"
_OCR_KEYS = ("ocr_text", "ocr")  # facts of a listed file that hold text read off its pictures


class ClipCaptions:
    """Holds for one run of the stage. `counts` are facts for the artifact's summary."""

    def __init__(self, context: StageContext, config: CurateConfig, captions: CaptionConfig) -> None:
        self._context, self._config, self._captions = context, config, captions
        self._lengths = open_lengths(captions.counting, context.weights())
        self.counts: Counter[str] = Counter()

    def clean(self, clips: Iterable[Clip]) -> None:
        """Bring the captions of every clip to plain text of the right length, and note where each comes from."""
        for clip in clips:
            span = Span(clip.first_frame, clip.first_frame + clip.frames)
            texts: list[str] = []
            notes: list[Provenance] = []
            for caption in covering(span, clip.file.captions, self._config.min_caption_overlap):
                cleaned = clean(caption.text, self._lengths, self._captions.limit)
                if cleaned.problem is not None:
                    self.counts[f"captions_rejected_{cleaned.problem}"] += 1
                elif cleaned.text not in texts and len(texts) < self._captions.max_captions:
                    flags = tuple(dict.fromkeys([*caption.flags, *cleaned.flags]))
                    texts.append(cleaned.text)
                    notes.append(Provenance("source", caption.origin, None, flags, cleaned.length))
                    self.counts["captions_repaired"] += bool(flags)
            clip.captions, clip.provenance = tuple(texts), tuple(notes)
            clip.awaits_caption = not texts and self._captions.writes_missing

    def wants(self, clip: Clip) -> bool:
        """Whether the config asks a model about a clip, once it is kept."""
        config = self._captions.recaption
        return config is not None and _wanted(clip, config)

    def write(
        self, kept: Sequence[Clip], locator: MediaLocator, open_engine: Callable[[], Engine]
    ) -> list[tuple[Clip, QuarantineRow]]:
        """Ask for the captions that the config wants for kept clips; returns the clips that must go for want of one.

        Raises what `Recaptioner.run` raises.
        """
        config = self._captions.recaption
        if config is None:
            return []
        chosen = [clip for clip in kept if _wanted(clip, config)]
        requests = [self._request(clip, config, locator) for clip in chosen]
        bounds = self._config.limits
        memory = None if bounds.item_memory_mib is None else bounds.item_memory_mib << 20
        work = WorkLimits(bounds.item_timeout_s, bounds.item_cpu_s, memory)
        recaptioner = Recaptioner(self._context, config, work)
        recaptioner.run(requests, open_engine)
        self._context.metrics(recaptioner.metrics())
        gone = []
        for clip, request in zip(chosen, requests, strict=True):
            problems = self._take(clip, request, recaptioner, config)
            gone += self._leaves(clip, problems, config)
        self.counts["recaptioned"] = sum(any(p.origin == "model" for p in c.provenance or ()) for c in chosen)
        return gone

    def _request(self, clip: Clip, config: RecaptionConfig, locator: MediaLocator) -> Request:
        file = clip.file
        task = FramesTask(
            locator.file(clip.source, file.path, file.size_bytes, file.sha256), clip.is_video, clip.first_frame,
            clip.frames, clip.width, clip.box, config.frames, config.frame_side, self._config.decoder,
            clip.record.deinterlaced, Limits(self._config.limits.max_pixels, self._config.limits.max_frames),
        )  # fmt: skip
        texts = self._texts(clip) if config.context else ()
        # The decoder is left out: its last bits are not worth paying for every caption again.
        shown = [clip.record.deinterlaced, config.frames, config.frame_side]
        pixels = [file.sha256, file.media, clip.first_frame, clip.frames, list(clip.box), shown]
        asked = [config.max_tokens, config.temperature, config.language]
        span = f"{file.sha256}-{clip.first_frame}-{clip.frames}"  # in front, so that a takedown finds its answers

        def key(name: PromptName) -> str:
            wanted = [pixels, [list(t) for t in texts], prompt_digest(name, config.language), asked]
            return f"{span}-{digest_json(wanted)}"

        questions = tuple(Question(key(name), clip.clip_id, name, texts) for name in config.prompts)
        return Request(task, questions)

    def _texts(self, clip: Clip) -> tuple[tuple[str, str], ...]:
        """What the collection says of a clip, labelled; whole, so that another text encoder asks nothing anew."""
        span = Span(clip.first_frame, clip.first_frame + clip.frames)
        given = covering(span, clip.file.captions, self._config.min_caption_overlap)
        found = [("caption", clean(caption.text, Words(), None).text) for caption in given]
        read = next((clip.file.extra[k] for k in _OCR_KEYS if isinstance(clip.file.extra.get(k), str)), None)
        if read:
            found.append(("text in the picture", clean(str(read), Words(), None).text))
        return tuple(found)

    def _take(self, clip: Clip, request: Request, recaptioner: Recaptioner, config: RecaptionConfig) -> list[str]:
        """Put the model's captions into the clip; returns what went wrong."""
        texts: list[str] = []
        notes: list[Provenance] = []
        problems = []
        for question in request.questions:
            answer = recaptioner.answers.get(question.key)
            if answer is None or answer.problem is not None:
                problems.append((answer.problem if answer else None) or recaptioner.failures[question.key])
                continue
            cleaned = clean(answer.caption, self._lengths, self._captions.limit)
            if cleaned.text and cleaned.text not in texts:
                flags = tuple(dict.fromkeys([*answer.flags, *cleaned.flags]))
                texts.append(cleaned.text)
                notes.append(Provenance("model", question.prompt, config.model, flags, cleaned.length))
        if problems:
            self.counts[FAILED] += 1
        if not texts:
            return problems
        self._combine(clip, texts, notes, config)
        return problems

    def _combine(self, clip: Clip, texts: list[str], notes: list[Provenance], config: RecaptionConfig) -> None:
        new = list(zip(texts, notes, strict=True))
        old = [pair for pair in zip(clip.captions, clip.provenance or (), strict=True) if pair[0] not in texts]
        pairs = {"first": new + old, "last": old + new, "replace": new}[config.combine][: self._captions.max_captions]
        clip.captions, clip.provenance = tuple(t for t, _ in pairs), tuple(n for _, n in pairs)
        clip.awaits_caption = False

    def _leaves(self, clip: Clip, problems: Sequence[str], config: RecaptionConfig) -> list[tuple[Clip, QuarantineRow]]:
        """The clip and why it goes; nothing when it stays or is a dropped row of the table."""
        if not problems or (clip.captions and config.on_failure == "keep"):
            return []
        clip.awaits_caption = False
        if config.on_failure == "keep" and self._config.missing_caption == "drop":
            clip.drop_rule = str(Reason.MISSING_CAPTION)
            return []
        where = f"frames {clip.first_frame}..{clip.first_frame + clip.frames - 1}: {'; '.join(problems)}"
        return [(clip, QuarantineRow(clip.source, clip.file.source_id, clip.file.path, FAILED, where, STEP))]

    def summary(self) -> dict[str, object]:
        return {"caption_lengths": self._lengths.name, **dict(sorted(self.counts.items()))}


def _wanted(clip: Clip, config: RecaptionConfig) -> bool:
    if config.which == "all" or not clip.captions:
        return True
    return config.which == "filter" and all(len(text.split()) < config.min_words for text in clip.captions)
