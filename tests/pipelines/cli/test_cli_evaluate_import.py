"""`m4v evaluate import`: other systems' videos become samples that suites, pages and studies take as any others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from m4v.video_io import encode_mp4
from pipelines.web.app import create_app
from pipelines.workspace import Workspace

M4v = Callable[..., tuple[int, str, str]]
PROMPTS = [f"a red ball number {n}" for n in range(6)]
FACTS = ("--source", "https://example.org/videos", "--licence", "CC BY 4.0", "--suite", "local")


def videos_of(folder: Path, system: int) -> Path:
    folder.mkdir()
    for number, prompt in enumerate(PROMPTS):
        rng = np.random.default_rng([system, number])
        frames = np.kron(rng.integers(0, 256, (5, 4, 4, 3)), np.ones((1, 16, 16, 1))).astype(np.uint8)
        (folder / f"{prompt}-0.mp4").write_bytes(encode_mp4(frames, 8))
    (folder.parent / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def arguments(folder: Path, system: str) -> tuple[str, ...]:
    return ("evaluate", "import", str(folder), "--system", system, *FACTS,
            "--prompts", str(folder.parent / "prompts.txt"))  # fmt: skip


def test_what_a_user_gets_wrong_is_one_line(m4v: M4v, tmp_path: Path) -> None:
    folder = videos_of(tmp_path / "alpha", 1)
    for extra, code, words in (
        (("--names", "by-hand"), 10, "takes prompt, prompt180, index or a JSON file"),
        (("--prompts", "no-such-set"), 10, "no such prompt set"),
        (("--system", "../x"), 10, "system: String should match pattern"),
    ):
        found, out, err = m4v(*arguments(folder, "Alpha"), *extra)
        assert (found, out, err.count("\n")) == (code, "", 1)
        assert words in err
    assert "no such folder" in m4v(*arguments(tmp_path / "none", "Alpha"))[2]


@pytest.mark.deep
def test_a_folder_is_taken_whole_or_refused_by_name(m4v: M4v, tmp_path: Path) -> None:
    folder = videos_of(tmp_path / "alpha", 1)
    taken = folder / f"{PROMPTS[2]}-0.mp4"
    data = taken.read_bytes()
    taken.unlink()
    code, out, _ = m4v(*arguments(folder, "Alpha"), "--json")
    told = json.loads(out)
    assert (code, told["exit_class"], told["samples"]) == (20, 20, None)
    assert f"1 video cannot be taken, of 6 that are expected: {taken.name}: missing" in told["node"]["error"]
    taken.write_bytes(data)
    code, out, err = m4v(*arguments(folder, "Alpha"), "--json")
    assert code == 0, err
    made = json.loads(out)["samples"]
    shown = json.loads(m4v("artifacts", "show", made, "--json")[1])
    assert (shown["kind"], shown["summary"]["licence"]) == ("samples", "CC BY 4.0")
    assert shown["summary"]["source"] == "https://example.org/videos"


@pytest.mark.deep
def test_systems_are_measured_shown_beside_each_other_and_asked_about(m4v: M4v, tmp_path: Path) -> None:
    made = {}
    for number, system in enumerate(("Alpha", "Beta 2.1")):
        code, out, err = m4v(*arguments(videos_of(tmp_path / f"s{number}", number), system), "--json")
        assert code == 0, err
        made[system] = json.loads(out)["samples"]
        assert m4v("evaluate", "run", made[system], "--suite", "local", "--json")[0] == 0
    boards = json.loads(m4v("evaluate", "leaderboard", "--json")[1])["boards"]
    entries = [entry for board in boards for entry in board["entries"]]
    assert {entry["system"]: entry["samples_id"] for entry in entries} == made
    assert all(entry["changes"] == {} for entry in entries), "unknown samplers are never held to be equal"
    assert "Beta 2.1\timported" in m4v("evaluate", "leaderboard")[1]

    with TestClient(create_app(Workspace.open(tmp_path / "home"))) as client:
        page = client.get("/evaluation").text
        assert f'<a href="/artifacts/{made["Alpha"]}">Alpha</a>' in page
        assert page.count('<option value="') == 4
        pair = "&".join(f"{side}={e['scores_id']}" for side, e in zip(("left", "right"), entries, strict=True))
        beside = client.get(f"/evaluation/compare?{pair}").text
        assert beside.count("<video ") == 12
        assert "They differ in more than the model: sampler" in beside
        assert "seed not known" in client.get(f"/artifacts/{made['Alpha']}/media").text

    systems = [f"{name.split()[0]}={artifact}" for name, artifact in made.items()]
    code, out, err = m4v("study", "create", "--system", systems[0], "--system", systems[1], "--json")
    assert code == 0, err
    assert json.loads(out)["prompts"] == 6
    up = m4v("lineage", "up", json.loads(out)["study"])[1]
    assert all(artifact[:12] in up for artifact in made.values())
