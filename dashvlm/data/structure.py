"""What the bytes of a video file say about its being whole, where demuxers and decoders do not look."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import av

from dashvlm.data.h264 import PictureNumbers

_EMULATION = re.compile(rb"\x00\x00[\x00\x01\x02]")
"""Three bytes that cannot occur inside a NAL unit (ISO/IEC 14496-10, 7.4.1): zeros written over it do."""
_ZERO_RUN = re.compile(rb"\x00\x00\x00+[^\x00\x01]")
"""The same between start codes, where zeros may only stand before the next one."""
_LONG_ZEROS = re.compile(rb"\x00{24}")
"""More zeros in a row than an arithmetic coder puts out."""
START_CODES = ("h264", "hevc", "mpeg2video", "mpeg1video", "mpeg4")


class PacketCheck:
    """What a packet's bytes tell of damage before it is decoded.

    Args:
        codec: of the stream.
        timed: whether every picture should have a presentation time.
    """

    def __init__(self, codec: av.VideoCodecContext, timed: bool) -> None:
        self.codec, self.timed = codec, timed
        self.numbered = codec.name in ("h264", "hevc")
        extra = codec.extradata
        self.width = 0  # of the lengths before units; 0 where start codes separate them
        if self.numbered and extra and extra[0] == 1:
            place = 4 if codec.name == "h264" else 21
            self.width = (extra[place] if len(extra) > place else 3) % 4 + 1
        self.numbers = PictureNumbers(extra) if codec.name == "h264" else None

    def is_broken(self, packet: av.Packet[Any], data: bytes) -> bool:
        """Whether a packet holds bytes that its codec cannot produce, such as zeros written over a part of it."""
        if self.codec.name in ("vp8", "vp9", "libvpx", "libvpx-vp9"):
            return _LONG_ZEROS.search(data) is not None
        if self.codec.name not in START_CODES:
            return False
        if self.timed and self.numbered and packet.pts is None:
            return True  # the header that held its time is lost
        zeros = len(data) - len(data.rstrip(b"\x00"))
        # A unit ends in a byte that is not zero, but some writers pad units to whole words.
        if self.numbered and zeros > (3 if self.width else 7):
            return True
        if not self.width:
            return bool(_ZERO_RUN.search(data))
        place = 0
        while place + self.width <= len(data):
            size = int.from_bytes(data[place : place + self.width], "big")
            place += self.width
            if not 0 < size <= len(data) - place:
                return True
            found = _EMULATION.search(data, place, place + size)
            if found and data[found.start() : place + size].strip(b"\x00"):
                return True
            place += size
        return False

    def misses_reference(self, data: bytes) -> bool:
        """Whether a picture that this one may refer to is missing (H.264)."""
        return self.numbers is not None and self.numbers.misses(data)

    def restart(self, data: bytes) -> None:
        """Decoding starts anew with this packet."""
        if self.numbers is not None:
            self.numbers.restart()
            self.numbers.misses(data)


def was_cut(container: av.container.InputContainer) -> bool:
    """Whether a transport stream ends within one of its packets."""
    if container.format.name != "mpegts":
        return False
    size = Path(container.name.removeprefix("file:")).stat().st_size
    return 0 not in (size % 188, size % 192, size % 204)


def end_of_chunks(path: Path) -> int | None:
    """Walk through an AVI's chunks (RIFF: four letters, size, data padded to even) to the first that is none."""
    with path.open("rb") as file:
        place, size = 0, path.stat().st_size
        while place + 8 <= size:
            file.seek(place)
            head = file.read(12)
            name, length = head[:4], int.from_bytes(head[4:8], "little")
            if not re.fullmatch(rb"RIFF|LIST|JUNK|idx1|strn|(ix|\d\d)\w\w|[a-zA-Z]{3}[ \w]", name):
                return place
            whole = place + 8 + length
            if name in (b"RIFF", b"LIST") and head[8:12] in (b"AVI ", b"AVIX", b"movi", b"rec "):
                place += 12
            elif whole > size:  # cut off within this chunk; the one before it is whole
                return place + 10
            else:
                place = whole + length % 2
    return None


def end_of_packs(path: Path) -> int | None:
    """Walk through a program stream's packets (ISO/IEC 13818-1, 2.5.3); the offset of the first that is none."""
    with path.open("rb") as file:
        place, size = 0, path.stat().st_size
        while place + 6 <= size:
            file.seek(place)
            head = file.read(14)
            if head[:3] != b"\x00\x00\x01":
                file.seek(place)
                return place if file.read(1 << 16).strip(b"\x00") else None  # zeros may fill the end
            kind, length = head[3], int.from_bytes(head[4:6], "big")
            if kind == 0xB9:
                place += 4
            elif kind == 0xBA and len(head) == 14:
                place += 14 + (head[13] & 7) if head[4] >> 6 == 1 else 12
            elif kind >= 0xBB:
                place += 6 + length
            else:
                return place
    return None
