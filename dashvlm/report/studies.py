"""Studies: published tables as data, our numbers beside them, and a table that cannot go stale unseen.

A study is a folder ``experiments/NAME``: ``study.yaml`` says what is asked and how to run it,
``published.csv`` what was published, ``results.csv`` what we found (frozen), ``table.md`` is made from these.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dashvlm.errors import ConfigError, DataError
from dashvlm.metrics.compare import over_seeds
from dashvlm.metrics.evaluate import evaluate

STUDIES = Path(__file__).resolve().parents[2] / "experiments"
FIELDS = ("form", "row", "metric", "value", "low", "high", "n", "run_id", "commit")
FORMS = {
    "recomputed": "from the published predictions, scored as published",
    "corrected": "from the published predictions, scored as they should be",
    "full": "real models on the real data",
    "smoke": "tiny random twins on the synthetic world; they show that the path works, not how good a model is",
}
AUDIT = "failed_readers"
"""Metric of a result: readers without pixels that are better than chance; ``n`` is how many there are."""
Result = dict[str, str]


@dataclass(frozen=True)
class Study:
    """A study's folder and what is in ``study.yaml``."""

    name: str
    folder: Path
    spec: Mapping[str, Any]

    @property
    def metrics(self) -> list[str]:
        """Columns of the table."""
        return [str(m) for m in self.spec["metrics"]]

    def words(self, form: str) -> list[str]:
        """The command line that runs it.

        Args:
            form: ``full`` or ``smoke``.
        """
        part = self.spec if form == "full" else self.spec["smoke"]
        seeds = part.get("seeds") or [42]
        axes = {**(part.get("axes") or {}), **({"seed": seeds} if len(seeds) > 1 else {})}
        swept = [f"{key}={','.join(_word(v) for v in values)}" for key, values in axes.items()]
        fixed = [str(w) for w in part.get("fixed") or ()]
        return [f"study={self.name}/{form}", *fixed, *(["-m", *swept] if swept else [])]


def study_names(root: Path = STUDIES) -> list[str]:
    """All studies."""
    return sorted(p.parent.name for p in root.glob("*/study.yaml"))


def load_study(name: str, root: Path = STUDIES) -> Study:
    """Read a study.

    Raises:
        ConfigError: if there is none of that name, or its file lacks something.
    """
    path = root / name / "study.yaml"
    if not path.is_file():
        raise ConfigError(f"study={name} is unknown", do=f"use one of {', '.join(study_names(root)) or 'none'}")
    spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    lacking = [k for k in ("title", "cite", "metrics", "fixed", "smoke", "why") if k not in spec]
    if lacking:
        raise ConfigError(f"{path} lacks {', '.join(lacking)}")
    return Study(name, path.parent, spec)


def read_table(study: Study, name: str) -> list[Result]:
    """Read ``published.csv`` or ``results.csv``; empty if there is none."""
    path = study.folder / f"{name}.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run_results(study: Study, output: Path) -> list[Result]:
    """Read our numbers from the runs of the study's sweeps, seeds together.

    Args:
        study: the study.
        output: ``paths.output_dir`` of its sweeps. Two studies may share a run.

    Every number is computed from ``predictions.parquet`` again and must equal the one in ``result.json``.

    Raises:
        DataError: if a folder's numbers do not follow from its predictions.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for form, folder, said in _runs_of(study, output):
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        rows = pd.read_parquet(folder / "predictions.parquet")
        again = evaluate(rows, int(config["seed"]), result["evaluation"])
        for metric, value in {**again["metrics"], **again["baselines"]}.items():
            known = (result["metrics"] | result["baselines"]).get(metric, {}).get("value")
            if not _same(value["value"], known):
                raise DataError(
                    f"{folder}/result.json does not follow from its predictions",
                    got=f"{metric} {known}, not {value['value']}", do="remove the folder and run the study again",
                )  # fmt: skip
        found.setdefault((form, _label(said, study, form)), []).append(
            {"result": result, "again": again, "folder": folder}
        )
    out: list[Result] = []
    for (form, label), runs in sorted(found.items()):
        read = runs[0]["result"].get("audit") or []
        if read:
            failed = sum(r["fails"] for r in read)
            counted = {"value": float(failed), "low": None, "high": None}
            out.append(result_line(form, label, AUDIT, counted, len(read), runs[0]["folder"].name, ""))
        for metric in study.metrics:
            values = [(r["again"]["metrics"] | r["again"]["baselines"]).get(metric) for r in runs]
            if any(v is None or v["value"] is None for v in values):
                continue
            first = values[0]
            shown = first if len(runs) == 1 else vars(over_seeds([v["value"] for v in values]))
            counts = runs[0]["result"]["counts"]
            out.append(
                result_line(
                    form, label, metric, shown, counts["test_clips"], " ".join(r["folder"].name for r in runs),
                    str(runs[0]["result"].get("commit") or ""),
                )
            )  # fmt: skip
    return out


def recomputed_results(study: Study, predictions: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Score published Nexar responses both ways.

    Returns:
        Results, and the reasons why the published numbers do not measure what they say.
    """
    from dashvlm.report.nexar import corrected_scores, published_scores, read_responses, reasons

    rows: list[Result] = []
    notes: list[str] = []
    for path in predictions:
        found = read_responses(path)
        values, count = published_scores(found), len(found.target)
        row = _row_of(study, values, path)
        plain = {m: {"value": v, "low": None, "high": None} for m, v in values.items()}
        rows += [result_line("recomputed", row, m, v, count, path.name, "") for m, v in plain.items()]
        fair = corrected_scores(found)
        rows += [result_line("corrected", row, m, vars(e), count, path.name, "") for m, e in fair.items()]
        notes += [f"{row}: {note}" for note in [*reasons(found), *found.notes]]
    return rows, notes


