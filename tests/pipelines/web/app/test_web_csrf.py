"""Form tokens: only a form of our own page, of the same cookie and the same actor, is taken."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from m4v.core.errors import InputError
from pipelines.access import AccessConfig, Actor, Role
from pipelines.web.app.csrf import COOKIE, FIELD, MAX_FORM_BYTES, ForeignForm, FormGuard, read_form

OWN = {"origin": "http://testserver"}
ACCESS = AccessConfig(trusted_proxies=("10.0.0.1",))


@pytest.fixture
def client() -> TestClient:
    app, guard = FastAPI(), FormGuard(ACCESS)

    def actor(request: Request) -> Actor:
        return Actor(request.headers.get("x-user", "ann"), Role.OPERATOR)

    @app.get("/form")
    def form(request: Request, response: Response) -> dict[str, str]:
        token = guard.token(request, actor(request))
        assert guard.token(request, actor(request)) == token  # several forms of a page share it
        guard.keep(request, response)
        return {"token": token}

    @app.post("/act")
    async def act(request: Request) -> dict[str, str]:
        try:
            sent = await read_form(request)
            guard.check(request, sent, actor(request))
        except (ForeignForm, InputError) as error:
            return {"refused": error.what}
        return {"done": sent["what"]}

    return TestClient(app, client=("10.0.0.2", 4000))


def _act(client: TestClient, token: str, headers: dict[str, str] = OWN, **more: Any) -> dict[str, str]:
    answer: dict[str, str] = client.post("/act", data={FIELD: token, "what": "it"}, headers=headers, **more).json()
    return answer


def test_a_form_of_our_own_page_is_taken(client: TestClient) -> None:
    answer = client.get("/form")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert "secure" not in cookie.lower()
    assert _act(client, answer.json()["token"]) == {"done": "it"}
    again = client.get("/form")
    assert "set-cookie" not in again.headers
    assert again.json() == answer.json()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "null"},
        {"origin": "https://evil.example"},
        {"origin": "http://testserver.evil.example"},
        {"origin": "http://testserver:8080"},
        {"origin": "http://evil.example", "x-forwarded-host": "evil.example"},  # not from a trusted proxy
        {**OWN, "sec-fetch-site": "cross-site"},
        {**OWN, "sec-fetch-site": "same-site"},
    ],
)
def test_a_form_of_another_site_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    token = client.get("/form").json()["token"]
    assert _act(client, token, headers) == {"refused": "the form was sent from another site"}


def test_a_wrong_token_or_cookie_is_refused(client: TestClient) -> None:
    refused = {"refused": "the form's token does not belong to you or is too old"}
    assert _act(client, "0" * 64) == refused  # no cookie yet
    token = client.get("/form").json()["token"]
    assert _act(client, "") == refused
    assert _act(client, token[:-1] + ("0" if token[-1] != "0" else "1")) == refused
    assert _act(client, token, {**OWN, "x-user": "bob"}) == refused  # another actor
    client.cookies.clear()
    client.cookies.set(COOKIE, "planted" * 8)
    assert _act(client, token) == refused


def test_behind_a_proxy_the_public_name_counts() -> None:
    guard, app = FormGuard(ACCESS), FastAPI()

    @app.get("/form")
    def form(request: Request, response: Response) -> dict[str, str]:
        token = guard.token(request, Actor("ann", Role.VIEWER))
        guard.keep(request, response)
        return {"token": token}

    @app.post("/act")
    async def act(request: Request) -> dict[str, str]:
        guard.check(request, await read_form(request), Actor("ann", Role.VIEWER))
        return {}

    client = TestClient(app, client=("10.0.0.1", 4000))
    public = {"x-forwarded-host": "m4v.example", "x-forwarded-proto": "https"}
    answer = client.get("/form", headers=public)
    assert "secure" in answer.headers["set-cookie"].lower()
    seed = {"cookie": answer.headers["set-cookie"].split(";")[0]}
    sent = client.post(
        "/act",
        data={FIELD: answer.json()["token"]},
        headers={**public, **seed, "origin": "https://m4v.example"},
    )
    assert sent.status_code == 200


def test_only_small_forms_are_read(client: TestClient) -> None:
    assert client.post("/act", json={"a": 1}, headers=OWN).json() == {"refused": "this is no form"}
    large = client.post("/act", data={"a": "x" * MAX_FORM_BYTES}, headers=OWN)
    assert large.json() == {"refused": "the form is too large"}
    broken = client.post(
        "/act", content=b"a=%ff\xff", headers={**OWN, "content-type": "application/x-www-form-urlencoded"}
    )
    assert broken.json() == {"refused": "the form cannot be read"}
