"""Nexar collision prediction: ``train.csv`` and a folder of videos.

Layout of the Kaggle competition "Nexar Dashcam Crash Prediction Challenge" (Moura et al.,
arXiv 2503.03848): ``train.csv`` with ``id,time_of_event,time_of_alert,target``, ids zero-padded
to five digits in the file names. An optional ``group`` column names the recording.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.data.manifest import Row
from dashvlm.errors import DataError

COLUMNS = ("id", "time_of_event", "time_of_alert", "target")
HOW = (
    "download with `kaggle competitions download -c nexar-collision-prediction`, unpack and set "
    "data.root=FOLDER; or try the whole program without any download: data=synthetic"
)


def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row a line of ``train.csv``.

    Args:
        root: folder with ``train.csv`` and ``train/`` or ``videos/``.
        options: unused.

    Raises:
        DataError: if the file, the video folder or a column is missing.
    """
    table = root / "train.csv"
    videos = next((d for d in ("train", "videos") if (root / d).is_dir()), None)
    if not table.is_file() or videos is None:
        missing = [str(table)] * (not table.is_file())
        missing += [f"{root}/train/ or {root}/videos/ with 00000.mp4 ..."] * (videos is None)
        raise DataError("data=nexar: expected files are missing", got=", ".join(missing), do=HOW)
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        lacking = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
        if lacking:
            raise DataError(
                f"{table}: columns are missing: {', '.join(lacking)}",
                got=", ".join(reader.fieldnames or []),
                do=f"the header must name {','.join(COLUMNS)} and may name group",
            )
        for line in reader:
            yield _row(line, videos)


def _row(line: dict[str, str], videos: str) -> Row:
    raw = (line["id"] or "").strip()
    number = raw.removesuffix(".0")
    row: Row = {
        "clip_id": number.zfill(5) if number.isdigit() else raw,
        "label": line["target"],
        "event_time_s": line["time_of_event"],
        "alert_time_s": line["time_of_alert"],
        "group": (line.get("group") or "").strip() or None,
    }
    if not number.isdigit():
        return {**row, "video": "", "problem": f"id is not a number: {raw!r}"}
    if (line["target"] or "").strip() in ("1", "1.0") and not (line["time_of_event"] or "").strip():
        return {**row, "video": "", "problem": "a positive clip without time_of_event"}
    return {**row, "video": f"{videos}/{row['clip_id']}.mp4"}
