"""Tables of runs for the terminal, Markdown and CSV: one value with its interval a cell."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from dashvlm.metrics.intervals import with_interval
from dashvlm.safety.plaintext import latex, markdown, visible
from dashvlm.tasks.evaluation import DetailTable, Evaluation, evaluation_of, evaluations

COSTS = {"seconds": "seconds", "gpu_hours": "GPU-hours", "peak_memory_gb": "peak GB", "trainable": "trainable",
         "latency": "s/sample"}  # fmt: skip
"""Columns of :func:`dashvlm.report.collect.collect` that say what a run cost -> their titles."""
BASELINES = {
    "majority": "majority", "always_a": "always A", "random": "random", "prior_random": "prior random",
    "text_only": "text only", "usual": "usual text", "pixels_off": "pixels off", "before": "before training",
    "longer": "longer text", "constant": "constant", "time_prior": "time alone", "position_prior": "place in clip",
}  # fmt: skip
"""Prefix of a baseline's name -> header of its column."""

WRAPPED = ("status", "reason", "repaired", "problems", "words", "what", "verdict", "metric")
"""Columns whose long texts may take several lines."""

DROPPED_FIRST = (
    "seconds", "peak GB", "GPU-hours", "trainable", "s/sample",
    "METEOR", "BLEU-4", "mAP", "present", "as written", "parsed", "feasible", "AP", "random", "risk F1",
    "majority F1", "relation", "road",
)  # fmt: skip


def kinds_of(table: pd.DataFrame) -> list[Evaluation]:
    """The evaluations that the runs of a table were measured with."""
    there = set(table["evaluation"].dropna()) if "evaluation" in table else set()
    return [kind for name, kind in evaluations().items() if name in there]


def cell(row: Any, name: str) -> str:
    """Format one value with its interval."""
    value = row.get(name)
    if value is None or pd.isna(value):
        return "–"
    low, high = row.get(f"{name}.low"), row.get(f"{name}.high")
    if low is None or pd.isna(low) or low == high:
        return f"{value:.3f}"
    return f"{value:.3f} [{low:.2f},{high:.2f}]"


def cost(value: Any) -> str:
    """Format what something cost."""
    if value is None or pd.isna(value):
        return "–"
    return f"{value:,.0f}" if float(value) >= 100 else f"{value:.3g}"


def paid(table: pd.DataFrame, titles: Collection[str]) -> list[str]:
    """Columns of costs that are known and not among the metrics."""
    return [c for c, title in COSTS.items() if c in table and table[c].notna().any() and title not in titles]


