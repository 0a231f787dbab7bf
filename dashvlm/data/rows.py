"""A row of a dataset: what an importer yields, and how its cells are read and held against each other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.data.clip import SPLITS
from dashvlm.errors import ConfigError, DataError

Row = dict[str, Any]
"""What an importer yields: ``clip_id, video`` (a file, a folder of pictures, or a list of pictures)
and optionally ``group, split, label, event_time_s, alert_time_s, question, choices, extra``. ``problem``
marks a row as unusable, ``failed`` one that must stay in its split all the same and is scored as failed."""


def read_rows(importer: Callable[[Path, Mapping[str, Any]], Iterable[Row]], root: Path, given: Mapping[str, Any]) \
        -> Iterator[Row]:  # fmt: skip
    """The rows of a dataset; with ``files`` a file a split, whose rows are of that split.

    Args:
        importer: of the dataset.
        root: its folder.
        given: the importer's options.

    Raises:
        DataError: if ``files`` names no split or no file.
    """
    options = dict(given)
    files = options.pop("files", None)
    if not files:
        yield from importer(root, options)
        return
    if (
        not isinstance(files, Mapping)
        or set(files) - set(SPLITS)
        or not all(isinstance(f, str) for f in files.values())
    ):
        raise DataError(
            "data.options.files names a file a split", got=str(files)[:200],
            do="data.options.files={train: a.json, val: b.json, test: c.json}, files below data.root",
        )  # fmt: skip
    for name in files.values():
        if not (root / name).is_file():
            raise DataError(f"data.options.files: {name} is not in {root}", do="name files below data.root")
    for split, name in files.items():
        yield from ({**row, "split": split} for row in importer(root, {**options, "file": name, "split": split}))


def parse_seconds(value: object) -> tuple[float | None, str | None]:
    """Read a time cell: (seconds, None), (None, None) if empty, or (None, what is wrong).

    Example:
        >>> parse_seconds("19.5"), parse_seconds(float("nan")), parse_seconds("-2")
        ((19.5, None), (None, None), (None, "negative time '-2'"))
        >>> parse_seconds("00:12")
        (None, "not a number of seconds: '00:12'")
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None, None
    try:
        seconds = float(str(value))
    except ValueError:
        return None, f"not a number of seconds: {value!r}"
    if not math.isfinite(seconds):
        return (None, None) if math.isnan(seconds) else (None, f"not finite: {value!r}")
    return (seconds, None) if seconds >= 0 else (None, f"negative time {value!r}")


def parse_label(value: object) -> tuple[int | None, str | None]:
    """Read a 0/1 label cell: (label, None), (None, None) if empty, or (None, what is wrong).

    Example:
        >>> parse_label("1.0"), parse_label(0), parse_label(""), parse_label("maybe")[1]
        ((1, None), (0, None), (None, None), "label is neither 0 nor 1: 'maybe'")
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None, None
    known = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0}
    text = str(value).strip().lower()
    if text in known:
        return known[text], None
    return None, f"label is neither 0 nor 1: {value!r}"


def group_of(name: str, pattern: str | None) -> str:
    """Derive a group from a file name by the first group of a regular expression."""
    try:
        found = re.search(pattern, name) if pattern else None
    except re.error as error:
        raise ConfigError(f"data.options.group_regex={pattern} is no regular expression", got=str(error)) from error
    return (found.group(1) if found and found.groups() else None) or Path(name).stem


def checked_row(row: Row) -> tuple[int | None, float | None, float | None, str | None]:
    """A row's label, event and alert times, and what is wrong with or between them."""
    label, wrong = parse_label(row.get("label"))
    event, wrong_event = parse_seconds(row.get("event_time_s"))
    alert, wrong_alert = parse_seconds(row.get("alert_time_s"))
    wrong = wrong or (wrong_event and f"event time: {wrong_event}") or (wrong_alert and f"alert time: {wrong_alert}")
    if not wrong and label == 0 and event is not None:
        wrong = f"labelled negative, but with an event at {event:g} s"
    if not wrong and alert is not None and event is not None and alert > event:
        wrong = f"the alert at {alert:g} s comes after the event at {event:g} s"
    if not wrong and alert is not None and event is None and label != 0:
        wrong = f"an alert at {alert:g} s without an event"
    if not wrong and row.get("group") is not None and not isinstance(row["group"], str):
        wrong = f"group is a {type(row['group']).__name__}, not a text"
    return label, event, alert, wrong or None
