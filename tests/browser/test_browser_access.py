"""Every page: no serious accessibility fault by axe-core in light and dark, nothing wider than the window, silent, no
request to elsewhere; and the actions by keyboard, in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser_pages import OVERFLOWING
from playwright.sync_api import Browser, Page
from reviewed_home import ReviewedHome
from subject_pages import Visitor, serving

from m4v.core.artifacts import ArtifactKind
from pipelines.ledger import Ledger
from pipelines.store import ArtifactStore
from pipelines.takedown.receipt import make_receipt
from pipelines.takedown.verify import verify_receipt
from pipelines.web.app import create_app
from pipelines.workspace import Workspace

GRAVE = {"serious", "critical"}
# A text of each style on a page: its contrast is that of all others of the same colours and size.
TEXT_STYLES = """(() => {
  const clear = e => e.parentElement && getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)';
  const kinds = new Map();
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim())) { continue; }
    let below = e;
    while (clear(below)) { below = below.parentElement; }
    const { color, fontSize, fontWeight, opacity, visibility } = getComputedStyle(e);
    const kind = [color, getComputedStyle(below).backgroundColor, fontSize, fontWeight, opacity, visibility].join();
    if (!kinds.has(kind) && e.checkVisibility()) { kinds.set(kind, e); }
  }
  return { include: [...kinds.values()] };
})()"""


@pytest.fixture(scope="module")
def address(reviewed: ReviewedHome) -> Iterator[str]:
    with serving(reviewed.home) as found:
        yield found


def pages(home: ReviewedHome) -> list[str]:
    """An address of every page."""
    with Ledger.open(f"sqlite:///{home.home / 'ledger.db'}") as ledger:
        train = ledger.runs(stage="train", limit=1)[0]
        clips, datasets = (ledger.artifacts(kind=k, limit=None) for k in (ArtifactKind.CLIPS, ArtifactKind.DATASET))
    return [
        "/runs", "/stages", "/stages/train", "/stages/gate", "/gc",
        f"/runs/{home.first}", f"/stage-runs/{train.run_id}", f"/stage-runs/{home.repeated}",
        f"/attempts/{train.attempt_id}", "/artifacts", f"/artifacts/{home.checkpoint}",
        f"/exposure/{home.checkpoint}", "/clips", "/clips?q=shapes", "/clips?q=red+circle", f"/clips/{home.clip}",
        "/impact?q=shapes", "/takedowns", f"/takedowns/{home.takedown}", f"/takedowns/{home.takedown}/verify",
        "/compare", f"/compare/runs?a={home.first}&b={home.second}",
        f"/compare/versions?a={datasets[-1].artifact_id}&b={datasets[0].artifact_id}",
        f"/curation/{datasets[0].artifact_id}", f"/curation/{clips[-1].artifact_id}", "/channels",
        "/channels/production", "/evaluation?sort=local.flicker",
        f"/plan?run={home.second}&diff=production", "/nowhere",
    ]  # fmt: skip


def artifact_pages(home: ReviewedHome) -> list[str]:
    """The page of an artifact of every kind, and their media."""
    with Ledger.open(f"sqlite:///{home.home / 'ledger.db'}") as ledger:
        rows = [row for kind in ArtifactKind for row in ledger.artifacts(kind=kind, limit=2)]
    return [f"/artifacts/{row.artifact_id}" for row in rows]


def grave_faults(page: Page, among: str = "document", **options: object) -> list[str]:
    """By axe-core, which is in every page of the visitor's (`with_axe`)."""
    found = page.evaluate(
        f"options => axe.run({among}, options).then(found => found.violations)",
        {"resultTypes": ["violations"], **options},
    )
    return [
        f"{fault['id']} ({fault['impact']}): {node['target']} {node.get('failureSummary', '')[:300]}"
        for fault in found
        if fault["impact"] in GRAVE
        for node in fault["nodes"]
    ]


def with_axe(visitor: Visitor) -> Visitor:
    visitor.context.add_init_script(Axe().axe_script)
    return visitor


def faults_of(visitor: Visitor, paths: list[str]) -> dict[str, list[str]]:
    """By address: grave faults in light and dark, and what is wider than a wide and a narrow window."""
    faults: dict[str, list[str]] = {}
    for path in paths:
        page = visitor.open(path)
        page.emulate_media(color_scheme="light")
        found = grave_faults(page)
        page.emulate_media(color_scheme="dark")
        found += grave_faults(page, TEXT_STYLES, runOnly={"type": "rule", "values": ["color-contrast"]})
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            if page.evaluate("document.documentElement.scrollWidth") > width:
                found.append(f"wider than {width}: {page.evaluate(OVERFLOWING)}")
        page.set_viewport_size({"width": 1280, "height": 900})
        if found:
            faults[path] = found
    return faults


def test_no_page_has_a_grave_fault(browser: Browser, address: str, reviewed: ReviewedHome) -> None:
    visitor = with_axe(Visitor(browser, address, "cyd"))
    assert faults_of(visitor, pages(reviewed)) == {}
    assert visitor.elsewhere == []
    assert [c for c in visitor.complaints if "/nowhere" not in c] == []
    visitor.close()


