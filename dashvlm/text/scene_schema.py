"""The twelve driving parameters of a scene: vocabularies, JSON schema, normalisation. Pure.

Parameters and wordings: the BDD100K description project (SarveshBTelang, Apache-2.0), whose
annotator wrote one value in many ways (``urban``, ``Urban Street``; ``4``, ``"4"``; mph, km/h).
A value whose meaning is clear but has no class becomes ``other``; one that was not written stays
absent. Nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LEVELS = ("low", "medium", "high")
_OPEN = ("unknown", "other")
FIELDS: dict[str, tuple[str, ...]] = {
    "road_type": ("urban", "suburban", "residential", "highway", "rural", "tunnel", "parking", *_OPEN),
    "lane_count": ("1", "2", "3", "4", "5", "6", "7", "8", "multiple", *_OPEN),
    "ego_lane_position": ("left", "middle", "right", *_OPEN),
    "traffic_light_state": ("red", "yellow", "green", "mixed", "off", "none", *_OPEN),
    "pedestrian_on_road": ("yes", "no", *_OPEN),
    "closest_vehicle_distance": ("close", "medium", "far", "none", *_OPEN),
    "ego_vehicle_speed": ("stopped", "slow", "moderate", "fast", *_OPEN),
    "road_curvature": ("straight", "slight", "slight_left", "slight_right", "moderate", "sharp", *_OPEN),
    "weather": ("clear", "cloudy", "rain", "snow", "fog", *_OPEN),
    "visibility": ("good", "medium", "low", *_OPEN),
    "traffic_density": (*LEVELS, *_OPEN),
    "risk_factor": (*LEVELS, *_OPEN),
}
"""Parameter -> its vocabulary. Distance: close below 10 m, far above 30 m. Speed: stopped below 3,
slow up to 35, fast above 70 km/h."""

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Driving parameters",
    "type": "object",
    "properties": {name: {"type": "string", "enum": list(words)} for name, words in FIELDS.items()},
    "required": list(FIELDS),
    "additionalProperties": False,
}

_UNKNOWN = re.compile(r"\b(unknown|unclear|uncertain|not sure|cannot be determined)\b")
_NONE = re.compile(r"^(none\b.*|false|n/?a|not present|not visible|no\b.*)$")
_ABSENT_LIGHT = re.compile(r"\bnot (?:applicable|visible|present)\b|^\s*(?:none|no|false|n/?a)\b")
_METRES = {"feet": 0.3048, "foot": 0.3048, "ft": 0.3048, "meters": 1.0, "metres": 1.0, "meter": 1.0, "metre": 1.0,
           "m": 1.0, "yards": 0.9144, "yard": 0.9144}  # fmt: skip
_KMH = {"mph": 1.609344, "km/h": 1.0, "kmh": 1.0, "kph": 1.0, "m/s": 3.6}
_NUMBER = r"(\d+(?:\.\d+)?)(?:\s*(?:-|–|to)\s*(\d+(?:\.\d+)?))?"


def normalise(field: str, value: Any) -> str | None:
    """Bring a parameter's value to its vocabulary.

    Args:
        field: one of :data:`FIELDS`.
        value: what was written: text, number, truth value or a nested mapping.

    Returns:
        A word of the vocabulary; ``other`` for text without a class; None for no value.

    Example:
        >>> normalise("road_type", "Urban Street"), normalise("lane_count", 4), normalise("lane_count", "4")
        ('urban', '4', '4')
        >>> normalise("ego_vehicle_speed", "30 mph"), normalise("ego_vehicle_speed", "30 km/h")
        ('moderate', 'slow')
        >>> [normalise("pedestrian_on_road", v) for v in ("yes", "none", False, True)]
        ['yes', 'no', 'no', 'yes']
        >>> normalise("risk_factor", "Moderate"), normalise("closest_vehicle_distance", {"distance": "50 feet"})
        ('medium', 'medium')
    """
    if value is None or value == "" or value == {} or value == []:
        return None
    if isinstance(value, Mapping | list):
        return _nested(field, value)
    text = str(value).strip().lower().replace("_", " ")
    if text in FIELDS[field]:
        return text
    if text.replace(" ", "_") in FIELDS[field]:
        return text.replace(" ", "_")
    if _UNKNOWN.search(text):
        return "unknown"
    return _READERS[field](text) or "other"


def validate(fields: Mapping[str, Any]) -> list[str]:
    """Return what a mapping lacks of the schema: missing keys, foreign keys, words outside a vocabulary."""
    out = [f"missing key {name}" for name in FIELDS if fields.get(name) is None]
    out += [f"foreign key {name}" for name in fields if name not in FIELDS]
    return out + [
        f"{name}={fields[name]!r} is none of {', '.join(words)}"
        for name, words in FIELDS.items()
        if fields.get(name) is not None and fields[name] not in words
    ]


def _nested(field: str, value: Mapping[str, Any] | Sequence[Any]) -> str | None:
    """Read a nested value: the current light, the nearest of several distances."""
    if not isinstance(value, Mapping):
        found = {normalise(field, v) for v in value} - {None}
        return found.pop() if len(found) == 1 else "mixed" if field == "traffic_light_state" else "other"
    if field == "closest_vehicle_distance":
        metres = [m for m in (_metres(str(v).lower()) for v in value.values()) if m is not None]
        return _distance_class(min(metres)) if metres else "other"
    if field == "traffic_light_state":
        current = [v for k, v in value.items() if "current" in str(k).lower()]
        if current:
            return normalise(field, current[0])
        lit = {str(k).lower() for k, v in value.items() if v is True}
        lit |= {str(v).lower() for v in value.values() if isinstance(v, str)}
        colours = {normalise(field, word) for word in lit} & {"red", "yellow", "green"}
        if colours:
            return colours.pop() if len(colours) == 1 else "mixed"
        return "other"
    return "other"


def _first(table: Sequence[tuple[str, str]]) -> Callable[[str], str | None]:
    """A reader that takes the word that comes first in the text."""
    rules = [(re.compile(pattern), word) for pattern, word in table]

    def read(text: str) -> str | None:
        found = [(m.start(), number, word) for number, (rule, word) in enumerate(rules) if (m := rule.search(text))]
        return min(found)[2] if found else None

    return read


def _without_denials(table: Sequence[tuple[str, str]]) -> Callable[[str], str | None]:
    """The same for a text without what it says is not there ("no rain")."""
    read = _first(table)
    return lambda text: read(re.sub(r"\bno \w+", "", text))


def _road(text: str) -> str | None:
    for pattern, word in (
        (r"highway|freeway|motorway|interstate", "highway"), (r"tunnel", "tunnel"),
        (r"parking (?:lot|area|garage|structure)|garage", "parking"),
    ):  # fmt: skip
        if re.search(pattern, text):
            return word
    return _first([(r"\burban|city|downtown", "urban"), (r"suburban", "suburban"), (r"residential", "residential"),
                   (r"rural|country", "rural")])(text)  # fmt: skip


def _lanes(text: str) -> str | None:
    words = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
    numeral = rf"(\d+|{'|'.join(words)})"
    found = re.fullmatch(rf"(?:approximately |about )?{numeral}(?:\.0)?", text) or re.search(
        rf"\b{numeral}[ -]lanes?\b", text
    )
    number = words.get(found.group(1), found.group(1)) if found else None
    if number in FIELDS["lane_count"]:
        return number
    return "multiple" if re.search(r"multi|several", text) else None


def _light(text: str) -> str | None:
    colours: set[str] = set()
    absent = False
    for clause in re.split(r"[,;]", text):
        found = set(re.findall(r"\b(red|green|yellow|amber)\b", clause))
        if _ABSENT_LIGHT.search(clause):
            absent = True
            if found:
                return None  # "red light not visible" says two things
        colours |= {"yellow" if c == "amber" else c for c in found}
    if colours:
        return colours.pop() if len(colours) == 1 else "mixed"
    return "none" if absent else "off" if re.search(r"\boff\b", text) else None


def _pedestrian(text: str) -> str | None:
    if _NONE.match(text):
        return "no"
    if re.match(r"yes\b|true\b", text):
        return "yes"
    if re.search(r"\b(?:on|along) (?:the )?sidewalks?\b", text) and not re.search(r"\broad\b|\bcrossing\b", text):
        return "no"
    if re.search(r"\bcross(?:ing|es)\b|\b(?:on|in) the road\b|\bwalking\b|^present|pedestrians? visible", text):
        return None if re.search(r"\bno\b|\bnot\b", text) else "yes"
    return None


def _metres(text: str) -> float | None:
    found = re.search(rf"{_NUMBER}\s*({'|'.join(_METRES)})\b", text)
    if not found:
        return None
    low, high, unit = found.groups()
    metres = (float(low) + float(high or low)) / 2 * _METRES[unit]
    bound = re.search(r"\b(less than|under|within|below|over|more than|above|at least)\s*$", text[: found.start()])
    if bound:  # "less than 10 m" is not 10 m
        metres *= 0.99 if bound.group(1) in ("less than", "under", "within", "below") else 1.01
    return metres


def _distance_class(metres: float) -> str:
    return "close" if metres < 10 else "medium" if metres <= 30 else "far"


def _distance(text: str) -> str | None:
    metres = _metres(text)
    if metres is not None:
        return _distance_class(metres)
    if _NONE.match(text):
        return "none"
    return _first(
        [(r"\bclose\b|\bnear(?:by)?\b", "close"), (r"medium|moderate", "medium"), (r"\bfar\b|distant", "far")]
    )(text)


def _speed(text: str) -> str | None:
    found = re.search(rf"{_NUMBER}\s*({'|'.join(map(re.escape, _KMH))})\b", text)
    if found or text in ("0", "0.0"):
        low, high, unit = found.groups() if found else ("0", None, "km/h")
        speed = (float(low) + float(high or low)) / 2 * _KMH[unit]
        return "stopped" if speed < 3 else "slow" if speed <= 35 else "moderate" if speed <= 70 else "fast"
    return _first([(r"stopp|stationary|standing|parked", "stopped"), (r"\bslow", "slow"),
                   (r"moderate|medium", "moderate"), (r"\bfast|\bhigh", "fast")])(text)  # fmt: skip


def _curvature(text: str) -> str | None:
    word = _first([(r"straight", "straight"), (r"slight|gentle", "slight"), (r"moderate", "moderate"),
                   (r"sharp", "sharp")])(text)  # fmt: skip
    side = re.search(r"\b(left|right)\b", text)
    return f"slight_{side.group(1)}" if word == "slight" and side else word


_READERS: dict[str, Callable[[str], str | None]] = {
    "road_type": _road,
    "lane_count": _lanes,
    "ego_lane_position": _first([(r"left", "left"), (r"middle|cent(?:er|re)", "middle"), (r"right", "right")]),
    "traffic_light_state": _light,
    "pedestrian_on_road": _pedestrian,
    "closest_vehicle_distance": _distance,
    "ego_vehicle_speed": _speed,
    "road_curvature": _curvature,
    "weather": _without_denials([(r"clear|sunny|\bfair\b", "clear"), (r"cloud|overcast", "cloudy"), (r"rain", "rain"),
                       (r"snow", "snow"), (r"fog|mist|haz", "fog")]),
    "visibility": _first([(r"good|clear|\bhigh\b|excellent", "good"), (r"moderate|medium|slightly reduced", "medium"),
                          (r"\blow|poor|(?<!slightly )reduced|limited", "low")]),
    "traffic_density": _first([(r"\blow|\blight", "low"), (r"moderate|medium", "medium"),
                               (r"high|heavy|dense", "high")]),
    "risk_factor": _first([(r"\blow", "low"), (r"moderate|medium", "medium"), (r"\bhigh", "high")]),
}  # fmt: skip
