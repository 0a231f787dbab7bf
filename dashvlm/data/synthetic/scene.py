"""The state of a synthetic dashcam scene: what is where at which time. Knows no pixels.

The crash label is decided by motion alone. At the anchor (``horizon_s`` before the event, or
before the matched time of a clip without event) the distance to the lead vehicle has the same
distribution in both classes and only the closing speed differs, so that one frame cannot tell.
Everything else is a nuisance, drawn once a drive and shared by the drive's positive and negative.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONTACT_M = 0.8  # gap at which a collision has happened
WEATHER = ("clear", "rain", "fog", "snow")
LIGHT = ("day", "dusk", "night")
ROADS = ("urban", "highway", "residential")
COLOURS = ("red", "blue", "white", "black", "green", "yellow")


@dataclass(frozen=True)
class Drive:
    """What stays the same during one recording. Lengths in metres, speeds in metres a second."""

    group: str
    weather: str
    light: str
    road_type: str
    num_lanes: int
    ego_lane: int
    ego_speed: float
    traffic_light: str
    sign: str
    sidewalk_side: str
    pedestrian_side: str
    pedestrian_ahead_m: float
    crossing_side: str
    lead_colour: str
    texture_seed: int


@dataclass(frozen=True)
class Scene:
    """One clip: a drive and the motion of the lead vehicle.

    Attributes:
        scene_id: unique name.
        drive: the recording's constants.
        label: 1 if the ego vehicle hits the lead vehicle.
        duration_s: length of the clip.
        event_time_s: time of the collision, None without one.
        reference_s: the event time, or the matched time of a clip without event.
        anchor_gap_m: distance to the lead vehicle at the anchor.
        anchor_s: the anchor.
        closing_speed: of the last approach, positive when the gap shrinks.
        settle_s: a steady gap began this long before the anchor; the approach came before.
        wobble: (amplitude, frequency in Hz, phase) of relative gap changes, alike in both classes.
    """

    scene_id: str
    drive: Drive
    label: int
    duration_s: float
    event_time_s: float | None
    reference_s: float
    anchor_gap_m: float
    anchor_s: float
    closing_speed: float
    settle_s: float
    wobble: tuple[tuple[float, float, float], ...]

    def gap_m(self, time_s: float) -> float:
        """Distance to the lead vehicle at a time, in metres."""
        before = self.anchor_s - time_s
        if self.label:
            gap = self.anchor_gap_m + self.closing_speed * before
        else:
            gap = self.anchor_gap_m + self.closing_speed * max(before - self.settle_s, 0.0)
        drift = sum(
            amplitude * (np.sin(2 * np.pi * f * time_s + p) - np.sin(2 * np.pi * f * self.anchor_s + p))
            for amplitude, f, p in self.wobble
        )
        return float(max(gap * np.exp(drift), CONTACT_M))

    def to_dict(self) -> dict[str, Any]:
        """Return the scene as plain values; the ground truth that tasks read."""
        return asdict(self)


def draw_scenes(num_drives: int, seed: int, horizon_s: float, duration_s: float) -> Iterator[Scene]:
    """Draw a positive and a negative scene for each drive.

    Args:
        num_drives: number of recordings; twice as many clips.
        seed: of all draws; a drive depends on the seed and its number only.
        horizon_s: the horizon at which the distance is matched between the classes.
        duration_s: length of each clip.

    Yields:
        Scenes in the order of their names; neither name nor order tells the label.
    """
    for number in range(num_drives):
        rng = np.random.default_rng([seed, number])
        drive = draw_drive(f"drive{number:04d}", rng)
        scenes = [_draw_scene(drive, label, rng, horizon_s, duration_s) for label in (1, 0)]
        yield from sorted(scenes, key=lambda scene: scene.scene_id)


def draw_drive(group: str, rng: np.random.Generator) -> Drive:
    """Draw the constants of a recording."""
    road = str(rng.choice(ROADS))
    lanes = int(rng.integers(3, 5) if road == "highway" else rng.integers(2, 4))
    return Drive(
        group=group,
        weather=str(rng.choice(WEATHER, p=[0.55, 0.2, 0.15, 0.1])),
        light=str(rng.choice(LIGHT, p=[0.6, 0.2, 0.2])),
        road_type=road,
        num_lanes=lanes,
        ego_lane=int(rng.integers(1, lanes + 1)),
        ego_speed=float(rng.uniform(*{"urban": (8, 14), "highway": (20, 32)}.get(road, (5, 10)))),
        traffic_light=str(rng.choice(["none", "red", "green", "yellow"], p=[0.55, 0.2, 0.2, 0.05])),
        sign=str(rng.choice(["none", "stop", "speed_limit", "warning"], p=[0.5, 0.15, 0.2, 0.15])),
        sidewalk_side="none" if road == "highway" else str(rng.choice(["left", "right"])),
        pedestrian_side=str(rng.choice(["none", "left", "right"], p=[0.5, 0.25, 0.25])),
        pedestrian_ahead_m=float(rng.uniform(6, 18)),
        crossing_side=str(rng.choice(["none", "left", "right"], p=[0.7, 0.15, 0.15])),
        lead_colour=str(rng.choice(COLOURS)),
        texture_seed=int(rng.integers(2**31)),
    )


def _draw_scene(drive: Drive, label: int, rng: np.random.Generator, horizon_s: float, duration_s: float) -> Scene:
    speed = float(rng.uniform(3.0, 9.0))
    reference = float(rng.uniform(duration_s - 1.2, duration_s - 0.3))
    return Scene(
        scene_id=f"{drive.group}_{'ab'[(label + drive.texture_seed) % 2]}",
        drive=drive,
        label=label,
        duration_s=duration_s,
        event_time_s=reference if label else None,
        reference_s=reference,
        # The same draw of speed sets the distance in both classes: one frame tells nothing.
        anchor_gap_m=CONTACT_M + speed * horizon_s,
        anchor_s=reference - horizon_s,
        closing_speed=speed if label else float(rng.uniform(-0.1, 1.0)) * speed,
        settle_s=0.0 if label else float(rng.uniform(0.8, 3.0)),
        wobble=tuple(
            (
                float(rng.uniform(0.02, 0.10)),
                float(rng.uniform(0.2, 1.2)),
                float(rng.uniform(0, 6.28)),
            )
            for _ in range(2)
        ),
    )
