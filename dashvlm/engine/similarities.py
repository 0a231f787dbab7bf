"""CLIP similarities of a dataset's pictures and captions, for the filter of training rows."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dashvlm.data.formats.bvpi import rows
from dashvlm.errors import DataError
from dashvlm.metrics.clip import CHECKPOINT, clip_scores


def write_similarities(data: Mapping[str, Any], target: Path, checkpoint: str = CHECKPOINT) -> str:
    """Write ``image,score``, the cosine of each picture and its caption: what ``data.options.clip_scores`` takes.

    Args:
        data: the ``data`` group, of ``data=bvpi``.
        target: the CSV.
        checkpoint: hub id or folder of a CLIP model.

    Returns:
        What was written, in words.

    Raises:
        DataError: for other data, or if no picture is there.
    """
    options, root = data["options"], Path(data["root"])
    if data["name"] != "bvpi":
        raise DataError("clip_scores_to is for pictures with captions", got=f"data={data['name']}", do="data=bvpi")
    found = rows(root, {**options, "clip_scores": None, "consistent_only": False})
    pairs = [(str(r["video"]), str(c)) for r in found if (c := (r.get("extra") or {}).get("caption"))]
    there = [(name, text) for name, text in pairs if (root / name).is_file()]
    if not there:
        raise DataError(f"none of {len(pairs)} pictures with captions is in {root}", do="see data.options.images")
    target.parent.mkdir(parents=True, exist_ok=True)
    scores = clip_scores([root / name for name, _ in there], [text for _, text in there], checkpoint)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "score"))
        writer.writerows((Path(name).name, f"{s / 100:.6f}") for (name, _), s in zip(there, scores, strict=True))
    limit = float(options["min_clip_score"])
    return (
        f"{len(there)} pictures, {len(pairs) - len(there)} missing; {sum(s / 100 >= limit for s in scores)} reach "
        f"{limit:g}\nwritten: {target}; data.options.clip_scores takes it, as a path below data.root"
    )
