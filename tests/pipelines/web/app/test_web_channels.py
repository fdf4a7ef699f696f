"""Pages of channels: history, promotion behind gates and approvals, roles, foreign forms, a server that only reads."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx import Response

sys.path.insert(0, str(Path(__file__).parents[2] / "inspection"))
from evaluated_home import EvaluatedHome

from pipelines.ledger import Ledger
from pipelines.web.app import create_app
from pipelines.workspace import Workspace

SETTINGS = """
access:
  user_header: X-User
  roles: {ann: operator, bob: approver, cyd: approver}
  trusted_proxies: [127.0.0.1]
channels:
  production: {approvals: 1}
"""
REFUSAL = "motion is too weak"


class Server:
    """A home with a checkpoint that passed its gate and one that did not, and visitors to its page."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.home.mkdir()
        (self.home / "settings.yaml").write_text(SETTINGS)
        with Ledger.open(f"sqlite:///{self.home / 'ledger.db'}") as ledger:
            made = EvaluatedHome(root, ledger)
            self.good = made.judged([0.9] * 6, True)
            self.better = made.judged([0.95] * 6, True)
            self.bad = made.judged([0.1] * 6, False, [REFUSAL])

    def visitor(self, name: str | None = None, *, peer: str = "127.0.0.1", read_only: bool = False) -> TestClient:
        app = create_app(Workspace.open(self.home), read_only=read_only)
        headers = {"origin": "http://testserver"} | ({"x-user": name} if name else {})
        return TestClient(app, client=(peer, 4000), headers=headers)

    def ledger(self) -> Ledger:
        return Ledger.open(f"sqlite:///{self.home / 'ledger.db'}")


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def token(client: TestClient, page: str = "/channels") -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', client.get(page).text)
    return found.group(1) if found else ""


def send(client: TestClient, address: str, form_token: str, **fields: str) -> Response:
    return client.post(address, data={"form_token": form_token, **fields})


def promote(client: TestClient, checkpoint: str, channel: str = "staging", **fields: str) -> Response:
    return send(client, "/channels", token(client), channel=channel, checkpoint=checkpoint, **fields)


def test_an_operator_promotes_and_rolls_back_what_passed_its_gate(server: Server) -> None:
    ann = server.visitor("ann")
    assert "There is no channel yet" not in ann.get("/channels").text  # production stands in the settings
    answer = promote(ann, server.good, reason="first <b>one</b>")
    assert (answer.status_code, answer.url.path) == (200, "/channels/staging")
    assert "The channel names the checkpoint now." in answer.text
    assert "first &lt;b&gt;one&lt;/b&gt;" in answer.text
    page = "/channels/staging"
    assert (
        send(ann, f"{page}/promote", token(ann, page), checkpoint=server.better, expect=server.good).status_code == 200
    )
    back = send(ann, f"{page}/rollback", token(ann, page), to="1", expect=server.better)
    assert "The channel names the earlier checkpoint again." in back.text
    with server.ledger() as ledger:
        history = ledger.channel_history("staging")
        assert [(row.seq, row.artifact_id, row.moved_by) for row in history] == [
            (3, server.good, "ann"), (2, server.better, "ann"), (1, server.good, "ann"),
        ]  # fmt: skip
        assert ledger.verify_chain().ok


def test_a_gate_refuses_and_only_an_approver_may_pass_over_it(server: Server) -> None:
    ann, bob = server.visitor("ann"), server.visitor("bob")
    refused = promote(ann, server.bad)
    assert refused.status_code == 409
    assert REFUSAL in refused.text
    assert promote(ann, server.bad, override="I know better").status_code == 403
    assert 'name="override"' not in ann.get("/channels/production").text
    taken = promote(bob, server.bad, override="for a demonstration")
    assert taken.status_code == 200
    assert "past the gate" in taken.text
    with server.ledger() as ledger:
        assert [row.facts["override"] for row in ledger.channel_history("staging")] == ["for a demonstration"]


