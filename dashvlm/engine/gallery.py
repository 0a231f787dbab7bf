"""Samples of a run to look at: frames, prompt, answer, and how right it is."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from dashvlm.config.identity import FETCHED
from dashvlm.data.frames import FrameStore
from dashvlm.data.guard import Limits
from dashvlm.data.pictures import lies_in
from dashvlm.errors import DataError
from dashvlm.safety.files import read_json, read_table, read_yaml
from dashvlm.tasks.check import check
from dashvlm.tasks.evaluation import Evaluation, evaluation_of

SAMPLES = 24
"""Samples of a run that are shown: the worst and the best, half each."""
MOST = 8
"""Frames of a sample that are shown."""


def gallery(run: Path, cache: Path) -> list[dict[str, Any]]:
    """The worst and the best samples of a run, with frames (a JPEG in base 64), prompt and answer."""
    config = read_yaml(run / "config.yaml")
    wrong = check({**config, "study": None})  # a study may not be here
    if wrong:
        raise DataError(f"config.yaml: {wrong[0]}")
    kind = evaluation_of(read_json(run / "result.json"))
    rows = read_table(run / "predictions.parquet", ("primary", "target", "path", "clip_id", "frame_times_s"))
    rows = rows[rows["primary"] & rows["target"].notna()]
    rows = rows.assign(_right=kind.right(rows), _nearness=(kind.nearness or kind.right)(rows))
    order = rows.sort_values("_nearness", kind="stable")
    picked = order if len(order) <= SAMPLES else pd.concat([order.head(SAMPLES // 2), order.tail(SAMPLES // 2)])
    data = config["data"]
    size = data["frame_size"]
    store = FrameStore(cache / "frames", data["reader"], tuple(size) if size else None, float("inf"), Limits())
    picked = picked.assign(path=[_allowed(p, run, data["root"], cache) for p in picked["path"]])
    blank = data["pixels"] == "off"
    return [_sample(run.name, row, kind, store, blank) for _, row in picked.iterrows()]


def _allowed(path: Any, run: Path, root: Any, cache: Path) -> str | None:
    """A sample's file if a report may open it; a run folder may come from somebody else.

    It must lie in the run's data root or in the cache, and neither may be so wide as to hold this user's other files.
    """
    if not isinstance(path, str) or (run / FETCHED).is_file():
        return None
    try:
        wide = [Path.home().resolve(), Path("/etc"), Path(__file__).resolve()]
        places = [p for p in (Path(str(root)), cache) if not any(w.is_relative_to(p.resolve()) for w in wide)]
        return path if any(lies_in(place, Path(path)) for place in places) else None
    except (OSError, ValueError, RuntimeError):
        return None


def _sample(run: str, row: Any, kind: Evaluation, store: FrameStore, blank: bool) -> dict[str, Any]:
    try:
        frames, times = store.frames(Path(row["path"]), row["frame_times_s"])
        pick = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), MOST)).round().astype(int))
        strip, ages = _strip(frames[pick]), [f"{times[i]:.2f} s" for i in pick]
        if len(pick) < len(frames):
            ages.append(f"{len(pick)} of {len(frames)} frames")
        if blank:
            ages.append("pixels off: the model saw grey instead")
    except (DataError, TypeError, OSError):
        strip, ages = "", []
    shown = kind.shown(row, row["_right"])
    return {
        "run": run, "clip": row["clip_id"], "kind": kind.verdict(row, row["_right"]), "strip": strip, "times": ages,
        "target": str(row["target"]), "answer": str(row.get("answer")),
        "score": "–" if pd.isna(shown) else f"{shown:.3f}",
        "text": str(row.get("text") or "–"), "prompt": str(row.get("prompt") or "–"),
    }  # fmt: skip


def _strip(frames: Any, height: int = 72) -> str:
    """Frames side by side as a JPEG."""
    tall, wide = frames.shape[1:3]
    width = max(int(wide * height / tall), 1)
    strip = Image.new("RGB", ((width + 2) * len(frames), height), "white")
    for place, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame).resize((width, height)), (place * (width + 2), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
