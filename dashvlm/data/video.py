"""Frames of a video file by their number in its index.

A frame is what a player shows, or it is refused by name.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dashvlm.data.clip import FrameArray
from dashvlm.data.index import VideoIndex, index_video
from dashvlm.data.stream import open_video, shown_frames, upright, video_streams
from dashvlm.errors import VideoError

__all__ = ["VideoIndex", "index_video", "read_pyav", "resize"]


def resize(frames: FrameArray, size: tuple[int, int]) -> FrameArray:
    """Resize frames [T, H, W, 3] to (height, width) with antialiased bilinear filtering."""
    if frames.shape[1:3] == tuple(size):
        return frames
    height, width = size
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BILINEAR)) for f in frames])


def read_pyav(
    path: Path, index: VideoIndex, wanted: NDArray[np.int64], size: tuple[int, int] | None = None
) -> FrameArray:
    """Decode frames by ascending number: uint8 [len(wanted), H, W, 3], each resized as it comes.

    Raises:
        VideoError: if a frame cannot be decoded or comes out damaged.
    """
    frames = _Frames(len(wanted), size)
    if not index.seekable:
        _read_forward(path, index, wanted, frames)
    else:
        with open_video(path) as container:
            stream = video_streams(path, container)[0]
            groups = np.searchsorted(index.keyframes, index.pts[wanted], "right") - 1
            for group in np.unique(groups):
                numbers, done = wanted[groups == group], frames.count
                try:
                    _read_group(path, container, stream, index, int(index.keyframes[group]), numbers, frames)
                except VideoError:
                    if not group:
                        raise
                    # A key frame may be a point from which a picture builds up: begin at the first one.
                    frames.back_to(done)
                    _read_group(path, container, stream, index, int(index.keyframes[0]), numbers, frames)
    return frames.all()


class _Frames:
    """Frames as they arrive, in one array: a long list would need its memory twice.

    Resizing waits for a batch of frames, since alternating it with decoding costs page faults.
    """

    BATCH = 32

    def __init__(self, number: int, size: tuple[int, int] | None) -> None:
        self.number, self.size, self.count, self.resized = number, size, 0, 0
        self.array: FrameArray | None = None
        self.waiting: FrameArray | None = None

    def append(self, frame: av.VideoFrame) -> None:
        picture = upright(frame)
        if self.waiting is None:
            batch = min(self.BATCH, self.number) if self.size is not None else self.number
            self.waiting = np.empty((batch, *picture.shape), np.uint8)
        if picture.shape != self.waiting.shape[1:]:
            raise VideoError("the size of the picture changes", got=f"{picture.shape} after {self.waiting.shape[1:]}")
        self.waiting[self.count - self.resized] = picture
        self.count += 1
        if self.size is not None and self.count - self.resized in (len(self.waiting), self.number - self.resized):
            self._resize()

    def _resize(self) -> None:
        assert self.waiting is not None
        assert self.size is not None
        small = resize(self.waiting[: self.count - self.resized], self.size)
        if self.array is None:
            self.array = np.empty((self.number, *small.shape[1:]), np.uint8)
        self.array[self.resized : self.count] = small
        self.resized = self.count

    def back_to(self, count: int) -> None:
        """Forget frames from a number on."""
        self.count = count
        self.resized = min(self.resized, count)

    def all(self) -> FrameArray:
        found = self.waiting if self.size is None else self.array
        assert found is not None  # at least one was wanted, and a missing one is an error
        return found


def _read_group(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    index: VideoIndex,
    key: int,
    numbers: NDArray[np.int64],
    frames: _Frames,
) -> None:
    """Seek to a key frame and append the frames of these numbers."""
    targets = [int(p) for p in index.pts[numbers]]
    try:
        container.seek(key, stream=stream, backward=True)
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot be positioned", got=str(error)) from error
    ahead = set(targets)
    for shown in shown_frames(container, stream, "pts", index.gap, key, ahead):
        if shown is None:
            raise _damaged(path, index, targets[0])
        if shown.stamp == targets[0]:
            frames.append(shown.frame)
            targets.pop(0)
            if not targets:
                return
        elif shown.stamp > targets[0]:
            break
    raise _damaged(path, index, targets[0])


def _read_forward(path: Path, index: VideoIndex, wanted: NDArray[np.int64], frames: _Frames) -> None:
    """Read from the start and append the frames of these numbers."""
    with open_video(path) as container:
        stream = video_streams(path, container)[0]
        number = 0
        for shown in shown_frames(container, stream, index.stamps, index.gap):
            if shown is None:
                continue
            if number == wanted[frames.count]:
                frames.append(shown.frame)
                if frames.count == len(wanted):
                    return
            number += 1
    raise VideoError(f"{path}: has fewer frames than when it was indexed", do="keep data files unchanged during a run")


def _damaged(path: Path, index: VideoIndex, pts: int) -> VideoError:
    time = index.times_s[min(int(np.searchsorted(index.pts, pts)), len(index.times_s) - 1)]
    return VideoError(f"{path}: the frame at {time:.3f} s is damaged or cannot be decoded", do="replace the file")
