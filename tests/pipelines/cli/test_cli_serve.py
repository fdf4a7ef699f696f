"""`m4v serve` as a process: it says where it is, answers, stops on Ctrl-C, and refuses what cannot be."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

M4v = Callable[..., tuple[int, str, str]]


def test_it_says_where_it_is_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli.main", "--home", str(tmp_path / "home"), "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)
        assert address is not None, said
        assert httpx.get(f"{address[0]}healthz", timeout=300).text == "ok\n"
        assert "Nothing has run in this workspace yet" in httpx.get(f"{address[0]}runs", timeout=300).text
        foreign = httpx.get(f"{address[0]}runs", headers={"host": "attacker.example"}, timeout=300)
        assert foreign.status_code == 421  # a page elsewhere whose name was made to point here
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0
    assert out == "stopped\n"
    assert err == ""


def test_a_port_that_is_taken_is_one_clear_line(m4v: M4v) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = m4v("serve", "--port", str(taken.getsockname()[1]))
    assert code == 10
    assert err.startswith("m4v: cannot listen there: Address already in use")
    assert "choose another --port" in err
    assert err.count("\n") == 1


def test_a_host_that_is_unknown_is_one_clear_line(m4v: M4v) -> None:
    code, _, err = m4v("serve", "--host", "no.such.host.invalid")
    assert code == 10
    assert err.startswith("m4v: host is unknown")


def test_a_port_that_is_none_is_usage(m4v: M4v) -> None:
    code, _, err = m4v("serve", "--port", "70000")
    assert code == 2
    assert "65535" in err


def test_settings_that_are_wrong_are_named(m4v: M4v, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "settings.yaml").write_text("access: {roles: {ann: emperor}}\n")
    code, out, err = m4v("serve", "--port", "0")
    assert code == 10
    assert "access.roles.ann" in err
    assert "serving" not in out
