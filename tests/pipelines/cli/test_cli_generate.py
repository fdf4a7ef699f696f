"""`m4v generate`: prompts to files, resume after kills, one-line errors, defaults from the ledger."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from eval_checkpoint import SAMPLER
from eval_support import publish
from PIL import Image
from safetensors.torch import load_file
from tiny_vae import write_tiny_vae

from m4v.checkpoint import export_checkpoint, save_checkpoint
from m4v.codec.config import CausalVaeConfig
from m4v.config import CheckpointConfig, SamplerConfig
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.canonical import digest_file
from m4v.core.errors import ExitClass
from m4v.core.stage import InputRef
from m4v.video_io import read_mp4
from pipelines.generation.folder import MANIFEST
from pipelines.ledger import Ledger, NewRun
from pipelines.store import ArtifactRecord

RED, BLUE = "a red circle moves up", "a blue square, resting"
QUICK = ("--frames", "9", "--height", "64", "--width", "64", "--steps", "1", "--guidance", "2", "--device", "cpu")
M4v = Callable[..., tuple[int, str, str]]


def made(m4v_here: M4v, *arguments: str) -> dict[str, Any]:
    code, out, error = m4v_here("generate", *arguments, "--json")
    assert code == ExitClass.OK, error
    found: dict[str, Any] = json.loads(out)
    return found


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]


def contents(out: Path) -> dict[str, str]:
    return {p.name: digest_file(p) for p in out.iterdir()}


def test_videos_and_their_origin(m4v_here: M4v, folder: str, checkpoint: Artifact, tmp_path: Path) -> None:
    code, out, error = m4v_here(
        "generate", folder, "--prompt", RED, "--prompt", BLUE, "--samples", "2", "--seed", "7", *QUICK
    )
    assert (code, error) == (ExitClass.OK, "")
    assert "0001-a-blue-square-resting-s8.mp4  4 of 4" in out
    assert "4 made; in generated" in out
    records = manifest(tmp_path / "generated")
    assert [r["file"] for r in records] == [
        f"{i:04d}-{words}-s{s}.mp4"
        for i, words in enumerate(("a-red-circle-moves-up", "a-blue-square-resting"))
        for s in (7, 8)
    ]
    assert [(r["prompt"], r["seed"]) for r in records] == [(p, s) for p in (RED, BLUE) for s in (7, 8)]
    for record in records:
        path = tmp_path / "generated" / record["file"]
        assert digest_file(path) == record["sha256"]
        assert read_mp4(path)[0].shape == (9, 64, 64, 3)
        assert record["settings"]["checkpoint"] == checkpoint.id
        assert record["settings"]["sampler"]["steps_first"] == [1, 1, 1]
        assert "cartoon" in record["negative"]
    assert len({r["sha256"] for r in records}) == 4
    assert not (tmp_path / "home").exists(), "a folder needs no ledger"


def test_order_and_company_change_no_video(m4v_here: M4v, folder: str) -> None:
    together = made(m4v_here, folder, "--prompt", RED, "--prompt", BLUE, "--out", "a", *QUICK)["videos"]
    turned = made(m4v_here, folder, "--prompt", BLUE, "--prompt", RED, "--out", "b", *QUICK)["videos"]
    alone = made(m4v_here, folder, "--prompt", BLUE, "--out", "c", *QUICK)["videos"]
    assert [v["sha256"] for v in together] == [v["sha256"] for v in reversed(turned)]
    assert alone[0]["sha256"] == together[1]["sha256"]


def test_a_finished_list_is_left_alone_and_grows(m4v_here: M4v, folder: str, tmp_path: Path) -> None:
    first = made(m4v_here, folder, "--prompt", RED, *QUICK)
    assert (first["made"], first["already_there"]) == (1, 0)
    assert set(first) == {"checkpoint", "out", "manifest", "made", "already_there", "seconds", "videos"}
    assert set(first["videos"][0]) == {"file", "prompt", "negative", "seed", "image", "sha256", "settings"}
    assert set(SamplerConfig.model_fields) - {"negative_prompt"} == set(first["videos"][0]["settings"]["sampler"])
    before = (tmp_path / "generated" / first["videos"][0]["file"]).stat().st_mtime_ns
    again = made(m4v_here, folder, "--prompt", RED, *QUICK)
    assert (again["made"], again["already_there"], again["videos"]) == (0, 1, first["videos"])
    more = made(m4v_here, folder, "--prompt", RED, "--prompt", BLUE, *QUICK)
    assert (more["made"], more["already_there"]) == (1, 1)
    assert (tmp_path / "generated" / first["videos"][0]["file"]).stat().st_mtime_ns == before


def test_damaged_and_deleted_files_are_made_again(m4v_here: M4v, folder: str, tmp_path: Path) -> None:
    out, prompts = tmp_path / "generated", ("--prompt", RED, "--prompt", BLUE)
    made(m4v_here, folder, *prompts, *QUICK)
    whole = contents(out)
    red, blue = sorted(p for p in out.iterdir() if p.suffix == ".mp4")
    red.write_bytes(red.read_bytes()[:-5])
    blue.unlink()
    (out / f".{red.name}.{'0' * 32}.tmp").write_bytes(b"of a killed process")
    (out / ".mine.tmp").write_text("not ours")
    with (out / MANIFEST).open("a") as stream:
        stream.write('{"file": "0002-torn')
    assert made(m4v_here, folder, *prompts, *QUICK)["made"] == 2
    assert contents(out) == {**whole, ".mine.tmp": digest_file(out / ".mine.tmp")}


HELD = """
import sys, time
from pathlib import Path
from pipelines.generation import make
left, held, stream_mp4 = int(sys.argv.pop(1)), Path(sys.argv.pop(1)), make.stream_mp4
def stream(path, chunks, *rest):
    global left
    left -= 1
    def waiting():
        for chunk in chunks:
            yield chunk
            if left < 0:
                held.touch()
                time.sleep(600)
    return stream_mp4(path, waiting(), *rest)
