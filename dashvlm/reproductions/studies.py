"""Studies: published tables as data, our numbers beside them.

A study is a folder ``experiments/NAME``: ``study.yaml`` says what is asked and how to run it,
``published.csv`` what was published, ``results.csv`` what we found (frozen), ``table.md`` is made from these
(:mod:`dashvlm.reproductions.study_tables`).
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dashvlm.config.find import STUDIES, study_names
from dashvlm.errors import ConfigError, DataError
from dashvlm.safety.files import read_yaml

FIELDS = ("form", "row", "metric", "value", "low", "high", "n", "run_id", "commit", "digest")
FORMS = {
    "recomputed": "from the published predictions or dimensions, as published",
    "corrected": "from the published predictions, scored as they should be",
    "constant": "one answer for every sample: what needs no model",
    "full": "real models on the real data",
    "smoke": "tiny random twins, two steps, the synthetic world; they show that the path works and nothing else",
}
AGAIN = ("recomputed", "corrected", "constant")
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
    def owner(self) -> str:
        """The study whose runs these are: another one's where ``runs_of`` says so."""
        return str(self.spec.get("runs_of") or self.name)

    @property
    def metrics(self) -> list[str]:
        """Columns of the table."""
        return [str(m) for m in self.spec["metrics"]]

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """Published row -> ``file`` of predictions, digest of ``rows``, ``differs`` (column: value), ``because``."""
        return {str(row): dict(known) for row, known in (self.spec.get("predictions") or {}).items()}

    @property
    def task(self) -> str:
        """The task whose predictions were published."""
        return "crash" if self.spec.get("recompute") == "nexar" else "caption"

    def part(self, form: str) -> Mapping[str, Any]:
        """The study's own settings, or those of its smoke form.

        Raises:
            ConfigError: if there is no such form.
        """
        if form not in ("full", "smoke"):
            raise ConfigError(f"a study has no form {form}", do="use full or smoke")
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
        return [f"study={self.owner}/{form}", *fixed, *(["-m", *swept] if swept else [])]


def load_study(name: str, root: Path = STUDIES) -> Study:
    """Read a study.

    Raises:
        ConfigError: if there is none of that name, or its file lacks something.
    """
    path = root / name / "study.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, study_names(root), 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"study={name} is unknown", do=f"{meant}use all or one of {', '.join(study_names(root))}")
    spec = read_yaml(path)
    if spec.get("runs_of"):
        base = load_study(str(spec["runs_of"]), root).spec
        spec = {**{k: base[k] for k in ("fixed", "axes", "seeds", "smoke") if k in base}, **spec}
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
    text, tolerance = line["value"], line["tolerance"]
    try:
        if text.startswith("<"):
            return -math.inf, float(text[1:])
        if " to " in text:
            low, high = text.split(" to ")
            return float(low), float(high)
        if tolerance.startswith("cut "):
            return float(text), float(text) + float(tolerance[4:])
        return float(text) - float(tolerance), float(text) + float(tolerance)
    except ValueError as error:
        raise DataError(
            f"published.csv: {line.get('row')}, {line.get('column')} cannot be read", got=f"{text!r}, {tolerance!r}",
            do="a number with its tolerance (0.0005, or cut 0.01), a range (4 to 6) or a limit (< 16)",
        ) from error  # fmt: skip


def agrees(line: Result, value: float) -> bool:
    """Say whether a recomputed value agrees with a published number."""
    low, high = bounds(line)
    slack = 1e-12 * max(1.0, abs(value))  # 0.57 is not a binary number
    if line["tolerance"].startswith("cut ") or line["value"].startswith("<"):
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
    """Recomputed rows that contradict the published ones or belong to none; ``study.yaml`` may know their values."""
    published: dict[str, list[Result]] = {}
    for line in read_table(study, "published"):
        published.setdefault(line["row"], []).append(line)
    found: dict[tuple[str, str], list[Result]] = {}
    for line in results:
        if line["form"] == "recomputed":
            found.setdefault((line["row"], line["run_id"]), []).append(line)
    out = []
    for (row, origin), lines in found.items():
        meant = study.sources.get(row, {})
        if row not in published:
            out.append(f"{origin}: no published row has these numbers")
            continue
        values = {x["metric"]: float(x["value"]) for x in lines}
        same, others, _ = verdict(published[row], values)
        expected: Mapping[str, float] = meant.get("differs") or {}
        odd = [c for c in others if not math.isclose(values[c], float(expected.get(c, math.nan)), rel_tol=1e-6)]
        if odd or not (same or others):
            rest = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
            out.append(
                f"{row}: {len(same)} of {len(same) + len(others)} numbers of {origin} are the published ones"
                f" (not {', '.join(odd[:3])}{rest}); it is published with {meant.get('file', 'no file')}"
            )
    return out


