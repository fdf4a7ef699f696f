"""Which network addresses may be connected to: public ones, and those that the operator allows by name."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache

from dataprep.download.outcome import FetchError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def system_resolver(host: str, port: int) -> list[str]:
    """Addresses of a host in the system's order; raises socket.gaierror."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: Address) -> bool:
    """Neither private, loopback, link-local, multicast nor reserved, also not when written as IPv6 (mapped, 6to4,
    NAT64, Teredo)."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


class AddressGuard:
    """Resolves a host once and gives only addresses that may be connected to: whoever connects uses just these, so
    that a second DNS answer cannot lead elsewhere."""

    def __init__(self, allow: Sequence[str] = (), resolver: Resolver = system_resolver) -> None:
        self._networks = [ipaddress.ip_network(a) for a in allow if _is_network(a)]
        self._hosts = {a.lower().rstrip(".") for a in allow if not _is_network(a)}
        self._resolver = resolver

    def allows_host(self, host: str) -> bool:
        """Is the host allowed by the operator, whatever it resolves to?"""
        host = host.lower().rstrip(".").strip("[]")
        return host in self._hosts or (_is_network(host) and self._allows(ipaddress.ip_address(host)))

    def addresses(self, host: str, port: int) -> list[str]:
        """Raises FetchError `private_address` when any address of the host may not be connected to, `host_unknown`
        when there is none."""
        try:
            found = self._resolver(host, port)
        except socket.gaierror as error:
            raise FetchError("host_unknown", f"{host}: {error.strerror}", retry=True, host=True) from None
        except (UnicodeError, ValueError):
            raise FetchError("host_unknown", f"{host!r} is no host name") from None
        if not found:
            raise FetchError("host_unknown", f"{host} has no address", retry=True, host=True)
        if not self.allows_host(host):
            for text in found:
                address = ipaddress.ip_address(text.partition("%")[0])
                if not is_public(address) and not self._allows(address):
                    raise FetchError("private_address", f"{host} resolves to {address}")
        return list(found)

    def _allows(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=8)
def host_rule(allow: tuple[str, ...]) -> Callable[[str], bool]:
    """`AddressGuard.allows_host` of an allow-list, for whoever looks at many URLs."""
    return AddressGuard(allow).allows_host
