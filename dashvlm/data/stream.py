"""One video stream, decoded strictly: which stream, where to start, and nothing that damage may have touched.

A decoder hides damage: it guesses what it cannot read and goes on from the guess. Here every sign of damage
(an error, a corrupt packet or frame, a message about concealment, a gap that the codec cannot explain) ends
the output until the next key frame from which decoding can start anew.
"""

from __future__ import annotations

import collections
import errno
import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from dashvlm.data.clip import FrameArray
from dashvlm.data.structure import PacketCheck, end_of_chunks, end_of_packs, was_cut
from dashvlm.errors import VideoError

# Demuxers that read one self-contained file. Playlists (hls, concat, dash) are absent on purpose:
# a text file renamed to .mp4 must not make the decoder open other files or sockets.
FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,ivf,h264,hevc"
RAW = ("h264", "hevc", "mpegvideo", "m4v")
"""Formats without time stamps: a frame's time is its number over the rate that the stream states."""
MAX_PIXELS = 7680 * 4320  # a header that declares more is taken for damage
STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}
_DAMAGE = re.compile(
    r"conceal|frame num gap|could not find ref|missing reference|co located pocs|error while decoding"
    r"|marker bit missing|damaged|corrupt|invalid (nal|level|mb|cbp)|illegal (mb|dc|ac)|skipped mb",
    re.IGNORECASE,
)
# What FFmpeg says is captured where it matters; the rest is not worth a line per frame.
av.logging.set_level(av.logging.INFO)
av.logging.set_skip_repeated(False)
logging.getLogger("libav").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True)
class Shown:
    """A frame as a player shows it.

    Attributes:
        frame: the decoded frame.
        stamp: its time in the unit of the stream; see :func:`shown_frames`.
    """

    frame: av.VideoFrame
    stamp: int


def open_video(path: Path) -> av.container.InputContainer:
    """Open a local video file of a known container format; no network, no playlists.

    Raises:
        VideoError: if it is missing, empty, no regular file, or of another format.
    """
    if not path.is_file():
        raise VideoError(f"{path}: " + ("no regular file" if path.exists() else "no such video file"))
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: empty file", do="copy the video again")
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        return av.open(f"file:{path}", options=options)
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video", got=str(error), do="replace or remove the file") from error


def video_streams(path: Path, container: av.container.InputContainer) -> list[av.VideoStream]:
    """Return the video streams, the one that is read first: the default, then the largest; cover pictures excluded.

    Raises:
        VideoError: if there is none, or its declared size is absurd.
    """
    found = [s for s in container.streams.video if not _says(s, "attached_pic") and s.codec_context is not None]
    if not found:
        what = "no decoder for its video" if container.streams.video else "no video stream"
        raise VideoError(f"{path}: {what}", do="remove the file, or write it anew: ffmpeg -i FILE NEW.mp4")
    found.sort(key=lambda s: (not _says(s, "default"), -s.codec_context.width * s.codec_context.height, s.index))
    width, height = found[0].codec_context.width, found[0].codec_context.height
    if not 0 < width * height <= MAX_PIXELS:
        raise VideoError(f"{path}: implausible frame size", got=f"{width}x{height}")
    return found


def _says(stream: av.VideoStream, disposition: str) -> bool:
    return bool(stream.disposition & getattr(av.stream.Disposition, disposition))


def stamps_of(container: av.container.InputContainer, lacking: bool) -> str:
    """Where frame times come from: ``pts``, ``dts`` (containers that store decoding order only), or ``count``.

    Args:
        container: the file.
        lacking: whether most packets have no presentation time.
    """
    name = container.format.name.split(",")[0]
    if name in RAW:
        return "count"
    return "dts" if name in ("avi", "asf") or (name == "matroska" and lacking) else "pts"


