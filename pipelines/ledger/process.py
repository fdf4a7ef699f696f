"""Who is a process, and is it still alive: for claims of holders that died without releasing them."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def host_name() -> str:
    return socket.gethostname()


def process_token(pid: int | None = None) -> str:
    """`BOOT/PIDNAMESPACE/PID/STARTED`: names one process of one boot, never a later one with its number.

    The namespace keeps containers apart that share a kernel and perhaps a host name.
    """
    pid = os.getpid() if pid is None else pid
    return f"{_host_token()}/{pid}/{_started(pid) or ''}"


def is_dead(token: str) -> bool:
    """True only when the process is known to be gone: it ran on this host, in this boot and namespace."""
    host, _, rest = token.rpartition("/")
    host, _, pid = host.rpartition("/")
    if host != _host_token() or not pid.isdigit() or not rest:
        return False
    return _started(int(pid)) != rest


def is_alive(token: str) -> bool:
    """True only when the process is known to be there: on this host, in this boot and namespace."""
    host, _, rest = token.rpartition("/")
    host, _, pid = host.rpartition("/")
    return host == _host_token() and pid.isdigit() and bool(rest) and _started(int(pid)) == rest


def _host_token() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""  # not Linux: nobody is ever known to be dead, leases expire instead


def _started(pid: int) -> str | None:
    """Start time in clock ticks since boot; None for no such process, or one that is only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return None if fields[0] in "ZX" else fields[19]