def write_results(study: Study, results: Sequence[Result]) -> None:
    """Freeze results: a row of the same form is replaced; under a published row, all forms from another file are.

    Raises:
        DataError: if recomputed numbers contradict the published ones without a known reason.
    """
    refuse_wrong(study, unexplained(study, results))
    refuse_changed(study)
    rows = {(r["form"], r["row"]) for r in results}
    numbers = {(r["form"], r["row"], r["metric"]) for r in results}
    source = {r["row"]: r["run_id"] for r in results if r["form"] in AGAIN}
    kept = []
    for r in read_table(study, "results"):
        if r["form"] in AGAIN:  # a number of the same file that was not asked for now (CLIPScore, say) stays
            replaced = (r["form"], r["row"], r["metric"]) in numbers or source.get(r["row"], r["run_id"]) != r["run_id"]
        else:
            replaced = (r["form"], r["row"]) in rows
        if not replaced:
            kept.append(r)
    ordered = sorted([*kept, *results], key=lambda r: (list(FORMS).index(r["form"]), r["row"]))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ordered)
    (study.folder / "results.csv").write_text(buffer.getvalue(), encoding="utf-8")


def refuse_wrong(study: Study, wrong: Sequence[str]) -> None:
    """Refuse predictions that are not those of the published row that they are said to be of.

    Raises:
        DataError: with what is wrong, if anything is.
    """
    if wrong:
        raise DataError(
            f"{study.name}: these are not the published predictions", got="; ".join(wrong),
            do="name the right file, text_key= or clean=; predictions of your own are scored by "
            "`python -m dashvlm.score`; a difference that is understood goes into study.yaml: predictions: "
            "{ROW: {file: ..., differs: {COLUMN: VALUE}, because: the reason}}",
        )  # fmt: skip


def refuse_changed(study: Study) -> None:
    """Refuse to build on a line that was changed by hand.

    Raises:
        DataError: with the lines.
    """
    changed = [f"{r['row']} {r['metric']}" for r in read_table(study, "results") if _changed(r)]
    if changed:
        raise DataError(
            f"{study.folder}/results.csv was changed by hand", got=", ".join(changed[:3]),
            do="take the committed file back (git checkout), or remove these lines and freeze them again",
        )  # fmt: skip


def stale_numbers(study: Study, results: Sequence[Result]) -> list[str]:
    """Frozen numbers that are not what they would be now, or that contradict the published ones unexplained."""
    frozen = {(r["form"], r["row"], r["metric"]): r for r in read_table(study, "results")}
    out = unexplained(study, list(frozen.values()))
    out += [f"{r['row']} {r['metric']}: its line was changed by hand" for r in frozen.values() if _changed(r)]
    now = {(r["form"], r["row"], r["metric"]) for r in results}
    again = {k[:2] for k in now if k[0] not in AGAIN}  # of predictions only a part may be asked for
    out += [f"{k[1]} {k[2]}: is not found any more" for k in frozen if k[:2] in again and k not in now]
    for line in results:
        known = frozen.get((line["form"], line["row"], line["metric"]))
        if known is None:
            out.append(f"{line['row']} {line['metric']}: {line['value']} is not in results.csv")
        elif any(not _equal(known[k], line[k]) for k in ("value", "low", "high", "n")):
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

    line = {"form": form, "row": row, "metric": metric, "value": text(value["value"]), "low": text(value["low"]),
            "high": text(value["high"]), "n": str(n), "run_id": run_id, "commit": commit}  # fmt: skip
    return line | {"digest": _digest(line)}


def _changed(line: Result) -> bool:
    return line.get("digest") != _digest(line)


def _digest(line: Result) -> str:
    """Of a line's content, so that a number changed by hand is seen where neither runs nor predictions are."""
    return hashlib.sha256("|".join(line[k] for k in FIELDS if k != "digest").encode()).hexdigest()[:8]


def _equal(one: str, other: str) -> bool:
    """Equal to seven digits: the last ones may differ between processors."""
    if not one or not other:
        return one == other
    return math.isclose(float(one), float(other), rel_tol=1e-7, abs_tol=1e-12)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
