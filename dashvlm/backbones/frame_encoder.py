"""One frame at a time through a checkpoint's image processor, and batches put together from what it made.

An image processor makes of a frame what it makes of it in any company, so its work can be kept. Text is still the
processor's own: while it runs, stand-ins take the place of the pictures and of the image processor, which hands out
what was made before. A batch put together this way equals the processor's bit for bit in every family that is here
(``tests/test_kept_frames.py``); that pixels may be kept as whole numbers is checked for each clip.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dashvlm.data.clip import FrameArray
from dashvlm.data.encoded import EncodedFrames, is_constant

PIXELS = ("pixel_values", "pixel_attention_mask")
"""Inputs of the vision half alone."""
FEATURES = "features."
"""Names of what the vision half and the connector made begin with it."""
CONSTANT = "constant."
"""Names of inputs that are one value everywhere begin with it; they are that value and the shape."""
LARGE = 256
"""Values of a row above which one value everywhere is kept as that value."""


@final
class FrameEncoder:
    """Encodes frames apart.

    Args:
        processor: of transformers, or one with its calls.
        encode: encodes a batch of frames with a chat of pictures alone.
    """

    def __init__(self, processor: Any, encode: Callable[[Sequence[FrameArray]], Any]) -> None:
        self.processor, self._encode = processor, encode
        self._kwargs: dict[str, Any] | None = None
        self._nested_in = self._nested = False  # the image processor takes lists of lists; gives [B, N, ...]
        self._stacked = False  # the processor gives [B, N, ...], not the pictures of all clips one behind the other
        self._lists: set[str] = set()  # outputs that are lists, not tensors
        self._fill: dict[str, Tensor] = {}  # what stands where a clip has fewer frames
        self._learnt = False
        self._arithmetic: int | None = None  # which of the orders of operations is the processor's

    def encode(self, frames: FrameArray) -> EncodedFrames:
        """Encode frames [T, H, W, 3] of one clip, each as if it were alone.

        Pixels are kept as uint8 where normalising them again gives the processor's own values.
        """
        self._look(frames[:1])
        if not self._learnt:  # from a picture of all values; a black one would not tell the orders apart
            self._learnt = True
            self.encode(np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8))
        plain = self._rows([Image.fromarray(f) for f in frames[: 1 if self._arithmetic is not None else None]])
        raw = self._rows([Image.fromarray(f) for f in frames], do_rescale=False, do_normalize=False)
        few = len(plain["pixel_values"])
        whole = raw["pixel_values"].astype(np.uint8)
        same = all(np.array_equal(plain[k], raw[k][:few]) for k in plain if k != "pixel_values")
        if not (same and np.array_equal(whole, raw["pixel_values"]) and self._is_exact(whole[:few], plain)):
            raw = plain if few == len(frames) else self._rows([Image.fromarray(f) for f in frames])
        else:
            raw["pixel_values"] = whole
        return EncodedFrames({k: _thinned(v) for k, v in raw.items()})

    def pictures(self, clips: Sequence[EncodedFrames]) -> list[list[Image.Image]]:
        """Stand-ins for the pictures of a batch."""
        images: list[list[Image.Image]] = []
        for number, clip in enumerate(clips):
            images.append([Image.new("RGB", (1, 1)) for _ in range(len(clip))])
            for image in images[-1]:
                image.info["clip"] = number
        return images

    @contextlib.contextmanager
    def replaying(self, clips: Sequence[EncodedFrames]) -> Iterator[None]:
        """While it lasts the processor's pictures are those of encoded clips."""
        if self._kwargs is None:
            self._look(_grey())
        real = self.processor.image_processor
        self.processor.image_processor = _Replay(real, self, clips)
        try:
            yield
        finally:
            self.processor.image_processor = real

    def tensors(self, clips: Sequence[EncodedFrames]) -> dict[str, Tensor]:
        """Pixels or features of a batch, as the network's inputs."""
        kept = [n for n in clips[0].arrays if n in PIXELS or n.startswith(FEATURES)]
        apart = self._stacked and not self._nested  # features stay with their clips
        found = {n: self._put_together(n, [c.arrays[n] for c in clips], apart if n.startswith(FEATURES)
                                       else self._stacked) for n in kept}  # fmt: skip
        same = [n for n, t in found.items() if n != "pixel_values" and t.numel() > LARGE and not any(t.stride())]
        for name in same:  # so that no mask without a hole travels to the device
            mask = found.pop(name)
            found[CONSTANT + name] = torch.tensor([int(mask.flatten()[0]), *mask.shape])
        return found

    def about(self, clips: Sequence[EncodedFrames]) -> dict[str, Any]:
        """What the processor needs to know of the pictures to write the text, and pixels that are none."""
        found: dict[str, Any] = {}
        for name in clips[0].arrays:
            rows = [c.arrays[name] for c in clips]
            if name in self._lists:
                found[name] = [r.tolist() for r in rows]
            elif name not in PIXELS and not name.startswith(FEATURES):
                found[name] = self._put_together(name, rows, self._nested)
        count = sum(map(len, clips))
        if not self._nested and "num_patches" in found:
            count = int(found["num_patches"].sum())
        shape = (len(clips), max(map(len, clips))) if self._nested else (count,)
        return {**found, "pixel_values": torch.zeros(*shape, 1)}

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixel values from whole ones, in the processor's own order of operations."""
        if self._arithmetic is None:
            self.encode(_grey())
        return self._normalised(pixels, self._arithmetic or 0)

    def _normalised(self, pixels: Tensor, order: int) -> Tensor:
        image = self.processor.image_processor
        scale = float((self._kwargs or {}).get("rescale_factor", image.rescale_factor))
        mean, std = (torch.tensor(getattr(image, n), dtype=torch.float32, device=pixels.device)
                     for n in ("image_mean", "image_std"))  # fmt: skip
        # [..., 3, values]: Qwen's rows hold a patch of each colour one behind the other
        split = pixels.reshape(*pixels.shape[:-1], 3, -1) if pixels.dim() < 4 else pixels.flatten(-2)
        mean, std = mean[:, None], std[:, None]
        if order == 0:  # what rescaling in 64 bit rounds to, in 32
            found = split.float().div_(round(1 / scale)).sub_(mean).div_(std)
        elif order == 1:
            found = split.float().mul_(scale).sub_(mean).div_(std)
        elif order == 2:  # both at once, as the processors of torchvision do
            found = split.float().sub_(mean * (1.0 / scale)).div_(std * (1.0 / scale))
        else:
            found = split.double().mul_(scale).float().sub_(mean).div_(std)
        return found.reshape(pixels.shape)

    def _is_exact(self, whole: np.ndarray, plain: Mapping[str, np.ndarray]) -> bool:
        wanted = torch.from_numpy(plain["pixel_values"])
        for order in range(4) if self._arithmetic is None else (self._arithmetic,):
            if torch.equal(self._normalised(torch.from_numpy(whole), order), wanted):
                self._arithmetic = order
                return True
        return False

    def _look(self, frames: FrameArray) -> None:
        """Find out how the processor calls its image processor, and what that one gives back."""
        if self._kwargs is not None:
            return
        real = self.processor.image_processor
        recorder = _Recorder(real)
        self.processor.image_processor = recorder
        try:
            batch = self._encode([frames[[0, 0]]])
        finally:
            self.processor.image_processor = real
        self._nested_in, kwargs = recorder.nested, {**recorder.kwargs, "return_tensors": "pt"}
        image = Image.fromarray(frames[0])
        out = real([[image, image], [image]] if self._nested_in else [image, image], **kwargs)
        self._nested = self._nested_in and tuple(out["pixel_values"].shape[:2]) == (2, 2)
        if self._nested:
            self._fill = {k: v[1, 1] for k, v in out.items() if torch.is_tensor(v)}
        self._stacked = self._nested or tuple(batch["pixel_values"].shape[:2]) == (1, 2)
        self._lists = {k for k, v in out.items() if not torch.is_tensor(v)}
        self._kwargs = kwargs

    def _rows(self, images: Sequence[Image.Image], **more: bool) -> dict[str, np.ndarray]:
        """The image processor's output with a row for each picture."""
        asked = [[i] for i in images] if self._nested_in else list(images)
        out = self.processor.image_processor(asked, **{**(self._kwargs or {}), **more})
        rows = {}
        for name, value in out.items():
            array = value.numpy() if torch.is_tensor(value) else np.asarray(value)
            if self._nested:
                array = array[:, 0]
            elif not self._stacked:
                array = array.reshape(len(images), -1, *array.shape[1:])
            rows[name] = array
        return rows

    def _put_together(self, name: str, rows: Sequence[np.ndarray], nested: bool) -> Tensor:
        """[B, N, ...] with zeros where a clip has fewer frames or smaller ones, or all rows one behind the other."""
        if name == "pixel_values" and len({r.dtype for r in rows}) > 1:
            rows = [self.normalised(_tensor(r)).numpy() if r.dtype == np.uint8 else r for r in rows]
        constant = all(is_constant(r) for r in rows) and len({(r.flat[0], r.shape[1:]) for r in rows}) == 1
        if not nested:
            if constant:
                count = sum(map(len, rows))
                return torch.from_numpy(rows[0][:1].copy())[:1].expand(count, *rows[0].shape[1:]).flatten(0, 1)
            return torch.cat([_tensor(r).flatten(0, 1) for r in rows])
        even = len({r.shape for r in rows}) == 1
        if even and constant:
            return torch.tensor(rows[0].flat[0]).expand(len(rows), *rows[0].shape)
        if even:
            return _tensor(np.stack(rows))
        tensors = [_tensor(r) for r in rows]
        if name == "pixel_values" and tensors[0].dtype == torch.uint8:  # what fills up is zero after normalising
            tensors = [self.normalised(t) for t in tensors]
        shape = [len(rows), *(max(t.shape[d] for t in tensors) for d in range(tensors[0].dim()))]
        whole, fill = tensors[0].new_zeros(shape), self._fill.get(name)
        if fill is not None and fill.shape == whole.shape[2:]:
            whole[:] = fill.to(whole.dtype)
        for row, t in enumerate(tensors):
            whole[row][tuple(slice(n) for n in t.shape)] = t
        return whole


