"""Datasets of accident anticipation: CCD, DAD, and files of consensus alerts about any of them.

An accident in which the ego vehicle takes no part is no positive unless ``data.options.non_ego`` says so: nobody in
the car is to be warned of it. Of DAD's accidents 92 % are of that kind, of DoTA's 44 %, of DADA-2000's 41 % (BADAS,
arXiv 2510.14876). ``ego`` is a slice of the tables either way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.config.imports import configurable
from dashvlm.data.formats.inputs import VIDEOS
from dashvlm.data.rows import Row
from dashvlm.data.textfiles import csv_rows, read_text
from dashvlm.errors import DataError

CCD_FPS, DAD_EVENT_S = 10.0, 4.5
_CCD_LINE = re.compile(r"^(\w+),\s*\[([01,\s]+)\],\s*([^,]*),([^,]*),([^,]*),([^,]*),\s*(\w+)\s*$")
_YES, _NO, _NOT_SAID = (
    ("yes", "y", "true", "1", "1.0"),
    ("no", "n", "false", "0", "0.0"),
    ("", "nan", "none", "unknown"),
)
_NONE = ("0", "0.0", "negative", "normal", "normal_driving")


@configurable("importer")
def ccd(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Car Crash Dataset (Bao et al., ACM MM 2020): 1,500 accidents and 3,000 normal clips of 50 frames, 10 a second.

    Args:
        root: the folder ``CarCrash``, or its ``videos``: ``Crash-1500.txt`` beside ``Crash-1500/`` and ``Normal/``.
        options: ``non_ego``; ``official_split``: take ``train.txt`` and ``test.txt`` of ``vgg16_features``.

    Yields:
        A row a clip; the event is the first frame that is labelled as accident, the group the original video.

    Raises:
        DataError: if the annotation file is missing.
    """
    base = root / "videos" if (root / "videos" / "Crash-1500.txt").is_file() else root
    if not (base / "Crash-1500.txt").is_file():
        raise DataError(
            "data=ccd: expected files are missing", got=f"no Crash-1500.txt in {root} or {root}/videos",
            do="set data.root to the folder CarCrash with videos/Crash-1500.txt, videos/Crash-1500/ and videos/Normal/",
        )  # fmt: skip
    inside = base.relative_to(root).as_posix()
    prefix = "" if inside == "." else f"{inside}/"
    split = _ccd_split(root) if options.get("official_split") else {}
    for number, line in enumerate(read_text(base / "Crash-1500.txt").splitlines(), 1):
        if not line.strip():
            continue
        found = _CCD_LINE.match(line.strip())
        if found is None:
            yield {"clip_id": f"Crash-1500.txt:{number}", "problem": f"not a line of CCD: {line[:60]!r}"}
            continue
        name, labels, _, source, timing, weather, ego = found.groups()
        frames = [int(v) for v in labels.replace(" ", "").strip(",").split(",")]
        clip_id = f"crash_{name}"
        row: Row = {
            "clip_id": clip_id, "video": f"{prefix}Crash-1500/{name}.mp4", "group": f"youtube_{source.strip()}",
            **({"split": split[f"positive/{name}"]} if f"positive/{name}" in split else {}),
        }  # fmt: skip
        if 1 not in frames:
            yield row | {"problem": "no frame is labelled as accident"}
            continue
        slices = {"timing": timing.strip(), "weather": weather.strip()}
        yield row | _event(frames.index(1) / CCD_FPS, None, ego, slices, options)
    for file in sorted((base / "Normal").glob("*.mp4")):
        name = file.stem
        yield {
            "clip_id": f"normal_{name}", "video": f"{prefix}Normal/{file.name}", "label": 0,
            "group": f"normal_{name}", "extra": {"slices": {"ego": "no accident"}},
            **({"split": split[f"negative/{name}"]} if f"negative/{name}" in split else {}),
        }  # fmt: skip


def _ccd_split(root: Path) -> dict[str, str]:
    """``positive/000001`` -> train or test, from the lists beside the features."""
    found = {}
    for split in ("train", "test"):
        for file in sorted(root.glob(f"*_features/{split}.txt"))[:1]:
            for line in read_text(file).splitlines():
                if line.strip():
                    found[line.split()[0].removesuffix(".npz")] = split
    if not found:
        raise DataError(
            "data.options.official_split=true: no lists", got=f"no *_features/train.txt in {root}",
            do="copy vgg16_features/train.txt and test.txt there, or leave the option out",
        )  # fmt: skip
    return found


