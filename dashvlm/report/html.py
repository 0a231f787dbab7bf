"""One HTML file that needs nothing else: sortable table, overlays, filmstrips with prompt and answer."""

from __future__ import annotations

import base64
import contextlib
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import pandas as pd

mpl.use("Agg")
import matplotlib.pyplot as plt

from dashvlm.engine.gallery import gallery
from dashvlm.errors import DataError
from dashvlm.figures import STYLE
from dashvlm.report.collect import axes_of, label_of, ordered, read_result
from dashvlm.report.tables import COSTS, cell, cost, kinds_of, paid
from dashvlm.safety.files import read_table
from dashvlm.tasks.evaluation import Evaluation

MAX_PICTURE_BYTES = 20 << 20
NEEDED = ("primary", "target")


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
        labels = run_labels(shown, axes)
        runs = [by_name[name] for name in labels if name in by_name]
        shown_of, damaged = _galleries(runs, cache)
        kind = next(iter(kinds_of(shown)), None)
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


def _header(shown: pd.DataFrame, axes: Sequence[str], kind: Evaluation | None) -> list[str]:
    names = [a.removesuffix(".name").rsplit(".", 1)[-1] for a in axes]
    columns = kind.columns if kind else {}
    metrics = [title for m, title in columns.items() if m in shown]
    costs = [COSTS[c] for c in paid(shown, columns.values())]
    return ["run", *names, *metrics, *costs, "status"]


def _rows(shown: pd.DataFrame, axes: Sequence[str], kind: Evaluation | None) -> list[list[dict[str, Any]]]:
    """Cells with their text and the value that they sort by."""
    rows, columns = [], kind.columns if kind else {}
    for _, row in shown.iterrows():
        cells = [{"text": str(row["run_id"]), "key": str(row["run_id"])}]
        cells += [{"text": str(row.get(a)), "key": _key(row.get(a))} for a in axes]
        cells += [{"text": cell(row, m), "key": _key(row.get(m))} for m in columns if m in shown]
        cells += [{"text": cost(row.get(c)), "key": _key(row.get(c))} for c in paid(shown, columns.values())]
        rows.append([*cells, {"text": str(row["status"]), "key": str(row["status"])}])
    return rows


def run_labels(shown: pd.DataFrame, axes: Sequence[str]) -> dict[str, str]:
    """Run -> what distinguishes it; where that does not, with the end of its name."""
    labels = {str(row["run_id"]): label_of(row, axes) for _, row in shown.iterrows()}
    often = Counter(labels.values())
    return {run: f"{label} ({run[-8:]})" if often[label] > 1 else label for run, label in labels.items()}


def _key(value: Any) -> Any:
    number = pd.to_numeric(value, errors="coerce")
    return str(value) if pd.isna(number) else float(number)


def _pictures(
    sweep: Path, runs: Sequence[Path], kind: Evaluation | None, labels: Mapping[str, str]
) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if _is_picture(sweep):
        made.append({"title": "the sweep", "data": base64.b64encode(sweep.read_bytes()).decode(), "folded": False})
    if kind is not None and kind.overlay is not None and runs:
        made.append({"title": "all runs", "data": _overlay(kind.overlay, runs, labels), "folded": False})
    streams = stream_figure(runs, kind, labels)
    if streams is not None:
        made.append({"title": "over whole clips", "data": _as_png(streams), "folded": False})
    for run in runs:
        curves = run / "plots" / "curves.png"
        if len(runs) <= 6 and _is_picture(curves):
            data = base64.b64encode(curves.read_bytes()).decode()
            made.append({"title": labels[run.name], "data": data, "folded": True})
    return made


def stream_figure(runs: Sequence[Path], kind: Evaluation | None, labels: Mapping[str, str]) -> Any:
    """A figure of the runs that were scored over whole clips; None without any."""
    results = {labels[run.name]: read_result(run) for run in runs if run.name in labels}
    scored = {label: result for label, result in results.items() if (result.get("stream") or {}).get("curve")}
    if kind is None or kind.stream_overlay is None or not scored:
        return None
    with mpl.rc_context(STYLE), contextlib.suppress(TypeError, LookupError, AttributeError, ValueError):
        return kind.stream_overlay(scored)  # a curve of somebody else's may be anything; the table has its numbers
    return None


def _is_picture(path: Path) -> bool:
    """Whether a PNG lies here, and no link to another file: what is read goes into the page."""
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def _overlay(draw: Callable[[Mapping[str, pd.DataFrame]], Any], runs: Sequence[Path], labels: Mapping[str, str]) -> str:
    """A figure of all runs as a PNG in base 64; a damaged run is not in it, and the table says so."""
    tables = {}
    for run in runs:
        with contextlib.suppress(DataError):
            tables[labels[run.name]] = read_table(run / "predictions.parquet", NEEDED)
    with mpl.rc_context(STYLE):
        return _as_png(draw(tables))


def _as_png(figure: Any) -> str:
    """A figure as a PNG in base 64."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
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