def shown_frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    stamps: str = "pts",
    gap: float = 0.0,
    key: int | None = None,
    needed: Collection[int] | None = None,
) -> Iterator[Shown | None]:
    """Decode in presentation order; None stands where damage begins, nothing is given out that it may have touched.

    After damage nothing is decoded until the next key frame, and the decoder forgets what came before it.

    Args:
        container: the file, at its start or at ``key``.
        stream: from :func:`video_streams`.
        stamps: ``pts``: the frame's own; ``dts``: that of the packet with which it came out, which follows the
            shown order at the decoder's constant delay; ``count``: its number.
        gap: distance of two packets, in the stream's unit, above which pictures may have been lost; 0: there is no
            such place in the file, or its container keeps every picture.
        key: presentation time of the key frame that the file was positioned at. Frames before it in
            presentation order refer to what was not decoded and are left out.
        needed: presentation times that are wanted; frames that none refers to and nobody wants are skipped.

    Yields:
        Frames, and None for each stretch of damage.

    Raises:
        VideoError: if the packets of a program stream cannot be followed.
    """
    path, name = Path(container.name.removeprefix("file:")), container.format.name
    if name == "mpeg" and (place := end_of_packs(path)) is not None:
        raise VideoError(f"{path}: damaged program stream", got=f"no packet at byte {place}", do="replace the file")
    # AVI counts frames: behind a damaged chunk header nobody knows how many are missing.
    end = end_of_chunks(path) if name == "avi" else None
    decoder, check = _Decoder(stream, stamps), PacketCheck(stream.codec_context, name == "mpegts")
    started, lost, marked, before = key is not None, False, False, None
    first_key, leaves_leading = key, key is not None
    for number, (packet, joined) in enumerate(_packets(container, stream)):
        if packet is not None and not packet.size:
            if packet.dts is not None:  # AVI: the picture before it stays
                continue
            if not lost:  # the end: what is held back comes out
                frames, failed = decoder.feed(packet, number)
                yield from frames
                yield from (None,) * failed
            return
        if packet is None:  # the file ends in the middle of something
            yield from decoder.drained()
            yield None
            return
        if not started and not packet.is_keyframe:
            continue  # a recording cut in the middle of a group: it begins with its first key frame
        step = 0 if before is None or packet.dts is None else packet.dts - before
        before = before if packet.dts is None else packet.dts
        ended = end is not None and packet.pos is not None and packet.pos + packet.size + 9 >= end
        # The mark of a lost transport packet may stand one picture before the one that lacks it.
        marked, beside = packet.is_corrupt and not joined, marked
        data = bytes(packet)
        broken = ended or marked or beside or check.is_broken(packet, data)
        # Only H.264 and HEVC number their pictures; elsewhere a gap may be a lost picture that others refer to.
        missing = check.misses_reference(data) or bool(gap and step > gap and not check.numbered)
        if not lost and (broken or missing):
            yield from decoder.drained()
            yield None
            lost = True
        if lost:
            if ended or stamps == "count":  # nobody knows how many frames are missing
                return
            if broken or not packet.is_keyframe:
                continue
            decoder.restart()
            check.restart(data)
            lost, first_key, leaves_leading = False, packet.pts, True
        if step < 0:  # times start again, and so may everything else
            first_key = None
        leading = first_key is not None and packet.pts is not None and packet.pts < first_key
        if leading and leaves_leading:
            continue
        if not started:
            started, first_key = True, packet.pts
        frames, failed = decoder.feed(packet, number, needed)
        if failed and leading:  # of an open first group; nothing refers to it
            continue
        yield from frames
        if failed:
            yield from decoder.drained() if stamps == "pts" else ()
            yield None
            lost = True


