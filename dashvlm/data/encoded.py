"""Frames as a model takes them in, kept on disk for all epochs, sweep points, horizons, passes and prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dashvlm.data.entries import Arrays, Entries
from dashvlm.data.frames import FrameStore
from dashvlm.data.sampling import Times

FORMAT = 1


@dataclass(frozen=True)
class EncodedFrames:
    """What a model's processor, or its vision half, made of some frames.

    Attributes:
        arrays: name -> one row for each frame, [T, ...]. An array that holds one value everywhere (an attention mask
            without padding) is a view of that value and takes no memory.
    """

    arrays: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Names and types of the arrays; what is put together in one batch must agree in them."""
        return tuple(sorted((name, str(a.dtype)) for name, a in self.arrays.items()))

    def fits(self, other: EncodedFrames) -> bool:
        """Whether both hold the same arrays of the same shapes."""
        return _form(self.arrays) == _form(other.arrays)


def joined(parts: Sequence[EncodedFrames]) -> EncodedFrames:
    """Frames of several clips one behind the other; their arrays must fit."""
    if len(parts) == 1:
        return parts[0]
    arrays = {}
    for name in parts[0].arrays:
        mine = [p.arrays[name] for p in parts]
        constant = all(is_constant(a) for a in mine) and len({a.flat[0] for a in mine}) == 1
        arrays[name] = _same(mine[0][:1], sum(map(len, mine))) if constant else np.concatenate(mine)
    return EncodedFrames(arrays)


def is_constant(array: NDArray[Any]) -> bool:
    """Whether an array is a view of one value."""
    return array.ndim > 1 and not any(array.strides)


def _same(row: NDArray[Any], count: int) -> NDArray[Any]:
    return np.broadcast_to(row.flat[0], (count, *row.shape[1:]))


def _form(arrays: Arrays) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(a.dtype), a.shape[1:]) for name, a in arrays.items()}


@dataclass(frozen=True)
class EncodedStore:
    """Encoded frames on disk, shared by processes.

    Attributes:
        entries: where they lie.
        frames: the frame store that they are made from.
        made_by: all that decides what is made of a frame: processor, and where features are kept the weights that
            made them, their precision and device.
    """

    entries: Entries
    frames: FrameStore
    made_by: str

    def get(self, video: Path, times_s: Sequence[float] | Times) -> tuple[EncodedFrames, Times] | None:
        """Return what was made of the frames shown at the times, and their true times; None if any is not there."""
        key = self._key(video)
        header = self.entries.header(key)
        if header is None:
            return None
        index = self.frames.index(video)
        numbers = index.frames_at(times_s)
        if not set(numbers.tolist()) <= set(header["stored"]):
            return None
        arrays = self.entries.load(key, header, numbers.tolist())
        if arrays is None:
            return None
        try:
            found = {n: np.broadcast_to(np.array(v, t), (len(numbers), *shape))
                     for n, (v, t, shape) in header["constant"].items()}  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError):  # not as this version writes it
            return None
        return EncodedFrames(found | arrays), index.times_s[numbers]

    def lacking(self, video: Path, times_s: Sequence[float] | Times) -> Times:
        """The true times of the frames shown at the times that are not there yet, ascending."""
        header = self.entries.header(self._key(video))
        index = self.frames.index(video)
        have = set(header["stored"]) if header else set()
        return index.times_s[sorted(set(index.frames_at(times_s).tolist()) - have)]

    def put(self, video: Path, times_s: Times, made: EncodedFrames) -> None:
        """Add what was made of the frames at these true times."""
        key = self._key(video)
        numbers = self.frames.index(video).frames_at(times_s).tolist()
        with self.entries.locked(key):
            header = self.entries.header(key)
            kept = self.entries.load(key, header, header["stored"]) if header else None
            constant = {n: [a.flat[0].item(), str(a.dtype), list(a.shape[1:])]
                        for n, a in made.arrays.items() if is_constant(a)}  # fmt: skip
            arrays = {n: a for n, a in made.arrays.items() if n not in constant}
            if header and kept is not None and header.get("constant") == constant and _form(kept) == _form(arrays):
                new = [i for i, n in enumerate(numbers) if n not in set(header["stored"])]
                numbers = [*header["stored"], *(numbers[i] for i in new)]
                arrays = {n: np.concatenate([kept[n], a[new]]) for n, a in arrays.items()}
            self.entries.write(key, {"constant": constant}, numbers, arrays)

    def _key(self, video: Path) -> str:
        return json.dumps([FORMAT, self.frames.key(video), self.made_by])
