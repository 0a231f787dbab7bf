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

from dashvlm.data.clip import SPLITS
from dashvlm.data.manifest import Row, group_of
from dashvlm.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".ts")


def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row a line of each split's file.

    Args:
        root: folder with ``train.jsonl, val.jsonl, test.jsonl`` (at least one).
        options: ``group_regex``, whose first group names the recording in a video's name.

    Raises:
        DataError: if no split file exists.
    """
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
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield {"clip_id": place, "split": split, "problem": f"not JSON: {error}"}
            continue
        if not isinstance(item, dict) or not isinstance(item.get("video"), str):
            yield {"clip_id": place, "split": split, "problem": 'no "video" in the line'}
            continue
        video = item["video"] if "/" in item["video"] else f"{split}/{item['video']}"
        yield {
            "clip_id": str(item.get("id") or video.rsplit(".", 1)[0]),
            "video": video,
            "split": split,
            "label": item.get("label"),
            "question": item.get("text"),
            "event_time_s": item.get("event_time"),
            "alert_time_s": item.get("alert_time"),
            "group": item.get("group")
            or f"{group_of(video, options.get('group_regex'))}" + ("" if options.get("group_regex") else f"@{split}"),
        }


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
            if video.suffix.lower() in VIDEO_SUFFIXES
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
