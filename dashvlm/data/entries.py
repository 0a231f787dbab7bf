"""Files of arrays, one for each clip, that several processes share: frames, and what models make of frames.

A file is a header in JSON with its checksum, then an entry for each frame: the bytes of its arrays, one behind the
other. A file is replaced as a whole by an atomic rename under a lock, so readers never see a torn one and a killed
writer leaves the old one. The header names all that decides the content, and a CRC-32 for every entry, which each
process verifies when it first reads it. The file's name is a hash of that key.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)
Arrays = Mapping[str, NDArray[Any]]
"""Name -> one row for each frame, [T, ...]."""
MAGIC = b"dashvlmF"
MAX_HEADER = 1 << 28  # bytes; a day of video has a tenth of it
DTYPES = ("uint8", "uint16", "int32", "int64", "float16", "float32")
_verified: dict[tuple[Path, int], set[int]] = {}
"""(file, modification time) -> entries whose checksum this process has seen hold."""
_headers: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}
"""File -> its stamp and header as this process has read them; parsing costs more than reading a frame."""
_unseen: dict[tuple[Path, float], float] = {}
"""Folder and bound -> bytes that this process may still write before it counts all files again."""


@dataclass(frozen=True)
class Entries:
    """A folder of such files.

    Attributes:
        folder: created on first write.
        suffix: of the files.
        max_gb: bound on the folder's size in 10^9 bytes; the oldest files go first.
    """

    folder: Path
    suffix: str
    max_gb: float

    def path(self, key: str) -> Path:
        """The file of a key."""
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.{self.suffix}"

    def header(self, key: str) -> dict[str, Any] | None:
        """The header of a key's file; None if there is no usable file, or it belongs to another key."""
        path = self.path(key)
        try:
            with _open(path) as file:
                found = os.fstat(file.fileno())
                stamp = found.st_ino, found.st_mtime_ns, found.st_size
                known = _headers.get(path)
                header = known[1] if known and known[0] == stamp else _parse(file)
        except (OSError, ValueError, MemoryError, OverflowError, RecursionError):
            return None
        if header is None or header.get("key") != key:
            return None
        if len(_headers) > 4096:
            _headers.clear()
        _headers[path] = stamp, header
        return header

    def load(self, key: str, header: Mapping[str, Any], numbers: Sequence[int]) -> dict[str, NDArray[Any]] | None:
        """Read entries by number and verify their checksums; None if any is not as written.

        Another process may have replaced the file since its header was read; the checksums notice.
        """
        path = self.path(key)
        try:
            place = {n: i for i, n in enumerate(header["stored"])}
            out = {name: np.empty((len(numbers), *shape), dtype) for name, (dtype, shape) in header["arrays"].items()}
            step = sum(a[:1].nbytes for a in out.values()) if numbers else 0
            with _open(path) as file:
                stamp = (path, os.fstat(file.fileno()).st_mtime_ns)
                verified = _verified.setdefault(stamp, set())
                for row, number in enumerate(numbers):
                    parts = [_bytes_of(a, row) for a in out.values()]
                    start = header["offset"] + place[number] * step
                    whole = os.preadv(file.fileno(), parts, start) == step
                    if whole and number not in verified:
                        whole = _crc(parts) == header["crc32"][place[number]]
                    if not whole:
                        log.warning("%s: checksum mismatch, made again", path.name)
                        return None
                    verified.add(number)
        except (OSError, KeyError, TypeError, ValueError, MemoryError):
            return None
        return out

    def write(self, key: str, about: Mapping[str, Any], numbers: Sequence[int], arrays: Arrays) -> None:
        """Write a key's file anew; the caller holds its lock.

        Args:
            key: all that decides the content.
            about: what else the header says.
            numbers: of the entries.
            arrays: one row for each of them.
        """
        rows = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        header = {
            **about,
            "key": key,
            "stored": list(numbers),
            "arrays": {name: [str(a.dtype), list(a.shape[1:])] for name, a in rows.items()},
            "crc32": [_crc([_bytes_of(a, i) for a in rows.values()]) for i in range(len(numbers))],
        }
        text, path = json.dumps(header).encode(), self.path(key)
        temporary = path.with_suffix(".tmp")  # one writer at a time: the lock is held
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text)
                for i in range(len(numbers)):
                    for a in rows.values():
                        file.write(_bytes_of(a, i))
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold the lock of a key's file, then keep the folder within its bound."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock")
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            opened = os.open(lock, flags, 0o600)
        except OSError:  # a link or a pipe in the lock's place
            lock.unlink(missing_ok=True)
            opened = os.open(lock, flags | os.O_EXCL, 0o600)
        with os.fdopen(opened, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        self._evict(path)

    def _evict(self, keep: Path) -> None:
        """Drop the oldest files above the bound; the folder is only looked through when that may be needed."""
        key = self.folder, self.max_gb
        with contextlib.suppress(OSError):
            _unseen[key] = _unseen.get(key, 0.0) - keep.stat().st_size
        if _unseen.get(key, 0.0) > 0:
            return
        files = []
        for file in self.folder.glob(f"*/*.{self.suffix}"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                files.append((file.lstat(), file))
        total = sum(s.st_size for s, _ in files)
        bound = self.max_gb * 1e9
        _unseen[key] = (bound - total) / 16  # a share: other processes fill the same folder
        for found, file in sorted(files, key=lambda item: item[0].st_mtime):
            if total <= bound:
                return
            if file != keep:
                file.unlink(missing_ok=True)
                total -= found.st_size
                log.info("store over data.store_gb: dropped %s", file.name)


def _parse(file: io.FileIO) -> dict[str, Any] | None:
    """Read and check a header; None if it is none."""
    head = file.read(48)
    length = int.from_bytes(head[8:16], "little")
    if head[:8] != MAGIC or length > MAX_HEADER:
        return None
    text = file.read(length)
    if hashlib.sha256(text).digest() != head[16:48]:
        return None
    header = json.loads(text)
    if not isinstance(header, dict):
        return None
    arrays = header.get("arrays", {})
    if any(dtype not in DTYPES or not all(0 <= n < 1 << 24 for n in shape) for dtype, shape in arrays.values()):
        return None
    return {**header, "offset": 48 + length}


def _bytes_of(array: NDArray[Any], row: int) -> memoryview:
    return array[row : row + 1].data.cast("B")


def _crc(parts: Sequence[memoryview]) -> int:
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return found


def _open(path: Path) -> io.FileIO:
    """Open a file for reading; a link or a pipe in its place is not followed."""
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(f"{path} is no regular file")
    return io.FileIO(opened, "rb")