def _row_of(study: Study, values: Mapping[str, float], path: Path) -> str:
    """The published row that a file's numbers are those of; else the file's name."""
    by_row: dict[str, dict[str, Result]] = {}
    for line in read_table(study, "published"):
        by_row.setdefault(line["row"], {})[line["column"]] = line
    for row, lines in by_row.items():
        if all(abs(float(x["value"]) - values.get(c, math.inf)) <= float(x["tolerance"]) for c, x in lines.items()):
            return row
    return path.stem


def write_results(study: Study, results: Sequence[Result]) -> None:
    """Freeze results: those of the same forms are replaced."""
    forms = {r["form"] for r in results}
    kept = [r for r in read_table(study, "results") if r["form"] not in forms]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted([*kept, *results], key=lambda r: (list(FORMS).index(r["form"]), r["row"])))
    (study.folder / "results.csv").write_text(buffer.getvalue(), encoding="utf-8")


def stale(study: Study, results: Sequence[Result]) -> list[str]:
    """What of the frozen numbers and of ``table.md`` is not what it would be if it were made now."""
    out = []
    frozen = {(r["form"], r["row"], r["metric"]): r for r in read_table(study, "results")}
    for line in results:
        known = frozen.get((line["form"], line["row"], line["metric"]))
        if known is None:
            out.append(f"{line['row']} {line['metric']}: {line['value']} is not in results.csv")
        elif known["value"] != line["value"] or known["low"] != line["low"] or known["high"] != line["high"]:
            out.append(
                f"{line['row']} {line['metric']}: results.csv says {known['value']}, the run says {line['value']}"
            )
    path = study.folder / "table.md"
    if not path.is_file() or path.read_text(encoding="utf-8") != markdown(study):
        out.append(f"{path} is not what study.yaml, published.csv and results.csv make")
    return out


def grids(study: Study) -> list[tuple[str, list[str], list[list[str]]]]:
    """The study's tables: title, header, rows. Published numbers stand above what was found."""
    published, results = read_table(study, "published"), read_table(study, "results")
    made = []
    if published:
        columns = list(dict.fromkeys(line["column"] for line in published))
        again = {(r["form"], r["row"], r["metric"]): r for r in results}
        extra = [r["metric"] for r in results if r["form"] == "corrected"]
        columns += [c for c in dict.fromkeys(extra) if c not in columns]
        body = []
        for row in dict.fromkeys(line["row"] for line in published):
            known = {line["column"]: line for line in published if line["row"] == row}
            about = next(iter(known.values()))
            body.append([row, "published", *[_plain(known[c]["value"]) if c in known else "–" for c in columns],
                         f"{about['split']}, {about['n']}"])  # fmt: skip
            known_forms = [f for f in ("recomputed", "corrected") if any((f, row, c) in again for c in columns)]
            body += [["", f, *[_cell(again.get((f, row, c))) for c in columns], ""] for f in known_forms]
        made.append(("Published, recomputed, corrected", ["row", "", *columns, "split, n"], body))
    for form in ("full", "smoke"):
        mine = [r for r in results if r["form"] == form]
        if mine:
            rows = list(dict.fromkeys(r["row"] for r in mine))
            shown = [m for m in study.metrics if any(r["metric"] == m for r in mine)]
            rows = [row for row in rows if any(r["row"] == row and r["metric"] in shown for r in mine)]
            table = {(r["row"], r["metric"]): r for r in mine}
            count = {r["row"]: r["n"] for r in mine if r["metric"] in shown}
            body = [[row, *[_cell(table.get((row, m))) for m in shown], f"test, {count[row]}"] for row in rows]
            made.append((f"Ours, {form}: {FORMS[form]}", [_axes(study, form), *shown, "split, n"], body))
    return made