@configurable("importer")
def dad(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Dashcam Accident Dataset (Chan et al., ACCV 2016): clips of 100 frames, 20 a second, the accident at frame 90.

    Args:
        root: a folder with ``training/`` and ``testing/``, each with ``positive/`` and ``negative/``, directly or
            below ``videos/``.
        options: none. The dataset does not say who takes part: for that see :func:`consensus`.

    Raises:
        DataError: if the folders are missing.
    """
    base = next((b for b in (root, root / "videos") if (b / "training").is_dir() or (b / "testing").is_dir()), None)
    if base is None:
        raise DataError(
            "data=dad: expected folders are missing", got=f"no training/ or testing/ in {root}",
            do="set data.root to the folder with training/positive/000001.mp4 and so on",
        )  # fmt: skip
    for part, split in (("training", "train"), ("testing", "test")):
        for kind, label in (("positive", 1), ("negative", 0)):
            for file in sorted((base / part / kind).glob("*.mp4")):
                yield {
                    "clip_id": f"{part}/{kind}/{file.stem}", "video": file.relative_to(root).as_posix(),
                    "label": label, "group": f"{part}/{kind}/{file.stem}",
                    "event_time_s": DAD_EVENT_S if label else None, **({"split": split} if split == "test" else {}),
                }  # fmt: skip


COLUMNS = ("id", "Time-of-alert", "Time-of-collision")


@configurable("importer")
def consensus(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Consensus alerts: a CSV with times of alert and collision and whether the ego vehicle takes part, a row a video.

    The form of BADAS-Open's annotations of DAD, DADA-2000 and DoTA: columns ``id, Time-of-alert, Time-of-collision``,
    and where there are ``Nexar-vehicle-involved`` (yes or no), ``Event-type``, ``label`` (0, negative, normal: none).

    Args:
        root: folder with the CSV and the videos, anywhere below it.
        options: ``file``: the CSV, null takes the only one; ``split``: of all its rows, null splits here; ``non_ego``;
            ``encoding``.

    Raises:
        DataError: if the CSV is not there or lacks a column.
    """
    tables = [root / str(options["file"])] if options.get("file") else sorted(root.glob("*.csv"))
    if len(tables) != 1 or not tables[0].is_file():
        raise DataError(
            "data=consensus: one annotation file is needed", got=", ".join(t.name for t in tables) or "none",
            do="set data.options.file=NAME.csv, a file below data.root",
        )  # fmt: skip
    videos: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in VIDEOS:
            for name in {file.name, file.stem, file.stem.removeprefix("images_")}:
                videos.setdefault(name, []).append(file)
    for line, cells in csv_rows(tables[0], COLUMNS, lambda c: bool(c["id"].strip()), options.get("encoding")):
        if isinstance(cells, str):
            yield {"clip_id": f"{tables[0].name}:{line}", "problem": cells}
            continue
        name = cells["id"].strip()
        there = videos.get(name) or videos.get(Path(name).stem) or []
        row: Row = {"clip_id": Path(name).stem, "group": Path(name).stem}
        row |= {"split": options["split"]} if options.get("split") else {}
        if len(there) != 1:
            why = "no video of that name" if not there else f"{len(there)} videos of that name"
            yield row | {"video": "", "problem": f"{why}: {name}"}
            continue
        row["video"] = there[0].relative_to(root).as_posix()
        event, alert = (_said(cells[c]) for c in ("Time-of-collision", "Time-of-alert"))
        label = (cells.get("label") or "").strip().lower()
        if not event and label not in (*_NONE, *_NOT_SAID):
            yield row | {"problem": f"label {label!r}, but no Time-of-collision"}
            continue
        slices = {"event": cells["Event-type"].strip()} if (cells.get("Event-type") or "").strip() else {}
        if label in _NONE or not event:
            yield row | {"label": 0, "extra": {"slices": {**slices, "ego": "no accident"}}}
        else:
            yield row | _event(event, alert or None, cells.get("Nexar-vehicle-involved") or "", slices, options)


def _said(cell: str) -> str:
    """A cell, empty where it says nothing."""
    return "" if cell.strip().lower() in _NOT_SAID else cell.strip()


def _event(event: Any, alert: Any, ego: str, slices: Mapping[str, str], options: Mapping[str, Any]) -> Row:
    """Label, times and slices of an accident, by who takes part in it."""
    said = ego.strip().lower()
    if said not in (*_YES, *_NO, *_NOT_SAID):
        return {"problem": f"who takes part is neither yes nor no: {ego.strip()!r}"}
    involved = True if said in _YES else False if said in _NO else None
    extra = {"slices": {**slices, "ego": {True: "involved", False: "not involved", None: "not said"}[involved]}}
    how = str(options.get("non_ego") or "negative")
    if how not in ("negative", "positive", "unlabelled"):
        raise DataError("data.options.non_ego is unknown", got=how, do="use negative, positive or unlabelled")
    if involved is False and how != "positive":
        extra["other_event_s"] = event  # for a reader; no task is told
        return {"label": 0 if how == "negative" else None, "extra": extra}
    return {"label": 1, "event_time_s": event, "alert_time_s": alert, "extra": extra}
