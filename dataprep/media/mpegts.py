"""Damage that the packets of an MPEG transport stream show: sync bytes, error marks, continuity counters, PES starts.

Demuxers find the next packet in silence, and hand on what is left of a picture as if it were whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SYNC = 0x47
_PACKET = 188
_STRIDES = {188: 0, 192: 4, 204: 0}  # bytes a packet: offset of the sync byte (4: the time code of Blu-ray)
_NULL = 0x1FFF
_RUN = 5  # packets in a row that make a stream
_CHUNK = 1 << 13  # packets a read
_MAX_FAULTS = 1000
_ANY = -1
_FIRST_STREAM = 0xBC  # lowest stream id of a PES packet
_PLAIN = frozenset((0xBC, 0xBE, 0xBF, 0xF0, 0xF1, 0xF2, 0xF8, 0xFF))  # streams whose PES packets have a short header
_TIMES = {0: 0, 2: 5, 3: 10}  # bytes of a PES header's time stamps by the two bits that announce them; 1 is forbidden


def is_transport_stream(head: bytes) -> bool:
    """`head`: the first 1100 bytes or more of a file."""
    return _layout(head) is not None


def _layout(head: bytes) -> tuple[int, int] | None:
    """Bytes a packet, and offset of the first sync byte."""
    for stride, offset in _STRIDES.items():
        marks = head[offset : offset + stride * _RUN : stride]
        # Damage may have hit one of them.
        if len(marks) == _RUN and marks.count(_SYNC) >= _RUN - 1:
            return stride, offset
    return None


def faults(path: Path, pid: int | None = None) -> list[int]:
    """Byte offsets of packets where data of stream `pid` (None: any) is lost, doubled or broken, in order."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        layout = _layout(stream.read(2048))
        if layout is None:
            return []
        stride, offset = layout
        counters = _Counters(pid)
        found: list[int] = []
        at = offset
        while at + _PACKET <= size and len(found) < _MAX_FAULTS:
            stream.seek(at)
            data = stream.read(stride * _CHUNK)
            count = max(1, (len(data) + stride - _PACKET) // stride)
            padded = np.frombuffer(data.ljust(count * stride, b"\0")[: count * stride], np.uint8)
            packets = padded.reshape(count, stride)[:, :_PACKET]
            lost = np.flatnonzero(packets[:, 0] != _SYNC)
            whole = int(lost[0]) if len(lost) else count
            found += [at + stride * k for k in counters.check(packets[:whole])]
            at += stride * whole
            if len(lost):
                found.append(at)
                at = _resync(data, stride * whole, stride) + at - stride * whole
                counters.forget()
        if at < size and size - at < _PACKET:
            found.append(at)  # half a packet at the end: the file was cut
    return found


def _resync(data: bytes, begin: int, stride: int) -> int:
    """Place of the next sync byte with others at its distance; the end of `data` where there is none."""
    at = data.find(_SYNC, begin + 1)
    while at >= 0:
        marks = data[at : at + stride * _RUN : stride]
        if marks.count(_SYNC) == len(marks):
            return at
        at = data.find(_SYNC, at + 1)
    return len(data)


class _Counters:
    """The continuity counter of every stream (ISO 13818-1, section 2.4.3.3), over consecutive pieces of a file."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._last: dict[int, int] = {}

    def forget(self) -> None:
        """Bytes are lost here: that is told already."""
        self._last.clear()

    def check(self, packets: NDArray[np.uint8]) -> list[int]:
        """Places of faulty packets among `packets`, (n, 188)."""
        pids = (packets[:, 1].astype(np.int64) & 0x1F) << 8 | packets[:, 2]
        found: set[int] = set()
        for pid in np.unique(pids):
            if pid != _NULL and (self._pid is None or pid == self._pid):
                places = np.flatnonzero(pids == pid)
                found.update(int(places[k]) for k in self._of(int(pid), packets[places]))
        return sorted(found)

    def _of(self, pid: int, packets: NDArray[np.uint8]) -> NDArray[np.int64]:
        control, length = packets[:, 3] >> 4 & 3, packets[:, 4]
        payload, adapted = control & 1 == 1, control & 2 == 2
        flags = np.where(adapted & (length > 0), packets[:, 5], 0)
        # The stream says that it jumps here, or begins anew: recordings are joined by joining their bytes.
        jump = (flags & 0x80 > 0) | ((flags & 0x40 > 0) & (packets[:, 1] & 0x40 > 0))
        bad = (packets[:, 1] & 0x80 > 0) | (control == 0) | (packets[:, 3] & 0xC0 > 0)
        bad |= adapted & (length > np.where(payload, 182, 183))
        counter = (packets[:, 3] & 15).astype(np.int64)
        before = np.concatenate([[self._last.get(pid, _ANY)], counter[:-1]])
        step = (counter - before) % 16
        first = before == _ANY
        # A packet may be sent twice, and one without payload does not count.
        repeated = np.zeros(len(packets), bool)
        repeated[1:] = payload[1:] & (packets[1:, 4:] == packets[:-1, 4:]).all(axis=1)
        bad |= ~first & ~jump & (step != payload) & ~((step == 0) & repeated)
        self._last[pid] = int(counter[-1])
        return np.flatnonzero(bad | self._bad_start(pid, packets, payload, adapted))

    def _bad_start(
        self, pid: int, packets: NDArray[np.uint8], payload: NDArray[np.bool_], adapted: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Packets of the stream that say to begin a PES packet and hold no start code."""
        bad = np.zeros(len(packets), bool)
        if pid == self._pid:
            begins = np.where(adapted, 5 + packets[:, 4].astype(np.int64), 4)
            for k in np.flatnonzero((packets[:, 1] & 0x40 > 0) & payload & (begins <= _PACKET - 4)):
                bad[k] = not _is_pes_header(bytes(packets[k, begins[k] :]))
        return bad


def _is_pes_header(data: bytes) -> bool:
    """Whether a payload of 4 bytes or more begins a PES packet (ISO 13818-1, section 2.4.3.6), as far as it goes."""
    if data[:3] != b"\0\0\1" or data[3] < _FIRST_STREAM:
        return False
    if data[3] in _PLAIN or len(data) < 9:
        return True
    announced, length = data[7] >> 6, data[8]
    times = _TIMES.get(announced, length + 1)
    if data[6] & 0xC0 != 0x80 or times > length:
        return False
    stamps = [data[9 + 5 * k : 14 + 5 * k] for k in range(times // 5)]
    return all(
        len(stamp) < 5 or (stamp[0] >> 4 == (1 if k else announced) and stamp[0] & stamp[2] & stamp[4] & 1)
        for k, stamp in enumerate(stamps)
    )
