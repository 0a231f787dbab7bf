"""All frames of a clip in one picture, for models that were made for a single image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dashvlm.data.clip import FrameArray, Messages


def contact_sheet(frames: FrameArray) -> FrameArray:
    """Lay frames [T, H, W, 3] out in reading order: [1, rows * H, columns * W, 3], unused cells black.

    Example:
        >>> contact_sheet(np.ones((5, 10, 20, 3), np.uint8)).shape
        (1, 20, 60, 3)
    """
    count, height, width = frames.shape[:3]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for number, frame in enumerate(frames):
        y, x = number // columns * height, number % columns * width
        sheet[y : y + height, x : x + width] = frame
    return sheet[None]


def number_frames(chat: Messages) -> Messages:
    """Put one image in front and write ``frame 1``, ``frame 2`` ... where the images stood.

    Example:
        >>> image, text = {"type": "image"}, {"type": "text", "text": "0.0 s ago: "}
        >>> number_frames([{"role": "user", "content": [text, image]}])[0]["content"]
        [{'type': 'image'}, {'type': 'text', 'text': '0.0 s ago: frame 1'}]
    """
    out: Messages = []
    number = 0
    for turn in chat:
        text = ""
        for part in turn["content"]:
            number += part["type"] == "image"
            text += f"frame {number}" if part["type"] == "image" else part["text"]
        content: list[dict[str, Any]] = [{"type": "image"}] if not out else []
        out.append({**turn, "content": [*content, {"type": "text", "text": text}]})
    return out
