"""Hashes of files: ``checksums.json`` in a run's folder notices a flipped bit; fingerprints name content by itself."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dashvlm.errors import CheckpointError, DataError
from dashvlm.safety.files import read_json, write_json

log = logging.getLogger(__name__)
FILE = "checksums.json"
SMALL = ("config.yaml", "result.json", "predictions.parquet", "leakage.json")
"""What tables are made from."""
WEIGHTS = ("trained.safetensors", "start.safetensors", "adapter/adapter_model.safetensors",
           "adapter/adapter_config.json")  # fmt: skip


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note(folder: Path, names: Iterable[str]) -> None:
    """Write down the checksums of files of a run, those that are there."""
    known = {k: v for k, v in _known(folder).items() if (folder / k).is_file()}
    known |= {name: sha256(folder / name) for name in names if (folder / name).is_file()}
    write_json(folder / FILE, {"sha256": known})


def changed(folder: Path, names: Iterable[str] = SMALL) -> list[str]:
    """Files that are no longer as the run wrote them; none where a run has no checksums.

    Raises:
        DataError: if ``checksums.json`` is damaged.
    """
    known = _known(folder)
    return [n for n in names if n in known and (not (folder / n).is_file() or sha256(folder / n) != known[n])]


def verify_weights(folder: Path) -> None:
    """Compare all weights of a run with their checksums.

    Raises:
        CheckpointError: if one differs, or is not among them.
        DataError: if ``checksums.json`` is damaged.
    """
    there = [name for name in WEIGHTS if (folder / name).is_file()]
    if not (folder / FILE).is_file():
        log.warning("%s has no %s: its weights cannot be verified", folder, FILE)
        return
    known = _known(folder)
    wrong = [name for name in there if known.get(name) != sha256(folder / name)]
    wrong += [name for name in WEIGHTS if name in known and name not in there]
    if wrong:
        raise CheckpointError(
            f"{folder / wrong[0]} is damaged or was replaced", got="its SHA-256 is not the one that the run wrote down",
            do="copy the run's folder again from where it was made, or remove it and run its command again",
        )  # fmt: skip


def _known(folder: Path) -> dict[str, str]:
    path = folder / FILE
    if not path.is_file():
        return {}
    known = read_json(path).get("sha256")
    if not isinstance(known, dict):
        raise DataError(f"{path} cannot be read", got="no sha256", do="copy the run's folder again")
    return known


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
