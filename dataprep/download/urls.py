"""Which URLs out of a table may be fetched at all, told from their text."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import urlsplit

from dataprep.download.addresses import is_public

PRIVATE = "names a private address"
# Nearly every row of a table of ten million: a host by its name and nothing that needs more parsing.
_PLAIN = re.compile(r"https?://([a-z0-9.-]+)(?:/[!-~]*)?")
_UNSEEN = re.compile(r"[\x00-\x20]")


def url_problem(url: str, allows_host: Callable[[str], bool] | None = None) -> str | None:
    """Why a URL must not be fetched, None when it may be; `allows_host` says which private hosts may.

    A name that resolves to a private address is the guard's to refuse: that is known only when it connects.
    """
    plain = _PLAIN.fullmatch(url)
    if plain is None:
        host, problem = _parsed(url)
        if problem is not None:
            return problem
    else:
        host = plain[1]
    return PRIVATE if _private_host(host) and not (allows_host is not None and allows_host(host)) else None


def _parsed(url: str) -> tuple[str, str | None]:
    """Host and problem of any URL."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "", "is no URL"
    if parts.scheme not in ("http", "https") or not host:
        return "", f"has the scheme {parts.scheme or 'none'!r}, not http or https"
    if parts.username is not None or parts.password is not None:
        return host, "carries credentials"
    return host, "holds spaces or control characters" if _UNSEEN.search(url) else None


@lru_cache(maxsize=4096)
def _private_host(host: str) -> bool:
    host = host.rstrip(".")
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        return not is_public(ipaddress.ip_address(host))
    except ValueError:
        # Whole-number, octal and short forms (`127.1`, `0x7f.1`) that resolvers take for addresses.
        last = host.rsplit(".", 1)[-1]
        return last.isdigit() or last.lower().startswith("0x")
