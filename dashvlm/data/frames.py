"""The frame store: each clip is decoded once for a whole sweep, all its epochs and all processes.

One file a clip holds the union of the frames that anybody asked for: a JSON header, then raw
uint8 frames. A file is replaced as a whole by an atomic rename under a lock, so readers never see
a torn one and a killed writer leaves the old one. Every frame carries a CRC-32 that each process
verifies when it first reads it; a frame that fails it is decoded again. The file's name is a hash of everything that
decides the pixels.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dashvlm.data.clip import FrameArray
from dashvlm.data.pictures import files_of
from dashvlm.data.sampling import Times, nearest_frames
from dashvlm.data.video import VideoIndex, decode, index_video, reader_version

log = logging.getLogger(__name__)
MAGIC = b"dashvlmF"
FORMAT = 1
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
    """

    folder: Path
    reader: str = "pyav"
    size: tuple[int, int] | None = None
    max_gb: float = 20.0

    def frames(self, video: Path, times_s: Sequence[float] | Times) -> tuple[FrameArray, Times]:
        """Return the frames nearest to the times, from the store or decoded and stored.

        Args:
            video: the video file.
            times_s: requested times in seconds from the first frame; repeats are allowed.

        Returns:
            uint8 [T, H, W, 3] and the frames' true times in seconds, both in the order asked.

        Raises:
            VideoError: if the video cannot be decoded there.
            DataError: if the video has no frame within half a period of a time.
        """
        path = self._path(video)
        found = _fetch(path, times_s)
        if found is None:
            with contextlib.suppress(OSError):  # a full disk costs time, not the run
                self.fill(video, times_s)
            found = _fetch(path, times_s)
        if found is None:  # evicted or damaged just now: the video is the truth
            index = index_video(video)
            numbers = nearest_frames(index.times_s, times_s)
            found = decode(video, index, numbers, self.reader, self.size), index.times_s[numbers]
        return found

    def fill(self, video: Path, times_s: Sequence[float] | Times) -> dict[str, Any]:
        """Make sure that the frames at these times are stored, decoding the missing ones at once.

        Returns:
            The header of the clip's file.
        """
        path = self._path(video)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            entry = _read(path)
            index = _index(entry) if entry else index_video(video)
            wanted = set(nearest_frames(index.times_s, times_s).tolist())
            kept = _load(path, entry, entry["stored"]) if entry else None
            have = entry["stored"] if entry and kept is not None else []
            missing = sorted(wanted - set(have))
            if entry and kept is not None and not missing:
                return entry
            parts = [kept] if have and kept is not None else []
            if missing:
                parts.append(decode(video, index, missing, self.reader, self.size))
            frames = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else _NONE
            header = _header(index, [*have, *missing], frames)
            self._write(path, header, frames)
        self._evict(keep=path)
        return header

    def index(self, video: Path) -> VideoIndex:
        """Return a video's index, remembered from an earlier read where possible."""
        entry = _read(self._path(video))
        return _index(entry) if entry else _index(self.fill(video, []))

    def _path(self, video: Path) -> Path:
        stats = [f.stat() for f in files_of(video) if f.exists()]
        key = [
            FORMAT,
            [str(f.resolve()) for f in files_of(video)],
            [(s.st_size, s.st_mtime_ns) for s in stats],
            reader_version(self.reader),
            self.size,
        ]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.frames"

    def _write(self, path: Path, header: dict[str, Any], frames: FrameArray) -> None:
        text = json.dumps(header).encode()
        temporary = path.with_suffix(".tmp")  # one writer at a time: the lock is held
        try:
            with temporary.open("wb") as file:
                file.write(MAGIC + len(text).to_bytes(8, "little") + text)
                file.write(np.ascontiguousarray(frames).data)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _evict(self, keep: Path) -> None:
        files = []
        for file in self.folder.glob("*/*.frames"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                files.append((file.stat(), file))
        total = sum(s.st_size for s, _ in files)
        bound = self.max_gb * 1e9
        for stat, file in sorted(files, key=lambda item: item[0].st_mtime):
            if total <= bound:
                return
            if file != keep:
                file.unlink(missing_ok=True)
                total -= stat.st_size
                log.info("frame store over data.store_gb=%g: dropped %s", self.max_gb, file.name)


def _header(index: VideoIndex, numbers: list[int], frames: FrameArray) -> dict[str, Any]:
    return {
        "times_s": index.times_s.tolist(),
        "pts": index.pts.tolist(),
        "keyframes": index.keyframes.tolist(),
        "width": index.width,
        "height": index.height,
        "codec": index.codec,
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
    )


def _fetch(path: Path, times_s: Sequence[float] | Times) -> tuple[FrameArray, Times] | None:
    """Read the frames nearest to the times; None if the file lacks or damaged any of them."""
    entry = _read(path)
    if entry is None:
        return None
    times = np.asarray(entry["times_s"])
    numbers = nearest_frames(times, times_s)
    if not set(numbers.tolist()) <= set(entry["stored"]):
        return None
    frames = _load(path, entry, numbers.tolist())
    return None if frames is None else (frames, times[numbers])


def _read(path: Path) -> dict[str, Any] | None:
    """Read a file's header; None if there is no usable file."""
    try:
        with path.open("rb") as file:
            if file.read(8) != MAGIC:
                return None
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, ValueError, MemoryError, OverflowError):
        return None
    header["offset"] = 16 + length
    return header if isinstance(header, dict) else None


def _load(path: Path, entry: dict[str, Any], numbers: Sequence[int]) -> FrameArray | None:
    """Read frames by number and verify their checksums; None if any is not as written.

    Another process may have replaced the file since its header was read; the checksums notice.
    """
    place = {n: i for i, n in enumerate(entry["stored"])}
    shape = tuple(entry["shape"])
    step = int(np.prod(shape))
    out = np.empty((len(numbers), *shape), np.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            stamp = (path, os.fstat(file.fileno()).st_mtime_ns)
            seen = _verified.setdefault(stamp, set())
            for row, number in enumerate(numbers):
                file.seek(entry["offset"] + place[number] * step)
                whole = file.readinto(out[row].data) == step
                if whole and number not in seen:
                    whole = zlib.crc32(out[row].data) == entry["crc32"][place[number]]
                if not whole:
                    log.warning("frame store: checksum mismatch in %s, decoding again", path.name)
                    return None
                seen.add(number)
    except (OSError, KeyError):
        return None
    return out


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
