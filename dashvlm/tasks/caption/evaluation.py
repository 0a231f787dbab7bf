"""What is measured of descriptions for blind pedestrians, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dashvlm.data.frames import FrameStore
from dashvlm.metrics.functional import Array
from dashvlm.metrics.intervals import with_interval
from dashvlm.tasks.caption.metrics import evaluate_caption
from dashvlm.tasks.evaluation import DetailTable, Evaluation


def right(table: pd.DataFrame) -> Array:
    """1 where the sidewalk's position is right, the primary metric; nan for free captions, which state none."""
    found = []
    for answer, target in zip(table["answer"], table["target"], strict=True):
        said, wanted = json.loads(answer) if isinstance(answer, str) else {}, json.loads(target).get("sidewalk_pos")
        found.append(float("nan") if wanted is None else float(said.get("sidewalk_pos") == wanted))
    return np.array(found, dtype=np.float64)


def objects(result: Mapping[str, Any]) -> list[DetailTable]:
    """One row per object and scope."""
    rows = [
        [r["object"], r["scope"], str(r["there"]), f"{r['tp']} / {r['fn']} / {r['fp']}", with_interval(r["recall"]),
         with_interval(r["precision"])]
        for r in result.get("objects") or ()
    ]  # fmt: skip
    return (
        [("nearby objects", ["object", "scope", "there", "tp / fn / fp", "recall", "precision"], rows)] if rows else []
    )


def plots(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
    """See :func:`dashvlm.tasks.caption.plots.draw`."""
    from dashvlm.tasks.caption.plots import draw

    return draw(rows, results, folder, store)


CAPTION = Evaluation(
    name="caption",
    numbers=evaluate_caption,
    primary="accuracy_sidewalk_pos",
    columns={
        "accuracy_sidewalk_pos": "sidewalk", "majority_accuracy_sidewalk_pos": "majority",
        "pixels_off_accuracy_sidewalk_pos": "no pixels", "accuracy_road_pos": "road",
        "accuracy_road_vs_sidewalk": "relation", "presence_road_vs_sidewalk": "present",
        "unsafe_omission": "unsafe omission", "CIDEr": "CIDEr", "BLEU-4": "BLEU-4", "METEOR": "METEOR",
        "preference_accuracy": "preference", "before_preference_accuracy": "before",
    },
    right=right,
    details=objects,
    plots=plots,
)  # fmt: skip
