"""Nexar collision prediction, as Kaggle has it and as the hub has it.

Kaggle ("Nexar Dashcam Crash Prediction Challenge", Moura et al., arXiv 2503.03848): ``train.csv`` with
``id,time_of_event,time_of_alert,target`` beside ``train/00000.mp4`` and so on, ``test.csv`` with ids only beside
``test/``. An optional ``group`` column names the recording. The hub: ``train/positive`` and ``train/negative``
(and ``test-public``, ``test-private`` of the same form), each with ``metadata.csv``:
``file_name,time_of_event,time_of_alert,light_conditions,weather,scene``, in the tests ``time_to_accident``: those clips
end so long before the event. ``solution.csv`` (``id,target,group,Usage``) beside them names the groups whose mean
average precision is the challenge's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.config.imports import configurable
from dashvlm.data.rows import Row, parse_label
from dashvlm.data.textfiles import csv_rows
from dashvlm.errors import DataError

COLUMNS = ("id", "time_of_event", "time_of_alert", "target")
HUB_COLUMNS = ("file_name", "time_of_event", "time_of_alert")
SLICES = ("light_conditions", "weather", "scene")
CLASSES = {"positive": 1, "negative": 0}
HOW = (
    "download with `kaggle competitions download -c nexar-collision-prediction`, unpack and set "
    "data.root=FOLDER; or try the whole program without any download: data=synthetic"
)


@configurable("importer")
def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row for each line of ``train.csv``, or of each ``metadata.csv``.

    Args:
        root: the unpacked competition, or a snapshot of the hub's dataset.
        options: ``file``: ``train`` (split here, by group), ``test`` (Kaggle: all of it is the test split, without
            labels) or a ``.csv`` with the columns of ``train.csv`` below the root; ``encoding`` of the tables where
            it is not UTF-8.

    Raises:
        DataError: if a file, the video folder or a column is missing.
    """
    encoding = options.get("encoding")
    wanted = str(options.get("file") or "train")
    if wanted not in ("train", "test") and not wanted.endswith(".csv"):
        raise DataError("data.options.file must be train, test or a .csv file", got=wanted)
    if wanted == "test":
        yield from _kaggle_test(root, encoding)
        return
    tables = sorted(p for kind in CLASSES for p in root.glob(f"*/{kind}/metadata.csv"))
    if tables and wanted == "train" and not (root / "train.csv").is_file():
        for table in tables:
            yield from _hub(root, table, encoding)
        return
    table, videos = root / ("train.csv" if wanted == "train" else wanted), _video_folder(root, "train", "videos")
    if not table.is_file() or videos is None:
        missing = [str(table)] * (not table.is_file())
        missing += [f"{root}/train/ or {root}/videos/ with 00000.mp4 ..."] * (videos is None)
        raise DataError("data=nexar: expected files are missing", got=", ".join(missing), do=HOW)
    for line, cells in csv_rows(table, COLUMNS, _is_row, encoding):
        if isinstance(cells, str):
            yield {"clip_id": f"{table.name}:{line}", "problem": cells}
        else:
            yield _row(cells, videos)


def _is_row(cells: Mapping[str, str]) -> bool:
    return cells["id"].strip().removesuffix(".0").isdigit() and parse_label(cells["target"].strip())[0] is not None


def _video_folder(root: Path, *names: str) -> str | None:
    return next((d for d in names if (root / d).is_dir()), None)


def _row(cells: Mapping[str, str], videos: str) -> Row:
    raw = cells["id"].strip()
    number = raw.removesuffix(".0")
    row: Row = {
        "clip_id": number.zfill(5) if number.isdigit() else raw,
        "label": cells["target"],
        "event_time_s": cells["time_of_event"],
        "alert_time_s": cells["time_of_alert"],
        "group": (cells.get("group") or "").strip() or None,
        "extra": _slices(cells),
    }
    if not number.isdigit():
        return {**row, "video": "", "problem": f"id is not a number: {raw!r}"}
    label, wrong = parse_label(cells["target"].strip())
    if label is None and not wrong:
        return {**row, "video": "", "problem": "no target"}
    if label == 1 and cells["time_of_event"].strip().lower() in ("", "nan"):
        return {**row, "video": "", "problem": "a positive clip without time_of_event"}
    return {**row, "video": f"{videos}/{row['clip_id']}.mp4"}


