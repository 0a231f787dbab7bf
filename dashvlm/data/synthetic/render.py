"""Pictures of a synthetic scene: a pinhole camera over a flat road."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from dashvlm.data.clip import FrameArray
from dashvlm.data.synthetic.drives import LongScene
from dashvlm.data.synthetic.scene import Drive, Scene

CAMERA_HEIGHT_M = 1.3
LANE_M = 3.4
FAR_M = 80.0
RGB = tuple[int, int, int]

PAINT: dict[str, RGB] = {
    "red": (190, 40, 40), "blue": (50, 70, 190), "white": (225, 225, 225), "black": (35, 35, 40),
    "green": (40, 140, 60), "yellow": (215, 190, 50), "stop": (200, 30, 30),
    "speed_limit": (235, 235, 235), "warning": (230, 180, 30),
}  # fmt: skip
SKY: dict[str, RGB] = {"day": (150, 190, 235), "dusk": (190, 130, 110), "night": (18, 22, 40)}
GROUND: dict[str, RGB] = {"day": (96, 96, 98), "dusk": (78, 72, 72), "night": (34, 34, 38)}
VERGE: dict[str, RGB] = {"day": (92, 130, 74), "dusk": (82, 92, 62), "night": (22, 34, 24)}


class Renderer:
    """Draws the frames of one scene.

    Args:
        scene: what to draw.
        width: pixels.
        height: pixels.
    """

    def __init__(self, scene: Scene | LongScene, width: int, height: int) -> None:
        self.scene, self.width, self.height = scene, width, height
        self.focal = 0.9 * width
        self.horizon = 0.42 * height
        drive = scene.drive
        # Fog greys everything, rain darkens, snow brightens the ground.
        self.sky = _blend(SKY[drive.light], (185, 185, 185), {"fog": 0.6, "rain": 0.4}.get(drive.weather, 0))
        road = GROUND[drive.light]
        self.road = _blend(road, (230, 230, 235), 0.35) if drive.weather == "snow" else road
        self.verge = _blend(VERGE[drive.light], (235, 235, 240), 0.6 if drive.weather == "snow" else 0)
        self.noise = np.random.default_rng(drive.texture_seed)

    def frame(self, time_s: float) -> FrameArray:
        """Draw the frame at a time: uint8 RGB [H, W, 3]."""
        drive = self.scene.drive
        image = Image.new("RGB", (self.width, self.height), self.sky)
        draw = ImageDraw.Draw(image)
        left, right = self._road_edges(drive)
        draw.rectangle((0, self.horizon, self.width, self.height), fill=self.verge)
        self._ground(draw, left, right, self.road)
        if drive.sidewalk_side != "none":
            edge = left - 2.0 if drive.sidewalk_side == "left" else right
            self._ground(draw, edge, edge + 2.0, _blend(self.road, (255, 255, 255), 0.3))
        self._lane_marks(draw, drive, left, time_s)
        self._buildings(draw, drive, left, right, time_s)
        self._roadside(draw, drive, left, right, time_s)
        self._beside(draw, time_s, behind=True)
        self._lead(draw, time_s)
        self._beside(draw, time_s, behind=False)
        return self._weather(np.asarray(image), drive)

    def _project(self, x: float, z: float, up: float = 0.0) -> tuple[float, float]:
        z = max(z, 0.6)
        return self.width / 2 + self.focal * x / z, self.horizon + self.focal * (CAMERA_HEIGHT_M - up) / z

    def _road_edges(self, drive: Drive) -> tuple[float, float]:
        left = -(drive.ego_lane - 0.5) * LANE_M
        return left, left + drive.num_lanes * LANE_M

    def _ground(self, draw: ImageDraw.ImageDraw, left: float, right: float, fill: RGB) -> None:
        corners = [(left, 1.0), (left, FAR_M), (right, FAR_M), (right, 1.0)]
        draw.polygon([self._project(x, z) for x, z in corners], fill=fill)

    def _lane_marks(self, draw: ImageDraw.ImageDraw, drive: Drive, left: float, time_s: float) -> None:
        offset = (drive.ego_speed * time_s) % 6.0
        for lane in range(1, drive.num_lanes):
            x = left + lane * LANE_M
            for start in np.arange(1.5 - offset, 30.0, 6.0):
                near, far = max(start, 1.0), start + 2.5
                if far > near:
                    corners = [(x - 0.08, near), (x - 0.08, far), (x + 0.08, far), (x + 0.08, near)]
                    draw.polygon([self._project(a, b) for a, b in corners], fill=(210, 210, 205))

    def _buildings(self, draw: ImageDraw.ImageDraw, drive: Drive, left: float, right: float, time_s: float) -> None:
        if drive.road_type == "highway":
            return
        rng = np.random.default_rng(drive.texture_seed + 1)
        tall = 9.0 if drive.road_type == "urban" else 5.0
        spacing = 14.0
        for side, edge in ((-1, left - 4.0), (1, right + 4.0)):
            shades = rng.integers(60, 150, 16)
            travelled = drive.ego_speed * time_s
            first = int(travelled // spacing)
            for number in range(first + 4, first, -1):
                z = number * spacing - travelled + 4.0
                shade = int(shades[number % 16] * (0.35 if drive.light == "night" else 1.0))
                x0, y0 = self._project(edge, z, tall)
                x1, y1 = self._project(edge + side * 8.0, z)
                draw.rectangle(_ordered(x0, y0, x1, y1), fill=(shade, shade, shade + 8))

    def _roadside(self, draw: ImageDraw.ImageDraw, drive: Drive, left: float, right: float, time_s: float) -> None:
        if drive.sign != "none":
            z = 5.0 + (14.0 - drive.ego_speed * time_s) % 40.0
            self._board(draw, right + 0.8, z, 2.2, 0.8, PAINT[drive.sign])
        if drive.traffic_light != "none":
            self._board(draw, right - 0.5, 16.0, 4.2, 0.9, (25, 25, 25))
            colour = {"red": (250, 40, 30), "green": (40, 240, 80), "yellow": (250, 220, 40)}
            self._board(draw, right - 0.5, 16.0, 4.2, 0.5, colour[drive.traffic_light])
        if drive.crossing_side != "none":
            direction = 1 if drive.crossing_side == "left" else -1
            x = direction * (-14.0 + 3.0 * time_s)
            self._box(draw, x, 24.0, 4.0, 1.5, (120, 110, 150))
        if drive.pedestrian_side != "none":
            x = left - 1.0 if drive.pedestrian_side == "left" else right + 1.0
            z = 4.0 + (drive.pedestrian_ahead_m - 0.3 * time_s) % 18.0
            self._box(draw, x, z, 0.6, 1.7, (205, 120, 70))

    def _lead(self, draw: ImageDraw.ImageDraw, time_s: float) -> None:
        gap = self.scene.gap_m(time_s)
        z = gap + 1.0  # the camera sits behind the bumper
        colour = PAINT[self.scene.drive.lead_colour]
        if self.scene.drive.light == "night":
            colour = _blend(colour, (0, 0, 0), 0.45)
        self._box(draw, 0.0, z, 1.8, 1.45, colour)
        x0, y0 = self._project(-0.7, z, 1.35)
        x1, y1 = self._project(0.7, z, 0.95)
        draw.rectangle(_ordered(x0, y0, x1, y1), fill=(30, 36, 48))
        for side in (-1, 1):
            self._board(draw, side * 0.75, z, 0.8, 0.28, (240, 60, 50))

    def _beside(self, draw: ImageDraw.ImageDraw, time_s: float, behind: bool) -> None:
        """Vehicles in the lanes beside: those behind the lead vehicle, or those before it."""
        for other in sorted(getattr(self.scene, "others", ()), key=lambda o: -o.ahead_m(time_s)):
            ahead = other.ahead_m(time_s)
            if 0.5 < ahead < 45.0 and (ahead > self.scene.gap_m(time_s)) == behind:
                night = self.scene.drive.light == "night"
                colour = _blend(PAINT[other.colour], (0, 0, 0), 0.45) if night else PAINT[other.colour]
                self._box(draw, other.side_m, ahead + 1.0, 1.8, 1.45, colour)

    def _box(self, draw: ImageDraw.ImageDraw, x: float, z: float, width: float, tall: float, fill: RGB) -> None:
        x0, y0 = self._project(x - width / 2, z, tall)
        x1, y1 = self._project(x + width / 2, z)
        draw.rectangle(_ordered(x0, y0, x1, y1), fill=fill)

    def _board(self, draw: ImageDraw.ImageDraw, x: float, z: float, up: float, size: float, fill: RGB) -> None:
        x0, y0 = self._project(x - size / 2, z, up + size / 2)
        x1, y1 = self._project(x + size / 2, z, up - size / 2)
        draw.rectangle(_ordered(x0, y0, x1, y1), fill=fill)

    def _weather(self, frame: FrameArray, drive: Drive) -> FrameArray:
        out = frame.astype(np.int16)
        if drive.weather == "fog":
            out = (0.65 * out + 0.35 * 190).astype(np.int16)
        if drive.weather in ("rain", "snow"):
            drops = self.noise.random(frame.shape[:2]) > 0.985
            out[drops] = 225 if drive.weather == "snow" else 165
        out += self.noise.integers(-4, 5, frame.shape[:2], dtype=np.int16)[..., None]
        return out.clip(0, 255).astype(np.uint8)


def _ordered(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _blend(a: RGB, b: RGB, share: float) -> RGB:
    return tuple(round((1 - share) * p + share * q) for p, q in zip(a, b, strict=True))  # type: ignore[return-value]
