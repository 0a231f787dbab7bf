"""Navigation descriptions against annotations: mandatory fields, nearby objects, sides, what was left out.

Definitions that give the published BVPI tables back are kept by name beside the default, which counts
only what a text says to be near, by whole words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dashvlm.text.navigation import HEADERS, NOUNS, OBJECTS, parse_fields, relation, segment, stated_sides

Scope = Literal["nearby", "full_text", "published", "published_nearby"]
DEFINITIONS: dict[str, str] = {
    "nearby": "whole words in the Nearby segment",
    "full_text": "whole words anywhere in the text, Far and Context included",
    "published": "substrings anywhere in the text, two decimals cut off: the published OpenFlamingo table",
    "published_nearby": "substrings in the Nearby segment, two decimals rounded: the published SmolVLM2 table",
}
KEYWORDS: dict[str, tuple[str, ...]] = {
    "person": ("person", "pedestrian", "man", "woman", "people"),
    "car": ("car", "vehicle", "auto"),
    "bicycle": ("bicycle", "bike", "cyclist"),
    "obstacle": ("obstacle", "barrier", "cone", "bollard", "block"),
    "traffic_sign": ("traffic sign", "sign"),
    "traffic_light": ("traffic light", "trafficlight", "signal"),
}
"""The published keywords; whole-word matching also takes their plurals."""
DANGEROUS = ("person", "obstacle", "bicycle", "car")
"""Objects whose omission near the way is unsafe."""
PLURALS = {"person": ("men", "women", "child", "children")}
"""What whole-word matching takes besides."""
# A new clause begins at a semicolon, a full stop, "but", or a comma before a counted thing.
_CLAUSES = re.compile(r"[;.]|\b(?:but|however)\b|,(?=\s*(?:and\s+)?(?:an?|the|one|two|three|several|many|some|\d+)\b)")
_NEGATED = re.compile(r"\b(?:no|not|without|neither|nor|absent|n't)\b")
_DENIED = re.compile(r"\bno (?:important |other )?(?:close|nearby) objects?\b", re.IGNORECASE)


@dataclass(frozen=True)
class Counts:
    """How often an object was there and mentioned.

    Attributes:
        tp: there and mentioned.
        fn: there, not mentioned.
        fp: mentioned, not there.
    """

    tp: int
    fn: int
    fp: int

    @property
    def recall(self) -> float:
        """Share of pictures with the object that mention it; 0 without any, as published."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else 0.0

    @property
    def precision(self) -> float:
        """Share of mentions that are right; 0 without any, as published."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else 0.0


def mentions(text: str, name: str, scope: Scope = "nearby") -> bool:
    """Whether a text mentions an object.

    Example:
        >>> text = "Nearby: a person close on the left. Far: a car. Context: carried by a woman."
        >>> mentions(text, "person"), mentions(text, "car"), mentions(text, "car", "full_text")
        (True, False, True)
        >>> mentions("The manhole is blocked.", "person", "published"), mentions("The manhole.", "person", "full_text")
        (True, False)
    """
    near = scope in ("nearby", "published_nearby")
    part = ((segment(text, "Nearby") or "") if near else text).lower()
    if scope.startswith("published"):
        return any(word in part for word in KEYWORDS[name])
    return any(_named(clause, name) and not _NEGATED.search(clause) for clause in _CLAUSES.split(part))


def denies(text: str, name: str) -> bool:
    """Whether the Nearby segment says that an object, or any object, is not there.

    Example:
        >>> denies("Nearby: no people or cars.", "person"), denies("Nearby: no cars, a person.", "person")
        (True, False)
    """
    part = (segment(text, "Nearby") or "").lower()
    if _DENIED.search(part):
        return True
    return any(_named(clause, name) and _NEGATED.search(clause) for clause in _CLAUSES.split(part))


def _named(clause: str, name: str) -> bool:
    words = {*KEYWORDS[name], *NOUNS[name], *PLURALS.get(name, ())}
    return any(re.search(rf"\b{re.escape(word)}s?\b", clause) for word in words)


def object_counts(
    texts: Sequence[str], near: Sequence[Mapping[str, Sequence[str]]], scope: Scope = "nearby"
) -> dict[str, Counts]:
    """Count each object over pictures.

    Args:
        texts: predictions.
        near: object -> sides, of each picture; an object with several counts once.
        scope: see :data:`DEFINITIONS`.
    """
    out = {}
    for name in OBJECTS:
        there, said = object_marks(texts, near, name, scope)
        out[name] = Counts(int((there & said).sum()), int((there & ~said).sum()), int((said & ~there).sum()))
    return out


def object_marks(
    texts: Sequence[str], near: Sequence[Mapping[str, Sequence[str]]], name: str, scope: Scope = "nearby"
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether an object is there, and whether it is mentioned, a picture: two arrays [N]."""
    return np.array([bool(n.get(name)) for n in near], bool), np.array([mentions(t, name, scope) for t in texts], bool)


def field_rows(texts: Sequence[str], truths: Sequence[Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """Presence and accuracy of the mandatory fields.

    A field that is not written is wrong, also where the truth is unknown. The relation is the written
    one; ``road_vs_sidewalk_derived`` is what the written positions imply instead.

    Returns:
        Field -> ``present, right`` (bool a picture), ``majority`` (word), ``majority_right``.
    """
    parsed = [parse_fields(t) for t in texts]
    rows: dict[str, dict[str, Any]] = {}
    for name in HEADERS:
        gold = [t[name] for t in truths]
        word = Counter(gold).most_common(1)[0][0] if gold else ""
        rows[name] = {
            "present": np.array([name in p for p in parsed]),
            "right": np.array([p.get(name) == g for p, g in zip(parsed, gold, strict=True)]),
            "majority": word,
            "majority_right": np.array([g == word for g in gold]),
        }
    implied = [relation(p["sidewalk_pos"], p["road_pos"]) if {"sidewalk_pos", "road_pos"} <= set(p) else None
               for p in parsed]  # fmt: skip
    rows["road_vs_sidewalk_derived"] = {
        **rows["road_vs_sidewalk"],
        "present": np.array([i is not None for i in implied]),
        "right": np.array([i == t["road_vs_sidewalk"] for i, t in zip(implied, truths, strict=True)]),
    }
    return rows


def contradicts_itself(text: str) -> bool:
    """Whether a text writes a relation that its own positions do not imply."""
    found = parse_fields(text)
    return len(found) == len(HEADERS) and found["road_vs_sidewalk"] != relation(
        found["sidewalk_pos"], found["road_pos"]
    )


def side_rows(text: str, near: Mapping[str, Sequence[str]]) -> dict[str, bool]:
    """For each nearby object that is there and mentioned near: whether exactly its sides are stated."""
    part = segment(text, "Nearby") or ""
    return {
        name: stated_sides(part, [*KEYWORDS[name], *NOUNS[name], *PLURALS.get(name, ())]) == set(sides)
        for name, sides in near.items()
        if sides and mentions(text, name)
    }


def omissions(text: str, near: Mapping[str, Sequence[str]]) -> dict[str, Literal["told", "omitted", "denied"]]:
    """For each dangerous object near the way: whether it is told of, left out, or said not to be there."""
    return {
        name: "told" if mentions(text, name) else "denied" if denies(text, name) else "omitted"
        for name in DANGEROUS
        if near.get(name)
    }