def sweep_rows(table: pd.DataFrame, axes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of a sweep's table."""
    titles = {m: title for kind in kinds_of(table) for m, title in kind.columns.items()}
    shown = [m for m in titles if m in table and table[m].notna().any()]
    costs = paid(table, titles.values())
    names = [a.removesuffix(".name").rsplit(".", 1)[-1] for a in axes]
    header = [
        *names,
        "run",
        *[titles[m] for m in shown],
        *[COSTS[c] for c in costs],
        "feasible",
        "status",
    ]
    body = []
    for _, row in table.iterrows():
        status = str(row["status"])
        if row.get("message"):
            status += f": {row['message'][:60]}"
        body.append(
            ["–" if pd.isna(row.get(a)) else str(row.get(a)) for a in axes]
            + [str(row["run_id"])]
            + [cell(row, m) for m in shown]
            + [cost(row.get(c)) for c in costs]
            + [str(row.get("feasible") or "–"), status]
        )
    return header, body


def to_markdown(header: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Format a Markdown table with notes below."""
    lines = ["| " + " | ".join(map(markdown, header)) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(map(markdown, row)) + " |" for row in body]
    return "\n".join([*lines, "", *(f"- {markdown(n)}" for n in notes)]).rstrip() + "\n"


def to_latex(title: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Format a LaTeX table (booktabs)."""
    lines = [" & ".join(map(latex, row)) + r" \\" for row in body]
    head = " & ".join(map(latex, header)) + r" \\"
    return "\n".join(
        [r"\begin{table}", r"\centering", rf"\caption{{{latex(title)}}}",
         rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
         r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    )  # fmt: skip


def print_table(title: str, header: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print a table to the terminal.

    Where it is narrow, the least needed columns are left out by name; then the table is laid on its side if that
    fits, or its cells take several lines. No number is cut off.
    """
    title, notes = visible(title), [visible(note) for note in notes]
    header, body = [visible(h) for h in header], [[visible(c, lines=True) for c in row] for row in body]
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(width=190, markup=False, emoji=False)  # a file or a pipe has no width of its own
    left_out = []
    for name in DROPPED_FIRST:
        if name in header and _width(header, body) > console.width:
            place = list(header).index(name)
            header, body = _without(header, place), [_without(row, place) for row in body]
            left_out.append(name)
    fits = _width(header, body) <= console.width
    side = [list(cells) for cells in zip(header, *body, strict=True)]
    if not fits and len(body) < len(header) and _width(side[0], side[1:]) <= console.width:
        header, body, fits = side[0], side[1:], True
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold", no_wrap=fits and name not in WRAPPED)
    for row in body:
        table.add_row(*row)
    console.print(table)
    if left_out:
        console.print(f"  left out for want of width: {', '.join(left_out)}", style="dim", highlight=False)
    for note in notes:
        console.print(f"  ! {note}", style="yellow", highlight=False)


def _width(header: Sequence[str], body: Sequence[Sequence[str]]) -> int:
    """Characters that a table needs; columns of long texts need few."""
    return 1 + sum(
        3 + (min(40, longest) if header[i] in WRAPPED else longest)
        for i, longest in enumerate(max(len(r[i]) for r in [header, *body]) for i in range(len(header)))
    )


def _without(row: Sequence[str], place: int) -> list[str]:
    return [cell for i, cell in enumerate(row) if i != place]


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print mappings as a table, if there are any."""

    def text(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)

    if rows:
        print_table(title, list(rows[0]), [[text(v) for v in row.values()] for row in rows])


def notes_of(table: pd.DataFrame) -> list[str]:
    """Collect the alarms of all runs, each with the runs it belongs to."""
    by_alarm: dict[str, list[str]] = {}
    for _, row in table.iterrows():
        for alarm in filter(None, str(row.get("alarms") or "").split(" | ")):
            by_alarm.setdefault(alarm, []).append(str(row["run_id"]))
    return [
        f"{alarm} ({', '.join(runs) if len(runs) < 3 else f'{len(runs)} runs'})" for alarm, runs in by_alarm.items()
    ]


def result_table(result: dict[str, Any], stream: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of one run's numbers with the baselines beside them.

    Args:
        result: ``result.json``.
        stream: those over whole clips, which have a table of their own.
    """
    base, over_time = result["baselines"], set(map(str, (result.get("stream") or {}).get("metrics") or ()))
    wanted = {name: value for name, value in result["metrics"].items() if (name in over_time) == stream}
    beside = [p for p in BASELINES if any(f"{p}_{m}" in base for m in wanted)]
    body = [
        [name, with_interval(value), *[with_interval(base.get(f"{p}_{name}")) for p in beside]]
        for name, value in wanted.items()
        if value["value"] is not None and not pd.isna(value["value"])
    ]
    return ["metric", "value [95 %]", *(BASELINES[p] for p in beside)], body


def result_title(name: str, result: dict[str, Any]) -> str:
    """Say what a table of one run is about."""
    counts = result["counts"]
    unknown = counts.get("unlabelled_rows", 0)
    rest = f"; {unknown} of {counts['rows']} rows have no known answer" if unknown else ""
    split = "" if result["split"] == "all" else f"{result['split']} "
    return f"{name}: {counts['test_clips']} {split}clips in {counts['groups']} groups{rest}"


def detail_tables(result: dict[str, Any]) -> Sequence[DetailTable]:
    """Return what a kind of task adds: a confusion of letters, one row per parameter."""
    found = list(evaluation_of(result).details(result))
    if result.get("stream"):
        whole = result["stream"]
        seen = f"{whole['events']} events, {whole['hours']:.2f} h without one"
        title = f"over whole clips: {seen} (@2: at 2 false alarms an hour)"
        found.append((title, *result_table(result, stream=True)))
    return found