def _hub(root: Path, table: Path, encoding: str | None) -> Iterator[Row]:
    """Rows of one ``<split>/<class>/metadata.csv``; the folder is the label, whatever its split is called."""
    folder = table.parent.relative_to(root).as_posix()
    part, kind = folder.split("/")
    split = {} if part == "train" else {"split": "test"}
    groups = _groups(root) if part != "train" else {}
    for line, cells in csv_rows(
        table, HUB_COLUMNS, lambda c: c["file_name"].strip().lower().endswith(".mp4"), encoding
    ):
        if isinstance(cells, str):
            yield {"clip_id": f"{folder}/{table.name}:{line}", **split, "problem": cells}
            continue
        name = cells["file_name"].strip()
        row: Row = {
            "clip_id": name.rsplit(".", 1)[0] if part == "train" else f"{part}/{name.rsplit('.', 1)[0]}",
            "video": f"{folder}/{name}", "label": CLASSES[kind], **split,
            "event_time_s": cells["time_of_event"], "alert_time_s": cells["time_of_alert"], "extra": _slices(cells),
        }  # fmt: skip
        ahead = (cells.get("time_to_accident") or "").strip()
        if part != "train" and ahead.lower() not in ("", "nan"):
            # Cut so long before the event, whose time is that of the uncut video: the last frame is the anchor.
            slices = {**(row["extra"].get("slices") or {}), "part": part.removeprefix("test-"),
                      "time_to_accident": groups.get(name.split(".")[0], ahead)}  # fmt: skip
            extra = {"slices": slices, "anchor": "clip_end", "submission_id": name.rsplit(".", 1)[0]}
            row |= {"event_time_s": None, "alert_time_s": None, "extra": extra}
            yield row
            continue
        if not name:
            row |= {"clip_id": f"{folder}/{table.name}:{line}", "problem": "no file_name"}
        elif kind == "positive" and cells["time_of_event"].strip().lower() in ("", "nan"):
            row["problem"] = "a positive clip without time_of_event"
        yield row


def _groups(root: Path) -> dict[str, str]:
    """Id of a test clip -> its group of the official evaluation, from ``solution.csv`` where that is there."""
    if not (root / "solution.csv").is_file():
        return {}
    rows = csv_rows(root / "solution.csv", ("id", "group"), lambda c: c["id"].strip().isdigit())
    return {c["id"].strip().zfill(5): c["group"].strip() for _, c in rows if not isinstance(c, str)}


def _kaggle_test(root: Path, encoding: str | None) -> Iterator[Row]:
    table, videos = root / "test.csv", _video_folder(root, "test", "videos")
    if not table.is_file() or videos is None:
        raise DataError(
            "data=nexar: test.csv or its videos are missing", got=f"looked in {root} and {root}/test", do=HOW
        )
    for line, cells in csv_rows(table, ("id",), lambda c: c["id"].strip().isdigit(), encoding):
        if isinstance(cells, str) or not cells["id"].strip().isdigit():
            why = cells if isinstance(cells, str) else f"id is not a number: {cells['id']!r}"
            yield {"clip_id": f"{table.name}:{line}", "split": "test", "problem": why}
            continue
        name = cells["id"].strip().zfill(5)
        # These clips end before the event, if there is one: the last frame is the anchor.
        yield {"clip_id": name, "video": f"{videos}/{name}.mp4", "split": "test",
               "extra": {"anchor": "clip_end", "submission_id": cells["id"].strip()}}  # fmt: skip


def _slices(cells: Mapping[str, str]) -> dict[str, Any]:
    """What a clip may be grouped by in tables: light, weather, scene."""
    found = {key: cells[key].strip() for key in SLICES if (cells.get(key) or "").strip()}
    return {"slices": found} if found else {}