@pytest.mark.deep
def test_no_artifact_of_any_kind_has_a_grave_fault(browser: Browser, address: str, reviewed: ReviewedHome) -> None:
    visitor = with_axe(Visitor(browser, address))
    assert faults_of(visitor, artifact_pages(reviewed)) == {}
    assert visitor.elsewhere == []
    assert visitor.complaints == []
    visitor.close()


def test_every_page_has_an_address_in_this_list(reviewed: ReviewedHome) -> None:
    """A page that is added later is tested here, or its route says why not."""
    app = create_app(Workspace.open(reviewed.home))
    parts = {"live", "changes", "diff", "check", "media", "log", "follow", "tree", "files", "graph"}
    others = {"", "find", "static", "health", "healthz", "metrics", "lineage", "media", "tasks"}
    visited = {path.split("?")[0].strip("/").split("/")[0] for path in pages(reviewed)}
    for router in app.routes:
        path = getattr(router, "path", "")
        head = path.strip("/").split("/")[0]
        if "GET" in (getattr(router, "methods", None) or ()) and not parts & set(path.strip("/").split("/")):
            assert head in visited | others, path


@pytest.fixture
def own_home(reviewed: ReviewedHome, tmp_path: Path) -> Path:
    """A copy to act on; its ledger names the copied artifacts."""
    home = shutil.copytree(reviewed.home, tmp_path / "home", symlinks=True)
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        for record in ArtifactStore(str(home / "store")).list():
            ledger.import_artifact(record)
    return home


@pytest.fixture
def own(own_home: Path) -> Iterator[str]:
    with serving(own_home) as address:
        yield address


def test_a_channel_is_moved_by_keyboard_alone(browser: Browser, own: str, reviewed: ReviewedHome) -> None:
    ann = Visitor(browser, own, "ann")
    page = ann.open("/channels")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    focused = "document.activeElement.name || document.activeElement.innerText"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "channel":
            break
    page.keyboard.type("staging")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "checkpoint"
    page.keyboard.type("reward")
    page.keyboard.press("Tab")
    page.keyboard.type("by keyboard")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Promote"
    page.keyboard.press("Enter")
    page.wait_for_url("**/channels/staging?done=promoted")
    ann.says("The channel names the checkpoint now.", reviewed.checkpoint[:10], "by keyboard", "ann")
    assert ann.complaints == []
    ann.close()


def test_a_form_on_another_site_moves_nothing(
    browser: Browser, own: str, reviewed: ReviewedHome, tmp_path: Path
) -> None:
    ann = Visitor(browser, own, "ann")
    ann.open("/channels")  # has the cookie now
    token = ann.page.locator("input[name=form_token]").first.get_attribute("value")
    evil = tmp_path / "evil.html"
    fields = {"form_token": token, "channel": "staging", "checkpoint": reviewed.checkpoint}
    inputs = "".join(f"<input name={name} value='{value}'>" for name, value in fields.items())
    evil.write_text(f"<form method=post action='{own}/channels'>{inputs}<button>win</button></form>")
    ann.page.goto(evil.as_uri())
    ann.page.get_by_role("button").click()
    ann.page.wait_for_load_state("load")
    ann.says("Not allowed", "another site")
    ann.open("/channels")
    assert "staging" not in ann.page.locator("main").inner_text()
    ann.close()


def test_clips_are_taken_down_by_who_may(browser: Browser, own: str, own_home: Path, reviewed: ReviewedHome) -> None:
    address = f"/impact?q={reviewed.clip}"
    ann, bob = (Visitor(browser, own, name) for name in ("ann", "bob"))
    ann.open(address)
    ann.says("Taking clips down takes the role approver; your role is operator.")
    assert ann.page.locator("form[method=post]").count() == 0
    page = bob.open(address)
    assert page.locator("select[name=delete] option").all_inner_texts() == ["keep them, out of use"]
    page.get_by_label("Reason").fill("its owner asked by letter")
    button = page.get_by_role("button", name="Take down")
    button.click()  # the browser wants the tick first
    assert page.url.endswith(address)
    page.get_by_label("I have looked at what it concerns").check()
    page.evaluate("document.querySelector('input[name=expect]').value = '0'.repeat(64)")
    button.click()
    bob.says("what the takedown concerns has changed since you looked")
    assert page.get_by_label("Reason").input_value() == "its owner asked by letter"
    page.get_by_label("I have looked at what it concerns").check()
    page.get_by_role("button", name="Take down").click()
    page.wait_for_url("**/tasks/*")
    page.get_by_role("link", name="Show").click()
    bob.says("Asked for by bob", "its owner asked by letter", "issued")
    case = page.url.rpartition("/")[2]
    with Ledger.open(f"sqlite:///{own_home / 'ledger.db'}") as ledger:
        receipt = make_receipt(ledger, ledger.takedown(case))
        assert [c["clip_id"] for c in ledger.takedown_clips(case)].count(reviewed.clip) >= 1
        assert [c for c in verify_receipt(ledger, Workspace.open(own_home), receipt) if not c.ok] == []
    assert [c for c in bob.complaints if "409" not in c] == []
    for visitor in (ann, bob):
        visitor.close()
