"""Navigation descriptions for blind pedestrians: positions, nearby objects, their text form. Pure.

Rules and wordings: the BVPI data of adityaBS/roadscene-vlm-for-visually-impaired. The builder here
gives its published SFT rows back row for row (``tests/test_bvpi.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SIDES = ("left", "center", "right")
SIDEWALK = (*SIDES, "unknown")
ROAD = (*SIDES, "front", "unknown")
RELATION = ("left_of", "right_of", "crossing_front", "unknown")
HEADERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sidewalk_pos": ("Sidewalk", ROAD),  # "front" is written, and never right
    "road_pos": ("Road", ROAD),
    "road_vs_sidewalk": ("RoadVsSidewalk", RELATION),
}
"""Mandatory field -> (its label in the text, its words)."""
OBJECTS = ("obstacle", "person", "bicycle", "car", "traffic_sign", "traffic_light")
"""In the order that they are written."""
NOUNS = {
    "obstacle": ("obstacle", "obstacles"), "person": ("person", "people"), "bicycle": ("bicycle", "bicycles"),
    "car": ("car", "cars"), "traffic_sign": ("traffic sign", "traffic signs"),
    "traffic_light": ("traffic light", "traffic lights"),
}  # fmt: skip
NOTHING_NEAR = "no important close objects visible"
PROMPT = (
    "Describe the scene for a blind pedestrian. You MUST always output: Sidewalk position and Road position (relative "
    "to the image). Then output RoadVsSidewalk (is the road left_of/right_of the sidewalk, or crossing_front if the "
    "road is in front). After that, always mention CLOSE objects first with left/center/right. If no close objects are "
    "visible, explicitly say so. Only mention objects you can see."
)
CAPTION_PROMPT = "Describe the road scene for a blind pedestrian."
NAVIGATION_PROMPT = "Detect obstacles and suggest corrections."
IN_THE_WAY = ("obstacle", "person", "bicycle", "car")
"""Objects that a pedestrian has to pass."""
_SEGMENTS = re.compile(r"\b(Nearby|Far|Navigation|Context)\s*:", re.IGNORECASE)


@dataclass(frozen=True)
class Truth:
    """What is known of an image.

    Attributes:
        sidewalk: word of :data:`SIDEWALK`.
        road: word of :data:`ROAD`.
        near: object -> its sides on the way, one for each, as annotated.
        far: likewise beside the way.
        vegetation_near, vegetation_far: grass, plants and trees, which are annotated and never described.
    """

    sidewalk: str
    road: str
    near: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    far: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vegetation_near: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vegetation_far: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, str]:
        """The three mandatory fields."""
        return {
            "sidewalk_pos": self.sidewalk,
            "road_pos": self.road,
            "road_vs_sidewalk": relation(self.sidewalk, self.road),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for tables."""
        return {**self.fields, "near": {k: list(v) for k, v in self.near.items()},
                "far": {k: list(v) for k, v in self.far.items()}}  # fmt: skip


def position(value: object) -> str:
    """Bring an annotated position to left, center, right, front or unknown.

    Example:
        >>> [position(v) for v in ("Centre", "Front", "Not present", "Outside", None)]
        ['center', 'front', 'unknown', 'unknown', 'unknown']
    """
    word = str(value or "").strip().lower().replace("centre", "center")
    return word if word in (*SIDES, "front") else "unknown"


def relation(sidewalk: str, road: str) -> str:
    """Derive where the road is, seen from the sidewalk.

    Example:
        >>> relation("center", "left"), relation("right", "left"), relation("left", "left"), relation("left", "front")
        ('left_of', 'left_of', 'unknown', 'crossing_front')
    """
    if road == "front":
        return "crossing_front"
    if sidewalk not in SIDES or road not in SIDES or sidewalk == road:
        return "unknown"
    return "left_of" if SIDES.index(road) < SIDES.index(sidewalk) else "right_of"


def sides_of(cell: object) -> tuple[str, ...]:
    """Read a cell of sides: ``Left-Center``, ``not present``, empty.

    Example:
        >>> sides_of("Left-Left"), sides_of("not present"), sides_of("Center / Right")
        (('left', 'left'), (), ('center', 'right'))
    """
    words = re.split(r"[-,/\s]+", str(cell or "").strip().lower())
    return tuple(position(w) for w in words if position(w) in SIDES)


def response(truth: Truth, context: str) -> str:
    """Write the structured description that models are taught."""
    head = ". ".join(f"{label}: {truth.fields[name]}" for name, (label, _) in HEADERS.items())
    near = "; ".join(_phrase(name, truth.near[name], "close") for name in OBJECTS if truth.near.get(name))
    far = "; ".join(_phrase(name, truth.far[name], "farther away") for name in OBJECTS if truth.far.get(name))
    parts = [f"{head}. Nearby: {near or NOTHING_NEAR}."]
    parts += [f"Far: {far}."] * bool(far) + [f"Context: {context.strip()}"] * bool(context.strip())
    return " ".join(parts)


