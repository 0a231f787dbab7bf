"""``checksums.json`` in a run's folder: what was written, so that a flipped bit or a changed line is noticed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from dashvlm.errors import CheckpointError, DataError
from dashvlm.results import write_json
from dashvlm.stored import read_json

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
