"""Published numbers computed again: from published predictions, or from a model's published dimensions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dashvlm.errors import ConfigError
from dashvlm.metrics.intervals import Estimate
from dashvlm.report.studies import Result, Study, agrees, bounds, read_table, result_line, verdict

Table = tuple[str, list[str], list[list[str]]]


@dataclass(frozen=True)
class Recomputed:
    """A published row, computed again.

    Attributes:
        row: of the published table.
        source: file of predictions, or what the numbers follow from.
        n: samples.
        published: column -> value, by the definition of the published table.
        split: of the samples, as far as it is known.
        corrected: column -> value and interval, by the definition that measures what the column says.
        constant: column -> what one answer for every sample gives.
        counts: form -> column -> samples, where a number rests on fewer than ``n``.
        notes: what to know, counted in the file.
        details: tables (title, header, rows) for who looks closer.
    """

    row: str
    source: str
    n: int
    published: Mapping[str, float]
    split: str = ""
    corrected: Mapping[str, Estimate] = field(default_factory=dict)
    constant: Mapping[str, Estimate] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: Sequence[Table] = ()

    def results(self) -> list[Result]:
        """Lines of ``results.csv``; what is not defined is left out and counts as not computed."""
        plain = {m: Estimate(v, math.nan, math.nan) for m, v in self.published.items()}
        forms = {"recomputed": plain, "corrected": self.corrected, "constant": self.constant}
        return [
            result_line(form, self.row, m, vars(e), self.counts.get(form, {}).get(m, self.n), self.source, "")
            for form, values in forms.items()
            for m, e in values.items()
            if math.isfinite(e.value)
        ]  # fmt: skip


def recompute(study: Study, files: Sequence[Path], options: Mapping[str, Any]) -> list[Recomputed]:
    """Compute the published numbers of a study again.

    Args:
        study: ``recompute`` in its file says how predictions are scored (``nexar``, ``bvpi_captions``,
            ``bvpi_fields``, ``bvpi_objects``); ``footprints`` says which rows follow from a model's dimensions,
            and with which words of the command line.
        files: published predictions.
        options: the ``report`` configuration; ``row`` is a row of the published table, ``none``, or ``auto``.

    Raises:
        ConfigError: if the study has no published predictions, or ``row`` is none of its rows.
        DataError: if a file cannot be used.
    """
    how, named = str(study.spec.get("recompute") or ""), str(options.get("row") or "auto")
    splits = {line["row"]: line["split"] for line in read_table(study, "published") if line["kind"] == "measured"}
    if files and not how:
        raise ConfigError(f"study={study.name} has no published predictions", do="leave predictions= out")
    if named not in ("auto", "none", *splits):
        raise ConfigError(
            f"row={named} is not in the published table", do=f"use one of none, {', '.join(repr(s) for s in splits)}"
        )
    if named != "auto" and not files:
        raise ConfigError(f"row={named} says what predictions are of", do="add predictions=FILE")
    made = [_footprint(row, words) for row, words in (study.spec.get("footprints") or {}).items()]
    if how == "nexar":
        made += [_nexar(study, path, named) for path in files]
    elif files:
        from dashvlm.report.bvpi import build

        made += build(how, files, options)
    for one in made:
        meant = splits.get(one.row)
        if one.split and meant and one.split != meant:
            one.notes.append(f"{one.source} is of the {one.split} split, the published row {one.row} of {meant}")
    return made


def strangers(study: Study, files: Sequence[Path], made: Sequence[Recomputed]) -> list[str]:
    """Files that are not the ones whose checksums the study knows, by the row that they are said to be of."""
    by_name = {path.name: path for path in files}
    out = []
    for one in made:
        known, path = study.sources.get(one.row, {}).get("sha256"), by_name.get(one.source)
        if known and path and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(str(known)):
            out.append(f"{one.row}: {path} is another file than {study.sources[one.row]['file']} (by its SHA-256)")
    return out


def _nexar(study: Study, path: Path, named: str) -> Recomputed:
    from dashvlm.report.nexar import corrected_scores, published_scores, read_responses, reasons

    found = read_responses(path)
    values, notes = published_scores(found), [*reasons(found), *found.notes]
    row = path.stem if named == "none" else named
    if named == "auto":
        fitting = _rows_of(study, values)
        row = fitting[0] if len(fitting) == 1 else path.stem
        if len(fitting) > 1:
            notes.append(f"{' and '.join(fitting)} are published with these very numbers: say which with row=")
    corrected, constant, counts = corrected_scores(found)
    counted = {"corrected": counts, "constant": counts}
    return Recomputed(row, path.name, len(found.target), values, "", corrected, constant, counted, notes)


def _rows_of(study: Study, values: Mapping[str, float]) -> list[str]:
    """The published rows that a file's numbers are those of."""
    by_row: dict[str, list[Result]] = {}
    for line in read_table(study, "published"):
        by_row.setdefault(line["row"], []).append(line)
    return [row for row, lines in by_row.items() if len(verdict(lines, values)[0]) == len(lines)]


def _footprint(row: str, words: Sequence[str]) -> Recomputed:
    """Parameters of a model and of its adapters, counted on its published dimensions."""
    from dashvlm.backbones.footprint import footprint, trainable_parameters
    from dashvlm.cli import compose_train

    config = compose_train(words)
    size = footprint(config["model"], Path(config["paths"]["cache_dir"]) / "twins", None)
    total, trains = sum(size.parameters.values()), trainable_parameters(size, config["peft"])
    values = {"parameters_billion": total / 1e9, "trainable_million": trains / 1e6, "trainable_share": trains / total}
    return Recomputed(row, " ".join(words), 0, values)


def against_published(study: Study, found: Recomputed) -> Table:
    """A line a number: published, recomputed, difference, verdict."""
    known = {line["column"]: line for line in read_table(study, "published") if line["row"] == found.row}
    body = []
    for column in dict.fromkeys([*known, *found.published]):
        line, value = known.get(column), found.published.get(column)
        if value is None or line is None or not math.isfinite(value):
            body.append([column, line["value"] if line else "–", "–" if value is None else f"{value:.6g}", "–",
                         "not published" if line is None else "not computed"])  # fmt: skip
            continue
        low, high = bounds(line)
        apart = f"{value - float(line['value']):+.6f}" if line["tolerance"] else f"outside {low:g} to {high:g}"
        said = "reproduced" if agrees(line, value) else "not reproduced"
        body.append([column, line["value"], f"{value:.6g}", apart if line["tolerance"] or said != "reproduced" else "–",
                     said])  # fmt: skip
    title = f"{found.source}: {found.n} samples, row {found.row}" if found.n else f"{found.row}: {found.source}"
    return title, ["number", "published", "recomputed", "difference", "verdict"], body
