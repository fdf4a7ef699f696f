"""Pages of clips, exposure, takedowns, plans, curation and evaluation over a home that ran, without a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from reviewed_home import ASKED, TAKEN, ReviewedHome

from m4v.core.canonical import digest_json
from pipelines.inspection import curated
from pipelines.ledger import Ledger
from pipelines.membership import ClipFacts, parse_selector
from pipelines.takedown.verify import verify_receipt
from pipelines.web.app import create_app
from pipelines.workspace import Workspace

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def client(reviewed: ReviewedHome) -> Iterator[TestClient]:
    with TestClient(create_app(Workspace.open(reviewed.home))) as found:
        yield found


@pytest.fixture(scope="module")
def ledger(reviewed: ReviewedHome) -> Iterator[Ledger]:
    with Ledger.open(f"sqlite:///{reviewed.home / 'ledger.db'}") as found:
        yield found


def facts(ledger: Ledger, term: str) -> ClipFacts:
    return ledger.find_clips(parse_selector([f"source:{term}"]))[0]


def found_clips(page: str) -> set[str]:
    return set(re.findall(r'href="/clips/([0-9a-f]{32})"', page))


def test_a_clip_is_found_by_every_name_it_has(client: TestClient, ledger: Ledger) -> None:
    clip = facts(ledger, ASKED)
    for given in (
        {"q": clip.clip_id[:8]}, {"q": clip.clip_id, "by": "clip"}, {"q": ASKED}, {"q": clip.source_digests[0]},
        {"q": f"sha256:{clip.source_digests[0]}"}, {"q": clip.phash}, {"q": f"  {ASKED} ", "by": "source"},
    ):  # fmt: skip
        assert clip.clip_id in found_clips(client.get("/clips", params=given).text), given
    assert len(found_clips(client.get("/clips?q=shapes").text)) == 12


def test_a_clip_is_found_by_words_of_its_caption(client: TestClient) -> None:
    page = client.get("/clips", params={"q": "Circle RED moves", "by": "words"}).text
    assert len(found_clips(page)) == 2  # three before one of them was taken down
    assert "a red circle moves" in page
    assert found_clips(client.get("/clips?q=red+circle+moves").text) == found_clips(page)
    assert "No clip fits" in client.get("/clips?q=zebra&by=words").text


def test_what_finds_nothing_is_told(client: TestClient) -> None:
    page = client.get("/clips", params={"q": HOSTILE})
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;" in page.text
    assert "clip id is not" in client.get("/clips?q=xyz&by=clip").text
    assert client.get("/impact?q=nosuchsource").status_code == 404
    assert client.get("/clips/ffffffff").status_code == 404
    assert client.get("/clips?by=nonsense").status_code == 422


def test_the_search_field_finds_clips_and_cases_by_id(client: TestClient, reviewed: ReviewedHome) -> None:
    for given, address in (
        (reviewed.clip, f"/clips/{reviewed.clip}"), (reviewed.clip[:9].upper(), f"/clips/{reviewed.clip}"),
        (reviewed.takedown, f"/takedowns/{reviewed.takedown}"), (reviewed.first, f"/runs/{reviewed.first}"),
        (reviewed.checkpoint[:12], f"/artifacts/{reviewed.checkpoint}"),
    ):  # fmt: skip
        assert client.get("/find", params={"id": given}).url.path == address
    assert client.get("/find?id=nothing-of-the-sort").status_code == 404


def test_media_of_a_clip_come_by_range(client: TestClient, reviewed: ReviewedHome, ledger: Ledger) -> None:
    workspace = Workspace.open(reviewed.home)
    clip = curated.curated_clip(curated.clip_tables(ledger, workspace.cache), reviewed.clip)
    assert clip is not None
    data = curated.media_file(ledger, clip, workspace.cache).read_bytes()
    address = f"/clips/{reviewed.clip}/media"
    whole = client.get(address)
    assert (whole.status_code, whole.headers["content-type"], whole.content) == (200, "video/mp4", data)
    part = client.get(address, headers={"range": "bytes=100-299"})
    assert part.status_code == 206
    assert part.headers["content-range"] == f"bytes 100-299/{len(data)}"
    assert part.content == data[100:300]
    street = ledger.find_clips(parse_selector(["source:street"]))[0].clip_id  # its file lies outside of the store
    assert client.get(f"/clips/{street}/media", headers={"range": "bytes=0-3"}).status_code == 206


def test_a_clip_that_was_taken_down_is_not_shown(client: TestClient, ledger: Ledger) -> None:
    taken = facts(ledger, TAKEN)
    page = client.get(f"/clips/{taken.clip_id}")
    assert page.status_code == 200
    assert "taken down" in page.text
    assert "<video" not in page.text
    assert client.get(f"/clips/{taken.clip_id}/media").status_code == 404
    withdrawn = next(w for w in ledger.withdrawals() if w.kind == "clips")
    table = client.get(f"/curation/{withdrawn.artifact_id}").text
    assert "its clips are not shown" in table
    assert "circle" not in table


def test_exposure_goes_through_all_clips_page_by_page(
    client: TestClient, reviewed: ReviewedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.web.app.pages.exposure.CLIPS", 7)
    address, seen, pages = f"/exposure/{reviewed.checkpoint}", [], 0
    while address:
        page = client.get(address).text
        seen += re.findall(r'<th scope="row"><a class="id" href="/clips/([0-9a-f]{32})"', page)
        pages += 1
        following = re.search(r'href="([^"]+)">Next clips', page)
        address = following.group(1).replace("&amp;", "&") if following else ""
    assert pages == 3
    assert seen == sorted(set(seen))
    assert len(seen) == 17
    one = client.get(f"/exposure/{reviewed.checkpoint}?q={reviewed.clip}").text
    assert len(found_clips(one)) == 1


def test_an_untrained_checkpoint_has_seen_nothing(client: TestClient, ledger: Ledger) -> None:
    init = ledger.runs(stage="init", limit=1)[0].outputs[0].artifact_id
    assert "it consumed nothing" in client.get(f"/exposure/{init}").text


def test_the_receipt_that_is_handed_out_verifies(client: TestClient, reviewed: ReviewedHome, ledger: Ledger) -> None:
    answer = client.get(f"/takedowns/{reviewed.takedown}/receipt.json")
    assert answer.headers["content-disposition"] == f'attachment; filename="takedown-{reviewed.takedown}.json"'
    receipt = json.loads(answer.content)
    assert digest_json({k: v for k, v in receipt.items() if k != "digest"}) == receipt["digest"]
    checks = verify_receipt(ledger, Workspace.open(reviewed.home), receipt)
    assert [check for check in checks if not check.ok] == []
    assert receipt["digest"] in client.get(f"/takedowns/{reviewed.takedown}/receipt.md").text
    assert client.get("/takedowns/nothing").status_code == 404


def test_a_plan_names_what_is_missing_and_what_training_will_take(client: TestClient) -> None:
    page = client.get("/plan?recipe=m4v-768p").text
    assert "sources.openvid.location=DIRECTORY" in page
    assert '<span class="state failed">missing</span>' in page
    assert "8 × h100-80gb, ZeRO-3" in page
    assert "h200: " in page.partition("Videos to sample and to judge")[2]
    assert "more than 160 A100-hours" in page
    assert "of 16 dimensions can be measured on this machine" in page
    assert "https://huggingface.co/OpenGVLab/VBench_Used_Models" in page


def test_a_plan_says_why_and_takes_no_paths(client: TestClient, reviewed: ReviewedHome) -> None:
    page = client.get(f"/plan?run={reviewed.first}").text
    assert "Plan of micro" in page
    assert page.partition('id="preflight"')[0].count('<th scope="row">') == 16
    against = client.get(f"/plan?run={reviewed.second}&diff={reviewed.first}").text
    assert "Against pipeline run" in against
    assert "confidence: 0.95 -&gt; 0.9" in against
    assert "Against channel production" in client.get(f"/plan?run={reviewed.first}&diff=production").text
    assert client.get(f"/plan?run={reviewed.first}&diff=nowhere").status_code == 404
    for path in ("/etc/passwd", "../micro", "micro.yaml", str(reviewed.home / "settings.yaml")):
        refused = client.get("/plan", params={"recipe": path})
        assert refused.status_code == 400
        assert "this is no shipped recipe" in refused.text


def test_thresholds_are_tried_on_a_clip_table(client: TestClient, ledger: Ledger) -> None:
    tables = {ledger.withdrawal(a.artifact_id, a.kind) is None: a.artifact_id for a in ledger.artifacts(kind="clips")}
    page = client.get(f"/curation/{tables[True]}").text
    assert "16 of" in page
    assert f"/artifacts/{tables[True]}/files/previews/" in page
    tried = client.get(f"/curation/{tables[False]}", params={"set": "curate.filters.min_frames=50"})
    assert tried.status_code == 200
    assert "change side" in tried.text
    assert client.get(f"/curation/{tables[False]}", params={"set": "sources.0.location=/etc"}).status_code == 400


def test_the_leaderboard_sorts_and_links(client: TestClient, reviewed: ReviewedHome) -> None:
    page = client.get("/evaluation?sort=local.colour_follow").text
    rows = re.findall(r'<th scope="row"><a class="id" href="/artifacts/([0-9a-f]{64})"', page)
    assert len(rows) == 2
    turned = client.get("/evaluation?sort=local.colour_follow&order=asc").text
    assert re.findall(r'<th scope="row"><a class="id" href="/artifacts/([0-9a-f]{64})"', turned) == rows[::-1]
    assert 'aria-sort="ascending"' in turned
    assert reviewed.checkpoint in rows
    assert ">passed</a>" in page
    for address in set(re.findall(r'href="(/[^"?]+)"', page)):
        assert client.get(address).status_code == 200, address


def test_every_link_of_the_pages_leads_somewhere(client: TestClient, reviewed: ReviewedHome) -> None:
    starts = [
        f"/clips/{reviewed.clip}", f"/impact?q={reviewed.clip}", f"/takedowns/{reviewed.takedown}",
        f"/compare/runs?a={reviewed.first}&b={reviewed.second}", f"/exposure/{reviewed.checkpoint}",
        "/channels/production", "/evaluation",
    ]  # fmt: skip
    links = {
        link.replace("&amp;", "&")
        for s in starts
        for link in re.findall(r'(?:href|src)="(/[^"]+)"', client.get(s).text)
    }
    broken = [link for link in sorted(links) if client.get(link.split("#")[0]).status_code != 200]
    assert broken == []


def test_errors_of_a_page_are_pages(client: TestClient) -> None:
    answer = client.get("/compare/runs?a=zzz&b=zzz")
    assert answer.status_code == 404
    assert "Traceback" not in answer.text
    assert "ledger has no such id" in answer.text