class _Decoder:
    """A decoder that says when it met damage, and gives out frames of sound packets only.

    Args:
        stream: what is decoded.
        stamps: see :func:`shown_frames`.
    """

    def __init__(self, stream: av.VideoStream, stamps: str) -> None:
        self.codec, self.stamps = stream.codec_context, stamps
        if not self.codec.is_open:
            # Parallelism comes from decoding several clips at once; threads inside cost CPU and blur what failed.
            stream.thread_type = "NONE"
            self.codec.options = STRICT | ({"strict": "strict"} if self.codec.name in ("av1", "libdav1d") else {})
        # Times of the latest packets that decoded without a sign of damage.
        self.sound: collections.deque[int | None] = collections.deque(maxlen=64)
        self.queue: collections.deque[int] = collections.deque()  # numbers of packets whose frames are still to come
        self.stamp = 0  # of the last frame
        self.latest: int | None = None  # time of the last packet
        self.step: int | None = None  # smallest distance of packets

    def feed(
        self, packet: av.Packet[Any], number: int, needed: Collection[int] | None = None
    ) -> tuple[list[Shown], bool]:
        """Decode a packet: frames that came out, and whether there was a sign of damage."""
        if needed is not None:
            wanted = packet.pts is None or packet.pts in needed or self.codec.name not in ("h264", "hevc")
            self.codec.skip_frame = "DEFAULT" if wanted else "NONREF"
        try:
            with av.logging.Capture() as messages:
                frames = self.codec.decode(packet)
            failed = any(_DAMAGE.search(text) for _, _, text in messages)
        except (av.FFmpegError, ValueError) as error:
            if getattr(error, "errno", None) == errno.ENOMEM:
                raise MemoryError from error
            frames, failed = [], True
        if packet.size and not failed:
            self.sound.append(packet.pts)
            self.queue.append(number)
            if packet.dts is not None and self.latest is not None and packet.dts > self.latest:
                self.step = packet.dts - self.latest if self.step is None else min(self.step, packet.dts - self.latest)
            self.latest = packet.dts
        return self._shown(frames), failed or any(f.is_corrupt for f in frames)

    def drained(self) -> list[Shown]:
        """Frames that were held back for reordering; they were decoded before the damage."""
        try:
            frames = self.codec.decode(None)
        except av.FFmpegError:
            frames = []
        self.codec.flush_buffers()
        return self._shown(frames)

    def restart(self) -> None:
        """Forget everything."""
        self.codec.flush_buffers()
        self.sound.clear()
        self.queue.clear()

    def _shown(self, frames: list[av.VideoFrame]) -> list[Shown]:
        shown: list[Shown] = []
        for frame in frames:
            if frame.is_corrupt:
                break
            if self.stamps == "pts":
                if frame.pts in self.sound or None in self.sound:  # a packet may hold several pictures
                    shown.append(Shown(frame, int(frame.pts or 0)))
            elif self.queue:  # a frame without a packet is the decoder's guess
                number = self.queue.popleft()
                if self.stamps == "dts":  # at the end no packet comes with it
                    self.stamp = frame.dts if frame.dts is not None else self.stamp + (self.step or 1)
                shown.append(Shown(frame, self.stamp if self.stamps == "dts" else number))
        return shown


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[av.Packet[Any] | None, bool]]:
    """Packets with whether times start again behind them; (None, False) where reading fails or the file was cut.

    A join of two transport streams looks like a lost packet, and its mark may stand two packets early.
    """
    second = float(1 / stream.time_base) if stream.time_base else 0.0
    ahead: collections.deque[av.Packet[Any] | None] = collections.deque()
    packets, depth = iter(container.demux(stream)), 2 if container.format.name == "mpegts" else 0
    while True:
        try:
            packet = next(packets)
            ahead.append(packet)
        except StopIteration:
            packet = None
        except av.FFmpegError:
            packet = None
            ahead.append(None)
        ended = packet is None
        if ended and was_cut(container):  # the last picture may be a part of one
            while ahead and (ahead[-1] is None or not ahead[-1].size):
                ahead.pop()
            ahead.extend([None] if ahead and ahead.pop() else [])
        while ahead and (ended or len(ahead) > depth):
            now = ahead.popleft()
            later = [p.dts for p in ahead if p is not None and p.dts is not None]
            yield now, now is not None and now.dts is not None and any(now.dts - dts > second for dts in later)
        if ended:
            return


def upright(frame: av.VideoFrame) -> FrameArray:
    """Return a frame as RGB [H, W, 3], turned and mirrored as its display matrix says.

    Raises:
        VideoError: if the matrix turns by other than right angles.
    """
    array = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return array
    # ISO/IEC 14496-12, 8.3.2: (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = (int(np.sign(v)) for v in np.frombuffer(matrix, np.int32)[:5])
    if (a, d) == (0, 0) and b and c:
        array, flip_x, flip_y = array.transpose(1, 0, 2), c < 0, b < 0
    elif (b, c) == (0, 0) and a and d:
        flip_x, flip_y = a < 0, d < 0
    else:
        raise VideoError("the picture is turned by other than right angles", got=f"{frame.rotation} degrees")
    return np.ascontiguousarray(array[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
