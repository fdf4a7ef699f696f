"""The study in a real browser: scripted participants of known truth, one of whom closes the browser half-way; keys,
phone, accessibility, and nothing asked of elsewhere."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from browser_pages import OVERFLOWING, PATIENCE_MS
from playwright.sync_api import Browser, BrowserContext, Page

sys.path.insert(0, str(Path(__file__).parents[1] / "eval"))

from study_house import SYSTEMS, StudyHouse, house, study_of, truthful

from eval.study.answers import AnswerStore
from eval.study.config import ResultsConfig
from eval.study.design import participant_id, tasks_of
from eval.study.records import Study
from eval.study.results import compute
from pipelines.web.study import create_study_app

ORDERS = {"aesthetic": SYSTEMS, "motion": tuple(reversed(SYSTEMS)), "semantic": (*SYSTEMS[2:], *SYSTEMS[:2])}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}


@contextmanager
def serving(found: StudyHouse, database: Path) -> Iterator[tuple[str, AnswerStore]]:
    """A server in a thread; the store it gives is for looking, with a connection of its own."""
    with socket.socket() as listening, AnswerStore(database, "s" * 64) as looking:
        listening.bind(("127.0.0.1", 0))
        app = create_study_app(found.study, found.media, AnswerStore(database, "s" * 64))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", looking
        finally:
            server.should_exit = True
            thread.join(10)


class Person:
    """A scripted participant with a browser of their own."""

    def __init__(self, browser: Browser, address: str, token: str, name: str, study: Study, **window: object) -> None:
        self._browser, self.address, self.window = browser, address, window
        self.link, self.study = f"{address}/s/{token}", study
        self.tasks = tasks_of(study, name)
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.context, self.page = self._begin()

    def _begin(self) -> tuple[BrowserContext, Page]:
        context = self._browser.new_context(**self.window)  # type: ignore[arg-type]
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(self.address) else self.elsewhere.append(r.url))
        return context, page

    def again(self) -> None:
        """Close the browser with all it remembers, and open the link in a new one."""
        self.context.close()
        self.context, self.page = self._begin()
        self.page.goto(self.link)

    def start(self) -> None:
        self.page.goto(self.link)
        self.page.get_by_role("checkbox").check()
        self.page.get_by_role("button", name="Start").click()
        self.page.wait_for_url("**/tasks/1")

    @property
    def number(self) -> int:
        return int(self.page.url.rsplit("/", 1)[1])

    def answer(self, *, keys: bool = False) -> None:
        """Say the truth about the task that is shown, by mouse or by keys, and go on."""
        task = self.tasks[self.number - 1]
        said = truthful(self.study, task, ORDERS)
        before = self.page.url
        if keys:
            for place in range(len(task.shown) if self.study.mode == "rank" else 1):
                for criterion in self.study.criteria:
                    self.page.keyboard.press(str(said[criterion.key][place]))
            self.page.keyboard.press("Enter")
        else:
            for key, values in said.items():
                for place, value in enumerate(values):
                    self.page.locator(f'input[name="{key}.{place}"][value="{value}"]').check()
            self.page.get_by_role("button", name="Save and go on").click()
        self.page.wait_for_url(lambda url: url != before)

    def finish(self, **how: bool) -> None:
        while not self.page.url.endswith("/done"):
            self.answer(**how)


def take_part(browser: Browser, folder: Path, study: Study, people: int) -> None:
    """People of one mind take part, by turns on desktop and phone; the second leaves half-way and comes back."""
    with serving(house(folder / "study", study, frames=3), folder / "answers.db") as (address, store):
        invited = store.invite(people)
        for number, (participant, token) in enumerate(invited):
            window = PHONE if number % 2 else DESKTOP
            person = Person(browser, address, token, participant.id, study, **window)
            person.start()
            if number == 1:
                half = len(person.tasks) // 2
                for _ in range(half):
                    person.answer()
                person.again()
                assert person.number == half + 1
            person.finish(keys=number % 2 == 0)
            assert f"All {len(person.tasks)} of your answers are saved" in person.page.inner_text("main")
            assert (person.complaints, person.elsewhere) == ([], [])
            person.context.close()
        snapshot = store.snapshot()
    results = compute(study, snapshot, ResultsConfig(answers="a" * 64, resamples=100))
    assert (results.participants, results.complete, results.excluded) == (people, people, ())
    assert len(snapshot.answers) == people * len(tasks_of(study, participant_id(1)))
    for criterion in results.criteria:
        truth = ORDERS[criterion.criterion]
        ordered = sorted(criterion.systems, key=lambda s: -s.strength)
        assert tuple(s.system for s in ordered) == truth
        assert [s.win_rate for s in ordered] == [1.0, 0.75, 0.5, 0.25, 0.0]
        if study.mode == "rank":
            assert [s.mean_rank for s in ordered] == [1, 2, 3, 4, 5]


def test_participants_of_known_truth(browser: Browser, tmp_path: Path) -> None:
    take_part(browser, tmp_path, study_of(prompts=2, criteria=1), people=3)


@pytest.mark.deep
@pytest.mark.parametrize("mode", ["rank", "pairwise"])
def test_twenty_participants_of_known_truth(browser: Browser, tmp_path: Path, mode: str) -> None:
    take_part(browser, tmp_path, study_of(prompts=6 if mode == "rank" else 1, mode=mode), people=20)


@pytest.mark.parametrize("mode", ["rank", pytest.param("pairwise", marks=pytest.mark.deep)])
def test_no_page_has_a_grave_fault(browser: Browser, tmp_path: Path, mode: str) -> None:
    study = study_of(prompts=2, criteria=3, mode=mode, tasks=1, ties=mode == "pairwise")
    with serving(house(tmp_path / "study", study, frames=3), tmp_path / "answers.db") as (address, store):
        person = Person(browser, address, store.invite(1)[0][1], "p001", study, **DESKTOP)
        person.context.add_init_script(Axe().axe_script)
        faults = look_at(person, f"{address}/", person.link)
        person.start()
        faults += look_at(person, person.page.url)
        person.page.keyboard.press("Enter")  # nothing is chosen: it says so and stays
        assert "choices are missing" in person.page.get_by_role("alert").inner_text()
        person.answer()
        faults += look_at(person, person.page.url)
        assert faults == []
        assert (person.complaints, person.elsewhere) == ([], [])
        person.context.close()


def look_at(person: Person, *addresses: str) -> list[str]:
    """Grave faults by axe-core in light and dark, and what is wider than a wide and a narrow window."""
    faults: list[str] = []
    for address in addresses or ("",):
        page = person.page
        if address:
            page.goto(address)
        for scheme in ("light", "dark") if "/tasks/" in page.url else ("light",):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            found = page.evaluate("axe.run({resultTypes: ['violations']}).then(found => found.violations)")
            grave = [f for f in found if f["impact"] in ("serious", "critical")]
            faults += [f"{page.url} {scheme} {f['id']}: {n['target']}" for f in grave for n in f["nodes"]]
        for width in (1280, 390, 320):
            page.set_viewport_size({"width": width, "height": 800})
            if page.evaluate("document.documentElement.scrollWidth") > width:
                faults.append(f"{page.url} is wider than {width}: {page.evaluate(OVERFLOWING)}")
        page.set_viewport_size({"width": 1280, "height": 900})
    return faults


def test_ranks_move_keys_pause_and_unsent_choices_stay(browser: Browser, tmp_path: Path) -> None:
    study = study_of(prompts=2, criteria=1)
    with serving(house(tmp_path / "study", study, frames=3), tmp_path / "answers.db") as (address, store):
        person = Person(browser, address, store.invite(1)[0][1], "p001", study, **DESKTOP)
        person.start()
        page = person.page
        for key in "121":  # the last takes rank 1 away from the first video
            page.keyboard.press(key)
        chosen = page.locator("input:checked")
        assert [(i.get_attribute("name"), i.get_attribute("value")) for i in chosen.all()] == [
            ("aesthetic.1", "2"), ("aesthetic.2", "1"),
        ]  # fmt: skip
        page.keyboard.press("p")
        assert page.get_by_role("button", name="Play").is_visible()
        page.goto(person.link.replace("/s/", "/nowhere/"))
        page.goto(f"{person.link}/tasks/1")
        assert chosen.count() == 2
        person.answer()
        page.get_by_role("link", name="Back").click()
        assert chosen.count() == 5
        assert len(store.snapshot().answers) == 1
        person.context.close()
