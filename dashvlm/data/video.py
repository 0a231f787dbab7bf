"""Frames of a video file at exact times, through PyAV, decord or torchcodec.

All readers get frame numbers from one index of presentation times that PyAV reads from the
packets without decoding, so a reader cannot choose its own idea of "the frame at 3.2 s".
Only local files of known container formats are opened: no network, no playlists.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dashvlm.data.clip import FrameArray
from dashvlm.data.pictures import is_pictures, picture_size, read_pictures
from dashvlm.errors import ConfigError, VideoError

# Demuxers that read one self-contained file. Playlists (hls, concat, dash) are absent on purpose:
# a text file renamed to .mp4 must not make the decoder open other files or sockets.
FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,h264,hevc"
MAX_PIXELS = 7680 * 4320  # a header that declares more is taken for damage
# A missing FFmpeg message is not worth a line per frame; what matters is raised.
av.logging.set_level(av.logging.ERROR)
logging.getLogger("libav").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class VideoIndex:
    """Presentation times of all frames of a video, from its packets.

    Attributes:
        times_s: float64 [N], ascending, seconds from the first frame.
        pts: int64 [N], the same times in the container's units.
        keyframes: int64, presentation times of the frames that decoding can start at.
        width: display width in pixels, after rotation.
        height: display height in pixels, after rotation.
        codec: name of the codec.
    """

    times_s: NDArray[np.float64]
    pts: NDArray[np.int64]
    keyframes: NDArray[np.int64]
    width: int
    height: int
    codec: str

    @property
    def fps(self) -> float:
        """Mean frames per second."""
        if len(self.times_s) < 2:
            return 1.0
        return float((len(self.times_s) - 1) / (self.times_s[-1] - self.times_s[0]))

    @property
    def duration_s(self) -> float:
        """Display time of the last frame plus one mean frame period, in seconds."""
        return float(self.times_s[-1] + 1.0 / self.fps)


def index_video(path: Path) -> VideoIndex:
    """Read the presentation times of all frames without decoding (the first frame excepted).

    Still pictures (see ``dashvlm.data.pictures``) are a second apart.

    Raises:
        VideoError: if the file is missing, empty, has no video stream or no frames, is of an
            unknown format, or declares an absurd size.
    """
    if is_pictures(path):
        count, width, height = picture_size(path)
        numbers = np.arange(count, dtype=np.int64)
        return VideoIndex(numbers.astype(np.float64), numbers, numbers, width, height, "pictures")
    with _open(path) as container:
        if not container.streams.video:
            raise VideoError(f"{path}: no video stream", do="remove the file or replace it")
        stream = container.streams.video[0]
        try:
            packets = [
                (p.pts, p.is_keyframe)
                for p in container.demux(stream)
                if p.pts is not None and p.size and not p.is_discard
            ]
        except av.FFmpegError as error:
            raise VideoError(f"{path}: damaged container", got=str(error)) from error
        if not packets:
            raise VideoError(f"{path}: the video stream has no frames", do="replace the file")
        width, height = stream.codec_context.width, stream.codec_context.height
        if not 0 < width * height <= MAX_PIXELS:
            raise VideoError(f"{path}: implausible frame size", got=f"{width}x{height}")
        time_base = stream.time_base
    packets.sort()
    pts = np.unique(np.array([p for p, _ in packets], dtype=np.int64))
    keys = np.array([p for p, key in packets if key], dtype=np.int64)
    if not len(keys):
        raise VideoError(f"{path}: no key frame, nothing can be decoded", do="replace the file")
    pts = pts[pts >= keys[0]]
    times = (pts - pts[0]) * float(time_base or 0)
    with _open(path) as container:
        rotation = _first_frame(path, container).rotation
    if rotation % 180:
        width, height = height, width
    return VideoIndex(times, pts, keys, width, height, stream.codec_context.name)


def decode(
    path: Path,
    index: VideoIndex,
    frame_numbers: Sequence[int] | NDArray[np.int64],
    reader: str = "pyav",
    size: tuple[int, int] | None = None,
) -> FrameArray:
    """Decode frames by their number in presentation order.

    Args:
        path: the video.
        index: its index, from :func:`index_video`.
        frame_numbers: numbers into ``index.times_s``; repeats and any order are allowed.
        reader: ``pyav``, ``decord`` or ``torchcodec``; their frames are bit-equal.
        size: (height, width) to resize to, antialiased; None keeps the display size.

    Returns:
        uint8 RGB, shape [len(frame_numbers), H, W, 3], in the order asked for.

    Raises:
        VideoError: if a frame cannot be decoded or comes out damaged.
        ConfigError: if the reader is unknown or not installed.
    """
    if reader not in READERS:
        raise ConfigError("unknown data.reader", got=reader, do=f"use one of {', '.join(READERS)}")
    wanted = np.unique(np.asarray(frame_numbers, dtype=np.int64))
    if wanted[0] < 0 or wanted[-1] >= len(index.pts):
        raise VideoError(
            f"{path}: frame number out of range",
            got=f"{wanted[0]}..{wanted[-1]} of {len(index.pts)}",
        )
    frames = read_pictures(path, wanted, size) if is_pictures(path) else READERS[reader](path, index, wanted)
    if size is not None:
        frames = resize(frames, size)
    place = np.searchsorted(wanted, frame_numbers)
    # Frames are large: do not copy them when they are in order already.
    return frames if len(place) == len(wanted) and (np.diff(place) == 1).all() else frames[place]


def resize(frames: FrameArray, size: tuple[int, int]) -> FrameArray:
    """Resize frames [T, H, W, 3] to (height, width) with antialiased bilinear filtering."""
    if frames.shape[1:3] == tuple(size):
        return frames
    height, width = size
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BILINEAR)) for f in frames])


def _read_pyav(path: Path, index: VideoIndex, wanted: NDArray[np.int64]) -> FrameArray:
    """One forward pass that seeks only where a later key frame saves decoding.

    Frames that no other frame refers to and nobody asked for are not decoded at all; this leaves
    the decoded ones bit-equal.
    """
    targets = [int(p) for p in index.pts[wanted]]
    ahead = set(targets)
    place = {target: i for i, target in enumerate(targets)}
    frames: FrameArray | None = None
    out: set[int] = set()
    with _open(path) as container:
        stream = container.streams.video[0]
        # Parallelism comes from decoding several clips at once; threads inside cost CPU.
        stream.thread_type = "NONE"
        codec = stream.codec_context
        position = -1  # newest presentation time that was decoded past
        try:
            for target in targets:
                if target in out:
                    continue
                key = int(index.keyframes[np.searchsorted(index.keyframes, target, "right") - 1])
                if position < 0 or key > position:
                    container.seek(key, stream=stream, backward=True)
                    packets = container.demux(stream)
                for packet in packets:
                    keep = packet.pts is None or packet.pts in ahead
                    codec.skip_frame = "DEFAULT" if keep else "NONREF"
                    for frame in codec.decode(packet):
                        if frame.pts is None:
                            continue
                        position = max(position, frame.pts)
                        if frame.pts in ahead and frame.pts not in out:
                            if frame.is_corrupt:
                                raise VideoError(f"{path}: damaged frame", got=_at(index, target))
                            picture = _to_rgb(frame)
                            if frames is None:
                                frames = np.empty((len(targets), *picture.shape), np.uint8)
                            frames[place[frame.pts]] = picture
                            out.add(frame.pts)
                    if target in out or (packet.pts is None and not packet.size):
                        break
                if target not in out:
                    raise VideoError(f"{path}: frame cannot be decoded", got=_at(index, target))
        except av.FFmpegError as error:
            raise VideoError(f"{path}: damaged video data", got=str(error)) from error
    assert frames is not None  # at least one target, and all of them were found
    return frames


def _read_decord(path: Path, index: VideoIndex, wanted: NDArray[np.int64]) -> FrameArray:
    decord = _optional("decord", "pip install decord (x86-64 only)")
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        _check_count(path, len(reader), index)
        return np.asarray(reader.get_batch(wanted.tolist()).asnumpy())
    except decord.DECORDError as error:
        raise VideoError(f"{path}: decord cannot read it", got=str(error)[:200]) from error


def _read_torchcodec(path: Path, index: VideoIndex, wanted: NDArray[np.int64]) -> FrameArray:
    decoders = _optional("torchcodec.decoders", "pip install 'dashvlm[torchcodec]' and FFmpeg")
    try:
        decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
        _check_count(path, decoder.metadata.num_frames, index)
        return np.asarray(decoder.get_frames_at(wanted.tolist()).data.numpy())
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(f"{path}: torchcodec cannot read it", got=str(error)[:200]) from error


READERS: dict[str, Callable[[Path, VideoIndex, NDArray[np.int64]], FrameArray]] = {
    "pyav": _read_pyav,
    "decord": _read_decord,
    "torchcodec": _read_torchcodec,
}


@functools.cache
def reader_version(reader: str) -> str:
    """Name and version of a reader; part of the frame store's key, since decoders differ."""
    package = {"pyav": "av"}.get(reader, reader)
    try:
        return f"{reader}-{importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"data.reader={reader} is not installed", do="use data.reader=pyav") from None


