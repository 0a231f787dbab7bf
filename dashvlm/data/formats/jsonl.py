"""Labelled clips as JSON lines: ``{"video", "text", "label"}``, one file and one folder a split.

Layout of the SmolVLM2 crash-risk classifier (yunzhong1105/crash-risk-detection-vlm):
``train.jsonl`` beside ``train/``, and so on. Optional keys: ``id, group, event_time,
alert_time``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.config.imports import configurable
from dashvlm.data.clip import SPLITS
from dashvlm.data.rows import Row, group_of
from dashvlm.data.textfiles import json_lines, text_problem
from dashvlm.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".ts")


@configurable("importer")
def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row a line of each split's file.

    Args:
        root: folder with ``train.jsonl, val.jsonl, test.jsonl`` (at least one).
        options: ``group_regex``, whose first group names the recording in a video's name; ``encoding`` of the
            files where it is not UTF-8; ``event_time``: ``use`` or ``ignore``; ``reference``: what anchors are counted
            from, since event times would be lost on ``clip_end``; ``file`` and ``split``: one file instead.

    Raises:
        DataError: if no split file exists, or lines have event times that would not be used.
    """
    if options.get("file"):
        yield from _split_rows(root / str(options["file"]), str(options.get("split") or "train"), options)
        return
    files = [(split, root / f"{split}.jsonl") for split in SPLITS]
    if not any(path.is_file() for _, path in files):
        raise DataError(
            f"data=jsonl: no train.jsonl, val.jsonl or test.jsonl in {root}",
            do="write them from labelled folders: python -m dashvlm.inspect data=jsonl "
            "data.root=FOLDER write_jsonl=true (FOLDER/train/0/*.mp4, FOLDER/train/1/*.mp4 ...)",
        )
    for split, path in files:
        if path.is_file():
            yield from _split_rows(path, split, options)


def _split_rows(path: Path, split: str, options: Mapping[str, Any]) -> Iterator[Row]:
    pattern = options.get("group_regex")
    for number, item, wrong in json_lines(path, options.get("encoding")):
        row: Row = {"clip_id": f"{path.name}:{number}", "split": split}
        if wrong:
            yield {**row, "problem": wrong}
            continue
        if not isinstance(item, dict) or not isinstance(item.get("video"), str) or not item["video"].strip():
            yield {**row, "problem": 'no "video" in the line'}
            continue
        wrong = text_problem(item, "text", "group")
        if item.get("id") is not None and not isinstance(item["id"], str | int | float):
            wrong = f"id is a {type(item['id']).__name__}"
        if wrong:
            yield {**row, "problem": wrong}
            continue
        video = item["video"] if "/" in item["video"] else f"{split}/{item['video']}"
        if options.get("event_time") == "ignore":
            item = {k: v for k, v in item.items() if k not in ("event_time", "alert_time")}
        elif item.get("event_time") not in (None, "") and options.get("reference") == "clip_end":
            raise DataError(
                f"{path.name} line {number} has an event_time, which data.reference=clip_end would not use",
                got=str(item["event_time"]),
                do="set data.reference=event and data.horizon_s, or data.options.event_time=ignore",
            )
        row |= {
            "clip_id": str(item["id"] if item.get("id") not in (None, "") else video.rsplit(".", 1)[0]),
            "video": video,
            "label": item.get("label"),
            "question": item.get("text"),
            "event_time_s": item.get("event_time"),
            "alert_time_s": item.get("alert_time"),
            "group": item.get("group") or group_of(video, pattern) + ("" if pattern else f"@{split}"),
        }
        if split == "train" and item.get("label") in (None, ""):
            row["problem"] = "no label"
        yield row


def write_from_folders(root: Path, question: str) -> dict[str, int]:
    """Write ``<split>.jsonl`` from folders ``<split>/<label>/*.mp4``.

    Labels are folder names: ``0, 1, no, yes, negative, positive, normal, crash``.

    Returns:
        The number of clips a split.

    Raises:
        DataError: if no labelled folder is found, or a file would be overwritten.
    """
    labels = {
        "0": 0,
        "no": 0,
        "negative": 0,
        "normal": 0,
        "1": 1,
        "yes": 1,
        "positive": 1,
        "crash": 1,
    }
    counts: dict[str, int] = {}
    for split in SPLITS:
        lines = [
            {"video": video.relative_to(root).as_posix(), "text": question, "label": labels[d.name]}
            for d in sorted((root / split).glob("*/"))
            if d.name in labels
            for video in sorted(d.iterdir())
            if video.suffix.lower() in VIDEO_SUFFIXES and not video.name.startswith("._")
        ]
        if not lines:
            continue
        target = root / f"{split}.jsonl"
        if target.exists():
            raise DataError(f"{target} exists already", do="move it away first")
        target.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        counts[split] = len(lines)
    if not counts:
        raise DataError(
            f"no labelled folders in {root}",
            do="use train/0/*.mp4, train/1/*.mp4, val/..., test/...",
        )
    return counts
