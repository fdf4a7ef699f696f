"""Pages of a participant: consent, tasks, the end. The invitation's token in the address is who one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from eval.study.answers import Participant
from eval.study.design import Task, check_answer, tasks_of
from eval.study.records import Study
from m4v.core.errors import InputError, NeedsHuman
from pipelines.web.app.csrf import read_form
from pipelines.web.study.site import SiteDep, StudySite, page

router = APIRouter()
LETTERS = "ABCDEFGHI"


@dataclass(frozen=True)
class _Visit:
    """A participant with an open invitation, their tasks, and what they said so far."""

    participant: Participant
    token: str
    tasks: tuple[Task, ...]
    said: Mapping[str, Mapping[str, tuple[int, ...]]]

    @property
    def done(self) -> int:
        return len(self.said)

    @property
    def next_number(self) -> int | None:
        """Of the first task without an answer, from 1; None when there is none."""
        return next((n for n, task in enumerate(self.tasks, 1) if task.id not in self.said), None)

    def address(self, number: int | None) -> str:
        return f"/s/{self.token}/done" if number is None else f"/s/{self.token}/tasks/{number}"


def _visit(site: StudySite, token: str) -> _Visit:
    participant = site.store.by_token(token)
    if participant is None:
        raise InputError("This invitation is not known: please use the whole link that was sent to you")
    if participant.revoked:
        raise NeedsHuman("This invitation has been withdrawn; thank you all the same")
    return _Visit(participant, token, tasks_of(site.study, participant.id), site.store.answered(participant))


def _own_form(request: Request) -> None:
    """Browsers say where a form comes from; another site's is refused."""
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise NeedsHuman("The form was sent from another site")


@router.get("/")
def welcome(request: Request) -> HTMLResponse:
    words = "To take part, please open the link of your invitation."
    return page(request, "message", heading=request.app.title, words=words)


@router.get("/s/{token}")
def start(request: Request, token: str, site: SiteDep) -> Response:
    """Where an invitation leads: consent first, then wherever one stopped."""
    visit = _visit(site, token)
    if visit.participant.consented and visit.done:
        return _to(visit.address(visit.next_number))
    return page(request, "start", visit=visit)


@router.post("/s/{token}/consent")
def consent(request: Request, token: str, site: SiteDep) -> Response:
    _own_form(request)
    visit = _visit(site, token)
    site.store.consent(visit.participant)
    return _to(visit.address(visit.next_number))


@router.get("/s/{token}/tasks/{number}")
def task(request: Request, token: str, number: int, site: SiteDep) -> Response:
    """Tasks that were answered can be looked at and changed; those behind the next one cannot be reached yet."""
    visit = _visit(site, token)
    if not visit.participant.consented:
        return _to(f"/s/{token}")
    if not 1 <= number <= (visit.next_number or len(visit.tasks)):
        return _to(visit.address(visit.next_number))
    found = visit.tasks[number - 1]
    return _task_page(request, site.study, visit, number, visit.said.get(found.id, {}))


@router.post("/s/{token}/tasks/{number}")
async def answer(request: Request, token: str, number: int, site: SiteDep) -> Response:
    """The redirect to the next task is sent once the answer is on disk."""
    _own_form(request)
    form = await read_form(request)
    return await run_in_threadpool(_answer, request, token, number, site, form)


def _answer(request: Request, token: str, number: int, site: StudySite, form: Mapping[str, str]) -> Response:
    visit = _visit(site, token)
    if not visit.participant.consented:
        return _to(f"/s/{token}")
    if not 1 <= number <= len(visit.tasks):
        raise InputError("There is no such task")
    found = visit.tasks[number - 1]
    given = _given(site.study, found, form)
    try:
        said = check_answer(site.study, found, {key: [v for v in values if v >= 0] for key, values in given.items()})
    except InputError as error:
        return _task_page(request, site.study, visit, number, given, status=422, fault=error.what)
    site.store.record(visit.participant, found, said)
    later = next((n for n, t in enumerate(visit.tasks, 1) if n > number and t.id not in visit.said), None)
    missing = (n for n, t in enumerate(visit.tasks, 1) if n != number and t.id not in visit.said)
    return _to(visit.address(later or next(missing, None)))


def _given(study: Study, found: Task, form: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """What the form holds, -1 where a choice is missing or no number."""

    def number(name: str) -> int:
        text = form.get(name, "")
        return int(text) if text.isdecimal() and len(text) == 1 else -1

    places = len(found.shown) if study.mode == "rank" else 1
    return {c.key: tuple(number(f"{c.key}.{place}") for place in range(places)) for c in study.criteria}


def _task_page(
    request: Request,
    study: Study,
    visit: _Visit,
    number: int,
    given: Mapping[str, Sequence[int]],
    *,
    status: int = 200,
    fault: str = "",
) -> HTMLResponse:
    found = visit.tasks[number - 1]
    prompt = study.prompts[found.prompt]
    addresses = [f"/s/{visit.token}/{prompt.videos[name]}" for name in found.shown]
    return page(
        request, "task", status, visit=visit, number=number, prompt=prompt.text, videos=addresses, given=given,
        fault=fault, letters=LETTERS,
    )  # fmt: skip


@router.get("/s/{token}/done")
def done(request: Request, token: str, site: SiteDep) -> Response:
    visit = _visit(site, token)
    if visit.next_number is not None:
        return _to(f"/s/{token}")
    return page(request, "done", visit=visit)


@router.get("/s/{token}/media/{name}")
def media(token: str, name: str, site: SiteDep) -> FileResponse:
    """A video, in parts where a player asks so; only for those who are invited, and only the study's."""
    _visit(site, token)
    file = f"media/{name}"
    if not any(file in prompt.videos.values() for prompt in site.study.prompts):
        raise InputError("There is no such video")
    return FileResponse(
        site.media(file), media_type="video/mp4", headers={"cache-control": "private, max-age=86400, immutable"}
    )


def _to(address: str) -> RedirectResponse:
    return RedirectResponse(address, 303, headers={"cache-control": "no-store"})
