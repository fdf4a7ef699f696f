"""Which file of a folder is which video of the protocol. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eval.importing.config import ImportVideosConfig
from eval.prompts import Prompt, jobs, numbers
from eval.vbench.v2_prompts import video_name
from m4v.core.errors import InputError
from m4v.core.storage import Storage, storage_faults

SUFFIX = ".mp4"
Job = tuple[int, int]


@dataclass(frozen=True)
class Assigned:
    """`files`: by (prompt number, sample) the name in the folder; `missing`: names that should be there; `unfit`: why
    those of them that are there cannot be taken, by name; `strange`: videos that are of no prompt or sample, which is
    what a misspelt name looks like. Other files are left alone."""

    files: Mapping[Job, str]
    missing: Mapping[Job, str]
    strange: tuple[str, ...]
    unfit: Mapping[str, str] = field(default_factory=dict)


def collection_state(location: Storage) -> str:
    """Digest over path, size and time of every file (path and size where it is remote), without reading a video.

    Raises InputError where there is no such folder."""
    if location.is_local and not location.local_root.is_dir():
        raise InputError("there is no such folder", value=location.uri)
    sha = hashlib.sha256()
    for file in location.list():
        time: float | str = ""
        if location.is_local:
            # Not by `modified_at`: the folder may hold names that no storage of ours takes.
            with storage_faults(location.uri):
                time = (location.local_root / file.path).stat().st_mtime
        sha.update(f"{file.path}\0{file.size_bytes}\0{time}\n".encode(errors="surrogatepass"))
    return sha.hexdigest()


def assign(config: ImportVideosConfig, present: Sequence[str]) -> Assigned:
    """`present`: names in the folder. Raises InputError for a map that names an unknown prompt or one of two, and for
    prompts whose videos would have one name."""
    there = set(present)
    videos = {name for name in there if name.lower().endswith(SUFFIX)}
    wanted = dict.fromkeys(jobs(config.prompts, config.samples_per_prompt), "")
    texts = dict(zip(numbers(config.prompts), config.prompts, strict=True))
    named = _mapped(config, texts) if config.names == "map" else {}
    for job in wanted:
        wanted[job] = named.get(job, "") if config.names == "map" else _name(config, texts[job[0]], job)
    _check_distinct(wanted, texts)
    unfit = {name: reason for name in wanted.values() if name in there and (reason := _unfit(name))}
    files = {job: name for job, name in wanted.items() if name in videos and name not in unfit}
    missing = {job: name or f"sample {job[1]} of {words(texts[job[0]])!r}" for job, name in wanted.items()
               if job not in files}  # fmt: skip
    return Assigned(files, missing, tuple(sorted(videos - set(wanted.values()))), unfit)


def _unfit(name: str) -> str:
    if not name.lower().endswith(SUFFIX):
        return f"is there, and is no {SUFFIX}"
    return "has a backslash in its name, which no path here may hold" if "\\" in name else ""


def _check_distinct(wanted: Mapping[Job, str], texts: Mapping[int, Prompt]) -> None:
    first: dict[str, Job] = {}
    for job, name in wanted.items():
        if name and (other := first.setdefault(name, job)) != job:
            raise InputError(
                "two prompts are scored as the same words, and a name does not tell their videos apart",
                value=[texts[other[0]].text, texts[job[0]].text], where=name,
                next_step="name the files with --names index",
            )  # fmt: skip


def shown(name: str) -> str:
    """A file's name as text on one line: bytes that are no UTF-8 and what cannot be printed as backslash escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def words(prompt: Prompt) -> str:
    """As it is scored and named by."""
    return prompt.scored_as or prompt.text


def _name(config: ImportVideosConfig, prompt: Prompt, job: Job) -> str:
    number, sample = job
    if config.names == "prompt180":
        return video_name(words(prompt), sample)
    return f"{words(prompt)}-{sample}{SUFFIX}" if config.names == "prompt" else f"{number:04d}-{sample:04d}{SUFFIX}"


def _mapped(config: ImportVideosConfig, texts: Mapping[int, Prompt]) -> dict[Job, str]:
    by_text: dict[str, set[int]] = {}
    for number, prompt in texts.items():
        for text in (prompt.text, words(prompt)):
            by_text.setdefault(text, set()).add(number)
    found: dict[Job, str] = {}
    counts: dict[int, int] = {}
    for file in sorted(config.files):
        meant = by_text.get(config.files[file], set())
        if len(meant) != 1:
            what = "that two of the list's are scored as" if meant else "that is none of the list's"
            raise InputError(f"the map names a prompt {what}", value=config.files[file], where=file)
        number = min(meant)
        counts[number] = counts.get(number, -1) + 1
        found[number, counts[number]] = file
    return found
