"""One HTML file that needs nothing else: sortable table, overlays, filmstrips with prompt and answer."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
from PIL import Image

mpl.use("Agg")
import matplotlib.pyplot as plt

from dashvlm.config.identity import FETCHED
from dashvlm.config.rules import check
from dashvlm.data.frames import FrameStore
from dashvlm.data.guard import Limits
from dashvlm.data.pictures import lies_in
from dashvlm.errors import DataError
from dashvlm.metrics import functional as F
from dashvlm.metrics.compare import row_scores
from dashvlm.report.collect import axes_of, label_of, ordered, read_result
from dashvlm.report.plots import STYLE
from dashvlm.report.tables import COSTS, SHOWN, cell, cost, paid
from dashvlm.safety.files import read_table, read_yaml

SAMPLES = 24
"""Samples of a run that the gallery shows: the worst and the best, half each."""
MAX_PICTURE_BYTES = 20 << 20
NEEDED = ("primary", "target", "score")
MOST = 8
"""Frames of a sample that it shows."""


def sweep_picture(task: Any) -> str:
    """File name of a task's sweep plot; a configuration may come from elsewhere."""
    return f"report-{re.sub(r'[^A-Za-z0-9_-]', '_', str(task))}.png"


def write_html(
    folders: Sequence[Path], table: pd.DataFrame, path: Path, cache: Path, notes: Mapping[str, Sequence[str]]
) -> Path:
    """Write the report of some runs.

    Args:
        folders: run folders.
        table: from :func:`dashvlm.report.collect.collect`.
        path: the file.
        cache: where decoded frames are kept.
        notes: task -> what to know about its runs.
    """
    done = [f for f in folders if (f / "predictions.parquet").is_file() and (f / "result.json").is_file()]
    sections = []
    for task, mine in table.groupby("task.name", dropna=False, sort=True):
        shown = mine.dropna(axis=1, how="all")
        axes = axes_of(shown)[:4]
        shown = ordered(shown, axes)
        by_name = {f.name: f for f in done}
        labels = _labels(shown, axes)
        runs = [by_name[name] for name in labels if name in by_name]
        shown_of, damaged = _galleries(runs, cache)
        kind = next(iter(shown["evaluation"].dropna()), "binary") if "evaluation" in shown else "binary"
        sections.append(
            {
                "task": str(task), "rows": _rows(shown, axes, kind), "header": _header(shown, axes, kind),
                "pictures": _pictures(path.parent / sweep_picture(task), runs, kind, labels),
                "samples": [s | {"label": labels[run.name]} for run, found in shown_of.items() for s in found],
                "runs": [(r.name, labels[r.name]) for r in runs], "notes": [*notes.get(str(task), ()), *damaged],
            }
        )  # fmt: skip
    source = (Path(__file__).parent / "templates" / "report.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    path.write_text(page.render(sections=sections, folder=str(path.parent)), encoding="utf-8")
    return path


def _header(shown: pd.DataFrame, axes: Sequence[str], kind: str) -> list[str]:
    names = [a.removesuffix(".name").rsplit(".", 1)[-1] for a in axes]
    metrics = [title for m, title in SHOWN[kind].items() if m in shown]
    costs = [COSTS[c] for c in paid(shown, SHOWN[kind].values())]
    return ["run", *names, *metrics, *costs, "status"]


def _rows(shown: pd.DataFrame, axes: Sequence[str], kind: str) -> list[list[dict[str, Any]]]:
    """Cells with their text and the value that they sort by."""
    rows = []
    for _, row in shown.iterrows():
        cells = [{"text": str(row["run_id"]), "key": str(row["run_id"])}]
        cells += [{"text": str(row.get(a)), "key": _key(row.get(a))} for a in axes]
        cells += [{"text": cell(row, m), "key": _key(row.get(m))} for m in SHOWN[kind] if m in shown]
        cells += [{"text": cost(row.get(c)), "key": _key(row.get(c))} for c in paid(shown, SHOWN[kind].values())]
        rows.append([*cells, {"text": str(row["status"]), "key": str(row["status"])}])
    return rows


def _labels(shown: pd.DataFrame, axes: Sequence[str]) -> dict[str, str]:
    """Run -> what distinguishes it; where that does not, with the end of its name."""
    labels = {str(row["run_id"]): label_of(row, axes) for _, row in shown.iterrows()}
    often = Counter(labels.values())
    return {run: f"{label} ({run[-8:]})" if often[label] > 1 else label for run, label in labels.items()}


def _key(value: Any) -> Any:
    number = pd.to_numeric(value, errors="coerce")
    return str(value) if pd.isna(number) else float(number)


def _pictures(sweep: Path, runs: Sequence[Path], kind: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if _is_picture(sweep):
        made.append({"title": "the sweep", "data": base64.b64encode(sweep.read_bytes()).decode(), "folded": False})
    if kind == "binary" and runs:
        title = "ROC, precision and recall, reliability of all runs"
        made.append({"title": title, "data": _overlay(runs, labels), "folded": False})
    for run in runs:
        curves = run / "plots" / "curves.png"
        if len(runs) <= 6 and _is_picture(curves):
            data = base64.b64encode(curves.read_bytes()).decode()
            made.append({"title": labels[run.name], "data": data, "folded": True})
    return made


def _is_picture(path: Path) -> bool:
    """Whether a PNG lies here, and no link to another file: what is read goes into the page."""
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def _overlay(runs: Sequence[Path], labels: Mapping[str, str]) -> str:
    with mpl.rc_context(STYLE):
        figure, (roc, pr, reliability) = plt.subplots(1, 3, figsize=(11, 3.4))
        for run in runs:
            try:
                rows = read_table(run / "predictions.parquet", NEEDED)
            except DataError:
                continue  # the gallery says so
            rows = rows[rows["primary"] & rows["target"].notna() & rows["score"].notna()]
            if rows["target"].nunique() < 2:
                continue
            target, score = rows["target"].to_numpy(float), rows["score"].to_numpy(float)
            roc.plot(*F.roc_curve(target, score), lw=1.2, alpha=0.8, label=labels[run.name])
            pr.plot(*F.pr_curve(target, score), lw=1.2, drawstyle="steps-post")
            pr.axhline(target.mean(), ls=":", color="grey", lw=1)
            # As many samples a point: bins of equal width may hold one sample and jump to 0 or 1.
            parts = np.array_split(np.argsort(score, kind="stable"), min(8, max(len(score) // 10, 1)))
            said, was = [score[p].mean() for p in parts], [target[p].mean() for p in parts]
            reliability.plot(said, was, "o-", ms=3, lw=1.2)
        roc.plot([0, 1], [0, 1], ":", color="grey", lw=1)
        reliability.plot([0, 1], [0, 1], ":", color="grey", lw=1)
        roc.set(xlabel="false positive rate", ylabel="true positive rate")
        pr.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
        reliability.set(xlabel="score", ylabel="share of positives")
        if roc.get_legend_handles_labels()[0]:
            roc.legend(frameon=False, fontsize=7)
        figure.tight_layout()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _galleries(runs: Sequence[Path], cache: Path) -> tuple[dict[Path, list[dict[str, Any]]], list[str]]:
    """The samples of each run, and a note for each whose files are damaged."""
    made, damaged = {}, []
    for run in runs:
        try:
            made[run] = gallery(run, cache)
        except (DataError, LookupError, TypeError, ValueError, OverflowError) as error:
            damaged.append(f"no samples of {run.name}: {error}".split("\n")[0])
    return made, damaged


def gallery(run: Path, cache: Path) -> list[dict[str, Any]]:
    """The worst and the best samples of a run, with frames (a JPEG in base 64), prompt and answer."""
    config = read_yaml(run / "config.yaml")
    wrong = check({**config, "study": None})  # a study may not be here
    if wrong:
        raise DataError(f"config.yaml: {wrong[0]}")
    kind = read_result(run)["evaluation"]
    rows = read_table(run / "predictions.parquet", ("primary", "target", "path", "clip_id", "frame_times_s"))
    rows = rows[rows["primary"] & rows["target"].notna()]
    rows = rows.assign(_right=row_scores(rows, kind), _kind="")
    if kind == "binary":
        rows["_right"] = 1 - (rows["score"] - rows["target"].astype(float)).abs().fillna(1.0)
    order = rows.sort_values("_right", kind="stable")
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


def _sample(run: str, row: Any, kind: str, store: FrameStore, blank: bool) -> dict[str, Any]:
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
    shown = row.get("score") if kind == "binary" else row["_right"]
    return {
        "run": run, "clip": row["clip_id"], "kind": _error_kind(row, kind), "strip": strip, "times": ages,
        "target": str(row["target"]), "answer": str(row.get("answer")),
        "score": "–" if shown is None or pd.isna(shown) else f"{shown:.3f}",
        "text": str(row.get("text") or "–"), "prompt": str(row.get("prompt") or "–"),
    }  # fmt: skip


def _error_kind(row: Any, kind: str) -> str:
    if row.get("status") == "failed" or (kind == "binary" and pd.isna(row["score"])):
        return "failed"
    if kind == "binary":
        said, true = row["score"] >= F.THRESHOLD, row["target"] == 1
        return ("hit" if true else "false alarm") if said else ("missed" if true else "correct rejection")
    if row["_right"] >= 1.0:
        return "right"
    return "unparsed" if row.get("status") in ("unparsed", "refused") and kind != "choice" else "wrong"


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
