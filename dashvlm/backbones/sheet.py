"""Other ways to show a clip than one image a frame: one picture of all frames, or one video."""

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


def as_video(chat: Messages) -> tuple[Messages, dict[str, Any]]:
    """Replace the images of a chat by one video; what is asked stays, the lines around frames go.

    Returns:
        The chat, and the video's metadata: times relative to its oldest frame on a clock of
        milliseconds, so that whatever the model prints is true and tells nothing of the recording.

    Example:
        >>> parts = [{"type": "image", "age_s": 0.5}, {"type": "image", "age_s": 0.0}, {"type": "text", "text": "Q?"}]
        >>> chat, metadata = as_video([{"role": "user", "content": parts}])
        >>> chat[0]["content"], metadata["frames_indices"]
        ([{'type': 'video'}, {'type': 'text', 'text': 'Q?'}], [0, 500])
    """
    content = chat[0]["content"]
    ages = [float(part["age_s"]) for part in content if part["type"] == "image"]
    last = max(i for i, part in enumerate(content) if part["type"] == "image")
    times = [round(1000 * (ages[0] - age)) for age in ages]
    span = times[-1] + (times[-1] // (len(times) - 1) if len(times) > 1 and times[-1] else 1000)
    asked = "".join(part["text"] for part in content[last + 1 :]).strip()
    turn = {**chat[0], "content": [{"type": "video"}, {"type": "text", "text": asked}]}
    metadata = {"fps": 1000.0, "total_num_frames": span, "duration": span / 1000, "frames_indices": times}
    return [turn, *chat[1:]], metadata
