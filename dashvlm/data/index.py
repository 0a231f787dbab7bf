"""Which frames a video shows when: one index that all readers share.

It comes from the packets where these can be trusted (MP4 and Matroska with plain times), else from one pass that
decodes everything (transport streams, AVI, edited and cut files, raw streams).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from dashvlm.data.pictures import is_pictures, picture_size, picture_times
from dashvlm.data.sampling import Times, nearest_frames, usual_period
from dashvlm.data.stream import RAW, open_video, shown_frames, stamps_of, upright, video_streams
from dashvlm.errors import DashVLMError, VideoError

# Formats whose packets carry presentation times, and codecs of which one packet is one shown frame.
PLAIN_FORMATS, PLAIN_CODECS = ("mov", "matroska"), ("h264", "hevc", "av1", "libdav1d", "vp9", "libvpx-vp9")
MAX_JUMP_S = 10.0  # a transport stream whose clock jumps further ahead was joined from two (FFmpeg's own bound)
_NO_NUMBERS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class VideoIndex:
    """Which frames a video shows when.

    Attributes:
        times_s: float64 [N], ascending, seconds from the first frame.
        pts: int64 [N], what finds a frame again: presentation times in the stream's unit where ``seekable``,
            else the frames' numbers.
        keyframes: int64, presentation times of frames that decoding can start at; empty unless ``seekable``.
        width: display width in pixels, after rotation.
        height: display height in pixels, after rotation.
        codec: name of the codec.
        stamps: ``packets`` where these can be trusted to find a frame; else the file is read from its start, and
            frame times come from ``pts``, ``dts`` or ``count`` (:func:`dashvlm.data.stream.stamps_of`).
        damaged_after: int64, numbers of frames after which frames are missing because the file is damaged.
        gap: see :func:`dashvlm.data.stream.shown_frames`.
        streams: number of video streams in the file, of which the default, largest one is read.
    """

    times_s: NDArray[np.float64]
    pts: NDArray[np.int64]
    keyframes: NDArray[np.int64]
    width: int
    height: int
    codec: str
    stamps: str = "packets"
    damaged_after: NDArray[np.int64] = field(default_factory=lambda: _NO_NUMBERS)
    gap: float = 0.0
    streams: int = 1

    @property
    def seekable(self) -> bool:
        """Whether a frame can be found without decoding the file from its start."""
        return self.stamps == "packets"

    @property
    def period_s(self) -> float:
        """The usual distance of two frames in seconds: the median, so that gaps do not count."""
        return usual_period(self.times_s)

    @property
    def fps(self) -> float:
        """Frames per second outside of gaps."""
        return 1.0 / self.period_s

    @property
    def duration_s(self) -> float:
        """Display time of the last frame plus one usual frame period, in seconds."""
        return float(self.times_s[-1]) + self.period_s

    def frames_at(self, times_s: Sequence[float] | Times) -> NDArray[np.int64]:
        """Return the numbers of the frames shown at some times; see :func:`nearest_frames`."""
        return nearest_frames(self.times_s, times_s, self.damaged_after)


def index_video(path: Path) -> VideoIndex:
    """Find out which frames a video shows when.

    Still pictures (see ``dashvlm.data.pictures``) are a second apart, unless their times lie beside them.

    Raises:
        VideoError: if the file is missing, empty, has no video stream or no frames, is of an
            unknown format, declares an absurd size, or has times that contradict each other.
    """
    with file_errors(path):
        return _index(path)


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn whatever a broken file leads a library to into an error that names the file."""
    try:
        yield
    except (DashVLMError, MemoryError):
        raise
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot be read", got=str(error), do="replace the file") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, struct.error) as error:
        raise VideoError(f"{path}: cannot be read", got=f"{type(error).__name__}: {error}", do="replace it") from error


def _index(path: Path) -> VideoIndex:
    if is_pictures(path):
        count, width, height = picture_size(path)
        numbers = np.arange(count, dtype=np.int64)
        times = picture_times(path)
        times = numbers.astype(np.float64) if times is None else times
        return VideoIndex(times, numbers, numbers, width, height, "pictures")
    with open_video(path) as container:
        streams = video_streams(path, container)
        stream, plain = streams[0], container.format.name.split(",")[0] in PLAIN_FORMATS
        packets, whole = _packet_table(container, stream)
        stamps = stamps_of(container, len(packets) > 0 and float(np.isnan(packets["pts"]).mean()) > 0.5)
        # Where transport may lose pictures without a trace; other containers keep all that were written.
        loses = container.format.name == "mpeg"
    if not len(packets):
        raise VideoError(f"{path}: the video stream has no frames", do="replace the file")
    gap = _gap(packets["dts"]) if loses else 0.0
    if plain and whole and stream.codec_context.name in PLAIN_CODECS and _trustworthy(packets):
        found = _index_from_packets(path, packets, gap, len(streams))
        if found is not None:
            return found
    return _index_by_decoding(path, packets, stamps, gap, len(streams))


_TABLE = np.dtype([("pts", "f8"), ("dts", "f8"), ("key", "?"), ("shown", "?"), ("plain", "?")])


