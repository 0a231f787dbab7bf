"""Studies: published tables as data, our numbers beside them.

A study is a folder ``experiments/NAME``: ``study.yaml`` says what is asked and how to run it,
``published.csv`` what was published, ``results.csv`` what we found (frozen), ``table.md`` is made from these
(:mod:`dashvlm.report.study_tables`).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dashvlm.errors import ConfigError, DataError

STUDIES = Path(__file__).resolve().parents[2] / "experiments"
FIELDS = ("form", "row", "metric", "value", "low", "high", "n", "run_id", "commit")
FORMS = {
    "recomputed": "from the published predictions or dimensions, as published",
    "corrected": "from the published predictions, scored as they should be",
    "majority": "always the commonest answer, on the same samples",
    "full": "real models on the real data",
    "smoke": "tiny random twins on the synthetic world; they show that the path works, not how good a model is",
}
AGAIN = ("recomputed", "corrected", "majority")
"""Forms that stand under a published row."""
KINDS = {
    "measured": "Published, recomputed, corrected",
    "claimed": "Claimed without a measurement, recomputed from the model's dimensions",
    "expected": "Expected, never measured",
}
"""Kind of a published number -> title of the table it stands in."""
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

    @property
    def sources(self) -> dict[str, dict[str, str]]:
        """Published row -> ``file`` that it can be recomputed from, and why it ``differs`` if it does."""
        return {str(row): dict(known) for row, known in (self.spec.get("predictions") or {}).items()}

    def part(self, form: str) -> Mapping[str, Any]:
        """The study's own settings, or those of its smoke form."""
        return dict(self.spec if form == "full" else self.spec["smoke"])

    def axes(self, form: str) -> list[str]:
        """The swept keys."""
        return list(self.part(form).get("axes") or {})

    def words(self, form: str) -> list[str]:
        """The command line that runs it.

        Args:
            form: ``full`` or ``smoke``.
        """
        part = self.part(form)
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


def bounds(line: Result) -> tuple[float, float]:
    """Return the values that agree with a published number, as it was printed.

    ``tolerance`` is half a unit of its last digit, or ``cut 0.01`` where digits were cut off instead of
    rounded. A range (``4 to 6``) and a limit (``< 16``) stand for themselves.

    Example:
        >>> bounds({"value": "0.57", "tolerance": "cut 0.01"}), bounds({"value": "< 16", "tolerance": ""})
        ((0.57, 0.58), (-inf, 16.0))
    """
    text = line["value"]
    if text.startswith("<"):
        return -math.inf, float(text[1:])
    if " to " in text:
        low, high = text.split(" to ")
        return float(low), float(high)
    value, tolerance = float(text), line["tolerance"]
    if tolerance.startswith("cut "):
        return value, value + float(tolerance[4:])
    return value - float(tolerance), value + float(tolerance)


def agrees(line: Result, value: float) -> bool:
    """Say whether a recomputed value agrees with a published number."""
    low, high = bounds(line)
    slack = 1e-12 * max(1.0, abs(value))  # 0.57 is not a binary number
    if line["tolerance"].startswith("cut "):
        return low - slack <= value < high - slack
    return low - slack <= value <= high + slack


def verdict(published: Sequence[Result], values: Mapping[str, float]) -> tuple[list[str], list[str], list[str]]:
    """Compare what was recomputed of a row with what was published.

    Args:
        published: lines of one row.
        values: column -> recomputed value.

    Returns:
        The columns that are reproduced, those that are not, and those that were not computed.
    """
    known = {line["column"]: line for line in published}
    absent = [c for c in known if c not in values]
    same = [c for c in known if c in values and agrees(known[c], values[c])]
    return same, [c for c in known if c in values and c not in same], absent


def unexplained(study: Study, results: Sequence[Result]) -> list[str]:
    """Recomputed rows that contradict the published ones, or belong to none, without a reason in ``study.yaml``."""
    published: dict[str, list[Result]] = {}
    for line in read_table(study, "published"):
        published.setdefault(line["row"], []).append(line)
    found: dict[str, list[Result]] = {}
    for line in results:
        if line["form"] == "recomputed":
            found.setdefault(line["row"], []).append(line)
    out = []
    for row, lines in found.items():
        origin, meant = lines[0]["run_id"], study.sources.get(row, {})
        if row not in published:
            out.append(f"{origin}: no published row has these numbers; name it with row=")
            continue
        same, others, _ = verdict(published[row], {x["metric"]: float(x["value"]) for x in lines})
        if others and not meant.get("differs"):
            out.append(
                f"{row}: {len(same)} of {len(same) + len(others)} numbers of {origin} are the published ones"
                f" (not {', '.join(others[:3])}); it is published with {meant.get('file', 'no file')}"
            )
    return out


def write_results(study: Study, results: Sequence[Result]) -> None:
    """Freeze results: those of the same form (and, under a published row, of the same row) are replaced.

    Raises:
        DataError: if recomputed numbers contradict the published ones without a known reason.
    """
    wrong = unexplained(study, results)
    if wrong:
        raise DataError(
            f"{study.name}: these are not the published predictions", got="; ".join(wrong),
            do="name the right file, row=, text_key= or clean=; a difference that is understood goes into study.yaml: "
            "predictions: {ROW: {file: ..., differs: the reason}}",
        )  # fmt: skip
    kept = [r for r in read_table(study, "results") if _place(r) not in {_place(x) for x in results}]
    ordered = sorted([*kept, *results], key=lambda r: (list(FORMS).index(r["form"]), r["row"]))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ordered)
    (study.folder / "results.csv").write_text(buffer.getvalue(), encoding="utf-8")


def _place(line: Result) -> tuple[str, str]:
    return line["form"], line["row"] if line["form"] in AGAIN else ""


def stale_numbers(study: Study, results: Sequence[Result]) -> list[str]:
    """Frozen numbers that are not what they would be now, or that contradict the published ones unexplained."""
    frozen = {(r["form"], r["row"], r["metric"]): r for r in read_table(study, "results")}
    out = unexplained(study, list(frozen.values()))
    for line in results:
        known = frozen.get((line["form"], line["row"], line["metric"]))
        if known is None:
            out.append(f"{line['row']} {line['metric']}: {line['value']} is not in results.csv")
        elif any(not _equal(known[k], line[k]) for k in ("value", "low", "high")):
            out.append(
                f"{line['row']} {line['metric']}: results.csv says {known['value']}, {line['run_id']} {line['value']}"
            )
    return out


def result_line(
    form: str, row: str, metric: str, value: Mapping[str, Any], n: int, run_id: str, commit: str
) -> Result:  # fmt: skip
    """A line of results.csv; numbers with twelve digits."""

    def text(x: Any) -> str:
        return "" if x is None or not math.isfinite(x) else f"{x:.12g}"

    return {"form": form, "row": row, "metric": metric, "value": text(value["value"]), "low": text(value["low"]),
            "high": text(value["high"]), "n": str(n), "run_id": run_id, "commit": commit}  # fmt: skip


def _equal(one: str, other: str) -> bool:
    """Equal to seven digits: the last ones may differ between processors."""
    if not one or not other:
        return one == other
    return math.isclose(float(one), float(other), rel_tol=1e-7, abs_tol=1e-12)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
