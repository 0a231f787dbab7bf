"""The frame store: each clip is decoded once for a whole sweep, all its epochs and all processes.

One file a clip holds the union of the frames that anybody asked for: a header in JSON with its checksum, then raw
uint8 frames. A file is replaced as a whole by an atomic rename under a lock, so readers never see a torn one and
a killed writer leaves the old one. The header names the clip, the reader and the size that the frames belong to,
and a CRC-32 for every frame, which each process verifies when it first reads it; what does not fit is decoded
again. The file's name is a hash of everything that decides the pixels.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dashvlm.data.clip import FrameArray
from dashvlm.data.guard import Limits, guarded
from dashvlm.data.pictures import sources_of
from dashvlm.data.readers import decode, reader_version
from dashvlm.data.sampling import Times
from dashvlm.data.video import VideoIndex, index_video
from dashvlm.safety.checksums import content_of

log = logging.getLogger(__name__)
MAGIC = b"dashvlmF"
FORMAT = 2
MAX_HEADER = 1 << 28  # bytes; a day of video has a tenth of it
_NONE = np.zeros((0, 1, 1, 3), np.uint8)  # an entry may record the times only
_verified: dict[tuple[Path, int], set[int]] = {}
"""(file, modification time) -> frames whose checksum this process has seen hold."""


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
        key = self._key(video)
        path = self._path(key)
        found = _fetch(path, key, times_s)
        if found is None:
            with contextlib.suppress(OSError):  # a full disk costs time, not the run
                self.fill(video, times_s)
            found = _fetch(path, key, times_s)
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
        key = self._key(video)
        path = self._path(key)
        if os.path.exists(self.folder) and not os.access(self.folder, os.W_OK) and _fetch(path, key, times_s):
            return  # a complete cache may be read-only
        path.parent.mkdir(parents=True, exist_ok=True)
        # Waiting for another process that fills the same clip is no time of decoding.
        with _locked(path.with_suffix(".lock")):
            if self.limits is None:
                self.fill_locked(video, times_s)
            else:
                guarded(self.limits, video, "data.frames", "fill_for", replace(self, limits=None), video, times_s)
        self._evict(keep=path)

    def fill_locked(self, video: Path, times_s: Sequence[float] | Times) -> None:
        """:meth:`fill`, under the lock that the caller holds."""
        key = self._key(video)
        path = self._path(key)
        entry = _read(path, key)
        index = _index(entry) if entry else index_video(video)
        wanted = set(index.frames_at(times_s).tolist()) if len(times_s) else set()
        kept = _load(path, entry, entry["stored"]) if entry else None
        have = entry["stored"] if entry and kept is not None else []
        missing = sorted(wanted - set(have))
        if entry and kept is not None and not missing:
            return
        parts = [kept] if have and kept is not None else []
        if missing:
            parts.append(decode(video, index, missing, self.reader, self.size))
        frames = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else _NONE
        self._write(path, _header(key, index, [*have, *missing], frames), frames)

    def index(self, video: Path) -> VideoIndex:
        """Return a video's index, remembered from an earlier read where possible."""
        key = self._key(video)
        entry = _read(self._path(key), key)
        if entry is None:
            with contextlib.suppress(OSError):
                self.fill(video, [])
            entry = _read(self._path(key), key)
        if entry is not None:
            return _index(entry)
        if self.limits is not None:
            found: VideoIndex = guarded(self.limits, video, "data.index", "index_video", video)
            return found
        return index_video(video)

    def _key(self, video: Path) -> str:
        """All that decides the pixels, as text."""
        files = [(str(f.resolve()), *content_of(f)) for f in sources_of(video)]
        return json.dumps([FORMAT, files, reader_version(self.reader), self.size])

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.frames"

    def _write(self, path: Path, header: dict[str, Any], frames: FrameArray) -> None:
        text = json.dumps(header).encode()
        temporary = path.with_suffix(".tmp")  # one writer at a time: the lock is held
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text)
                file.write(np.ascontiguousarray(frames).data)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _evict(self, keep: Path) -> None:
        """Drop the oldest entries above the bound; the folder is only looked through when that may be needed."""
        key = self.folder, self.max_gb
        with contextlib.suppress(OSError):
            _UNSEEN[key] = _UNSEEN.get(key, 0.0) - keep.stat().st_size
        if _UNSEEN.get(key, 0.0) > 0:
            return
        files = []
        for file in self.folder.glob("*/*.frames"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                files.append((file.lstat(), file))
        total = sum(s.st_size for s, _ in files)
        bound = self.max_gb * 1e9
        _UNSEEN[key] = (bound - total) / 16  # a share: other processes fill the same folder
        for found, file in sorted(files, key=lambda item: item[0].st_mtime):
            if total <= bound:
                return
            if file != keep:
                file.unlink(missing_ok=True)
                total -= found.st_size
                log.info("frame store over data.store_gb=%g: dropped %s", self.max_gb, file.name)


_UNSEEN: dict[tuple[Path, float], float] = {}
"""Folder and bound of a store -> bytes that this process may still write before it counts them all again."""


def fill_for(store: FrameStore, video: Path, times_s: Sequence[float] | Times) -> None:
    """:meth:`FrameStore.fill_locked`, for the process that can be killed."""
    store.fill_locked(video, times_s)


def decode_for(
    store: FrameStore, video: Path, times_s: Sequence[float] | Times, index: VideoIndex | None
) -> tuple[FrameArray, Times]:
    """:meth:`FrameStore.decoded`, for the process that can be killed."""
    return store.decoded(video, times_s, index)


def _header(key: str, index: VideoIndex, numbers: list[int], frames: FrameArray) -> dict[str, Any]:
    return {
        "key": key,
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
        "stored": numbers,
        "shape": list(frames.shape[1:]),
        "crc32": [zlib.crc32(np.ascontiguousarray(f).data) for f in frames],
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


def _fetch(path: Path, key: str, times_s: Sequence[float] | Times) -> tuple[FrameArray, Times] | None:
    """Read the frames shown at the times; None if the file lacks or damaged any of them."""
    entry = _read(path, key)
    if entry is None:
        return None
    index = _index(entry)
    numbers = index.frames_at(times_s)
    if not set(numbers.tolist()) <= set(entry["stored"]):
        return None
    frames = _load(path, entry, numbers.tolist())
    return None if frames is None else (frames, index.times_s[numbers])


def _open(path: Path) -> io.FileIO:
    """Open a file of the store for reading; a link or a pipe in its place is not followed."""
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(f"{path} is no regular file")
    return io.FileIO(opened, "rb")


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """Read a file's header; None if there is no usable file, or it belongs to another clip, reader or size."""
    try:
        with _open(path) as file:
            head = file.read(48)
            length = int.from_bytes(head[8:16], "little")
            if head[:8] != MAGIC or length > MAX_HEADER:
                return None
            text = file.read(length)
            if hashlib.sha256(text).digest() != head[16:48]:
                return None
            header: dict[str, Any] = json.loads(text)
    except (OSError, ValueError, MemoryError, OverflowError, RecursionError):
        return None
    if not isinstance(header, dict) or header.get("key") != key:
        return None
    header["offset"] = 48 + length
    return header


def _load(path: Path, entry: dict[str, Any], numbers: Sequence[int]) -> FrameArray | None:
    """Read frames by number and verify their checksums; None if any is not as written.

    Another process may have replaced the file since its header was read; the checksums notice.
    """
    place = {n: i for i, n in enumerate(entry["stored"])}
    shape = tuple(entry["shape"])
    step = int(np.prod(shape))
    out = np.empty((len(numbers), *shape), np.uint8)
    try:
        with _open(path) as file:
            stamp = (path, os.fstat(file.fileno()).st_mtime_ns)
            verified = _verified.setdefault(stamp, set())
            for row, number in enumerate(numbers):
                file.seek(entry["offset"] + place[number] * step)
                whole = file.readinto(out[row].data) == step
                if whole and number not in verified:
                    whole = zlib.crc32(out[row].data) == entry["crc32"][place[number]]
                if not whole:
                    log.warning("frame store: checksum mismatch in %s, decoding again", path.name)
                    return None
                verified.add(number)
    except (OSError, KeyError):
        return None
    return out


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        opened = os.open(path, flags, 0o600)
    except OSError:  # a link or a pipe in the lock's place
        path.unlink(missing_ok=True)
        opened = os.open(path, flags | os.O_EXCL, 0o600)
    with os.fdopen(opened, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
