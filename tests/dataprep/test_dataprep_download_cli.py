"""`m4v data sources RECIPE --download`: fills a recipe's collections without a run; errors of one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from download_server import Site, serving, status, video

from m4v.core.errors import ExitClass
from pipelines.cli.main import main

RECIPE = """
extends: micro
name: mine
sources:
  - name: web
    location: {root}
    adapter: {{kind: webvid, download: {{allow: [127.0.0.1], backoff_s: 0.01, attempts: 2, host_rate_per_s: null}}}}
"""


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture
def recipe(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "web"
    root.mkdir()
    rows = [f"{n},{site.put(f'{n}.mp4', video(3000, n))},PT00H00M05S,p,a clip" for n in range(6)]
    (root / "results_2M_val.csv").write_text("\n".join(["videoid,contentUrl,duration,page_dir,name", *rows]) + "\n")
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE.format(root=root))
    return file


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["m4v", "data", "sources", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    out = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), out.out, out.err


def test_it_fetches_tells_and_goes_on(
    site: Site, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.rules["2.mp4"] = [status(404)] * 2
    code, out, _ = call(capsys, str(recipe), "--download", "--json")
    assert code == 0
    (report,) = json.loads(out)["downloads"]
    assert (report["source"], report["wanted"], report["fetched"], report["failed"]) == ("web", 6, 5, {"http_404": 1})
    assert Path(report["failures"]).is_file()
    assert len(list((tmp_path / "web" / "videos" / "p").glob("*.mp4"))) == 5
    code, out, _ = call(capsys, str(recipe), "--download")
    assert code == 0
    assert "failures.parquet" in out
    assert len(site.seen) == 6, "what failed for good is not asked for"
    call(capsys, str(recipe), "--download", "--again")
    assert len(site.seen) == 7
    site.rules.clear()
    code, out, _ = call(capsys, str(recipe), "--download", "--again", "--json")
    assert json.loads(out)["downloads"][0]["fetched"] == 1


def test_errors_are_one_line(site: Site, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "demo", "--download")
    assert code == ExitClass.CONFIG
    assert "no source of the recipe has a `download` section" in " ".join(err.split())
    code, _, err = call(capsys, str(recipe.parent), "--download")
    assert code == ExitClass.CONFIG
    assert "--download takes a recipe" in err
    for n in range(6):
        site.rules[f"{n}.mp4"] = [status(503)] * 2
    code, _, err = call(capsys, str(recipe), "--download")
    assert code == ExitClass.INFRASTRUCTURE
    assert "6 of 6 files could not be reached" in " ".join(err.split())
    assert "Traceback" not in err
