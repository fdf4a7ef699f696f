"""Counter-based randomness: a value depends on (seed, names) alone, never on who draws it or when.

No state needs saving, and worker count, prefetch and rank count cannot change what a sample sees
(DESIGN, Data order and randomness).
"""

from __future__ import annotations

import hashlib
import operator
from functools import lru_cache
from hashlib import blake2b

import numpy as np


def _encode(part: int | str) -> str:
    if isinstance(part, str):
        if "\x1f" in part:
            raise ValueError(f"a random key may not hold the control character \\x1f: {part!r}")
        return f"str:{part}"
    return f"int:{operator.index(part)}"  # NumPy integers draw like their value; floats are refused


def _key(*parts: int | str) -> bytes:
    encoded = "\x1f".join(_encode(p) for p in parts)
    return hashlib.sha256(encoded.encode()).digest()


@lru_cache(maxsize=4096, typed=True)  # one stream of many dataset versions has the same keys
def _numbered_keys(count: int, *parts: int | str) -> tuple[bytes, ...]:
    """`_key(*parts, number)` of each number below `count`; what they share is hashed once."""
    shared = hashlib.sha256("".join(_encode(p) + "\x1f" for p in parts).encode())
    keys = [shared.copy() for _ in range(count)]
    for number, key in enumerate(keys):
        key.update(_encode(number).encode())
    return tuple(key.digest() for key in keys)


@lru_cache(maxsize=4096)
def _keyed(keys: tuple[bytes, ...]) -> tuple[blake2b, ...]:
    """A hash keyed by each, to copy: making one anew takes twice as long as all the rest of a round."""
    return tuple(blake2b(key=key, digest_size=8) for key in keys)


def generator(seed: int, *parts: int | str) -> np.random.Generator:
    """A Philox generator keyed by (seed, *parts), for example (seed, sample id, draw index, purpose)."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_key(seed, *parts)[:16], "little")))


def torch_seed(seed: int, *parts: int | str) -> int:
    """A 63-bit seed for `torch.Generator`, keyed like `generator`."""
    return int.from_bytes(_key(seed, *parts)[:8], "little") >> 1


class Permutation:
    """A keyed bijection of range(n) with a closed-form inverse: Feistel network with cycle walking."""

    ROUNDS = 8

    def __init__(self, n: int, seed: int, *parts: int | str) -> None:
        if n < 1:
            raise ValueError(f"a permutation needs at least one element, not {n}")
        self.n = n
        self._half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half_bits) - 1
        self._round_keys = _numbered_keys(self.ROUNDS, seed, *parts, "feistel")

    def _forward(self, x: int) -> int:
        mask, left, right = self._mask, x >> self._half_bits, x & self._mask
        for keyed in _keyed(self._round_keys):
            hashed = keyed.copy()
            hashed.update(right.to_bytes(8, "little"))
            left, right = right, left ^ (int.from_bytes(hashed.digest(), "little") & mask)
        return (left << self._half_bits) | right

    def _backward(self, x: int) -> int:
        mask, left, right = self._mask, x >> self._half_bits, x & self._mask
        for keyed in reversed(_keyed(self._round_keys)):
            hashed = keyed.copy()
            hashed.update(left.to_bytes(8, "little"))
            left, right = right ^ (int.from_bytes(hashed.digest(), "little") & mask), left
        return (left << self._half_bits) | right

    def __call__(self, index: int) -> int:
        """Image of `index`; the domain is at most 4n, so the walk takes under four steps on average."""
        x = self._forward(self._checked(index))
        while x >= self.n:
            x = self._forward(x)
        return x

    def inverse(self, value: int) -> int:
        x = self._backward(self._checked(value))
        while x >= self.n:
            x = self._backward(x)
        return x

    def _checked(self, value: int) -> int:
        value = operator.index(value)
        if not 0 <= value < self.n:
            raise IndexError(f"{value} is outside range({self.n})")
        return value
