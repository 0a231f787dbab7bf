"""What is in a file or folder, as a short hash: equal content gives equal hashes wherever it lies."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROBE = 1 << 16  # bytes at either end of a file that are read


def content_of(file: Path) -> tuple[int, int, str]:
    """Size, modification time, and a hash of a file's head and tail; nothing of what is no regular file."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0, ""
    if not stat.S_ISREG(found.st_mode):
        return 0, 0, ""
    try:
        return found.st_size, found.st_mtime_ns, _ends(file, found.st_size, found.st_mtime_ns, found.st_ino)
    except OSError:  # not ours to read
        return found.st_size, found.st_mtime_ns, ""


@functools.lru_cache(maxsize=100_000)
def _ends(file: Path, size: int, changed_ns: int, inode: int) -> str:
    return sampled_hash(file, size)


def sampled_hash(file: Path, size: int) -> str:
    """Hash a file's size, head, tail and blocks in between: equal content gives equal hashes wherever it lies."""
    found = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        if size <= 4 * PROBE:
            found.update(opened.read())
        else:
            found.update(opened.read(PROBE))
            for part in range(1, 16):
                opened.seek(size * part // 16)
                found.update(opened.read(4096))
            opened.seek(-PROBE, os.SEEK_END)
            found.update(opened.read(PROBE))
    return found.hexdigest()[:16]


def checkpoint_fingerprint(model: Mapping[str, Any]) -> dict[str, str]:
    """Return ``fingerprint`` of the weights and settings in a local ``model.checkpoint``; nothing for hub ids.

    Args:
        model: the ``model`` group; ``loader_options.base`` may name a second folder.
    """
    places = [model.get("checkpoint"), (model.get("loader_options") or {}).get("base")]
    found = hashlib.sha256()
    known = [Path(str(p)) for p in places if p and Path(str(p)).exists()]
    for place in known:
        files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        for file in files:
            name = file.relative_to(place).as_posix() if place.is_dir() else file.name
            found.update(f"{name} {content_of(file)[2]}\n".encode())
    return {"fingerprint": found.hexdigest()[:16]} if known else {}
