"""The annotation form of the BVPI project as JSON, for prompts that give the annotation away on purpose. Pure.

Schema: adityaBS/roadscene-vlm-for-visually-impaired. It has one word per object, but a list for obstacles on the
sidewalk; an object on several sides is written with the first of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dashvlm.text.navigation import Truth

VEGETATION = ("grass", "plants", "trees")
"""Annotated, and never described."""
FORM_OBJECTS = ("bicycle", "car", "person", "traffic_sign", "traffic_light", "obstacle", *VEGETATION)
SIDE = {"type": "string", "enum": ["not present", "Left", "Center", "Right"]}
_ANSWER = {"type": "string", "enum": ["No", "Yes"]}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "image": {"type": "string"},
        "sidewalk_pos": {"type": "string", "enum": ["Left", "Center", "Right", "Outside"]},
        "road_pos": {"type": "string", "enum": ["Not present", "Left", "Front", "Right"]},
        "object_present": _ANSWER,
        "objects_on_sidewalk": {
            "type": "object",
            "properties": {**dict.fromkeys(FORM_OBJECTS, SIDE), "obstacle": {"type": "array", "items": SIDE}},
        },
        "object_present_outside": _ANSWER,
        "objects_outside_sidewalk": {"type": "object", "properties": dict.fromkeys(FORM_OBJECTS, SIDE)},
    },
    "required": ["image", "sidewalk_pos", "road_pos", "object_present", "object_present_outside"],
}


def annotation_form(image: str, truth: Truth) -> dict[str, Any]:
    """Fill in the form; objects are left out where none is present.

    Example:
        >>> form = annotation_form("0001.jpg", Truth("center", "left", {"obstacle": ("left", "right")}))
        >>> form["object_present"], form["objects_on_sidewalk"]["obstacle"], form["object_present_outside"]
        ('Yes', ['Left', 'Right'], 'No')
        >>> "objects_outside_sidewalk" in form, form["objects_on_sidewalk"]["car"]
        (False, 'not present')
        >>> annotation_form("0002.jpg", Truth("unknown", "unknown"))["road_pos"]
        'Not present'
    """
    on = {**truth.near, **truth.vegetation_near}
    beside = {**truth.far, **truth.vegetation_far}
    form: dict[str, Any] = {
        "image": image,
        "sidewalk_pos": "Outside" if truth.sidewalk == "unknown" else truth.sidewalk.capitalize(),
        "road_pos": {"unknown": "Not present", "center": "Front"}.get(truth.road, truth.road.capitalize()),
        "object_present": "Yes" if on else "No",
    }
    if on:
        form["objects_on_sidewalk"] = _objects(on, several=("obstacle",))
    form["object_present_outside"] = "Yes" if beside else "No"
    if beside:
        form["objects_outside_sidewalk"] = _objects(beside)
    return form


def json_annotation(image: str, truth: Truth) -> str:
    """The form as one line of JSON."""
    return json.dumps(annotation_form(image, truth), ensure_ascii=False)


def _objects(found: Mapping[str, tuple[str, ...]], several: tuple[str, ...] = ()) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name in FORM_OBJECTS:
        sides = [side.capitalize() for side in found.get(name, ())] or ["not present"]
        made[name] = list(dict.fromkeys(sides)) if name in several else sides[0]
    return made