def navigation_cue(truth: Truth) -> str:
    """What to do about the objects on the way: they are passed on the side that is free.

    Example:
        >>> navigation_cue(Truth("center", "left", {"obstacle": ("left", "right")}))
        'move straight'
        >>> navigation_cue(Truth("center", "left", {"person": ("center",), "car": ("left",)}))
        'deviate right'
        >>> navigation_cue(Truth("center", "left", {"obstacle": ("left", "center", "right")}))
        'stop, the way is blocked'
    """
    blocked = {side for name in IN_THE_WAY for side in truth.near.get(name, ())}
    if "center" not in blocked:
        return "move straight"
    free = [side for side in ("right", "left") if side not in blocked]
    return f"deviate {free[0]}" if free else "stop, the way is blocked"


def with_cue(text: str, truth: Truth) -> str:
    """A description with the cue before its context, or at its end.

    Example:
        >>> with_cue("Nearby: a car close on the left. Context: A street.", Truth("left", "right"))
        'Nearby: a car close on the left. Navigation: move straight. Context: A street.'
    """
    head, context, tail = text.partition(" Context: ")
    return f"{head.rstrip()} Navigation: {navigation_cue(truth)}.{context}{tail}"


def cue_alone(truth: Truth) -> str:
    """The answer to :data:`NAVIGATION_PROMPT`."""
    near = "; ".join(_phrase(name, truth.near[name], "close") for name in OBJECTS if truth.near.get(name))
    return f"Nearby: {near or NOTHING_NEAR}. Navigation: {navigation_cue(truth)}."


def parse_fields(text: str) -> dict[str, str]:
    """Read the mandatory fields that a text writes; the first of each counts, others are absent.

    Example:
        >>> parse_fields("Sidewalk: left. Road: front.")
        {'sidewalk_pos': 'left', 'road_pos': 'front'}
    """
    found = {}
    for name, (label, words) in HEADERS.items():
        # "left/center/right" and "left or right" repeat the question.
        match = re.search(rf"\b{label}\s*:\s*({'|'.join(words)})\b(?!\s*(?:/|\||,?\s*or\b))", text, re.IGNORECASE)
        if match:
            found[name] = match.group(1).lower()
    return found


def segment(text: str, name: str) -> str | None:
    """Return the text behind a mark such as ``Nearby:`` or ``Context:`` up to the next one; None without."""
    marks = list(_SEGMENTS.finditer(text))
    for number, mark in enumerate(marks):
        if mark.group(1).lower() == name.lower():
            end = marks[number + 1].start() if number + 1 < len(marks) else len(text)
            return text[mark.end() : end].strip()
    return None


def stated_sides(phrases: str, words: Sequence[str]) -> set[str]:
    """Return the sides that a list of phrases gives an object; phrases end at ``;`` or a full stop.

    Example:
        >>> sorted(stated_sides("a car on the left; 2 people close on the center and right", ["people", "person"]))
        ['center', 'right']
    """
    return set(stated_objects(phrases, words))


def stated_objects(phrases: str, words: Sequence[str]) -> tuple[str, ...]:
    """Return a side for each object that phrases count; which of several is on which side is not written.

    Example:
        >>> stated_objects("3 cars close on the left and right; a person on the left", ["car"])
        ('left', 'left', 'right')
    """
    found: list[str] = []
    for phrase in re.split(r"[;.]", phrases.lower()):
        if any(re.search(rf"\b{re.escape(w)}s?\b", phrase) for w in words):
            sides = [s for s in SIDES if re.search(rf"\b{s}\b", phrase.replace("centre", "center"))]
            count = re.match(r"\s*(\d{1,2})\b", phrase)
            extra = int(count.group(1)) - len(sides) if count and sides else 0
            found += sides[:1] * max(extra, 0) + sides
    return tuple(sorted(found, key=SIDES.index))


def contradictions(truth: Truth, context: str) -> list[str]:
    """Name what a free caption says against the annotation: the sidewalk's place, the road's side."""
    out = []
    text = context.lower()
    centred = re.search(r"sidewalk (?:is|appears) (?:centered|in the cent(?:er|re))", text)
    if centred and truth.sidewalk != "center":
        out.append(f"the caption centers the sidewalk, the annotation says {truth.sidewalk}")
    side = re.search(r"\broad(?: \w+){0,4} (?:on|to) (?:the |your )?(left|right)\b", text)
    if side and truth.road != side.group(1):
        out.append(f"the caption has the road on the {side.group(1)}, the annotation says {truth.road}")
    return out


def _phrase(name: str, sides: Sequence[str], distance: str) -> str:
    one, many = NOUNS[name]
    count = f"{'an' if one[0] in 'aeiou' else 'a'} {one}" if len(sides) == 1 else f"{len(sides)} {many}"
    places = [s for s in SIDES if s in sides]
    if len(places) == 3:
        return f"{count} {distance} across the left, center, and right"
    return f"{count} {distance} on the {' and '.join(places)}"
