"""Any dataset as chats with pictures, for other trainers: what ``data=messages`` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dashvlm.data.clip import SPLITS, Messages
from dashvlm.data.items import SampleDataset
from dashvlm.data.pictures import FRAME_TIMES
from dashvlm.engine.prepare import prepare_data
from dashvlm.errors import DataError
from dashvlm.tasks.base import make_task, observe


def write_messages(cfg: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Write ``train.jsonl``, ``val.jsonl`` and ``test.jsonl`` with the frames that the model is shown, as PNG files.

    Each line has ``id``, ``group``, ``messages`` (``<image>`` where a frame stands; the answer where it is known) and
    ``images``. A clip that cannot be read is left out of the files and counted.

    The times of a sample's frames lie beside them in ``frame_times.json``, and the row has the clip's own question and
    choices, so that ``data=messages`` asks as the original does.

    Returns:
        Split -> rows; ``unreadable`` -> clips.

    Raises:
        DataError: if the folder holds something already, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        full = next(folder.iterdir(), None)
    except OSError as error:
        raise DataError(f"{folder} cannot be written", got=str(error.strerror), do="name another folder") from error
    if full is not None:
        raise DataError(f"{folder} is not empty", got=full.name, do="name a new folder: nothing is overwritten")
    data, task, counts = prepare_data(cfg), make_task(cfg), {"unreadable": 0}
    for split in SPLITS:
        samples, lines = data.samples[split], []
        items = SampleDataset(samples, data.store)
        for number, sample in enumerate(samples):
            item = items[number]
            if item.frames is None or item.frame_times_s is None:
                counts["unreadable"] += 1
                continue
            place = folder / "frames" / split / f"{number:06d}"
            place.mkdir(parents=True)
            names = [f"{i:02d}.png" for i in range(len(item.frames))]
            for name, frame in zip(names, item.frames, strict=True):
                Image.fromarray(frame).save(place / name)
            times = dict(zip(names, (float(t) for t in item.frame_times_s), strict=True))
            (place / FRAME_TIMES).write_text(json.dumps(times), encoding="utf-8")
            messages = [
                {"role": "user", "content": _marked(task.messages(observe(sample, item.frame_times_s.tolist())))}
            ]
            if task.target(sample) is not None:
                messages.append({"role": "assistant", "content": task.answer(sample)})
            images = [f"frames/{split}/{number:06d}/{name}" for name in names]
            row: dict[str, Any] = {"id": sample.clip.clip_id, "group": sample.clip.group, "question": None}
            row |= {"messages": messages, "images": images}
            row |= {k: sample.clip.extra[k] for k in ("question", "choices") if sample.clip.extra.get(k)}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        if lines:
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        counts[split] = len(lines)
    return counts


def _marked(chat: Messages) -> str:
    """The text of a chat, ``<image>`` where a picture stands."""
    return "".join(part.get("text", "<image>") for turn in chat for part in turn["content"])
