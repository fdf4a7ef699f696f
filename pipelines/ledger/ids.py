"""Ids of runs, attempts and pipeline runs: 16 characters, sortable by time, unique."""

from __future__ import annotations

import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: no i, l, o, u
_TIME_CHARS, _RANDOM_CHARS = 9, 7  # milliseconds until the year 3084, then 35 random bits
ID_CHARS = _TIME_CHARS + _RANDOM_CHARS

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """An id that sorts after every id this process made before."""
    global _last
    value = (time.time_ns() // 1_000_000) << (5 * _RANDOM_CHARS) | secrets.randbits(5 * _RANDOM_CHARS)
    with _lock:
        # Within one millisecond (or after the clock stepped back) count up instead of drawing again.
        _last = value = max(value, _last + 1)
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(5 * (ID_CHARS - 1), -1, -5))


def id_time_ms(identity: str) -> int | None:
    """When an id was made, in milliseconds since 1970; None for a text that `new_id` cannot have made."""
    if len(identity) != ID_CHARS or any(character not in _ALPHABET for character in identity):
        return None
    value = 0
    for character in identity[:_TIME_CHARS]:
        value = value << 5 | _ALPHABET.index(character)
    return value