def _open(path: Path) -> av.container.InputContainer:
    if not path.is_file():
        raise VideoError(f"{path}: no such video file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: empty file", do="copy the video again")
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        return av.open(f"file:{path}", options=options)
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video", got=str(error), do="replace or remove the file") from error


def _first_frame(path: Path, container: av.container.InputContainer) -> av.VideoFrame:
    try:
        for frame in container.decode(container.streams.video[0]):
            return frame
    except av.FFmpegError as error:
        raise VideoError(f"{path}: the first frame cannot be decoded", got=str(error)) from error
    raise VideoError(f"{path}: no frame can be decoded", do="replace the file")


def _to_rgb(frame: av.VideoFrame) -> FrameArray:
    array = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(array, turns)) if turns else array


def _at(index: VideoIndex, pts: int) -> str:
    return f"time {index.times_s[np.searchsorted(index.pts, pts)]:.3f} s"


def _check_count(path: Path, count: int, index: VideoIndex) -> None:
    if count != len(index.pts):
        raise VideoError(
            f"{path}: the reader disagrees with the container about the number of frames",
            got=f"{count}, expected {len(index.pts)}",
            do="use data.reader=pyav, or re-encode the file",
        )


@functools.cache
def _optional(module: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"data.reader={module.split('.')[0]} cannot be loaded",
            got=str(error).splitlines()[0],
            do=f"{install}, or use data.reader=pyav",
        ) from None
