"""The vocabulary of the data: clip, observation, sample. Pure: standard library and numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

FrameArray = NDArray[np.uint8]
"""Frames of one clip, uint8 RGB, shape [T, H, W, 3], oldest first."""

Messages = list[dict[str, Any]]
"""A chat: ``[{"role": "user", "content": [{"type": "image"} | {"type": "text", "text": ...}]}]``.

Image parts carry no pixels: the i-th image part is the i-th frame handed over beside it.
"""


@dataclass(frozen=True)
class Clip:
    """One video with what is known about it.

    Attributes:
        clip_id: unique name within the dataset.
        path: the video file.
        group: what must not straddle splits (recording, drive, source video).
        split: train, val or test.
        label: 1 positive, 0 negative, None unknown.
        event_time_s: seconds from the first frame to the event; None when there is none.
        alert_time_s: seconds from the first frame to the first visible sign of the event.
        duration_s: display time of the last frame plus one frame period, in seconds.
        fps: frames per second outside of gaps.
        extra: dataset-specific fields that a task may read.
    """

    clip_id: str
    path: str
    group: str
    split: Split
    label: int | None
    event_time_s: float | None
    alert_time_s: float | None
    duration_s: float
    fps: float
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """All a prompt may be built from. It has no label, target or event time, on purpose.

    Attributes:
        frame_times_s: times of the frames, seconds from the first frame, oldest first.
        question: a question that belongs to the clip, or None.
        choices: answers to choose from, or empty.
    """

    frame_times_s: tuple[float, ...]
    question: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One clip looked at from one anchor.

    Attributes:
        sample_id: ``clip_id@horizon``; unique within a split.
        clip: the clip.
        horizon_s: seconds between the anchor and the reference time.
        reference_s: the event time, or a matched draw for a clip without event.
        times_s: requested frame times in seconds, oldest first, exactly ``num_frames`` of them.
        num_padded: how many of them repeat the oldest one because history was too short.
        demos: solved samples of other groups that are shown before it, each with its answer.
    """

    sample_id: str
    clip: Clip
    horizon_s: float
    reference_s: float
    times_s: tuple[float, ...]
    num_padded: int
    demos: tuple[Sample, ...] = ()

    @property
    def anchor_s(self) -> float:
        """The time at which sampling ends."""
        return self.times_s[-1]
