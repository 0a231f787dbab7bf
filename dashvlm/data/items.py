"""Samples with their frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from dashvlm.data.augment import augment
from dashvlm.data.clip import FrameArray, Sample
from dashvlm.data.frames import FrameStore
from dashvlm.data.sampling import Times
from dashvlm.errors import DataError


@dataclass(frozen=True)
class Item:
    """One sample with its frames; ``frames`` is None when the video cannot be read."""

    index: int
    sample: Sample
    frames: FrameArray | None
    frame_times_s: Times | None
    problem: str | None = None
    epoch: int = 0  # number of the pass over the data, for what varies between passes
    demos: tuple[tuple[FrameArray, Times], ...] = ()  # of ``sample.demos``


class SampleDataset(Dataset[Item]):
    """Samples with their frames, from the store.

    Args:
        samples: what to serve.
        store: where frames come from.
        blank: replace all pixels by mid-grey (the pixels-off control).
        augmentation: options of :func:`augment`, for training only.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        store: FrameStore,
        blank: bool = False,
        augmentation: Mapping[str, Any] | None = None,
    ) -> None:
        self.samples, self.store, self.blank = list(samples), store, blank
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        sample = self.samples[index]
        if "failed" in sample.clip.extra:
            return Item(index, sample, None, None, str(sample.clip.extra["failed"]))
        try:
            frames, times = self.store.frames(Path(sample.clip.path), sample.times_s)
            demos = [self.store.frames(Path(d.clip.path), d.times_s) for d in sample.demos]
        except DataError as error:
            return Item(index, sample, None, None, str(error).splitlines()[0])
        if self.blank:
            frames = np.full_like(frames, 127)
            demos = [(np.full_like(f, 127), t) for f, t in demos]
        elif self.augmentation:
            frames = augment(frames, self.augmentation, (epoch, index))
        return Item(index, sample, frames, times, epoch=epoch, demos=tuple(demos))
