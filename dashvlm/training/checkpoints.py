"""Checkpoint files: sealed with their own checksum, written beside their place, synced, then renamed.

A checkpoint is an ordinary file of ``torch.save``; the seal is the comment at the end of its zip archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from dashvlm.errors import CheckpointError

log = logging.getLogger(__name__)
LAST, BEFORE_LAST, BEST = "last.ckpt", "last.previous.ckpt", "best.ckpt"
SEAL = b"dashvlm sha256 "
"""Followed by 64 hex digits: the SHA-256 of everything before them."""


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint; the one before it stays whole until this one is, and ``last.ckpt`` keeps it beside itself.

    Raises:
        CheckpointError: if it cannot be written, for example to a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w+b") as file:
            torch.save(dict(state), file)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.exists():
            path.replace(path.with_name(BEFORE_LAST))
        part.replace(path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch hides the errors of the file system behind its own
        with contextlib.suppress(OSError):
            part.unlink()
        raise CheckpointError(
            f"{path} could not be written", got=str(error).splitlines()[0],
            do=f"make room on the disk of {path.parent} (df -h {path.parent}), then run the same command again: it "
            "resumes from the checkpoint before, which is whole",
        ) from error  # fmt: skip


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint whose checksum fits, without running anything in it.

    Raises:
        CheckpointError: if it is damaged, or cannot be read safely.
    """
    verify_seal(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            do="a checkpoint with code in it is refused; train again or name another file",
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no checkpoint", got=type(state).__name__, do="name another file")
    return state


def verify_seal(path: Path) -> None:
    """Compare a checkpoint with its checksum.

    Raises:
        CheckpointError: if they differ, or there is none.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is damaged", got="no ordinary file", do="remove it")
    digest = hashlib.sha256()
    do = "name another checkpoint; a training run goes on from what is whole when its command is typed again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            left = size - 64
            while left > 0 and (piece := file.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
            said = file.read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read", got=str(error.strerror), do=do) from error
    if digest.hexdigest().encode() != said:
        raise CheckpointError(f"{path} is damaged", got="its SHA-256 is not the one it was sealed with", do=do)


class SealedCheckpoints(CheckpointIO):
    """Lightning's checkpoints through :func:`write_checkpoint` and :func:`read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read one; always on the CPU and as weights only."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete one."""
        Path(path).unlink(missing_ok=True)


def resume_point(folder: Path) -> tuple[Path, int] | None:
    """Find the newest checkpoint that a run can go on from.

    It must be whole, and so must the best weights that it remembers: the steps before cannot be validated again, so no
    other weights may stand for them. What is damaged is set aside as ``NAME.damaged``.

    Returns:
        The file and the number of batches behind it; None if training starts over.
    """
    for part in folder.glob("*.part"):  # of a process that was killed while it wrote
        if part.is_file():
            part.unlink()
    found = [folder / name for name in (LAST, BEFORE_LAST) if (folder / name).exists()]
    for path in found:
        try:
            state = read_checkpoint(path)
            progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
            done, best = int(progress["processed"]), state["callbacks"].get("Checkpoint", {}).get("best")
        except (CheckpointError, LookupError, TypeError, ValueError, AttributeError) as error:
            log.warning(
                "%s", str(error).splitlines()[0] if isinstance(error, CheckpointError) else f"{path} is damaged"
            )
            _set_aside(path)
            continue
        if best is not None:
            try:
                verify_seal(folder / BEST)
            except CheckpointError:
                gone = not (folder / BEST).exists()
                log.warning("%s is %s", folder / BEST, "gone" if gone else "damaged")
                path.unlink()
                if not gone:
                    _set_aside(folder / BEST)
                continue
        log.info("%s: whole, after %d batches", path.name, done)
        return path, done
    if found:
        log.warning("no checkpoint can be used; training starts over")
    return None


def _set_aside(path: Path) -> None:
    """Rename what is damaged; whatever lies at that name already stays."""
    target = path.with_name(f"{path.name}.damaged")
    path.replace(
        target if target.is_file() or not target.exists() else path.with_name(f"{path.name}.{os.getpid()}.damaged")
    )


def load_weights(path: Path) -> Mapping[str, torch.Tensor]:
    """Read the trained parameters of a checkpoint.

    Raises:
        CheckpointError: see :func:`read_checkpoint`.
    """
    whole = read_checkpoint(path)
    state, run = whole.get("state_dict"), path.parent.parent.name
    if whole.get("run") not in (None, "", run):
        log.warning("%s was written by the run %s, not by %s", path, whole["run"], run)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no checkpoint", got="it has no state_dict", do="name another file")
    return dict(state)


def _seal(file: Any) -> None:
    """Append the checksum as the comment of a zip archive, which ends with the comment's length."""
    comment = len(SEAL) + 64
    end = file.seek(-22, os.SEEK_END)
    record = file.read(22)
    if record[:4] != b"PK\x05\x06" or record[20:] != b"\0\0":
        raise RuntimeError("torch.save wrote no plain zip archive")
    file.seek(end + 20)
    file.write(comment.to_bytes(2, "little"))
    file.write(SEAL)
    file.flush()
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    file.write(digest.hexdigest().encode())


def _sync(folder: Path) -> None:
    """Make a rename durable, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
