"""Files of predictions that others published, brought to one form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dashvlm.data.formats.bvpi_build import SPLITS, csv_files, joined
from dashvlm.errors import ConfigError, DataError
from dashvlm.metrics.captions import clean, rule_for

TEXT_KEYS = ("prediction", "response", "text", "output", "generated_text")
TARGET_KEYS = ("target", "reference", "caption", "ground_truth")
IMAGE_KEYS = ("image", "image_path", "image_id")


@dataclass(frozen=True)
class Predictions:
    """A published file of predictions, cleaned.

    Attributes:
        path: the file.
        row: row of the published table that it belongs to, or None.
        images: pictures' names.
        texts: cleaned predictions, in the same order.
        targets: references, where the file has them.
        split: of the pictures, ``mixed`` or ``unknown``.
        notes: what was done to the file.
    """

    path: Path
    row: str | None
    images: list[str]
    texts: list[str]
    targets: list[str | None]
    split: str
    notes: list[str]


def read_predictions(path: Path, options: Mapping[str, Any]) -> Predictions:
    """Read a JSON list or JSON lines of predictions and bring it to one form."""
    items = _items(path)
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
    if rule not in ("auto", "none", "chat", "openflamingo"):
        raise ConfigError(f"clean={rule} is no cleaning rule", do="use one of auto, none, chat, openflamingo")
    rule = rule_for(list(raw.values())) if rule == "auto" else rule
    texts = {name: clean(t, rule) for name, t in raw.items()}  # type: ignore[arg-type]
    changed = sum(texts[n] != raw[n] for n in raw)
    notes.append(f"text from {key!r}, cleaning rule {rule!r} changed {changed} of {len(raw)} rows")
    ours = path.suffix == ".parquet"
    split, images = ("run's own", list(seen)) if ours else _split_of(path, seen, image, options, notes)
    named = str(options.get("row") or "auto")
    row = {"auto": None if ours else _row_of(path), "none": None}.get(named, named)
    return Predictions(
        path, row, images, [texts.get(i, "") for i in images],
        [str(seen[i][target]) if target and i in seen and seen[i].get(target) is not None else None for i in images],
        split, notes,
    )  # fmt: skip


def _items(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist", do="name a .json, .jsonl or .parquet file with predictions=FILE")
    if path.suffix == ".parquet":  # of a run of ours
        rows = pd.read_parquet(path, columns=["clip_id", "text", "reference"])
        found = rows.rename(columns={"clip_id": "image"}).to_dict("records")
        return [{str(k): v for k, v in row.items()} for row in found]
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    try:
        lines = [line for line in text.split("\n") if line.strip()]
        found = [json.loads(x) for x in lines] if path.suffix == ".jsonl" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON", got=str(error), do="name a .json list or .jsonl file") from error
    items = [i for i in found if isinstance(i, dict)] if isinstance(found, list) else []
    if not items:
        raise DataError(f"{path} has no rows", do="a list of objects, or an object a line")
    return items


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


def _row_of(path: Path) -> str | None:
    """Which published row a file belongs to, by its name and the two folders above it."""
    words = "/".join([*(p.name for p in list(path.resolve().parents)[:2]), path.name]).lower()
    model = "openflamingo" if "flam" in words else "smolvlm2" if "smol" in words else None
    return f"{model}_base" if model and "base" in path.name.lower() else model
