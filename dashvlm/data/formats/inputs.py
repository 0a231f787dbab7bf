"""Videos, pictures and rows of a user, without answers, as rows of a dataset that has a test split only."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.data.formats.roadbuddy import options_of
from dashvlm.data.pictures import SUFFIXES as PICTURES
from dashvlm.data.rows import Row, parse_seconds
from dashvlm.data.textfiles import csv_rows, json_file, json_lines
from dashvlm.errors import DataError

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".ts", ".m4v", ".mpg")
TABLES = (".csv", ".json", ".jsonl")
NAMES = {
    "clip_id": ("id", "clip_id", "question_id", "video_id"),
    "video": ("video", "video_path", "image", "image_path", "file_name", "file", "path"),
    "question": ("question", "text", "prompt"),
    "choices": ("choices", "options"),
}
"""What a column or a key may be called."""


def read_inputs(given: str) -> tuple[Path, list[Row]]:
    """Find what ``input=`` means: a file, a folder, a pattern, or a table of rows.

    Args:
        given: a video or picture; a folder, looked through for both; a pattern such as ``clips/*.mp4``; or a
            ``.csv``, ``.json`` or ``.jsonl`` whose rows name a file each, and for multiple choice ``question`` and
            ``choices`` (a list, or columns A, B, C, D).

    Returns:
        The folder that the names are relative to, and the rows. A row that cannot be used has a ``problem``.

    Raises:
        DataError: if nothing is there.
    """
    path = Path(given).expanduser()
    if path.is_file() and path.suffix.lower() in TABLES:
        rows = list(_table(path))
        root = path.parent
    else:
        files = _files(path, given)
        root = path if path.is_dir() else Path(os.path.commonpath([str(f.parent.resolve()) for f in files] or ["."]))
        rows = [_row(file.resolve().relative_to(root.resolve()).as_posix()) for file in files]
    if not rows:
        raise DataError(
            f"input={given}: nothing to predict", got="no rows or files" if path.exists() else "no file of that name",
            do=f"name a video ({', '.join(VIDEOS)}), a picture ({', '.join(PICTURES)}), a folder of them, a pattern in "
            "quotes, or a .csv, .json or .jsonl with a file a row",
        )  # fmt: skip
    return root, rows


def videos_of(given: str) -> list[Path]:
    """The videos that ``video=`` means: a file, those of a folder, or those of a pattern.

    Raises:
        DataError: if there is none.
    """
    path = Path(given).expanduser()
    found = [f for f in _files(path, given) if path.is_file() or f.suffix.lower() in VIDEOS]
    if not found and not path.is_dir() and not glob.has_magic(given):
        return [path]  # opening it says what is wrong
    if not found:
        raise DataError(
            f"video={given}: no video", got="a folder without one" if path.is_dir() else "no file of that name",
            do=f"name a video ({', '.join(VIDEOS)}), a folder of them, or a pattern in quotes",
        )  # fmt: skip
    return found


def read_events(path: Path) -> dict[str, dict[str, float | None]]:
    """Known events of videos: file name -> ``alert`` and ``event`` in seconds.

    Args:
        path: a ``.csv`` whose rows name a file (``file_name``, ``video``, ``id``) and ``event_time_s`` or
            ``time_of_event``, and perhaps ``alert_time_s`` or ``time_of_alert``.

    Raises:
        DataError: if a column or a number is missing.
    """
    if not path.is_file():
        raise DataError(f"events={path}: no such file", do="name a .csv with file_name and event_time_s")
    found: dict[str, dict[str, float | None]] = {}
    for line, row in csv_rows(path, (), lambda c: True):
        if isinstance(row, str):
            raise DataError(f"{path.name}:{line}: {row}")
        name = next((row[k] for k in ("file_name", "video", "file", "id") if row.get(k)), None)
        event = next((k for k in ("event_time_s", "time_of_event", "event_s") if k in row), None)
        alert = next((k for k in ("alert_time_s", "time_of_alert", "alert_s") if k in row), None)
        if name is None or event is None:
            raise DataError(
                f"{path.name}: no file name or no time of an event", got=", ".join(row),
                do="give columns file_name, event_time_s and perhaps alert_time_s",
            )  # fmt: skip
        times = {}
        for kind, key in (("alert", alert), ("event", event)):
            times[kind], wrong = parse_seconds(row[key]) if key else (None, None)
            if wrong:
                raise DataError(f"{path.name}:{line}: {key}: {wrong}", do="times are seconds from the first frame")
        if times["alert"] is not None and times["event"] is not None and times["alert"] > times["event"]:
            raise DataError(f"{path.name}:{line}: the alert at {times['alert']:g} s comes after the event")
        stem = name.strip()
        found[stem if Path(stem).suffix else f"{stem.zfill(5)}.mp4"] = times
    return found


def _files(path: Path, given: str) -> list[Path]:
    if path.is_file():
        return [path]
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True)) if given else []
    kept = [p for p in found if p.is_file() and p.suffix.lower() in (*VIDEOS, *PICTURES) and p.name[:2] != "._"]
    return sorted(kept)


def _row(name: str) -> Row:
    return {"clip_id": name, "video": name, "group": name, "split": "test"}


def _table(path: Path) -> Iterator[Row]:
    items: Any
    if path.suffix.lower() == ".csv":
        items = ((n, *((None, c) if isinstance(c, str) else (c, None))) for n, c in csv_rows(path, (), lambda c: True))
    elif path.suffix.lower() == ".jsonl":
        items = json_lines(path)
    else:
        content = json_file(path)
        content = content.get("data", [content]) if isinstance(content, Mapping) else content
        items = ((n, item, None) for n, item in enumerate(content if isinstance(content, list) else [content]))
    for number, item, wrong in items:
        place = f"{path.name}:{number}"
        if wrong or not isinstance(item, Mapping):
            yield {"clip_id": place, "split": "test", "problem": wrong or f"a {type(item).__name__}, not a row"}
            continue
        found = {what: next((item[n] for n in names if item.get(n) not in (None, "")), None)
                 for what, names in NAMES.items()}  # fmt: skip
        if not isinstance(found["video"], str):
            yield {"clip_id": str(found["clip_id"] or place), "split": "test", "problem": "no file is named"}
            continue
        row = _row(found["video"]) | {"clip_id": str(found["clip_id"] if found["clip_id"] is not None else place)}
        choices = found["choices"] or [item[c] for c in "ABCD" if item.get(c)]
        choices = [f"{k}. {v}" for k, v in choices.items()] if isinstance(choices, Mapping) else choices
        if choices:
            if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
                yield row | {"problem": "choices are not a list of texts"}
                continue
            row["choices"] = options_of(choices)[0]
        if found["question"] is not None:
            row["question"] = str(found["question"])
        yield row