make.stream_mp4 = stream
from pipelines.cli.main import main
main()
"""


def started(
    tmp_path: Path, *arguments: str, hold: tuple[int, Path] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """The command as a process of its own that Ctrl-C reaches, wherever pytest itself was started. `hold`: after so
    many videos it waits in the middle of the next, once it has made the file."""
    program = ["-m", "pipelines.cli.main"] if hold is None else ["-c", HELD, *map(str, hold)]
    return subprocess.Popen(
        [sys.executable, *program, "generate", *arguments], cwd=tmp_path, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options,
    )  # fmt: skip


def test_a_killed_and_interrupted_list_goes_on_to_the_same_bytes(m4v_here: M4v, folder: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle number {n}" for n in range(5)))
    arguments = [folder, "--prompts", "prompts.txt", *QUICK, "--frames", "25"]
    made(m4v_here, *arguments, "--out", "whole")
    out = tmp_path / "killed"
    for more, sent, code in ((1, signal.SIGKILL, -signal.SIGKILL), (2, signal.SIGINT, ExitClass.DRAINED)):
        before, held = len(list(out.glob("*.mp4"))), tmp_path / f"held-{sent}"
        process = started(tmp_path, *arguments, "--out", "killed", hold=(more, held), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not held.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(sent)
        _, error = process.communicate()
        assert process.returncode == code, "it was ended in the middle"
        assert len(list(out.glob("*.mp4"))) == before + more
        assert len(list(out.glob(".*.mp4.*.tmp"))) == (sent == signal.SIGKILL), "and of the next there was a part"
        for video in out.glob("*.mp4"):
            assert len(read_mp4(video)[0]) == 25, "no half-written file has a video's name"
    assert error == "m4v: interrupted; the same command goes on from the saved state\n"
    assert not [p.name for p in out.iterdir() if p.name.endswith(".tmp")]
    resumed = made(m4v_here, *arguments, "--out", "killed")
    assert resumed["already_there"] == 3
    assert contents(out) == contents(tmp_path / "whole")


def test_a_reader_that_goes_away_does_not_end_the_work(folder: str, tmp_path: Path) -> None:
    process = started(tmp_path, folder, "--prompt", RED, "--samples", "2", *QUICK, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == ExitClass.OK
    assert len(manifest(tmp_path / "generated")) == 2


def test_averaged_or_raw_weights(m4v_here: M4v, checkpoint: Artifact, tmp_path: Path) -> None:
    config = json.loads(checkpoint.path("config.json").read_text())
    state = load_file(checkpoint.path("model.safetensors"))
    averaged = {name: value * 0.9 for name, value in state.items()}
    save_checkpoint(tmp_path / "both", CheckpointConfig.model_validate(config), state, averaged)
    folder = str(tmp_path / "both")
    videos = {
        option: made(m4v_here, folder, "--prompt", RED, "--out", option, option, *QUICK)["videos"][0]
        for option in ("--ema", "--raw")
    }
    assert [videos[o]["settings"]["weights"] for o in ("--ema", "--raw")] == ["ema", "raw"]
    assert videos["--ema"]["sha256"] != videos["--raw"]["sha256"]
    plain = made(m4v_here, str(checkpoint.storage.local_root), "--prompt", RED, "--out", "plain", *QUICK)["videos"][0]
    assert plain["sha256"] == videos["--raw"]["sha256"]
    assert plain["settings"]["weights"] == "raw", "there are no averaged ones"
    export_checkpoint(Path(folder).joinpath, tmp_path / "exported")
    exported = made(m4v_here, str(tmp_path / "exported"), "--prompt", RED, "--out", "export", *QUICK)["videos"][0]
    assert exported["sha256"] == videos["--ema"]["sha256"]
    assert exported["settings"]["weights"] == "ema", "one file, but of averaged weights"


def test_other_settings_and_other_videos_are_refused(m4v_here: M4v, folder: str, tmp_path: Path) -> None:
    made(m4v_here, folder, "--prompt", RED, *QUICK)
    before = contents(tmp_path / "generated")
    code, _, error = m4v_here("generate", folder, "--prompt", RED, *QUICK, "--steps", "2,1", "--crf", "20")
    assert code == ExitClass.CONFIG
    assert "steps_first was [1, 1, 1], now [2, 2, 2]" in error
    assert "crf was 12, now 20" in error
    assert "use another --out" in error
    code, _, error = m4v_here("generate", folder, "--prompt", RED, "--negative", "fog", *QUICK)
    assert code == ExitClass.CONFIG
    assert "0000-a-red-circle-moves-up-s0.mp4 was made with another negative" in error
    assert contents(tmp_path / "generated") == before


def test_jsonl_lines_say_seed_negative_and_image(m4v_here: M4v, folder: str, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 64)).save(tmp_path / "lists" / "start.png")
    lines = [{"prompt": RED, "seed": 5}, {"prompt": RED, "negative": "fog"}, {"prompt": BLUE, "image": "start.png"}]
    (tmp_path / "lists" / "p.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    videos = made(m4v_here, folder, "--prompts", "lists/p.jsonl", "--seed", "9", "--negative", "blur", *QUICK)["videos"]
    assert [(v["seed"], v["negative"]) for v in videos] == [(5, "blur"), (9, "fog"), (9, "blur")]
    assert [v["image"] for v in videos] == [None, None, digest_file(tmp_path / "lists" / "start.png")]
    alone = made(m4v_here, folder, "--prompt", BLUE, "--image", "lists/start.png", "--seed", "9", "--negative", "blur",
                 "--out", "alone", *QUICK)["videos"]  # fmt: skip
    assert alone[0]["sha256"] == videos[2]["sha256"]
    plain = made(m4v_here, folder, "--prompt", BLUE, "--seed", "9", "--negative", "blur", "--out", "plain", *QUICK)[
        "videos"
    ]
    assert plain[0]["sha256"] != videos[2]["sha256"]


def record_in_ledger(home: Path, config: dict[str, Any], *artifacts: Artifact) -> None:
    """A ledger in which one run of a pipeline, whose recipe samples by `config`, made all `artifacts`."""
    home.mkdir()
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        pipeline = ledger.begin_pipeline_run("mine", {"name": "mine", "generate": config}, trigger="cli")
        claim = ledger.claim("key" * 8, "tester")
        attempt = ledger.begin_attempt(
            claim, stage="init", work_dir="work", log_path="log", pipeline_run_id=pipeline, node_id="init"
        )
        outputs = {
            str(a.kind): ArtifactRecord(
                artifact_id=a.id, kind=a.kind, uri=a.storage.uri, size_bytes=1, files=len(a.names()), summary={}
            )
            for a in artifacts
        }
        facts = NewRun(
            stage="init", stage_version=1, stage_key="key" * 8, key_record={}, config={}, code_digest="c" * 64, seed=0
        )
        no_inputs: list[InputRef] = []
        ledger.commit_run(claim, attempt, facts, no_inputs, outputs, {})


RECIPE = {"prompts": [{"text": "x"}], "frames": 9, "height": 64, "width": 128, "fps": 8.0, "sampler": SAMPLER}


def test_an_artifact_is_sampled_as_its_recipe_does(m4v_here: M4v, checkpoint: Artifact, tmp_path: Path) -> None:
    record_in_ledger(tmp_path / "home", RECIPE, checkpoint)
    code, out, error = m4v_here("generate", checkpoint.id[:10], "--prompt", RED, "--device", "cpu")
    assert (code, error) == (ExitClass.OK, "")
    assert "1 video of 9 frames, 128x64, 8 fps, as in recipe mine" in out
    (record,) = manifest(tmp_path / "generated")
    assert record["settings"]["checkpoint"] == checkpoint.id
    assert record["settings"]["sampler"]["steps_first"] == SAMPLER["steps_first"]
    narrow = made(m4v_here, checkpoint.id, "--prompt", RED, "--width", "64", "--out", "b", "--device", "cpu")
    assert narrow["videos"][0]["settings"]["width"] == 64


def test_imported_weights_come_through_the_ledger(m4v_here: M4v, checkpoint: Artifact, tmp_path: Path) -> None:
    weights = publish(write_tiny_vae(tmp_path / "vae"), ArtifactKind.WEIGHTS)
    config = json.loads(checkpoint.path("config.json").read_text())
    named = {**config, "codec": CausalVaeConfig(weights="wide").canonical(), "weights": {"wide": weights.id}}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text(json.dumps(named))
    (tmp_path / "own" / "model.safetensors").write_bytes(checkpoint.path("model.safetensors").read_bytes())
    own = publish(tmp_path / "own", ArtifactKind.CHECKPOINT)
    steps = {"steps_first": [1, 1, 1], "steps_later": [1, 1, 1], "guidance_first": 2.0, "guidance_later": 2.0,
             "guidance_image": 2.0, "prompt_suffix": ""}  # fmt: skip
    record_in_ledger(tmp_path / "home", {**RECIPE, "width": 64, "sampler": steps}, own, weights)
    recorded = made(m4v_here, own.id[:12], "--prompt", RED, "--device", "cpu")["videos"][0]
    assert recorded["settings"]["imported"] == {"wide": weights.id}
    folder = ("--weights", f"wide={tmp_path / 'vae'}", "--suffix", "", "--fps", "8", "--out", "b")
    by_folder = made(m4v_here, str(tmp_path / "own"), "--prompt", RED, *folder, *QUICK)["videos"][0]
    assert by_folder == recorded
