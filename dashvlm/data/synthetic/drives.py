"""Long synthetic drives, for what a model says from the first second to the last: safe stretches, near misses, events.

The gap to the lead vehicle wanders; now and then it shrinks and opens again (a near miss). In half of the drives it
shrinks once more and does not open. An approach before a collision is faster than one that resolves, both start from
the same distances, and other vehicles pass in the lanes beside, so that neither a near vehicle nor a growing one is
the event. The safe drive of a recording has the same look and length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from dashvlm.data.synthetic.scene import CONTACT_M, Drive, draw_drive

LANE_M = 3.4
VISIBLE_S = 0.8  # so long after the last approach has begun it can be seen


@dataclass(frozen=True)
class Passing:
    """A vehicle in a lane beside. Lengths in metres, times in seconds.

    Attributes:
        side_m: distance to the side, negative for the left.
        start_s: when it is 45 m ahead.
        speed: at which it comes nearer, in metres a second.
        colour: of its body.
    """

    side_m: float
    start_s: float
    speed: float
    colour: str

    def ahead_m(self, time_s: float) -> float:
        """Distance ahead, negative once it has been passed."""
        return 45.0 - self.speed * (time_s - self.start_s)


@dataclass(frozen=True)
class LongScene:
    """A drive of 20 s and more.

    Attributes:
        scene_id: unique name.
        drive: the recording's constants.
        label: 1 if the ego vehicle hits the lead vehicle.
        duration_s: length of the clip.
        event_time_s: time of the collision, None without one.
        alert_time_s: when the approach that ends in it can be seen.
        near_misses_s: times at which the gap was smallest and opened again.
        points: (time, gap in metres) that the gap runs through.
        others: vehicles in the lanes beside.
    """

    scene_id: str
    drive: Drive
    label: int
    duration_s: float
    event_time_s: float | None
    alert_time_s: float | None
    near_misses_s: tuple[float, ...]
    points: tuple[tuple[float, float], ...]
    others: tuple[Passing, ...]

    @cached_property
    def _curve(self) -> Any:
        times, gaps = zip(*self.points, strict=True)
        return PchipInterpolator(times, gaps)  # no overshoot: a near miss never touches

    def gap_m(self, time_s: float) -> float:
        """Distance to the lead vehicle at a time, in metres."""
        if self.event_time_s is not None and self.alert_time_s is not None:
            begin = self.alert_time_s - VISIBLE_S
            if begin <= time_s <= self.event_time_s:  # the approach that hits, at a constant speed
                gap = float(self._curve(begin))
                return gap + (CONTACT_M - gap) * (time_s - begin) / (self.event_time_s - begin)
        return float(max(self._curve(time_s), CONTACT_M))

    def to_dict(self) -> dict[str, Any]:
        """Return the scene as plain values; the ground truth that tasks read."""
        return asdict(self)


def draw_long_scenes(num_drives: int, seed: int, shortest_s: float, longest_s: float) -> Iterator[LongScene]:
    """Draw a drive with a collision and a safe one for each recording.

    Args:
        num_drives: number of recordings; twice as many clips.
        seed: of all draws; a drive depends on the seed and its number only.
        shortest_s: of a clip.
        longest_s: of a clip.

    Yields:
        Scenes in the order of their names; neither name, order nor length tells the label.
    """
    for number in range(num_drives):
        rng = np.random.default_rng([seed, number, 1])
        drive = draw_drive(f"drive{number:04d}", rng)
        duration = round(float(rng.uniform(shortest_s, longest_s)), 1)
        scenes = [_draw(drive, label, rng, duration) for label in (1, 0)]
        yield from sorted(scenes, key=lambda scene: scene.scene_id)


def _draw(drive: Drive, label: int, rng: np.random.Generator, duration_s: float) -> LongScene:
    event = float(rng.uniform(6.0, duration_s - 0.5)) if label else None
    speed = float(rng.uniform(3.5, 5.5))
    gap = float(rng.uniform(9.0, 15.0))
    begin = np.inf if event is None else event - (gap - CONTACT_M) / speed
    # (time, gap, whether it is a near miss) of a drive in which nothing happens; a collision takes the place of some.
    calm, now = [], -8.0
    while now < duration_s + 6.0:
        calm.append((now, float(rng.uniform(9.0, 15.0)), False))
        now += float(rng.uniform(3.0, 6.0))
        if rng.random() < 0.45:  # down and up again, 4 to 6 s each
            now += float(rng.uniform(2.0, 3.0))
            calm.append((now, float(rng.uniform(4.0, 6.0)), True))
            now += float(rng.uniform(4.0, 6.0))
    kept = [p for p in calm if not begin - 2.5 < p[0] < begin + speed + 2.0]
    points = [(t, g) for t, g, _ in kept]
    if event is not None:  # the gap opens again, so that the length of the file does not tell of the collision
        points = sorted([*points, (begin, gap), (event, CONTACT_M)])
    misses = [t for t, _, near in kept if near]
    return LongScene(
        scene_id=f"{drive.group}_{'ab'[(label + drive.texture_seed) % 2]}",
        drive=drive,
        label=label,
        duration_s=duration_s,
        event_time_s=event,
        alert_time_s=None if event is None else begin + VISIBLE_S,
        near_misses_s=tuple(m for m in misses if 0 <= m < duration_s),
        points=tuple(points),
        others=tuple(
            Passing(
                side_m=float(rng.choice([-LANE_M, LANE_M])),
                start_s=float(start + rng.uniform(-3.0, 3.0)),
                speed=float(rng.uniform(4.0, 12.0)),
                colour=str(rng.choice(["red", "blue", "white", "black", "green", "yellow"])),
            )
            for start in np.arange(-4.0, duration_s, 14.0)
        ),
    )
