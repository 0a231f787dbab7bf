"""Synthetic street pictures from a pedestrian's view, with exact annotations and captions.

A sidewalk on the left, in the middle or on the right; a road beside it, in front or nowhere; objects
near on the way and far beside it. Two pictures of one walk share light and texture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dashvlm.data.clip import FrameArray
from dashvlm.text.navigation import OBJECTS, SIDES, Truth

RGB = tuple[int, int, int]
SKY: dict[str, RGB] = {"day": (150, 190, 235), "dusk": (190, 130, 110), "overcast": (175, 178, 182)}
PAINT: dict[str, RGB] = {
    "obstacle": (225, 120, 20), "person": (150, 60, 150), "bicycle": (30, 150, 160), "car": (40, 70, 190),
    "traffic_sign": (235, 215, 60), "traffic_light": (30, 30, 30),
}  # fmt: skip
COLUMN = {"left": 0.2, "center": 0.5, "right": 0.8}


@dataclass(frozen=True)
class Street:
    """One picture.

    Attributes:
        scene_id: unique name.
        group: the walk.
        truth: positions and objects.
        light: ``day, dusk`` or ``overcast``.
        seed: of texture and small shifts.
    """

    scene_id: str
    group: str
    truth: Truth
    light: str
    seed: int


def draw_streets(num_walks: int, seed: int) -> Iterator[Street]:
    """Draw two pictures a walk; positions are drawn for each picture."""
    for walk in range(num_walks):
        rng = np.random.default_rng([seed, 77, walk])
        light = str(rng.choice(list(SKY), p=[0.5, 0.2, 0.3]))
        for number in range(2):
            sidewalk = str(rng.choice(SIDES, p=[0.25, 0.5, 0.25]))
            road = str(rng.choice([*(s for s in SIDES if s != sidewalk and s != "center"), "front", "unknown"]))
            near = {o: _sides(rng) for o in OBJECTS if rng.random() < 0.14}
            far = {o: _sides(rng) for o in OBJECTS if rng.random() < 0.10}
            truth = Truth(sidewalk, road, near, far)
            yield Street(f"walk{walk:04d}_{number}", f"walk{walk:04d}", truth, light, int(rng.integers(2**31)))


def caption(street: Street) -> str:
    """Write the free caption of a picture; it says nothing against the annotation."""
    truth = street.truth
    place = {"center": "is centered in the view", "left": "is on the left", "right": "is on the right"}[truth.sidewalk]
    road = {"front": "leading to a road in front", "unknown": "without a road in sight"}.get(
        truth.road, f"with a road on the {truth.road}"
    )
    blocked = any("center" in sides for sides in truth.near.values())
    return f"The sidewalk {place}, {road}. The path is {'partially obstructed' if blocked else 'clear'}."


def render(street: Street, width: int, height: int) -> FrameArray:
    """Draw a picture: uint8 RGB [H, W, 3]."""
    rng = np.random.default_rng(street.seed)
    truth, horizon = street.truth, 0.38 * height
    image = Image.new("RGB", (width, height), SKY[street.light])
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, horizon, width, height), fill=(96, 128, 84))
    top = width * (0.5 + float(rng.uniform(-0.03, 0.03)))
    if truth.road in SIDES:
        _band(draw, COLUMN[truth.road], top, width, height, horizon, 0.24, (58, 58, 62))
    _band(draw, COLUMN[truth.sidewalk], top, width, height, horizon, 0.17, (196, 190, 180))
    if truth.road == "front":
        draw.rectangle((0, horizon + 0.06 * height, width, horizon + 0.17 * height), fill=(58, 58, 62))
        for dash in range(0, width, max(width // 6, 2)):
            draw.rectangle(
                (dash, horizon + 0.10 * height, dash + width // 14, horizon + 0.12 * height), fill=(225, 225, 225)
            )
    for objects, foot, tall in ((truth.far, 0.50, 0.10), (truth.near, 0.93, 0.26)):
        # Broad things first, so that none hides another.
        for place, name in enumerate(n for n in ("car", "obstacle", "bicycle", *OBJECTS[4:], "person") if n in objects):
            for side in dict.fromkeys(objects[name]):
                x = (COLUMN[side] + 0.055 * (place % 3 - 1) + float(rng.uniform(-0.015, 0.015))) * width
                _object(draw, name, x, foot * height, tall * height)
    noise = rng.integers(-6, 7, (height, width, 1), dtype=np.int16)
    return (np.asarray(image, np.int16) + noise).clip(0, 255).astype(np.uint8)


def write_street(path: Path, street: Street, width: int, height: int) -> None:
    """Render a picture to a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(street, width, height)).save(path)


def _sides(rng: np.random.Generator) -> tuple[str, ...]:
    count = 2 if rng.random() < 0.15 else 1
    return tuple(str(s) for s in rng.choice(SIDES, count))


def _band(
    draw: ImageDraw.ImageDraw, at: float, top: float, width: int, height: int, horizon: float, half: float, fill: RGB
) -> None:
    """A way from the lower edge to the horizon."""
    x, far = at * width, top + (at - 0.5) * 0.35 * width
    draw.polygon(
        [(x - half * width, height), (far - 0.03 * width, horizon), (far + 0.03 * width, horizon),
         (x + half * width, height)], fill=fill,
    )  # fmt: skip


def _object(draw: ImageDraw.ImageDraw, name: str, x: float, foot: float, size: float) -> None:
    fill, half = PAINT[name], size / 2
    if name == "car":
        draw.rectangle((x - half, foot - 0.55 * size, x + half, foot), fill=fill)
        draw.rectangle((x - 0.3 * size, foot - 0.8 * size, x + 0.3 * size, foot - 0.5 * size), fill=(200, 220, 240))
    elif name == "person":
        draw.rectangle((x - 0.14 * size, foot - 0.8 * size, x + 0.14 * size, foot), fill=fill)
        draw.ellipse((x - 0.13 * size, foot - 1.05 * size, x + 0.13 * size, foot - 0.78 * size), fill=(230, 185, 150))
    elif name == "bicycle":
        for shift in (-0.28, 0.28):
            draw.ellipse(
                (x + (shift - 0.2) * size, foot - 0.4 * size, x + (shift + 0.2) * size, foot), outline=fill, width=2
            )
        draw.line(
            (x - 0.28 * size, foot - 0.2 * size, x, foot - 0.6 * size, x + 0.28 * size, foot - 0.2 * size),
            fill=fill,
            width=2,
        )
    elif name == "obstacle":
        draw.polygon([(x - 0.35 * size, foot), (x, foot - 0.8 * size), (x + 0.35 * size, foot)], fill=fill)
    else:  # a post with a head
        draw.line((x, foot, x, foot - size), fill=(110, 110, 110), width=max(round(0.08 * size), 1))
        head = (x - 0.2 * size, foot - 1.25 * size, x + 0.2 * size, foot - 0.8 * size)
        draw.rectangle(head, fill=fill)
        if name == "traffic_light":
            draw.ellipse((x - 0.1 * size, foot - 1.2 * size, x + 0.1 * size, foot - 1.0 * size), fill=(240, 50, 40))
