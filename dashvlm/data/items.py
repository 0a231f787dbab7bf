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
from dashvlm.data.encoded import EncodedFrames, EncodedStore
from dashvlm.data.frames import FrameStore
from dashvlm.data.sampling import Times
from dashvlm.errors import DataError


@dataclass(frozen=True)
class Item:
    """One sample with its frames, or what was made of them before; neither when the video cannot be read."""

    index: int
    sample: Sample
    frames: FrameArray | None
    frame_times_s: Times | None
    problem: str | None = None
    encoded: EncodedFrames | None = None
    epoch: int = 0  # number of the pass over the data, for what varies between passes
    demos: tuple[tuple[FrameArray | EncodedFrames, Times], ...] = ()  # of ``sample.demos``

    augmented: bool = False  # its frames are like those of no other item

    @property
    def readable(self) -> bool:
        """Whether there is anything to look at."""
        return self.frames is not None or self.encoded is not None


class SampleDataset(Dataset[Item]):
    """Samples with their frames, from the store.

    Args:
        samples: what to serve.
        store: where frames come from.
        blank: replace all pixels by mid-grey (the pixels-off control).
        augmentation: options of :func:`augment`, for training only.
        encoded: what the model makes of frames, where it is kept.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        store: FrameStore,
        blank: bool = False,
        augmentation: Mapping[str, Any] | None = None,
        encoded: EncodedStore | None = None,
    ) -> None:
        self.samples, self.store, self.blank = list(samples), store, blank
        self.augmentation = augmentation
        self.encoded = None if blank or augmentation else encoded

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[Item]:
        """The items of a batch: all with what is kept of their frames, or all with the frames."""
        if self.encoded is not None:
            kept = [self._kept(*(key if isinstance(key, tuple) else (key, 0))) for key in keys]
            found = [item for item in kept if item is not None]
            forms = {item.encoded.kinds() for item in found if item.encoded is not None}
            if len(found) == len(keys) and len(forms) <= 1:
                return found
        return [self[key] for key in keys]

    def _kept(self, index: int, epoch: int) -> Item | None:
        """An item with what is kept of its frames; None if any of them is not there."""
        assert self.encoded is not None
        sample = self.samples[index]
        if "failed" in sample.clip.extra:
            return self[index, epoch]
        if sample.demos and self.store.size is None:  # examples are resized to the sample's frames before
            return None
        try:
            parts = [self.encoded.get(Path(s.clip.path), s.times_s) for s in (*sample.demos, sample)]
        except DataError:
            return None
        found = [p for p in parts if p is not None]
        if len(found) < len(parts) or not all(f.fits(found[-1][0]) for f, _ in found):
            return None
        *demos, (frames, times) = found
        return Item(index, sample, None, times, None, frames, epoch, tuple(demos))

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
        changed = bool(self.augmentation) and not self.blank
        return Item(index, sample, frames, times, epoch=epoch, demos=tuple(demos), augmented=changed)
