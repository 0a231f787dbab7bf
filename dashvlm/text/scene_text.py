"""Scene annotations as text: three sections, a JSON block, what is wrong with them and what can be mended. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dashvlm.text.scene_schema import FIELDS, normalise, validate

SECTIONS = ("description", "parameters", "risk")
TITLES = {"description": "Scene Description", "parameters": "Driving Parameters (JSON)", "risk": "Risk Assessment"}
_HEADING = re.compile(
    r"^[ \t#*\d.]{0,20}(Scene Description|Driving Parameters|Risk Assessment)[ \t]{0,3}(?:\(JSON\))?[ \t:*]{0,8}",
    re.IGNORECASE | re.MULTILINE,
)
_NAMES = {"scene description": "description", "driving parameters": "parameters", "risk assessment": "risk"}
# The instruction says not to mention that it is a video.
_FORBIDDEN = re.compile(r"\b(video|footage|dashcam clip|frames?)\b", re.IGNORECASE)
# An unquoted value with a unit: 30 mph, 50 feet, 10-20 m.
_BARE = re.compile(r"(:\s*)(-?\d+(?:\.\d+)?(?:\s*-\s*\d+(?:\.\d+)?)?\s*[A-Za-z/][\w/ ]*?)(\s*[,}\n])")
_WORD = re.compile(r'(:\s*)(?!(?:true|false|null)\b)([A-Za-z][\w -]*?)(\s*(?:,\s*"|\}))')


@dataclass(frozen=True)
class Annotation:
    """One scene annotation, read.

    Attributes:
        sections: the prose of ``description`` and ``risk``, where they exist.
        fields: parameter -> word of its vocabulary, those that were written.
        strict: whether the JSON block parses as it stands, with all keys and no others.
        repairs: what was mended.
        problems: what could not be.
    """

    sections: Mapping[str, str]
    fields: Mapping[str, str]
    strict: bool
    repairs: tuple[str, ...] = field(default=())
    problems: tuple[str, ...] = field(default=())

    @property
    def usable(self) -> bool:
        """Whether all parameters are there."""
        return not validate(self.fields)


def read_annotation(text: str) -> Annotation:
    """Read an annotation or a model's answer.

    Repairs: quotes around bare values, trailing commas, Python's literals, nested values (the
    current light, the nearest distance), a last sentence that was cut off (dropped). Nothing that
    was not written is filled in.

    Args:
        text: the answer, with or without headings; a bare JSON object is an answer without prose.

    Returns:
        Sections, parameters, repairs and problems; never raises.
    """
    repairs: list[str] = []
    problems: list[str] = []
    sections = _split(text)
    raw, strict = _json_block(sections.get("parameters", text), repairs, problems)
    fields: dict[str, str] = {}
    for name, value in (raw or {}).items():
        key = str(name).strip().lower().replace(" ", "_")
        if key not in FIELDS:
            problems.append(f"foreign key {name}")
            strict = False
            continue
        if isinstance(value, Mapping | list):
            repairs.append(f"nested {key}")
        try:
            word = normalise(key, value)
        except RecursionError:
            problems.append(f"{key} is nested too deeply")
            continue
        if word is not None:
            fields[key] = word
    missing = [name for name in FIELDS if name not in fields]
    if raw is not None and missing:
        problems.append(f"missing {', '.join(missing)}")
    prose = {}
    for name in ("description", "risk"):
        if name in sections:
            prose[name] = _mend_prose(name, sections[name], repairs, problems)
    return Annotation(prose, fields, strict and not missing, tuple(repairs), tuple(problems))


def compose(prose: Mapping[str, str], fields: Mapping[str, str], sections: Sequence[str] = SECTIONS) -> str:
    """Write the canonical answer: headings, prose, the parameters as JSON in the order of the schema.

    Example:
        >>> print(compose({}, {"weather": "rain"}, ["parameters"]))
        {"weather": "rain"}
    """
    ordered = {name: fields[name] for name in FIELDS if name in fields}
    if tuple(sections) == ("parameters",):
        return json.dumps(ordered)
    parts = []
    for name in sections:
        body = f"```json\n{json.dumps(ordered, indent=2)}\n```" if name == "parameters" else prose.get(name, "")
        if body:
            parts.append(f"**{TITLES[name]}:**\n{body}")
    return "\n\n".join(parts)


def _split(text: str) -> dict[str, str]:
    marks = list(_HEADING.finditer(text))
    found: dict[str, str] = {}
    for number, mark in enumerate(marks):
        end = marks[number + 1].start() if number + 1 < len(marks) else len(text)
        found.setdefault(_NAMES[mark.group(1).lower()], text[mark.end() : end].strip())
    return found


def _json_block(text: str, repairs: list[str], problems: list[str]) -> tuple[dict[str, Any] | None, bool]:
    start = text.find("{")
    if start < 0:
        problems.append("no JSON object")
        return None, False
    block, closed = _balanced(text[start:])
    if not closed:
        problems.append("the JSON is cut off")
        return None, False
    raw, twice = _loads(block)
    if raw is not None:
        if twice:
            problems.append(f"key written twice: {', '.join(twice)}")
        return raw, not twice
    mended = re.sub(r",(\s*[}\]])", r"\1", block)
    if mended != block:
        repairs.append("trailing comma")
    for pattern in (_BARE, _WORD):
        mended = pattern.sub(lambda m: _quoted(m, repairs), mended)
    literal = re.sub(r":(\s*)(True|False|None)\b", lambda m: f":{m.group(1)}{_LITERALS[m.group(2)]}", mended)
    if literal != mended:
        repairs.append("Python literal")
    if '"' not in literal and "'" in literal:
        literal = literal.replace("'", '"')
        repairs.append("single quotes")
    raw, twice = _loads(literal)
    if raw is None:
        problems.append(f"not JSON: {_error(literal)}")
    elif twice:
        problems.append(f"key written twice: {', '.join(twice)}")
    return raw, False


_LITERALS = {"True": "true", "False": "false", "None": "null"}


def _quoted(match: re.Match[str], repairs: list[str]) -> str:
    """Put quotes around a bare value."""
    before, value, after = match.groups()
    if value in _LITERALS:
        return match.group(0)
    repairs.append(f"unquoted {value.strip()}")
    return f'{before}"{value.strip()}"{after}'


def _loads(text: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Parse a JSON object; also name keys that it writes twice, of which the first counts."""
    twice: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in items:
            if key in out:
                twice.append(key)
            out.setdefault(key, value)
        return out

    try:
        raw = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return None, []
    return (raw, twice) if isinstance(raw, dict) else (None, [])


def _error(text: str) -> str:
    try:
        json.loads(text)
    except ValueError as error:
        return str(error)
    except RecursionError:
        return "nested too deeply"
    return "not an object"


def _balanced(text: str) -> tuple[str, bool]:
    """Return the object that a text begins with, and whether it is closed."""
    depth, quoted, skip = 0, False, False
    for place, char in enumerate(text):
        if skip:
            skip = False
        elif char == "\\":
            skip = quoted
        elif char == '"':
            quoted = not quoted
        elif not quoted and char in "{}":
            depth += 1 if char == "{" else -1
            if depth == 0:
                return text[: place + 1], True
    return text, False


def _mend_prose(name: str, text: str, repairs: list[str], problems: list[str]) -> str:
    text = text.strip().removesuffix("```").strip()
    said = _FORBIDDEN.search(text)
    if said:
        problems.append(f"{name} mentions {said.group(1).lower()!r}")
    if text and not re.search(r"[.!?:)\]\"*`]$", text):
        whole = re.match(r"(?s)(.*[.!?])(?:\s|$)", text)
        problems.append(f"{name} is cut off")
        repairs.append(f"{name}: unfinished last sentence dropped")
        text = whole.group(1) if whole else ""
    return text
