"""From BVPI's two CSVs to its SFT and DPO rows, by the published rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dashvlm.data.textfiles import csv_rows
from dashvlm.errors import DataError
from dashvlm.text.annotation_form import VEGETATION
from dashvlm.text.navigation import PROMPT, Truth, position, response, sides_of

SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test"}
NEAR = {"obstacle": "m_obstacle", "person": "m_person", "bicycle": "m_bicycle", "car": "m_car",
        "traffic_sign": "m_traffic_sign", "traffic_light": "traffic_light"}  # fmt: skip
"""Object -> its column in the annotation CSV; what is beside the way has ``_outside`` behind it."""
STATUS = "done"


def csv_files(root: Path) -> tuple[Path, Path | None]:
    """Find the captions CSV and, if it is there, the annotation CSV below a folder.

    Raises:
        DataError: if there is no captions CSV.
    """
    found = [p for p in (*sorted(root.glob("*.csv")), *sorted(root.glob("data/*.csv"))) if p.name[:2] != "._"]
    captions = [p for p in found if "caption" in p.stem.lower() and _names(p, "image_path")]
    annotations = [p for p in found if "annotation" in p.stem.lower() and _names(p, "image")]
    if not captions:
        raise DataError(
            f"data=bvpi: no captions CSV in {root}", got=", ".join(p.name for p in found) or "no CSV",
            do="put complete_captions_sensation.csv (image_path,target,split) there, name data.options.file=X.jsonl, "
            "or try data=synthetic",
        )  # fmt: skip
    return captions[0], annotations[0] if annotations else None


def _names(path: Path, column: str) -> bool:
    """Whether a CSV's header names a column; tables of reports may lie beside the data."""
    with path.open("rb") as file:
        head = file.read(20_000).replace(b"\x00", b"")  # UTF-16 too
    return column in re.split(
        r"[,;\t|\"\s]+", head.decode("latin-1").split("\n")[0].strip("\ufeff\xff\xfe\xef\xbb\xbf")
    )


def read_annotations(path: Path, encoding: str | None = None) -> tuple[dict[str, Truth], list[str]]:
    """Read the annotation CSV.

    A repeated picture counts once, the first time. A row whose status is not ``done`` is shifted or
    unfinished and is left out.

    Returns:
        Picture's file name -> truth, and what is wrong with which rows.

    Raises:
        DataError: if columns are missing.
    """
    found: dict[str, Truth] = {}
    notes: list[str] = []
    needed = ["image", "sidewalk_pos", "road_pos", *NEAR.values(), *(f"{c}_outside" for c in NEAR.values())]
    for number, line in csv_rows(path, needed, lambda c: "." in c["image"] and len(c["image"]) < 200, encoding):
        if isinstance(line, str):
            notes.append(f"line {number}: {line}, the row is shifted or unfinished")
            continue
        name = Path(line["image"]).name
        if "status" in line and line["status"].strip().lower() != STATUS:
            notes.append(f"line {number} ({name}): status is {line['status']!r}, the row is shifted or unfinished")
        elif name in found:
            notes.append(f"line {number}: {name} is annotated twice, the first counts")
        else:
            found[name] = Truth(
                sidewalk_side(line["sidewalk_pos"]),
                position(line["road_pos"]),
                {k: s for k, c in NEAR.items() if (s := sides_of(line[c]))},
                {k: s for k, c in NEAR.items() if (s := sides_of(line[f"{c}_outside"]))},
                {k: s for k in VEGETATION if (s := sides_of(line.get(f"m_{k}")))},
                {k: s for k in VEGETATION if (s := sides_of(line.get(f"m_{k}_outside")))},
            )
    return found, notes


def joined(captions: Path, annotations: Path | None, encoding: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield ``image, target, split, truth`` for each caption, joined to its annotation by file name.

    A row that is none has ``problem`` and, as ``image``, its place.

    Raises:
        DataError: if columns are missing.
    """
    truths = read_annotations(annotations, encoding)[0] if annotations else {}
    for number, line in csv_rows(
        captions, ("image_path", "target", "split"), lambda c: c["split"].strip().lower() in SPLITS, encoding
    ):
        if isinstance(line, str):
            yield {"image": f"{captions.name}:{number}", "problem": line}
            continue
        yield {
            "image": line["image_path"],
            "target": line["target"].strip(),
            "split": SPLITS.get(line["split"].strip().lower(), line["split"]),
            "truth": truths.get(Path(line["image_path"]).name),
        }


def sft_row(item: Mapping[str, Any]) -> dict[str, Any]:
    """Build the published SFT row of a caption; a picture without annotation has unknown positions."""
    truth = item["truth"] or Truth("unknown", "unknown")
    return {"image": item["image"], "prompt": PROMPT, "response": response(truth, item["target"]), **truth.fields}


def dpo_row(item: Mapping[str, Any]) -> dict[str, Any]:
    """Build the published preference row: the structured response over the bare caption, which it ends with."""
    made = sft_row(item)
    return {"image": made["image"], "prompt": PROMPT, "chosen": made["response"], "rejected": item["target"],
            **{k: made[k] for k in ("sidewalk_pos", "road_pos", "road_vs_sidewalk")}}  # fmt: skip


def write_rows(root: Path, target: Path) -> dict[str, int]:
    """Write ``bvpi_sft_<split>.jsonl`` and, for training and validation, ``bvpi_dpo_<split>.jsonl``.

    Returns:
        File name -> number of rows.
    """
    target.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[str]] = {}
    for item in joined(*csv_files(root)):
        if "problem" in item:
            continue
        made.setdefault(f"bvpi_sft_{item['split']}.jsonl", []).append(json.dumps(sft_row(item), ensure_ascii=False))
        if item["split"] != "test":
            made.setdefault(f"bvpi_dpo_{item['split']}.jsonl", []).append(json.dumps(dpo_row(item), ensure_ascii=False))
    for name, lines in made.items():
        (target / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: len(lines) for name, lines in made.items()}


def sidewalk_side(value: object) -> str:
    """The sidewalk's place; it is never in front."""
    word = position(value)
    return "unknown" if word == "front" else word
