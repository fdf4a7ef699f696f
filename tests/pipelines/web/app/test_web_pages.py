"""Every page of runs and artifacts over a real home: what it says, its headers, its errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from served_home import DIFF, HOSTILE, STEPS, ServedHome, build

from m4v.core.errors import InputError
from pipelines.ledger import Ledger
from pipelines.ledger.listings import RunFilter
from pipelines.web.app import create_app
from pipelines.web.app.reading import ReadOnly, reading_ledger
from pipelines.web.app.views import NAVIGATION


@pytest.fixture
def served(read_home: ServedHome) -> ServedHome:
    return read_home


@pytest.fixture
def client(reader: TestClient) -> TestClient:
    return reader


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> ServedHome:
    """A home that tests may damage, each in a place of its own."""
    return build(tmp_path_factory.mktemp("spoiled") / "home")


def pages(served: ServedHome) -> list[str]:
    run, checkpoint = served.runs["done"], served.artifact("train.57f")
    return [
        "/runs", f"/runs/{run}", f"/runs/{served.runs['live']}", f"/runs/{served.runs['failed']}",
        f"/stage-runs/{served.run_of('train.57f')}", f"/stage-runs/{served.run_of('generate')}",
        f"/stage-runs/{served.run_of('train.57f')}/diff", f"/attempts/{served.attempts['train.live']}",
        "/artifacts", f"/artifacts/{checkpoint}", f"/artifacts/{served.artifact('generate')}",
        f"/artifacts/{served.artifact('generate')}/media", "/artifacts?kind=dataset",
    ]  # fmt: skip


def test_every_page_answers_with_landmarks_and_a_strict_policy(client: TestClient, served: ServedHome) -> None:
    for address in pages(served):
        answer = client.get(address)
        assert answer.status_code == 200, address
        assert answer.text.count("<h1") == 1, address
        assert '<main id="content"' in answer.text
        assert 'href="#content">Skip' in answer.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.findall(r'(?:src|href|action)="(?:https?:)?//', answer.text), address
        assert "<script>" not in answer.text


def test_the_navigation_leads_to_pages_that_exist(client: TestClient) -> None:
    for _, name, address in NAVIGATION:
        assert client.get(address).status_code == 200, name


def test_static_files_are_kept_by_browsers_and_nothing_else_is(client: TestClient) -> None:
    html = client.get("/runs").text
    for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', html):
        answer = client.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    assert client.get("/runs").headers["cache-control"] == "no-cache"


def test_start_and_find_lead_to_the_pages_of_ids(client: TestClient, served: ServedHome) -> None:
    assert client.get("/").headers["location"] == "/runs"
    wanted = {
        served.runs["done"]: "/runs/", served.run_of("encode"): "/stage-runs/",
        served.attempts["encode"]: "/attempts/", served.artifact("encode"): "/artifacts/",
    }  # fmt: skip
    for identity, place in wanted.items():
        answer = client.get("/find", params={"id": identity})
        assert (answer.status_code, answer.headers["location"]) == (303, place + identity)
    missing = client.get("/find", params={"id": "zzzz"})
    assert missing.status_code == 404
    assert "ledger has no such id" in missing.text


@pytest.mark.parametrize(
    ("address", "status", "says"),
    [
        ("/nowhere", 404, "there is no such page"),
        ("/runs/zzzz", 404, "ledger has no such pipeline run"),
        ("/runs?status=sleeping", 400, "one of running, succeeded"),
        ("/runs?since=yesterday", 400, "use 24h, 7d or"),
        ("/runs?after=zzzz", 404, "no such pipeline run"),
        ("/artifacts?kind=film", 400, "one of source, clips"),
        ("/artifacts/zzzz", 404, "ledger has no such artifact"),
        ("/attempts/zzzz", 404, "ledger has no such attempt"),
        ("/lineage/step?node=zzzz&direction=up", 404, "no such artifact or run"),
        ("/lineage/step?node=zzzz&direction=sideways", 422, "direction"),
        ("/runs?q=" + "x" * 300, 422, "at most 200"),
    ],
)
def test_errors_are_pages_that_say_what_helps(client: TestClient, address: str, status: int, says: str) -> None:
    answer = client.get(address)
    assert answer.status_code == status
    assert says in answer.text
    assert "Traceback" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_fault_of_ours_is_a_page_without_its_details(served: ServedHome) -> None:
    app = create_app(served.workspace)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("secret details")

    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/broken")
    assert answer.status_code == 500
    assert "RuntimeError" in answer.text
    assert "secret details" not in answer.text


def test_pages_get_a_ledger_that_cannot_write(served: ServedHome) -> None:
    ledger = reading_ledger(served.workspace.ledger_url)
    assert ledger.pipeline_run(served.runs["done"]).recipe == "films"
    with pytest.raises(ReadOnly):
        ledger.begin_pipeline_run("more", {})
    ledger.close()


def test_the_plan_page_offers_runs_of_a_recipe_alone(client: TestClient, served: ServedHome) -> None:
    """None of this home's runs was recorded with one, as evaluations, imports and studies are."""
    page = client.get("/plan?recipe=micro").text
    assert "Plan of micro" in page
    assert "or the recipe of a run" not in page
    assert "Videos to sample and to judge" not in page, "`m4v plan` tells the cost of suites, not of local metrics"
    refused = client.get(f"/plan?run={served.runs['done']}")
    assert refused.status_code == 400
    assert "this pipeline run was made from no recipe" in refused.text


