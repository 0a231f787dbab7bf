"""Files of predictions that others published, brought to one form."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dashvlm.data.formats.bvpi_build import SPLITS, csv_files, joined
from dashvlm.errors import ConfigError, DataError
from dashvlm.metrics.captions import RULES, clean, rule_for
from dashvlm.metrics.intervals import Estimate
from dashvlm.reproductions.studies import Result, result_line
from dashvlm.tables.records import read_records

TEXT_KEYS = ("prediction", "response", "text", "output", "generated_text")
TARGET_KEYS = ("target", "reference", "caption", "ground_truth")
IMAGE_KEYS = ("image", "image_path", "image_id")


@dataclass(frozen=True)
class Recomputed:
    """A published row, computed again.

    Attributes:
        row: of the published table; empty if the file is of none.
        source: file of predictions, or what the numbers follow from.
        n: samples.
        published: column -> value, by the definition of the published table.
        split: of the samples, as far as it is known.
        corrected: column -> value and interval, by the definition that measures what the column says.
        constant: column -> what one answer for every sample gives.
        counts: form -> column -> samples, where a number rests on fewer than ``n``.
        notes: what to know, counted in the file.
        details: tables (title, header, rows) for who looks closer.
        digest: of the file's rows, whatever their order and layout.
    """

    row: str
    source: str
    n: int
    published: Mapping[str, float]
    split: str = ""
    corrected: Mapping[str, Estimate] = field(default_factory=dict)
    constant: Mapping[str, Estimate] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: Sequence[Table] = ()
    digest: str = ""

    def results(self) -> list[Result]:
        """Lines of ``results.csv``; what is not defined is left out and counts as not computed."""
        plain = {m: Estimate(v, math.nan, math.nan) for m, v in self.published.items()}
        forms = {"recomputed": plain, "corrected": self.corrected, "constant": self.constant}
        return [
            result_line(form, self.row, m, vars(e), self.counts.get(form, {}).get(m, self.n), self.source, "")
            for form, values in forms.items()
            for m, e in values.items()
            if math.isfinite(e.value)
        ]  # fmt: skip


Table = tuple[str, list[str], list[list[str]]]


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
