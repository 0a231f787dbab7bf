"""Pairs of a better and a worse answer, as JSON lines ``clip_id, chosen, rejected``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dashvlm.data.rows import Row
from dashvlm.data.textfiles import json_lines
from dashvlm.errors import DataError


def with_pairs(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """Give rows the pairs of a file.

    Raises:
        DataError: if the file is missing, a line is no pair, or no pair belongs to a row.
    """
    pairs = read_pairs(path)
    matched = 0
    for row in rows:
        pair = pairs.get(str(row["clip_id"]))
        matched += pair is not None
        extra = dict(row.get("extra") or {})
        yield {**row, "extra": extra | ({"chosen": pair[0], "rejected": pair[1]} if pair else {})}
    if not matched:
        raise DataError(
            f"data.pairs={path}: not one of its {len(pairs)} clips is in the dataset",
            got=", ".join(list(pairs)[:3]), do="name the pairs of this dataset",
        )  # fmt: skip


def read_pairs(path: Path) -> dict[str, tuple[str, str]]:
    """Read a file of pairs: clip_id -> (chosen, rejected).

    Raises:
        DataError: if the file is missing or a line is no pair.
    """
    if not path.is_file():
        raise DataError(
            f"data.pairs={path} does not exist",
            do="make it with `python -m dashvlm.label teacher=own teacher.run=runs/RUN`",
        )
    pairs: dict[str, tuple[str, str]] = {}
    for number, item, wrong in json_lines(path):
        try:
            if wrong:
                raise ValueError(wrong)
            chosen, rejected = item["chosen"], item["rejected"]
            if not isinstance(chosen, str) or not isinstance(rejected, str) or chosen == rejected:
                raise ValueError("chosen and rejected must be two different texts")
            pairs[str(item["clip_id"])] = chosen, rejected
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number} is no pair", got=f"{type(error).__name__}: {error}",
                do="write clip_id, chosen and rejected",
            ) from error  # fmt: skip
    return pairs
