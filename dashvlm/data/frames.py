"""The frame store: each clip is decoded once for a whole sweep, all its epochs and all processes.

One file a clip (``data/entries.py``) holds the union of the frames that anybody asked for, as raw uint8. Its header
names the clip, the reader and the size that the frames belong to; what does not fit is decoded again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dashvlm.data.clip import FrameArray
from dashvlm.data.entries import Entries
from dashvlm.data.guard import Limits, guarded
from dashvlm.data.pictures import sources_of
from dashvlm.data.readers import decode, reader_version
from dashvlm.data.sampling import Times
from dashvlm.data.video import VideoIndex, index_video
from dashvlm.safety.checksums import content_of

FORMAT = 3
_NONE = np.zeros((0, 1, 1, 3), np.uint8)  # an entry may record the times only


@dataclass(frozen=True)
class FrameStore:
    """Decoded frames on disk, shared by processes.

    Attributes:
        folder: where the files lie; created on first write.
        reader: the decoder, see :func:`dashvlm.data.video.decode`.
        size: (height, width) the frames are stored at, or None for the display size.
        max_gb: bound on the folder's size in 10^9 bytes; the oldest files go first.
        limits: of opening, indexing and decoding one clip, which then happen in a process that can be killed;
            None trusts the files and works in this process.
    """

    folder: Path
    reader: str = "pyav"
    size: tuple[int, int] | None = None
    max_gb: float = 20.0
    limits: Limits | None = None

    def frames(self, video: Path, times_s: Sequence[float] | Times) -> tuple[FrameArray, Times]:
        """Return the frames shown at the times, from the store or decoded and stored.

        Args:
            video: the video file.
            times_s: requested times in seconds from the first frame; repeats are allowed.

        Returns:
            uint8 [T, H, W, 3] and the frames' true times in seconds, both in the order asked.

        Raises:
            VideoError: if the video cannot be decoded there.
            DataError: if the video has no frame at one of the times.
        """
        key = self.key(video)
        found = self._fetch(key, times_s)
        if found is None:
            with contextlib.suppress(OSError):  # a full disk costs time, not the run
                self.fill(video, times_s)
            found = self._fetch(key, times_s)
        if found is None:  # evicted or damaged just now, or no room: the video is the truth
            found = self.decoded(video, times_s)
        return found

    def decoded(
        self, video: Path, times_s: Sequence[float] | Times, index: VideoIndex | None = None
    ) -> tuple[FrameArray, Times]:
        """Return what :meth:`frames` does, past the store; ``index`` is the video's, where it is known."""
        if self.limits is not None:
            trusting = replace(self, limits=None)
            found: tuple[FrameArray, Times] = guarded(
                self.limits, video, "data.frames", "decode_for", trusting, video, times_s, index
            )
            return found
        index = index or index_video(video)
        numbers = index.frames_at(times_s)
        return decode(video, index, numbers, self.reader, self.size), index.times_s[numbers]

    def fill(self, video: Path, times_s: Sequence[float] | Times) -> None:
        """Make sure that the frames at these times are stored, decoding the missing ones at once."""
        key = self.key(video)
        if os.path.exists(self.folder) and not os.access(self.folder, os.W_OK) and self._fetch(key, times_s):
            return  # a complete cache may be read-only
        # Waiting for another process that fills the same clip is no time of decoding.
        with self._entries.locked(key):
            if self.limits is None:
                self.fill_locked(video, times_s)
            else:
                guarded(self.limits, video, "data.frames", "fill_for", replace(self, limits=None), video, times_s)

    def fill_locked(self, video: Path, times_s: Sequence[float] | Times) -> None:
        """:meth:`fill`, under the lock that the caller holds."""
        key = self.key(video)
        entry = self._entries.header(key)
        index = _index(entry) if entry else index_video(video)
        wanted = set(index.frames_at(times_s).tolist()) if len(times_s) else set()
        kept = self._entries.load(key, entry, entry["stored"]) if entry else None
        have = entry["stored"] if entry and kept is not None else []
        missing = sorted(wanted - set(have))
        if entry and kept is not None and not missing:
            return
        parts = [kept["frame"]] if have and kept is not None else []
        if missing:
            parts.append(decode(video, index, missing, self.reader, self.size))
        frames = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else _NONE
        self._entries.write(key, _about(index), [*have, *missing], {"frame": frames})

    def index(self, video: Path) -> VideoIndex:
        """Return a video's index, remembered from an earlier read where possible."""
        key = self.key(video)
        entry = self._entries.header(key)
        if entry is None:
            with contextlib.suppress(OSError):
                self.fill(video, [])
            entry = self._entries.header(key)
        if entry is not None:
            return _index(entry)
        if self.limits is not None:
            found: VideoIndex = guarded(self.limits, video, "data.index", "index_video", video)
            return found
        return index_video(video)

    def key(self, video: Path) -> str:
        """All that decides the pixels, as text."""
        files = [(str(f.resolve()), *content_of(f)) for f in sources_of(video)]
        return json.dumps([FORMAT, files, reader_version(self.reader), self.size])

    @property
    def _entries(self) -> Entries:
        return Entries(self.folder, "frames", self.max_gb)

    def _fetch(self, key: str, times_s: Sequence[float] | Times) -> tuple[FrameArray, Times] | None:
        """Read the frames shown at the times; None if the file lacks or damaged any of them."""
        entry = self._entries.header(key)
        if entry is None:
            return None
        index = _index(entry)
        numbers = index.frames_at(times_s)
        if not set(numbers.tolist()) <= set(entry["stored"]):
            return None
        found = self._entries.load(key, entry, numbers.tolist())
        return None if found is None else (found["frame"], index.times_s[numbers])


def fill_for(store: FrameStore, video: Path, times_s: Sequence[float] | Times) -> None:
    """:meth:`FrameStore.fill_locked`, for the process that can be killed."""
    store.fill_locked(video, times_s)


def decode_for(
    store: FrameStore, video: Path, times_s: Sequence[float] | Times, index: VideoIndex | None
) -> tuple[FrameArray, Times]:
    """:meth:`FrameStore.decoded`, for the process that can be killed."""
    return store.decoded(video, times_s, index)


def _about(index: VideoIndex) -> dict[str, Any]:
    return {
        "times_s": index.times_s.tolist(),
        "pts": index.pts.tolist(),
        "keyframes": index.keyframes.tolist(),
        "width": index.width,
        "height": index.height,
        "codec": index.codec,
        "stamps": index.stamps,
        "damaged_after": index.damaged_after.tolist(),
        "gap": index.gap,
        "streams": index.streams,
    }


def _index(entry: dict[str, Any]) -> VideoIndex:
    return VideoIndex(
        np.asarray(entry["times_s"], np.float64),
        np.asarray(entry["pts"], np.int64),
        np.asarray(entry["keyframes"], np.int64),
        entry["width"],
        entry["height"],
        entry["codec"],
        entry["stamps"],
        np.asarray(entry["damaged_after"], np.int64),
        entry["gap"],
        entry["streams"],
    )