def _packet_table(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[NDArray[np.void], bool]:
    """Return the packets that hold data, and whether the file could be read to its end."""
    rows, whole = [], True
    try:
        for p in container.demux(stream):
            if p.size:
                nan = float("nan")
                stamped = nan if p.pts is None else p.pts, nan if p.dts is None else p.dts
                rows.append((*stamped, p.is_keyframe, not p.is_discard, not (p.is_discard or p.is_corrupt)))
    except av.FFmpegError:
        whole = False
    return np.array(rows, _TABLE), whole


def _gap(dts: NDArray[np.float64]) -> float:
    """Distance of packets above which one may be missing; 0 if none is, or the rate varies too much to tell."""
    steps = np.diff(dts[~np.isnan(dts)])
    steps = steps[steps > 0]
    usual = float(np.median(steps)) if len(steps) else 0.0
    regular = not len(steps) or float((np.abs(steps - usual) <= 0.2 * usual).mean()) >= 0.9
    return 1.5 * usual if regular and (steps > 1.5 * usual).any() else 0.0


def _trustworthy(packets: NDArray[np.void]) -> bool:
    """Whether the packets' times are the times of the shown frames: all there, distinct, from a key frame on."""
    pts, dts = packets["pts"], packets["dts"]
    return bool(
        packets["plain"].all()
        and not np.isnan(pts).any()
        and not np.isnan(dts).any()
        and packets["key"][0]
        and pts[0] == pts.min()
        and len(np.unique(pts)) == len(pts)
        and (np.diff(dts) > 0).all()
    )


def _index_from_packets(path: Path, packets: NDArray[np.void], gap: float, streams: int) -> VideoIndex | None:
    """The index as the packets tell it, or None if the first frames come out in another order."""
    pts = np.sort(packets["pts"]).astype(np.int64)
    keys = np.sort(packets["pts"][packets["key"]]).astype(np.int64)
    with open_video(path) as container:
        stream = video_streams(path, container)[0]
        codec = stream.codec_context.name
        # Reordering shows within a few frames; a container without composition times has none to tell.
        reordered = bool((np.diff(packets["pts"][: 4 * 16]) < 0).any()) or not stream.codec_context.has_b_frames
        depth = min(2 if reordered else 16, len(pts))
        first: tuple[int, int] | None = None
        for number, shown in enumerate(shown_frames(container, stream, "pts", gap)):
            if shown is None or shown.stamp != pts[number]:
                return None
            if first is None:
                first = upright(shown.frame).shape[1], upright(shown.frame).shape[0]
            if number + 1 >= depth:
                break
        if first is None:
            return None
        times = (pts - pts[0]) * float(stream.time_base or 0)
    return VideoIndex(times, pts, keys, *first, codec, gap=gap, streams=streams)


def _index_by_decoding(path: Path, packets: NDArray[np.void], stamps: str, gap: float, streams: int) -> VideoIndex:
    """The index from decoding the whole file once, for every case in which packets do not tell."""
    found: list[int] = []
    breaks: list[int] = []
    size: tuple[int, int] | None = None
    with open_video(path) as container:
        stream = video_streams(path, container)[0]
        name = container.format.name.split(",")[0]
        codec = stream.codec_context.name
        unit = float(stream.time_base or 0)
        if name in RAW:
            rate = stream.codec_context.framerate
            if not rate:
                raise VideoError(
                    f"{path}: a raw stream carries no times, and this one states no frame rate",
                    do="put it into a container: ffmpeg -r RATE -i FILE -c copy FILE.mp4",
                )
            unit = float(1 / rate)
        for shown in shown_frames(container, stream, stamps, gap):
            if shown is None:
                breaks.append(len(found) - 1)
                continue
            found.append(shown.stamp)
            if size is None:
                height, width = upright(shown.frame).shape[:2]
                size = width, height
    if size is None:
        raise VideoError(f"{path}: no frame can be decoded", do="replace the file")
    origin = _origin(path, packets, stamps) if -1 in breaks else None
    times = _continued(path, np.array(found, np.float64) * unit, name in ("mpegts", "mpeg"))
    if origin is not None:
        times += max(found[0] * unit - origin * unit, 0.0)
    numbers = np.arange(len(found), dtype=np.int64)
    holes = np.array(sorted({b for b in breaks if b >= 0}), np.int64)
    return VideoIndex(times, numbers, _NO_NUMBERS, *size, codec, stamps, holes, gap, streams)


def _origin(path: Path, packets: NDArray[np.void], stamps: str) -> int:
    """Stamp of the first frame of a file whose beginning is damaged.

    Raises:
        VideoError: if it is lost.
    """
    if stamps == "count":
        return 0
    known = packets[stamps][packets["shown"]]
    if not len(known) or np.isnan(known[0]) or not packets["key"][packets["shown"]][0]:
        raise VideoError(f"{path}: damaged at its start, the time of its first frame is lost", do="replace the file")
    return int(np.nanmin(known))


def _continued(path: Path, times: NDArray[np.float64], joined: bool) -> NDArray[np.float64]:
    """Times from 0, going on at the usual period where a joined stream starts its clock again.

    Raises:
        VideoError: if times repeat or run backwards otherwise.
    """
    steps = np.diff(times)
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0
    restarts = steps < -1.0
    if joined:
        restarts |= steps > MAX_JUMP_S
    steps = np.where(restarts, usual, steps)
    if (steps <= 0).any():
        place = int(np.argmax(steps <= 0))
        raise VideoError(
            f"{path}: time stamps repeat or run backwards",
            got=f"frame {place + 1} is at {times[place + 1]:.3f} s, the one before it at {times[place]:.3f} s",
            do="write it anew: ffmpeg -i FILE -fps_mode cfr FILE.mp4",
        )
    return np.concatenate([[0.0], np.cumsum(steps)])