def test_a_channel_that_takes_approvals_waits_for_another_person(server: Server) -> None:
    ann, bob = server.visitor("ann"), server.visitor("bob")
    assert "waits for approval" in promote(ann, server.good, "production").text
    with server.ledger() as ledger:
        request = ledger.promotion_requests()[0].request_id
        assert ledger.channel("production") is None
    approve = f"/promotions/{request}/approve"
    page = ann.get("/channels/production").text
    assert "Withdraw" in page
    assert "Approve" not in page
    assert send(ann, approve, token(ann)).status_code == 403
    assert "Approve" in bob.get("/channels").text
    done = send(bob, approve, token(bob), comment="looks right")
    assert "Your approval is recorded." in done.text
    assert "approved by bob" in done.text
    with server.ledger() as ledger:
        entry = ledger.channel("production")
        assert entry is not None
        assert (entry.artifact_id, entry.moved_by, entry.facts["approved_by"]) == (server.good, "ann", ["bob"])
    again = send(server.visitor("cyd"), approve, "")
    assert again.status_code == 403  # a token of nobody's


def test_a_request_is_declined(server: Server) -> None:
    ann, bob = server.visitor("ann"), server.visitor("bob")
    promote(ann, server.good, "production")
    with server.ledger() as ledger:
        request = ledger.promotion_requests()[0].request_id
    page = send(bob, f"/promotions/{request}/decline", token(bob), comment="not today")
    assert "The request is closed." in page.text
    assert "not today" in page.text
    with server.ledger() as ledger:
        assert ledger.promotion_requests()[0].status == "declined"
        assert ledger.channel("production") is None


def test_who_was_overtaken_is_told(server: Server) -> None:
    ann = server.visitor("ann")
    promote(ann, server.good)
    stale = token(ann, "/channels/staging")
    promote(ann, server.better)
    late = send(ann, "/channels/staging/promote", stale, checkpoint=server.good, expect=server.good)
    assert late.status_code == 409
    assert "names another artifact" in late.text
    with server.ledger() as ledger:
        assert [row.artifact_id for row in ledger.channel_history("staging")] == [server.better, server.good]


@pytest.mark.parametrize("visit", [{}, {"name": "stranger"}, {"name": "ann", "peer": "10.0.0.9"}])
def test_viewers_see_no_forms_and_move_nothing(server: Server, visit: dict[str, str]) -> None:
    viewer = server.visitor(**visit)
    page = viewer.get("/channels/production")
    assert page.status_code == 200
    assert '<form method="post"' not in page.text
    assert promote(viewer, server.good).status_code == 403
    with server.ledger() as ledger:
        assert ledger.channel_history() == []


def test_forms_of_other_sites_move_nothing(server: Server) -> None:
    ann = server.visitor("ann")
    form = {"form_token": token(ann), "channel": "staging", "checkpoint": server.good}
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        assert ann.post("/channels", data=form, headers=headers).status_code == 403
    assert ann.post("/channels", data={**form, "form_token": "0" * 64}).status_code == 403
    assert ann.post("/channels", json=form).status_code == 404
    assert ann.get(f"/channels/staging/promote?checkpoint={server.good}").status_code in (404, 405)
    with server.ledger() as ledger:
        assert ledger.channel_history() == []
    assert ann.post("/channels", data=form).status_code == 200  # the very form, sent by our own page


def test_a_server_that_only_reads_hides_and_refuses_actions(server: Server) -> None:
    ann, reader = server.visitor("ann"), server.visitor("ann", read_only=True)
    page = reader.get("/channels/production").text
    assert '<form method="post"' not in page
    assert "This server only reads" in page
    refused = send(reader, "/channels", token(ann), channel="staging", checkpoint=server.good)
    assert refused.status_code == 403
    assert "this server only reads" in refused.text
    with server.ledger() as ledger:
        assert ledger.channel_history() == []


def test_an_unknown_channel_is_no_page(server: Server) -> None:
    assert server.visitor("ann").get("/channels/nowhere").status_code == 404
