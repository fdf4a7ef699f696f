"""The study's pages by requests: consent, order, whole answers only, what is closed, and nothing that tells."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[3] / "eval"))

from study_house import SYSTEMS, StudyHouse, study_of

from eval.study.answers import AnswerStore
from eval.study.design import tasks_of
from m4v.core.errors import InfrastructureError
from pipelines.web.study import create_study_app

FILM = bytes(range(256)) * 8


@pytest.fixture
def house(tmp_path: Path) -> StudyHouse:
    """No real videos: nobody looks here."""
    study = study_of(prompts=3, criteria=2)
    (tmp_path / "media").mkdir()
    for prompt in study.prompts:
        for file in prompt.videos.values():
            (tmp_path / file).write_bytes(FILM)
    return StudyHouse(study, tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> AnswerStore:
    return AnswerStore(tmp_path / "answers.db", "s" * 64)


@pytest.fixture
def client(house: StudyHouse, store: AnswerStore) -> Iterator[TestClient]:
    with TestClient(create_study_app(house.study, house.media, store), follow_redirects=False) as client:
        yield client


@pytest.fixture
def link(store: AnswerStore) -> str:
    return f"/s/{store.invite(1)[0][1]}"


def form(ranks: str = "12345", criteria: tuple[str, ...] = ("aesthetic", "motion")) -> dict[str, str]:
    return {f"{key}.{place}": rank for key in criteria for place, rank in enumerate(ranks)}


def agree(client: TestClient, link: str) -> None:
    assert client.post(f"{link}/consent").headers["location"] == f"{link}/tasks/1"


def test_consent_comes_first_and_the_link_leads_back_to_the_next_task(client: TestClient, link: str) -> None:
    assert "I take part of my own free will" in client.get(link).text
    assert client.get(f"{link}/tasks/1").headers["location"] == link
    assert client.post(f"{link}/tasks/1", data=form()).headers["location"] == link
    agree(client, link)
    assert client.get(f"{link}/tasks/3").headers["location"] == f"{link}/tasks/1"
    assert client.post(f"{link}/tasks/1", data=form()).headers["location"] == f"{link}/tasks/2"
    assert client.get(link).headers["location"] == f"{link}/tasks/2"
    for number in (2, 3):
        client.post(f"{link}/tasks/{number}", data=form())
    assert client.get(link).headers["location"] == f"{link}/done"
    assert "All 3 of your answers are saved" in client.get(f"{link}/done").text


def test_an_answer_sent_twice_counts_once_and_a_changed_one_replaces_it(
    client: TestClient, link: str, store: AnswerStore
) -> None:
    agree(client, link)
    for ranks in ("12345", "12345", "54321"):
        assert client.post(f"{link}/tasks/1", data=form(ranks)).status_code == 303
    (answer,) = store.snapshot().answers
    assert answer.said == {"aesthetic": (5, 4, 3, 2, 1), "motion": (5, 4, 3, 2, 1)}
    again = client.get(f"{link}/tasks/1").text
    assert len(re.findall(r'value="\d" checked', again)) == 10


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (form("1234"), "give every video a rank from 1 to 5"),
        (form("12344"), "give each rank to one video only"),
        (form("12346"), "give every video a rank"),
        (form("12345", ("aesthetic",)), "Motion smoothness: give every video"),
        ({**form(), "motion.0": "many"}, "Motion smoothness: give every video"),
        ({"other": "nothing of it"}, "give every video a rank"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_whole_is_not_kept(
    client: TestClient, link: str, store: AnswerStore, given: dict[str, str], words: str
) -> None:
    agree(client, link)
    refused = client.post(f"{link}/tasks/1", data=given)
    assert refused.status_code == 422
    assert words in refused.text
    assert store.snapshot().answers == ()
    assert len(re.findall(r'value="\d" checked', refused.text)) == sum(v in "12345" for v in given.values())


def test_nothing_of_a_page_tells_a_system(client: TestClient, link: str, house: StudyHouse) -> None:
    agree(client, link)
    page = client.get(f"{link}/tasks/1")
    assert not any(name in page.text for name in SYSTEMS)
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "same-origin"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    shown = re.findall(r'video src="([^"]+)"', page.text)
    first = tasks_of(house.study, "p001")[0]
    assert shown == [f"{link}/{house.study.prompts[first.prompt].videos[name]}" for name in first.shown]


def test_videos_come_in_parts_and_only_the_study_s_own(client: TestClient, link: str, tmp_path: Path) -> None:
    name = "00" + "0.mp4"
    part = client.get(f"{link}/media/{name}", headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, FILM[10:20])
    (tmp_path / "media" / "other.mp4").write_bytes(b"no part of the study")
    for other in ("other.mp4", "..%2Fanswers.db"):
        assert client.get(f"{link}/media/{other}").status_code == 404
    assert client.get(f"/s/nobody/media/{name}").status_code == 404


def test_closed_and_unknown_invitations_and_foreign_forms(client: TestClient, link: str, store: AnswerStore) -> None:
    agree(client, link)
    foreign = client.post(f"{link}/tasks/1", data=form(), headers={"sec-fetch-site": "cross-site"})
    assert foreign.status_code == 403
    assert "invitation is not known" in client.get("/s/nobody").text
    assert client.get("/elsewhere").status_code == 404
    store.revoke("p001")
    for answered in (client.get(link), client.post(f"{link}/tasks/1", data=form())):
        assert answered.status_code == 403
        assert "has been withdrawn" in answered.text
    assert store.snapshot().answers == ()
    assert "open the link of your invitation" in client.get("/").text


def test_an_answer_that_could_not_be_kept_is_not_acknowledged(
    client: TestClient, link: str, store: AnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(client, link)

    def full(*_: object) -> None:
        raise InfrastructureError("the answers cannot be read or kept: database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(store, "record", full)
        answered = client.post(f"{link}/tasks/1", data=form())
    assert answered.status_code == 503
    assert "send it again" in answered.text
    assert client.post(f"{link}/tasks/1", data=form()).status_code == 303
