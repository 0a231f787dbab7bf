"""What can be asked and said about a synthetic scene: questions with choices, scene annotations.

Questions are drawn so that text tells nothing: each question's answers are equally likely, the
wrong options are drawn alike for all answers, and options stand in one order, as people write them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dashvlm.data.synthetic.scene import Drive, Scene

TITLES = ("Scene Description", "Driving Parameters (JSON)", "Risk Assessment")


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        key: what is asked about.
        language: ``vi`` or ``en``.
        text: the question.
        choices: the options' texts.
        answer: number of the right one.
        support_s: moments that show it, in seconds.
    """

    key: str
    language: str
    text: str
    choices: tuple[str, ...]
    answer: int
    support_s: tuple[float, ...]


@dataclass(frozen=True)
class _Kind:
    """A kind of question: its wording, its answers' wordings, how often each value occurs in the world."""

    vi: str
    en: str
    words: dict[str, tuple[str, str]]
    share: dict[str, float]
    value: Callable[[Drive], str]


_YES_NO = {"yes": ("Đúng", "Yes"), "no": ("Sai", "No")}
_KINDS: dict[str, _Kind] = {
    "light": _Kind(
        "Trời sáng hay tối?", "What time of day is it?",
        {"day": ("ban ngày", "day"), "dusk": ("hoàng hôn", "dusk"), "night": ("ban đêm", "night")},
        {"day": 0.6, "dusk": 0.2, "night": 0.2}, lambda d: d.light,
    ),
    "weather": _Kind(
        "Thời tiết thế nào?", "What is the weather?",
        {"clear": ("quang", "clear"), "rain": ("mưa", "rain"), "fog": ("sương mù", "fog"), "snow": ("tuyết", "snow")},
        {"clear": 0.55, "rain": 0.2, "fog": 0.15, "snow": 0.1}, lambda d: d.weather,
    ),
    "lead": _Kind(
        "Xe phía trước màu gì?", "What colour is the vehicle ahead?",
        {"red": ("đỏ", "red"), "blue": ("xanh dương", "blue"), "white": ("trắng", "white"), "black": ("đen", "black"),
         "green": ("xanh lá", "green"), "yellow": ("vàng", "yellow")},
        dict.fromkeys(("red", "blue", "white", "black", "green", "yellow"), 1 / 6), lambda d: d.lead_colour,
    ),
    "night": _Kind(
        "Bây giờ là ban đêm, đúng hay sai?", "Is it night?", _YES_NO, {"yes": 0.2, "no": 0.8},
        lambda d: "yes" if d.light == "night" else "no",
    ),
    "snow": _Kind(
        "Đường có tuyết, đúng hay sai?", "Is there snow?", _YES_NO, {"yes": 0.1, "no": 0.9},
        lambda d: "yes" if d.weather == "snow" else "no",
    ),
    "fog": _Kind(
        "Trời có sương mù, đúng hay sai?", "Is there fog?", _YES_NO, {"yes": 0.15, "no": 0.85},
        lambda d: "yes" if d.weather == "fog" else "no",
    ),
    "buildings": _Kind(
        "Đây là đường cao tốc, đúng hay sai?", "Is this a highway?", _YES_NO, {"yes": 1 / 3, "no": 2 / 3},
        lambda d: "yes" if d.road_type == "highway" else "no",
    ),
}  # fmt: skip


def questions(scene: Scene, seed: int, kinds: tuple[str, ...] = tuple(_KINDS)) -> Iterator[Question]:
    """Draw the questions of a scene.

    A question is asked with a probability that makes its answers equally likely over the world, so
    a scene with rare features has more of them.

    Args:
        scene: the scene.
        seed: of the draws.
        kinds: keys of the kinds to draw from.
    """
    rng = np.random.default_rng([seed, sum(map(ord, scene.scene_id)) * 7919 + scene.drive.texture_seed % 10_007])
    for key in kinds:
        kind = _KINDS[key]
        value = kind.value(scene.drive)
        asked = rng.random() < min(kind.share.values()) / kind.share[value]
        language = "vi" if rng.random() < 0.6 else "en"
        count = int(rng.integers(2, min(len(kind.words), 4) + 1))
        others = [str(v) for v in rng.permutation([w for w in kind.words if w != value])[: count - 1]]
        shown = [w for w in kind.words if w == value or w in others]
        moment = float(rng.uniform(0.5, scene.duration_s - 0.5))
        if asked:
            tongue = 0 if language == "vi" else 1
            yield Question(
                key, language, kind.vi if language == "vi" else kind.en,
                tuple(kind.words[w][tongue] for w in shown), shown.index(value), (round(moment, 2),),
            )  # fmt: skip


def parameters(scene: Scene) -> dict[str, str]:
    """Return the twelve driving parameters of a scene, as at its last moment."""
    drive, gap = scene.drive, scene.gap_m(scene.anchor_s)
    visibility = {"clear": "good", "rain": "medium", "fog": "low", "snow": "medium"}[drive.weather]
    if drive.light == "night":
        visibility = "low"
    return {
        "road_type": drive.road_type,
        "lane_count": str(drive.num_lanes),
        "ego_lane_position": "left"
        if drive.ego_lane == 1
        else "right"
        if drive.ego_lane == drive.num_lanes
        else "middle",
        "traffic_light_state": drive.traffic_light,
        "pedestrian_on_road": "no",
        "closest_vehicle_distance": "close" if gap < 10 else "medium" if gap <= 30 else "far",
        "ego_vehicle_speed": "slow" if drive.ego_speed <= 9.7 else "moderate" if drive.ego_speed <= 19.4 else "fast",
        "road_curvature": "straight",
        "weather": drive.weather,
        "visibility": visibility,
        "traffic_density": "medium" if drive.crossing_side != "none" else "low",
        "risk_factor": "high" if scene.label else "medium" if visibility == "low" else "low",
    }


def rationale(scene: Scene) -> str:
    """Argue for a scene's label in words that are alike for both classes but for the finding."""
    finding = "The gap is getting closer." if scene.label else "The gap is steady."
    return f"A {scene.drive.lead_colour} vehicle is ahead. {finding}"


def annotation(scene: Scene) -> str:
    """Write a scene's annotation in the three sections that the BDD100K description project uses."""
    drive, found = scene.drive, parameters(scene)
    light = {"day": "by day", "dusk": "at dusk", "night": "at night"}[drive.light]
    prose = [f"A {drive.road_type} road {light}, weather {drive.weather}. A {drive.lead_colour} vehicle is ahead."]
    if drive.traffic_light != "none":
        prose.append(f"The traffic light is {drive.traffic_light}.")
    if drive.pedestrian_side != "none":
        prose.append(f"A pedestrian is on the {drive.pedestrian_side}.")
    risk = "The vehicle ahead is getting closer fast." if scene.label else "The gap to the vehicle ahead is steady."
    body = (" ".join(prose), f"```json\n{json.dumps(found, indent=2)}\n```", f"{risk} Risk is {found['risk_factor']}.")
    return "\n\n".join(f"**{title}:**\n{text}" for title, text in zip(TITLES, body, strict=True))
