"""Pins and garbage collection by forms: only the right role, only what was shown, and only when it was confirmed."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from served_home import ServedHome, build

from m4v.core.errors import InfrastructureError, InputError
from pipelines.access import Actor, Role
from pipelines.ledger import Ledger
from pipelines.web.app import create_app
from pipelines.web.app.tasks import Outcome, Tasks, Tell
from pipelines.workspace import Workspace

SETTINGS = """
access:
  user_header: X-User
  roles: {ann: operator, bob: approver, cyd: admin}
retention: {runs: 0, grace_hours: 0}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ServedHome:
    """Retention lets everything go that no run in flight needs."""
    served = build(tmp_path_factory.mktemp("acting") / "home")
    (served.workspace.home / "settings.yaml").write_text(SETTINGS)
    return served


def visitor(home: ServedHome, name: str = "", *, read_only: bool = False) -> TestClient:
    app = create_app(Workspace.open(home.workspace.home), read_only=read_only)
    headers = {"origin": "http://testserver"} | ({"x-user": name} if name else {})
    return TestClient(app, client=("127.0.0.1", 4000), headers=headers)


def hidden(page: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    return found.group(1) if found else ""


def send(client: TestClient, page: str, address: str, **fields: str) -> Response:
    """The form of a page, as the browser sends it."""
    text = client.get(page).text
    given = {name: hidden(text, name) for name in ("form_token", "expect") if hidden(text, name)}
    return client.post(address, data={**given, **fields})


def pins(home: ServedHome, artifact: str) -> list[tuple[str, str]]:
    with Ledger.open(home.workspace.ledger_url) as ledger:
        return [(pin.pinned_by, pin.reason) for pin in ledger.pins(artifact)]


def test_an_operator_pins_and_releases(home: ServedHome) -> None:
    artifact = home.artifact("encode")
    page = f"/artifacts/{artifact}"
    anybody, ann, reader = visitor(home), visitor(home, "ann"), visitor(home, "ann", read_only=True)
    assert f'action="{page}/pin"' not in anybody.get(page).text + reader.get(page).text
    for client in (anybody, reader):
        assert send(client, "/channels", f"{page}/pin", reason="no").status_code == 403
    assert ann.post(f"{page}/pin", data={"reason": "no token"}).status_code == 403
    assert pins(home, artifact) == []
    done = send(ann, page, f"{page}/pin", reason="for the <paper>")
    assert "The artifact is pinned now." in done.text
    assert "for the &lt;paper&gt;" in done.text
    assert pins(home, artifact) == [("ann", "for the <paper>")]
    assert ">pinned</td>" in ann.get("/artifacts").text
    assert "Its pins are released." in send(ann, page, f"{page}/unpin").text
    assert pins(home, artifact) == []
    assert "the artifact is not pinned" in send(ann, page, f"{page}/unpin").text


def test_garbage_collection_deletes_just_what_was_shown(home: ServedHome) -> None:
    kept, gone = home.artifact("train.57f"), home.artifact("report")
    with Ledger.open(home.workspace.ledger_url) as ledger:
        ledger.pin(kept, by="ann", reason="the best so far")
    bob, cyd = visitor(home, "bob"), visitor(home, "cyd")
    shown = cyd.get("/gc").text
    doomed = shown.partition('id="kept"')[0]
    assert gone[:10] in doomed
    assert kept[:10] not in doomed
    assert "pinned by ann: the best so far" in shown
    assert 'method="post"' not in bob.get("/gc").text
    assert send(bob, "/channels", "/gc", confirm="yes").status_code == 403
    unconfirmed = send(cyd, "/gc", "/gc")
    assert (unconfirmed.status_code, "it was not confirmed" in unconfirmed.text) == (400, True)
    stale = send(cyd, "/gc", "/gc", confirm="yes", expect="0" * 64)
    assert (stale.status_code, "has changed since you looked" in stale.text) == (409, True)
    with Ledger.open(home.workspace.ledger_url) as ledger:
        assert ledger.artifact(gone).deletion is None
    done = send(cyd, "/gc", "/gc", confirm="yes")
    assert done.url.path.startswith("/tasks/")
    task = done.url.path.removeprefix("/tasks/")
    for _ in range(6000):
        if cyd.get(f"/tasks/{task}").text.count("Deleted"):
            break
        cyd.app.state.site.tasks.get(task).wait(0.1)  # type: ignore[attr-defined]
    assert re.search(r"Deleted \d+ artifacts of .* and \d+ leftovers", cyd.get(f"/tasks/{task}").text)
    with Ledger.open(home.workspace.ledger_url) as ledger:
        row = ledger.artifact(gone)
        assert row.deletion == "done"
        assert not Path(row.uri).exists()
        assert ledger.artifact(kept).deletion is None
        assert ledger.verify_chain().ok
    assert cyd.get("/tasks/nosuch").status_code == 404
    assert cyd.get("/gc?kind=nosuch").status_code == 400


def test_work_is_followed_and_begun_once() -> None:
    tasks, ann, go = Tasks(), Actor("ann", Role.ADMIN), threading.Event()

    def work(tell: Tell) -> Outcome:
        tell("half of it")
        assert go.wait(300)
        return Outcome("All of it.", "/gc")

    task = tasks.begin("cleaning", ann, work)
    with pytest.raises(InfrastructureError, match="begun by ann"):
        tasks.begin("cleaning", ann, work)
    assert (task.state, task.outcome) == ("running", None)
    go.set()
    assert task.wait(300)
    assert (task.state, task.outcome, task.lines) == ("succeeded", Outcome("All of it.", "/gc"), ["half of it"])

    def refuse(_: Tell) -> Outcome:
        raise InputError("nothing fits", value="x")

    failed = tasks.begin("cleaning", ann, refuse)
    assert failed.wait(300)
    assert failed.state == "failed"
    assert "nothing fits" in str(failed.error)
    assert tasks.get(task.task_id) is task
