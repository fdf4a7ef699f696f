"""Stages `study` and `study_results`: from sample sets to results, by the stage functions themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from eval_support import publish, stage_request
from study_house import answer_of, truthful

from eval.records import SAMPLES, SampleSet, SampleVideo, read_record, write_record
from eval.stages import study as study_stage
from eval.stages import study_results
from eval.study.config import ResultsConfig, StudyConfig
from eval.study.design import tasks_of
from eval.study.records import RESULTS, STUDY, TABLE, Snapshot, Study, StudyResults
from eval.vocabulary import Facts
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.canonical import canonical_json, digest_bytes
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.core.stage import StageContext

ORDERS = dict.fromkeys(("aesthetic", "motion", "semantic"), ("ours", "base"))


def samples(folder: Path, prompts: list[str], checkpoint: str, *, longer: bool = False) -> Artifact:
    (folder / "videos").mkdir(parents=True)
    videos = []
    for number, prompt in enumerate(prompts):
        for sample in range(2):
            file = f"videos/{number:04d}-{sample:04d}.mp4"
            data = f"{checkpoint} {prompt} {sample}".encode()
            (folder / file).write_bytes(data)
            videos.append(
                SampleVideo(
                    file=file, prompt=f"{prompt}, in soft light" if longer else prompt,
                    scored_as=prompt if longer else None, prompt_index=number, sample_index=sample, seed=0,
                    facts=Facts(), frames=9, fps=8, height=64, width=64, sha256=digest_bytes(data),
                )
            )  # fmt: skip
    record = SampleSet(
        checkpoint=checkpoint * 64, ema=True, sampler={}, codec={}, text_encoder={}, crf=12, prompt_set="p",
        seed_rule="s", base_seed=0, prompts=len(prompts), samples_per_prompt=2, videos=tuple(videos),
    )  # fmt: skip
    write_record(folder / SAMPLES, record)
    return publish(folder, ArtifactKind.SAMPLES)


def context(root: Path, config: StudyConfig, sets: dict[str, Artifact]) -> StageContext:
    inputs = {f"samples.{name}": artifact for name, artifact in sets.items()}
    request = stage_request(root, "study", config, inputs, "study", ArtifactKind.REPORT)
    Path(request.work_dir).mkdir(parents=True, exist_ok=True)
    return StageContext(request)


def made(root: Path, config: StudyConfig, sets: dict[str, Artifact]) -> tuple[Study, StageContext]:
    found = context(root, config, sets)
    study_stage.run(found)
    text = (found.output("study") / STUDY).read_text()
    return Study.model_validate_json(text), found


PROMPTS = [f"prompt number {n}" for n in range(6)]


def test_a_study_shares_the_videos_under_blind_names(tmp_path: Path) -> None:
    sets = {"ours": samples(tmp_path / "a", PROMPTS, "a"), "base": samples(tmp_path / "b", PROMPTS, "b")}
    config = StudyConfig(systems=("ours", "base"), prompts=4, sample=1)
    study, found = made(tmp_path / "1", config, sets)
    assert [s.samples for s in study.systems] == [sets["ours"].id, sets["base"].id]
    texts = [p.text for p in study.prompts]
    assert len(texts) == 4
    assert texts == sorted(texts)
    files = {name: file for p in study.prompts for name, file in p.videos.items()}
    shared = {s.path: s for s in found.shared("study")}
    assert len(shared) == 8
    assert not any(name in path for path in shared for name in sets)
    assert shared[files["ours"]].source.endswith("-0001.mp4")
    again, _ = made(tmp_path / "2", config, sets)
    assert again == study
    other, _ = made(tmp_path / "3", config.model_copy(update={"seed": 1}), sets)
    assert [p.text for p in other.prompts] != texts or other.prompts[0].videos != study.prompts[0].videos


def test_only_prompts_that_every_system_has_are_asked_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets = {"ours": samples(tmp_path / "a", PROMPTS[1:], "a"), "base": samples(tmp_path / "b", PROMPTS[:-1], "b")}
    config = StudyConfig(systems=("ours", "base"))
    study, found = made(tmp_path / "1", config, sets)
    assert [p.text for p in study.prompts] == PROMPTS[1:-1]
    assert found.summaries()["study"]["left_out_prompts"] == 2
    assert [r.getMessage() for r in caplog.records if r.name == study_stage.__name__] == [
        "left out, ours lacks 1 of 6 prompts: ['prompt number 0']",
        "left out, base lacks 1 of 6 prompts: ['prompt number 5']",
    ]
    sets["base"] = samples(tmp_path / "c", PROMPTS[:1], "c")
    with pytest.raises(ConfigError, match=r"base lacks 5 of 6: .*prompt number 1.* \(in samples of base\)"):
        study_stage.run(context(tmp_path / "2", config, sets))


def test_systems_meet_by_the_words_their_videos_are_scored_as(tmp_path: Path) -> None:
    sets = {"ours": samples(tmp_path / "a", PROMPTS, "a", longer=True), "base": samples(tmp_path / "b", PROMPTS, "b")}
    study, found = made(tmp_path / "1", StudyConfig(systems=("ours", "base")), sets)
    assert [p.text for p in study.prompts] == PROMPTS
    assert "left_out_prompts" not in found.summaries()["study"]


def test_results_are_of_the_answers_named_and_of_no_other_study(tmp_path: Path) -> None:
    sets = {"ours": samples(tmp_path / "a", PROMPTS, "a"), "base": samples(tmp_path / "b", PROMPTS, "b")}
    study, found = made(tmp_path / "1", StudyConfig(systems=("ours", "base"), prompts=3), sets)
    artifact = publish(found.output("study"), ArtifactKind.REPORT)
    answers = tuple(answer_of("p001", task, truthful(study, task, ORDERS)) for task in tasks_of(study, "p001"))
    snapshot = Snapshot(study=artifact.id, invited=2, revoked=(), answers=answers)

    def results(snapshot: Snapshot, attempt: str, digest: str | None = None) -> Artifact:
        data = canonical_json(snapshot.canonical())
        place = tmp_path / "snapshots" / attempt
        place.mkdir(parents=True)
        digest = digest or digest_bytes(data)
        (place / f"{digest}.json").write_bytes(data)
        request = stage_request(
            tmp_path, "study_results", ResultsConfig(answers=digest, resamples=100), {"study": artifact}, "scores",
            ArtifactKind.SCORES, attempt=attempt,
        )  # fmt: skip
        Path(request.work_dir).mkdir(parents=True)
        context = StageContext(request.model_copy(update={"locations": {"answers": str(place)}}))
        study_results.run(context)
        return publish(context.output("scores"), ArtifactKind.SCORES)

    first = results(snapshot, "a")
    record = read_record(StudyResults, first, RESULTS)
    assert [s.mean_rank for s in record.criteria[0].systems] == [1.0, 2.0]
    lines = first.path(TABLE).read_text().splitlines()
    assert lines[0] == "participant,task,prompt,criterion,system,place,rank"
    assert len(lines) == 1 + 3 * 3 * 2
    assert results(snapshot, "b").id == first.id
    with pytest.raises(DataIntegrityError, match="not those of the request"):
        results(snapshot, "c", "0" * 64)
    with pytest.raises(DataIntegrityError, match="another study"):
        results(snapshot.model_copy(update={"study": "0" * 64}), "d")