def test_runs_are_filtered_by_what_the_address_says(client: TestClient, served: ServedHome) -> None:
    def shown(query: str) -> set[str]:
        return set(re.findall(r'id="run-([0-9a-z]{16})"', client.get(f"/runs?{query}").text))

    runs = served.runs
    assert shown("") == set(runs.values())
    assert shown("recipe=broken") == {runs["failed"]}
    assert shown("status=running") == {runs["live"]}
    assert shown("q=SCHEMA") == {runs["failed"]}  # in the message of a run that failed
    assert shown(f"q={runs['reused']}") == {runs["reused"]}
    assert shown("since=1h") == set(runs.values())
    assert shown("since=2999-01-01") == set()
    assert shown("q=100%25") == set()  # a percent sign is a percent sign
    assert shown(f"after={runs['failed']}") == {runs["done"], runs["reused"]}
    assert shown(f"before={runs['failed']}") == {runs["live"]}


def test_only_rows_that_changed_are_sent_again(client: TestClient, served: ServedHome) -> None:
    html = client.get("/runs").text
    live = re.findall(r'name="live" value="([^"]+)"', html)
    newest = re.findall(r'name="newest" value="([^"]+)"', html)
    assert [seen.partition(".")[0] for seen in live] == [served.runs["live"]]
    assert "30 of 120 steps, 1 min 35 s left (loss 0.51)" in html
    asked = {"live": live, "newest": newest}
    assert client.get("/runs/changes", params=asked).status_code == 204
    stale = client.get("/runs/changes", params={"live": [f"{served.runs['live']}.0000"]})
    assert re.findall(r'hx-target="#run-([0-9a-z]+)"', stale.text) == [served.runs["live"]]
    newer = client.get("/runs/changes", params={"newest": [served.runs["failed"]]})
    assert "1 newer run: show" in newer.text


def test_a_run_tells_what_ran_what_was_reused_and_why(client: TestClient, served: ServedHome) -> None:
    done = client.get(f"/runs/{served.runs['done']}").text
    assert done.count('<tr id="stage-') == 7
    assert f'href="/artifacts/{served.artifact("report")}/files/index.html"' in done
    reused = client.get(f"/runs/{served.runs['reused']}").text
    assert reused.count("same key, outputs verify") == 4
    assert f'href="/compare/runs?a={served.runs["done"]}&amp;b={served.runs["reused"]}"' in reused
    failed = client.get(f"/runs/{served.runs['failed']}").text
    assert "clip table differs from its schema" in failed
    assert f'href="/attempts/{served.attempts["curate.broken"]}"' in failed


def test_a_running_run_is_asked_for_changes_and_a_finished_one_is_not(client: TestClient, served: ServedHome) -> None:
    live = client.get(f"/runs/{served.runs['live']}").text
    address = re.findall(r'hx-get="(/runs/[^"]+/live\?seen=[0-9a-f]+)"', live)[0]
    assert client.get(address).status_code == 204
    changed = client.get(f"/runs/{served.runs['live']}/live?seen=before")
    assert changed.text.lstrip().startswith('<div id="live" hx-get=')
    assert "hx-get" not in client.get(f"/runs/{served.runs['done']}").text


def test_a_stage_run_shows_config_code_curves_and_attempts(client: TestClient, served: ServedHome) -> None:
    html = client.get(f"/stage-runs/{served.run_of('train.57f')}").text
    assert "name: train.57f" in html
    assert "a" * 40 in html
    assert f"{STEPS} steps" in html
    assert html.count('<path class="mean"') == 2  # loss and gradient norm; the learning rate is no curve
    assert "the end" in html
    assert "\x1b" not in html
    assert f'href="/artifacts/{served.artifact("train.t2i")}"' in html
    assert "1 source files in the key" in html


def test_uncommitted_changes_are_shown_and_given_as_text(client: TestClient, served: ServedHome) -> None:
    address = f"/stage-runs/{served.run_of('encode')}/diff"
    html = client.get(address).text
    assert '<span class="add">+new line' in html
    assert '<span class="del">-old line' in html
    assert client.get(address, params={"raw": "true"}).text == DIFF


def test_hostile_captions_stay_text(client: TestClient, served: ServedHome) -> None:
    html = client.get(f"/stage-runs/{served.run_of('generate')}").text
    assert HOSTILE not in html
    assert "a rabbit &lt;script&gt;" in html


