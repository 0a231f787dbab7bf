"""Picture numbers of H.264 (ISO/IEC 14496-10): a lost reference picture shows as a jump of ``frame_num``.

FFmpeg fills such jumps with copies and says so at debug level only, and not before the next reference picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_HIGH = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)  # profiles with chroma and scaling fields
_START = re.compile(rb"\x00\x00\x01")


OPEN = 8
"""Pictures after a key frame in the middle of a stream within which one jump means leading pictures cut away."""


class PictureNumbers:
    """Follows ``frame_num`` from packet to packet.

    Args:
        extradata: of the stream; ``avcC`` where units stand behind their lengths.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self.width = extradata[4] % 4 + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0
        self.bits = 0  # of frame_num; 0 while no parameter set was seen
        self.reference: int | None = None  # frame_num of the last reference picture
        self.lenient = 0  # pictures after a key frame that keeps no memory of what came before it
        if extradata and self.width and len(extradata) > 8:
            self._learn(extradata[8:])  # after the first set's length
        elif extradata:
            for unit in self._units(extradata):
                self._learn(unit)

    def misses(self, packet: bytes) -> bool:
        """Whether a reference picture is missing before this packet's picture (7.4.3, ``frame_num``)."""
        for unit in self._units(packet):
            kind = unit[0] & 31
            if kind == 7:
                self._learn(unit)
            if kind not in (1, 5) or not self.bits:
                continue
            bits = _Bits(unit[1:48])
            try:
                for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
                    bits.exponential()
                number = bits.read(self.bits)
            except IndexError:
                return True
            before, span = self.reference, 1 << self.bits
            if unit[0] >> 5 & 3:  # nal_ref_idc: others refer to it
                self.reference = number
            jumps = kind != 5 and before is not None and (number - before) % span > 1
            # Pictures shown before the first key frame may be cut away with those that they refer to; what is
            # shown after it refers to neither.
            if before is None:
                self.lenient = 0 if kind == 5 else OPEN
            elif self.lenient:
                self.lenient = 0 if jumps else self.lenient - 1
                return False
            return jumps
        return False

    def restart(self) -> None:
        """What came before is not known."""
        self.reference = None

    def _units(self, data: bytes) -> Iterator[bytes]:
        if not self.width:
            places = [m.end() for m in _START.finditer(data)]
            yield from (data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True) if data[a:b])
            return
        place = 0
        while place + self.width < len(data):
            size = int.from_bytes(data[place : place + self.width], "big")
            place += self.width
            if size:
                yield data[place : place + size]
            place += size

    def _learn(self, unit: bytes) -> None:
        """Read a sequence parameter set (7.3.2.1.1) up to whether gaps are allowed, which ends the check."""
        if not unit or unit[0] & 31 != 7:
            return
        bits = _Bits(unit[1:])
        try:
            profile = bits.read(8)
            bits.read(16)
            bits.exponential()
            if profile in _HIGH:
                chroma = bits.exponential()
                bits.read(1 if chroma == 3 else 0)
                bits.exponential(), bits.exponential(), bits.read(1)
                if bits.read(1):
                    for number in range(12 if chroma == 3 else 8):
                        if bits.read(1):
                            bits.skip_scaling_list(16 if number < 6 else 64)
            length = bits.exponential() + 4
            order = bits.exponential()
            if order == 0:
                bits.exponential()
            elif order == 1:
                bits.read(1)
                for _ in range(2):
                    bits.exponential()
                for _ in range(bits.exponential()):
                    bits.exponential()
            bits.exponential()
            self.bits = 0 if bits.read(1) else length
        except IndexError:
            self.bits = 0


class _Bits:
    """Bits of a unit's payload, most significant first."""

    def __init__(self, data: bytes) -> None:
        payload = data.replace(b"\x00\x00\x03", b"\x00\x00")  # without emulation prevention
        self.value, self.left = int.from_bytes(payload, "big"), 8 * len(payload)

    def read(self, count: int) -> int:
        """An unsigned number of so many bits.

        Raises:
            IndexError: if there are not so many.
        """
        if count > self.left:
            raise IndexError
        self.left -= count
        return self.value >> self.left & ((1 << count) - 1)

    def exponential(self) -> int:
        """An unsigned Exp-Golomb number (9.1); of a signed one only the length is right."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def skip_scaling_list(self, size: int) -> None:
        """Read over a scaling list (7.3.2.1.1.1)."""
        last = following = 8
        for _ in range(size):
            if following:
                coded = self.exponential()
                following = (last + (coded + 1 >> 1 if coded & 1 else -(coded >> 1))) % 256
            last = following or last
