"""Training-time changes of pixels: one draw for all frames of a clip, off by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from dashvlm.data.clip import FrameArray


def augment(frames: FrameArray, options: Mapping[str, Any], seed: tuple[int, ...]) -> FrameArray:
    """Change all frames of a clip alike.

    Args:
        frames: uint8 [T, H, W, 3].
        options: ``crop`` (largest share of each side cut away), ``colour`` (largest relative change
            of brightness, contrast and saturation), ``weather`` and ``light`` (probabilities of a
            synthetic fog or rain, and of a darker picture).
        seed: decides the draw; the same seed gives the same change.

    Returns:
        uint8 of the same shape.
    """
    rng = np.random.default_rng(seed)
    out = frames
    if options.get("crop"):
        out = _crop(out, float(options["crop"]), rng)
    if options.get("colour"):
        change = rng.uniform(-1, 1, 3) * float(options["colour"])
        out = np.stack([_colour(f, change) for f in out])
    if rng.random() < float(options.get("light") or 0):
        out = (out * rng.uniform(0.35, 0.8)).astype(np.uint8)
    if rng.random() < float(options.get("weather") or 0):
        out = _weather(out, rng)
    return out


def _crop(frames: FrameArray, share: float, rng: np.random.Generator) -> FrameArray:
    height, width = frames.shape[1:3]
    cut = rng.uniform(0, share)
    h, w = max(round(height * (1 - cut)), 1), max(round(width * (1 - cut)), 1)
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return np.stack([np.asarray(Image.fromarray(f[y : y + h, x : x + w]).resize((width, height))) for f in frames])


def _colour(frame: FrameArray, change: np.ndarray[Any, Any]) -> FrameArray:
    image = Image.fromarray(frame)
    for enhance, by in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), change, strict=True):
        image = enhance(image).enhance(1.0 + float(by))
    return np.asarray(image)


def _weather(frames: FrameArray, rng: np.random.Generator) -> FrameArray:
    if rng.random() < 0.5:  # fog
        share = rng.uniform(0.2, 0.5)
        return (frames * (1 - share) + 200 * share).astype(np.uint8)
    out = frames.copy()  # rain: new streaks in each frame, one density for the clip
    density = rng.uniform(0.98, 0.997)
    out[rng.random(frames.shape[:3]) > density] = 200
    return out
