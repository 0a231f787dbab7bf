"""Files of predictions that others published, brought to one form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dashvlm.data.formats.bvpi_build import SPLITS, csv_files, joined
from dashvlm.errors import ConfigError, DataError
from dashvlm.metrics.captions import RULES, clean, rule_for
from dashvlm.predictions.records import read_records

TEXT_KEYS = ("prediction", "response", "text", "output", "generated_text")
TARGET_KEYS = ("target", "reference", "caption", "ground_truth")
IMAGE_KEYS = ("image", "image_path", "image_id")


@dataclass(frozen=True)
class Predictions:
    """A published file of predictions, cleaned.

    Attributes:
        path: the file.
        images: pictures' names.
        texts: cleaned predictions, in the same order.
        targets: references, where the file has them.
        split: of the pictures, ``mixed`` or ``unknown``.
        notes: what was done to the file.
        digest: of its pictures and texts, see :func:`digest_of`.
    """

    path: Path
    images: list[str]
    texts: list[str]
    targets: list[str | None]
    split: str
    notes: list[str]
    digest: str


def read_predictions(path: Path, options: Mapping[str, Any]) -> Predictions:
    """Read a JSON list or JSON lines of predictions and bring it to one form."""
    items = read_records(path).rows
    key = options.get("text_key") or next((k for k in TEXT_KEYS if any(k in i for i in items)), None)
    image = next((k for k in IMAGE_KEYS if any(k in i for i in items)), None)
    if key is None or image is None or not any(key in i for i in items):
        raise DataError(
            f"{path}: rows need a text and a picture", got=f"keys {', '.join(sorted({k for i in items for k in i}))}",
            do="name the text with text_key=KEY",
        )  # fmt: skip
    target = next((k for k in TARGET_KEYS if k != key and any(k in i for i in items)), None)
    notes: list[str] = []
    seen: dict[str, dict[str, Any]] = {}
    for item in items:
        seen.setdefault(Path(str(item.get(image))).name, item)
    if len(seen) < len(items):
        notes.append(f"{len(items) - len(seen)} pictures occur twice; the first row counts")
    raw = {name: str(item.get(key) or "") for name, item in seen.items()}
    rule = str(options.get("clean") or "auto")
    if rule not in ("auto", *RULES):
        raise ConfigError(f"clean={rule} is no cleaning rule", do=f"use auto or one of {', '.join(RULES)}")
    rule = rule_for(list(raw.values())) if rule == "auto" else rule
    texts = {name: clean(t, rule) for name, t in raw.items()}
    changed = sum(texts[n] != raw[n] for n in raw)
    notes.append(f"text from {key!r}, cleaning rule {rule!r} changed {changed} of {len(raw)} rows")
    split, images = _split_of(path, seen, image, options, notes)
    return Predictions(
        path, images, [texts.get(i, "") for i in images],
        [str(seen[i][target]) if target and i in seen and seen[i].get(target) is not None else None for i in images],
        split, notes, digest_of(raw),
    )  # fmt: skip


def digest_of(texts: Mapping[str, str]) -> str:
    r"""Hash names and texts as a file was published: by its rows, whatever their order, indents and line ends.

    Example:
        >>> digest_of({"a": "x  y", "b": "z"}) == digest_of({"b": "z ", "a": "x\ny"})
        True
    """
    rows = sorted(f"{name}\x1f{' '.join(text.split())}" for name, text in texts.items())
    return hashlib.sha256("\x1e".join(rows).encode()).hexdigest()[:16]


def _split_of(
    path: Path, seen: Mapping[str, Mapping[str, Any]], image: str, options: Mapping[str, Any], notes: list[str]
) -> tuple[str, list[str]]:
    """The split of the pictures, and all pictures of it: one without a prediction counts as an empty text."""
    captions, _ = find_csvs(path, options)
    if captions is None:
        names = {SPLITS.get(str(i.get(image)).split("/")[0], "unknown") for i in seen.values()}
        return (names.pop() if len(names) == 1 else "mixed"), list(seen)
    by_name = {Path(item["image"]).name: item["split"] for item in joined(captions, None)}
    splits = {by_name.get(n, "unknown") for n in seen}
    split = splits.pop() if len(splits) == 1 else "mixed"
    lacking = [n for n, s in by_name.items() if s == split and n not in seen]
    if lacking:
        notes.append(f"{len(lacking)} pictures of the {split} split have no prediction and count as empty texts")
    return split, [*seen, *lacking]


def find_csvs(path: Path, options: Mapping[str, Any]) -> tuple[Path | None, Path | None]:
    """Captions and annotation CSV: as named, or in the predictions' folder or one of the three above it."""
    found: list[Path | None] = [None, None]
    for folder in list(path.resolve().parents)[:3]:
        try:
            captions, annotations = csv_files(folder)
        except DataError:
            continue
        found = [captions, annotations]
        break
    for place, key in enumerate(("captions", "annotations")):
        if options.get(key):
            found[place] = Path(str(options[key]))
            if not found[place].is_file():  # type: ignore[union-attr]
                raise DataError(f"{key}={options[key]} does not exist", do="name a CSV file")
    return found[0], found[1]