def test_an_artifact_shows_media_a_page_at_a_time(client: TestClient, served: ServedHome) -> None:
    address = f"/artifacts/{served.artifact('generate')}"
    html = client.get(address).text
    assert html.count("<video") == 12
    assert "1 to 12 of 14" in html
    rest = client.get(f"{address}/media?first=12").text
    assert rest.count("<video") == 2
    assert "13 to 14 of 14" in rest


def test_a_size_check_finds_a_short_file(spoiled: ServedHome) -> None:
    record = spoiled.made["train.57f"][1]
    with TestClient(create_app(spoiled.workspace)) as client:
        address = f"/artifacts/{record.artifact_id}/check"
        assert "All 2 files are there" in client.get(address).text
        (Path(record.uri) / "model.safetensors").write_bytes(b"short")
        assert "size is 5, manifest says 10240" in client.get(address).text


def test_pages_stand_when_bytes_are_gone(spoiled: ServedHome) -> None:
    record = spoiled.made["generate"][1]
    for file in sorted(Path(record.uri).rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    with TestClient(create_app(spoiled.workspace)) as client:
        assert "bytes are not in the store" in client.get(f"/artifacts/{record.artifact_id}").text
        assert "bytes are not in the store" in client.get(f"/stage-runs/{spoiled.run_of('generate')}").text
        assert client.get(f"/artifacts/{record.artifact_id}/files/samples.json").status_code == 404


def test_logs_are_read_in_whole_lines_from_either_end(client: TestClient, served: ServedHome) -> None:
    address = f"/attempts/{served.attempts['encode']}"
    end = client.get(address).text
    assert "line 8999: step 8999 of 9000" in end
    assert "line 0: " not in end
    start = int(re.findall(r"\?before=(\d+)", end)[0])
    older = client.get(address, params={"before": start}).text
    first_of_end = re.findall(r"line (\d+):", end)[0]
    assert re.findall(r"line (\d+):", older)[-1] == str(int(first_of_end) - 1)  # nothing twice, nothing left out
    assert "line 0: step 0 of 9000" in client.get(address, params={"after": 0}).text
    whole = client.get(f"{address}/log")
    assert whole.headers["content-type"].startswith("text/plain")
    assert whole.text.count("\n") == 9001


def test_the_tail_of_a_log_gives_only_what_is_new(spoiled: ServedHome) -> None:
    attempt = spoiled.attempts["train.live"]
    with Ledger.open(spoiled.workspace.ledger_url) as ledger, TestClient(create_app(spoiled.workspace)) as client:
        log = Path(ledger.attempt(attempt).log_path)
        address = f"/attempts/{attempt}/tail?after={log.stat().st_size}"
        assert client.get(address).status_code == 204
        with log.open("a") as stream:
            stream.write("one more line\n")
        gained = client.get(address).text
        assert gained.startswith("one more line\n")
        assert f"after={log.stat().st_size}" in gained


def test_a_log_outside_the_workspace_is_not_read(spoiled: ServedHome, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("do not show")
    with Ledger.open(spoiled.workspace.ledger_url) as ledger:
        claim = ledger.claim("f" * 64, "tester")
        attempt = ledger.begin_attempt(claim, stage="train", work_dir=str(tmp_path), log_path=str(secret))
    with TestClient(create_app(spoiled.workspace)) as client:
        assert "do not show" not in client.get(f"/attempts/{attempt}").text
        assert client.get(f"/attempts/{attempt}/log").status_code == 404


def test_health_and_figures_for_machines(client: TestClient) -> None:
    assert client.get("/healthz").text == "ok\n"
    figures = client.get("/metrics")
    assert figures.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'm4v_pipeline_runs{state="failed"} 1' in figures.text.splitlines()
    assert 'm4v_artifacts{kind="checkpoint"} 2' in figures.text.splitlines()


def test_a_listing_goes_on_from_the_run_it_ended_with(served: ServedHome) -> None:
    with Ledger.open(served.workspace.ledger_url) as ledger:
        first = ledger.list_runs(RunFilter(), limit=3)
        assert (len(first.rows), first.older, first.newer) == (3, True, False)
        rest = ledger.list_runs(RunFilter(), after=first.rows[-1].pipeline_run_id, limit=3)
        assert [r.pipeline_run_id for r in rest.rows] == [served.runs["done"]]
        assert (rest.older, rest.newer) == (False, True)
        back = ledger.list_runs(RunFilter(), before=rest.rows[0].pipeline_run_id, limit=3)
        assert [r.pipeline_run_id for r in back.rows] == [r.pipeline_run_id for r in first.rows]
        assert ledger.recipes() == ["broken", "films"]
        with pytest.raises(InputError):
            ledger.list_runs(RunFilter(), after="zzzz")
