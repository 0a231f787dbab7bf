"""Any dataset as chats with pictures, for other trainers: what ``data=messages`` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dashvlm.data.clip import SPLITS, Messages
from dashvlm.data.datamodule import SampleDataset
from dashvlm.engine.prepare import prepare_data
from dashvlm.tasks.base import make_task, observe


def write_messages(cfg: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Write ``train.jsonl``, ``val.jsonl`` and ``test.jsonl`` with the frames that the model is shown, as PNG files.

    Each line has ``id``, ``group``, ``messages`` (``<image>`` where a frame stands; the answer where it is known) and
    ``images``. A clip that cannot be read is left out of the files and counted.

    Returns:
        Split -> rows; ``unreadable`` -> clips.
    """
    data, task, counts = prepare_data(cfg), make_task(cfg), {"unreadable": 0}
    for split in SPLITS:
        samples, lines = data.samples[split], []
        items = SampleDataset(samples, data.store)
        for number, sample in enumerate(samples):
            item = items[number]
            if item.frames is None or item.frame_times_s is None:
                counts["unreadable"] += 1
                continue
            names = [f"frames/{split}/{number:06d}_{i:02d}.png" for i in range(len(item.frames))]
            for name, frame in zip(names, item.frames, strict=True):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(frame).save(folder / name)
            messages = [
                {"role": "user", "content": _marked(task.messages(observe(sample, item.frame_times_s.tolist())))}
            ]
            if task.target(sample) is not None:
                messages.append({"role": "assistant", "content": task.answer(sample)})
            row = {"id": sample.clip.clip_id, "group": sample.clip.group, "messages": messages, "images": names}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        if lines:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        counts[split] = len(lines)
    return counts


def _marked(chat: Messages) -> str:
    """The text of a chat, ``<image>`` where a picture stands."""
    return "".join(part.get("text", "<image>") for turn in chat for part in turn["content"])
