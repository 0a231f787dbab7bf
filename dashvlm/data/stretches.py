"""Anchors of a clip side by side, with each frame that they look at read once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dashvlm.data.clip import FrameArray, Sample
from dashvlm.data.frames import FrameStore
from dashvlm.data.items import Item
from dashvlm.data.sampling import Times
from dashvlm.errors import DataError

MOST_ANCHORS, MOST_FRAMES = 96, 128
"""Of a stretch: its frames lie in memory at once (480 x 854 pixels: 160 MB), and so do the pixels made of them."""


@dataclass(frozen=True)
class Stretch:
    """Neighbouring anchors of one clip.

    Attributes:
        first: number of the first sample; the others follow.
        samples: one an anchor, oldest first.
        frames: the distinct frames, uint8 [U, H, W, 3], oldest first; None where the video cannot be read.
        frame_times_s: their true times in seconds, [U].
        picks: for each sample the numbers of its frames, oldest first; None where one of them cannot be read.
        size: samples that a model is to read at a time.
    """

    first: int
    samples: tuple[Sample, ...]
    frames: FrameArray | None
    frame_times_s: Times
    picks: tuple[NDArray[np.int64] | None, ...]
    size: int

    def items(self) -> list[Item]:
        """The same as samples with their own frames each."""
        if self.frames is None:
            return [Item(self.first + i, s, None, None, "unreadable") for i, s in enumerate(self.samples)]
        return [
            Item(self.first + i, s, None, None, "unreadable")
            if mine is None
            else Item(self.first + i, s, self.frames[mine], self.frame_times_s[mine])
            for i, (s, mine) in enumerate(zip(self.samples, self.picks, strict=True))
        ]


class StretchDataset(Dataset[Stretch]):
    """Stretches of samples whose clips follow each other.

    Args:
        samples: clip by clip, oldest first.
        store: where frames come from.
        size: samples that a model is to read at a time.
        kept: whether the store keeps the frames; a user's own video is decoded and forgotten.
        blank: replace all pixels by mid-grey.
    """

    def __init__(
        self, samples: Sequence[Sample], store: FrameStore, size: int, kept: bool = True, blank: bool = False
    ) -> None:
        self.store, self.size, self.kept, self.blank = store, size, kept, blank
        self.parts: list[tuple[int, tuple[Sample, ...]]] = []
        first = 0
        for _, mine in itertools.groupby(samples, key=lambda s: s.clip.clip_id):
            for part in _cut(mine):
                self.parts.append((first, tuple(part)))
                first += len(part)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Stretch:
        first, samples = self.parts[number]
        none = Stretch(first, samples, None, np.zeros(0), (), self.size)
        if "failed" in samples[0].clip.extra:
            return none
        readable, video = list(samples), Path(samples[0].clip.path)
        try:
            wanted, frames, times = self._read(video, readable)
        except DataError:  # one damaged frame is not the whole of it
            readable = [s for s in samples if self._is_readable(video, s)]
            if not readable:
                return none
            wanted, frames, times = self._read(video, readable)
        # Several times may show one frame; each frame is encoded once.
        true, place = np.unique(times, return_inverse=True)
        distinct = frames[np.searchsorted(times, true)]
        picks = tuple(place[np.searchsorted(wanted, s.times_s)] if s in readable else None for s in samples)
        shown = np.full_like(distinct, 127) if self.blank else distinct
        return Stretch(first, samples, shown, true, picks, self.size)

    def _read(self, video: Path, samples: Sequence[Sample]) -> tuple[Times, FrameArray, Times]:
        """The distinct times of samples, and the frames shown at them with their own."""
        wanted = np.unique(np.concatenate([s.times_s for s in samples]))
        return wanted, *(self.store.frames(video, wanted) if self.kept else self.store.decoded(video, wanted))

    def _is_readable(self, video: Path, sample: Sample) -> bool:
        try:
            self._read(video, [sample])
        except DataError:
            return False
        return True


def _cut(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Samples side by side, as many as may lie in memory at once."""
    part: list[Sample] = []
    times: set[float] = set()
    for sample in samples:
        more = times | set(sample.times_s)
        if part and (len(part) == MOST_ANCHORS or len(more) > MOST_FRAMES):
            yield part
            part, more = [], set(sample.times_s)
        part.append(sample)
        times = more
    if part:
        yield part