def _grey() -> FrameArray:
    return np.full((1, 64, 64, 3), 127, np.uint8)


class _Stand:
    """Something in the place of an image processor; what it is asked about itself the real one answers."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Recorder(_Stand):
    """Notes how it is called."""

    nested = False
    kwargs: Mapping[str, Any]

    def __call__(self, images: Any, **kwargs: Any) -> Any:
        self.nested, self.kwargs = isinstance(images[0], list | tuple), kwargs
        return self._real(images, **kwargs)


class _Replay(_Stand):
    """Hands out what the clips of a batch were made into."""

    def __init__(self, real: Any, encoder: FrameEncoder, clips: Sequence[EncodedFrames]) -> None:
        super().__init__(real)
        self._encoder, self._clips = encoder, clips

    def __call__(self, images: Any, **kwargs: Any) -> dict[str, Any]:
        clips = self._clips if isinstance(images[0], list | tuple) else [self._clips[images[0].info["clip"]]]
        return self._encoder.about(clips)


def _tensor(array: np.ndarray) -> Tensor:
    """uint16 holds the bits of bfloat16."""
    found = torch.from_numpy(np.ascontiguousarray(array))
    return found.view(torch.bfloat16) if found.dtype == torch.uint16 else found


def _thinned(array: np.ndarray) -> np.ndarray:
    """An array of one value everywhere as a view of it, where that saves something."""
    if array[0].size > LARGE and (array == array.flat[0]).all():
        return np.broadcast_to(array.flat[0], array.shape)
    return np.ascontiguousarray(array)