def markdown(study: Study) -> str:
    """The generated page of a study."""
    from dashvlm.report.tables import to_markdown

    spec = study.spec
    parts = [f"# {spec['title']}", f"After {spec['cite']}. Generated by `make studies`; do not edit."]
    for title, header, body in grids(study):
        parts.append(f"## {title}\n\n{to_markdown(header, body).rstrip()}")
    if not any(r["form"] == "full" for r in read_table(study, "results")):
        parts.append("Our runs on the real data are missing: they need the data and a GPU.")
    parts.append("## Shortcut audit\n\n" + _audited(read_table(study, "results")))
    parts.append("## What to know about the published numbers\n\n" + "\n".join(f"* {w}" for w in spec["why"]))
    known = spec.get("hyperparameters") or []
    if known:
        rows = [[str(h["key"]), str(h["value"]), str(h["says"])] for h in known]
        parts.append(
            "## Settings and where they come from\n\n" + to_markdown(["key", "value", "source says"], rows).rstrip()
        )
    commands = [f"python -m dashvlm.train {shlex.join(study.words(form))}" for form in ("full", "smoke")]
    parts.append("## Run it\n\n```bash\n" + "\n".join(commands) + "\n```\n\n" + str(spec.get("cost", "")))
    return "\n\n".join(parts).rstrip() + "\n"


def _audited(results: Sequence[Result]) -> str:
    """What the readers without pixels made of the data of our runs."""
    lines = []
    for form in ("full", "smoke"):
        mine = [r for r in results if r["form"] == form and r["metric"] == AUDIT]
        bad = [f"{r['row']}: {r['value']}" for r in mine if float(r["value"])]
        if mine:
            verdict = f"readers that are better than chance: {'; '.join(bad)}" if bad else "none is better than chance"
            lines.append(f"{mine[0]['n']} readers that see no pixels, on the data of our {form} form: {verdict}.")
    lines.append("On your data: `python -m dashvlm.inspect data=NAME audit=true`.")
    return "\n".join(lines)


def _runs_of(study: Study, output: Path) -> list[tuple[str, Path, dict[str, str]]]:
    """Form, folder and overrides of each finished run that a sweep of the study asked for."""
    found: dict[tuple[str, str], tuple[str, Path, dict[str, str]]] = {}
    for path in sorted(output.glob("sweeps/*/jobs.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            job = json.loads(line)
            said = dict(o.split("=", 1) for o in job["overrides"] if "=" in o)
            name, _, form = said.get("study", "").partition("/")
            folder = output / job["run_id"]
            if name == study.name and (folder / "result.json").is_file():
                found[form, job["run_id"]] = form, folder, said
    return list(found.values())


def _label(said: Mapping[str, str], study: Study, form: str) -> str:
    """What distinguishes a run within its study: the values of the axes."""
    part = study.spec if form == "full" else study.spec["smoke"]
    axes = list(part.get("axes") or {})
    return ", ".join(f"{said.get(a, said.get('+' + a, '?'))}" for a in axes) or "all"


def _axes(study: Study, form: str) -> str:
    part = study.spec if form == "full" else study.spec["smoke"]
    return ", ".join(a.rsplit(".", 1)[-1] for a in part.get("axes") or {}) or "run"


def result_line(
    form: str, row: str, metric: str, value: Mapping[str, Any], n: int, run_id: str, commit: str
) -> Result:  # fmt: skip
    """A line of results.csv; numbers with six digits."""

    def text(x: Any) -> str:
        return "" if x is None or not math.isfinite(x) else f"{x:.6g}"

    return {"form": form, "row": row, "metric": metric, "value": text(value["value"]), "low": text(value["low"]),
            "high": text(value["high"]), "n": str(n), "run_id": run_id, "commit": commit}  # fmt: skip


def _cell(line: Result | None) -> str:
    if line is None or not line["value"]:
        return "–"
    if line["low"] and line["low"] != line["high"]:
        return f"{float(line['value']):.3f} [{float(line['low']):.2f}, {float(line['high']):.2f}]"
    return _plain(line["value"])


def _plain(value: str) -> str:
    return f"{float(value):.4g}"


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _same(value: Any, known: Any) -> bool:
    missing = [v is None or not math.isfinite(v) for v in (value, known)]
    return all(missing) or (not any(missing) and abs(value - known) <= 1e-9 * max(1.0, abs(known)))
