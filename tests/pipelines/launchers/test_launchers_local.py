"""The local launcher's ports."""

import socket
from pathlib import Path

import pytest

from m4v.core.errors import InfrastructureError
from pipelines.launchers import local
from pipelines.launchers.local import free_port


def test_a_free_port_is_none_that_the_kernel_may_give_to_others(monkeypatch, tmp_path):
    first, _ = (int(n) for n in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        assert asked.getsockname()[1] >= first
    found = [free_port() for _ in range(20)]
    assert len(set(found)) > 15
    assert all(20_000 <= port < max(first, 32_768) for port in found)
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", found[0]))
    (tmp_path / "range").write_text("28000\t60999\n")
    monkeypatch.setattr(local, "_PORT_RANGE", tmp_path / "range")
    assert all(free_port() < 28_000 for _ in range(20))


def test_a_port_that_somebody_has_is_passed_over(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        port = taken.getsockname()[1]
        other = free_port()
        draws = iter([port - 20_000] * 3 + [other - 20_000])
        monkeypatch.setattr(local.secrets, "randbelow", lambda _: next(draws))
        assert free_port() == other
        monkeypatch.setattr(local.secrets, "randbelow", lambda _: port - 20_000)
        with pytest.raises(InfrastructureError, match="no port is free"):
            free_port()
