"""The choice of reader: PyAV, or decord and torchcodec where they show the same frames.

PyAV decodes strictly and follows the index. decord and torchcodec neither notice damage nor follow every edit
list, so before they may read a file PyAV decodes all of it once and keeps a checksum of each frame; what they
deliver is compared with these, and PyAV reads in their place where anything differs.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dashvlm.data.clip import FrameArray
from dashvlm.data.index import file_errors
from dashvlm.data.pictures import is_pictures, read_pictures
from dashvlm.data.stream import open_video, shown_frames, upright, video_streams
from dashvlm.data.video import VideoIndex, read_pyav, resize
from dashvlm.errors import ConfigError, VideoError

log = logging.getLogger(__name__)
READERS = ("pyav", "decord", "torchcodec")
_known: dict[tuple[Path, int, int], list[int] | None] = {}


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
        reader: ``pyav``, ``decord`` or ``torchcodec``.
        size: (height, width) to resize to, antialiased; None keeps the display size.

    Returns:
        uint8 RGB, shape [len(frame_numbers), H, W, 3], in the order asked for.

    Raises:
        VideoError: if a frame cannot be decoded or comes out damaged.
        ConfigError: if the reader is unknown or not installed.
    """
    wanted = np.unique(np.asarray(frame_numbers, dtype=np.int64))
    if wanted[0] < 0 or wanted[-1] >= len(index.pts):
        raise VideoError(
            f"{path}: frame number out of range",
            got=f"{wanted[0]}..{wanted[-1]} of {len(index.pts)}",
        )
    with file_errors(path):
        frames = read_pictures(path, wanted, size) if is_pictures(path) else read(reader, path, index, wanted, size)
    place = np.searchsorted(wanted, frame_numbers)
    # Frames are large: do not copy them when they are in order already.
    return frames if len(place) == len(wanted) and (np.diff(place) == 1).all() else frames[place]


def read(
    reader: str, path: Path, index: VideoIndex, wanted: NDArray[np.int64], size: tuple[int, int] | None = None
) -> FrameArray:
    """Read frames by ascending number: uint8 [len(wanted), H, W, 3], resized to ``size`` (height, width).

    Raises:
        VideoError: if a frame cannot be decoded or comes out damaged.
        ConfigError: if the reader is unknown or not installed.
    """
    if reader not in READERS:
        raise ConfigError("unknown data.reader", got=reader, do=f"use one of {', '.join(READERS)}")
    if reader == "pyav":
        return read_pyav(path, index, wanted, size)
    sums = _checksums(path, index) if index.seekable else None
    if sums is not None:
        try:
            frames = (_read_decord if reader == "decord" else _read_torchcodec)(path, index, wanted)
            if all(zlib.crc32(np.ascontiguousarray(f).data) == sums[n] for f, n in zip(frames, wanted, strict=True)):
                return resize(frames, size) if size else frames
        except VideoError as error:
            log.debug("%s", error)
    else:
        _library(reader)  # a missing library is an error of the configuration, whatever the file
    log.info("%s: read by PyAV, %s does not show the frames of the index", path.name, reader)
    return read_pyav(path, index, wanted, size)


def _checksums(path: Path, index: VideoIndex) -> list[int] | None:
    """The same, remembered for a file as it is now."""
    stat = path.stat()
    key = (path, stat.st_size, stat.st_mtime_ns)
    if key not in _known:
        _known[key] = _all_checksums(path, index)
    return _known[key]


def _all_checksums(path: Path, index: VideoIndex) -> list[int] | None:
    """CRC-32 of every frame as PyAV shows it; None if the file is not whole or not as its index says."""
    sums: list[int] = []
    with open_video(path) as container:
        for shown in shown_frames(container, video_streams(path, container)[0], "pts", index.gap):
            if shown is None or len(sums) >= len(index.pts) or shown.stamp != index.pts[len(sums)]:
                return None
            sums.append(zlib.crc32(np.ascontiguousarray(upright(shown.frame)).data))
    return sums if len(sums) == len(index.pts) else None


def _read_decord(path: Path, index: VideoIndex, wanted: NDArray[np.int64]) -> FrameArray:
    decord = _library("decord")
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) != len(index.pts):
            raise VideoError(f"{path}: decord counts {len(reader)} frames, the index has {len(index.pts)}")
        return np.asarray(reader.get_batch(wanted.tolist()).asnumpy())
    except decord.DECORDError as error:
        raise VideoError(f"{path}: decord cannot read it", got=str(error)[:200]) from error


def _read_torchcodec(path: Path, index: VideoIndex, wanted: NDArray[np.int64]) -> FrameArray:
    decoders = _library("torchcodec")
    with open_video(path) as container:
        stream = video_streams(path, container)[0].index
    try:
        decoder = decoders.VideoDecoder(str(path), stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=1)
        if decoder.metadata.num_frames != len(index.pts):
            raise VideoError(
                f"{path}: torchcodec counts {decoder.metadata.num_frames} frames, the index has {len(index.pts)}"
            )
        return np.asarray(decoder.get_frames_at(wanted.tolist()).data.numpy())
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(f"{path}: torchcodec cannot read it", got=str(error)[:200]) from error


@functools.cache
def reader_version(reader: str) -> str:
    """Name and version of a reader; part of the frame store's key, since decoders differ."""
    package = {"pyav": "av"}.get(reader, reader)
    try:
        return f"{reader}-{importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"data.reader={reader} is not installed", do="use data.reader=pyav") from None


@functools.cache
def _library(reader: str) -> Any:
    module, install = {
        "decord": ("decord", "pip install decord (x86-64 only)"),
        "torchcodec": ("torchcodec.decoders", "pip install 'dashvlm[torchcodec]' and FFmpeg"),
    }[reader]
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"data.reader={reader} cannot be loaded",
            got=str(error).splitlines()[0],
            do=f"{install}, or use data.reader=pyav",
        ) from None
