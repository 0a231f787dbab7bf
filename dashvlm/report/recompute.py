"""Published numbers computed again: from published predictions, or from a model's published dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dashvlm.errors import ConfigError
from dashvlm.metrics.intervals import Estimate
from dashvlm.report.studies import Result, Study, agrees, read_table, result_line, verdict

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
        majority: column -> what always saying the commonest answer gives.
        notes: what to know, counted in the file.
        details: tables (title, header, rows) for who looks closer.
    """

    row: str
    source: str
    n: int
    published: Mapping[str, float]
    split: str = ""
    corrected: Mapping[str, Estimate] = field(default_factory=dict)
    majority: Mapping[str, Estimate] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: Sequence[Table] = ()

    def results(self) -> list[Result]:
        """Lines of ``results.csv``."""
        plain = {m: {"value": v, "low": None, "high": None} for m, v in self.published.items()}
        made = [result_line("recomputed", self.row, m, v, self.n, self.source, "") for m, v in plain.items()]
        for form, values in (("corrected", self.corrected), ("majority", self.majority)):
            made += [result_line(form, self.row, m, vars(e), self.n, self.source, "") for m, e in values.items()]
        return made


def recompute(study: Study, files: Sequence[Path], options: Mapping[str, Any]) -> list[Recomputed]:
    """Compute the published numbers of a study again.

    Args:
        study: ``recompute`` in its file says how predictions are scored (``nexar``, ``bvpi_captions``,
            ``bvpi_fields``, ``bvpi_objects``); ``footprints`` says which rows follow from a model's dimensions,
            and with which words of the command line.
        files: published predictions.
        options: the ``report`` configuration.

    Raises:
        ConfigError: if the study has no published predictions, or ``row`` is none of its rows.
        DataError: if a file cannot be used.
    """
    how, named = str(study.spec.get("recompute") or ""), str(options.get("row") or "auto")
    splits = {line["row"]: line["split"] for line in read_table(study, "published")}
    if files and named not in ("auto", *splits):
        raise ConfigError(f"row={named} is not in the published table", do=f"use one of {', '.join(splits)}")
    made = _made(study, how, files, options)
    for one in made:
        meant = splits.get(one.row)
        if one.split and meant and one.split != meant:
            one.notes.append(f"{one.source} is of the {one.split} split, the published row {one.row} of {meant}")
    return made


def _made(study: Study, how: str, files: Sequence[Path], options: Mapping[str, Any]) -> list[Recomputed]:
    counted = [_footprint(row, words) for row, words in (study.spec.get("footprints") or {}).items()]
    if not files:
        return counted
    if how == "nexar":
        return counted + [_nexar(study, path, options) for path in files]
    if how:
        from dashvlm.report.bvpi import build

        return counted + build(how, files, options)
    raise ConfigError(f"study={study.name} has no published predictions", do="leave predictions= out")


def _nexar(study: Study, path: Path, options: Mapping[str, Any]) -> Recomputed:
    from dashvlm.report.nexar import corrected_scores, majority_scores, published_scores, read_responses, reasons

    found = read_responses(path)
    values = published_scores(found)
    named = str(options.get("row") or "auto")
    row = (_row_of(study, values) or path.stem) if named == "auto" else named
    return Recomputed(
        row, path.name, len(found.target), values, "", corrected_scores(found), majority_scores(found),
        [*reasons(found), *found.notes],
    )  # fmt: skip


def _row_of(study: Study, values: Mapping[str, float]) -> str | None:
    """The published row that a file's numbers are those of; None if there is none, or more than one."""
    by_row: dict[str, list[Result]] = {}
    for line in read_table(study, "published"):
        by_row.setdefault(line["row"], []).append(line)
    fitting = [row for row, lines in by_row.items() if len(verdict(lines, values)[0]) == len(lines)]
    return fitting[0] if len(fitting) == 1 else None


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
        if value is None or line is None:
            body.append([column, line["value"] if line else "–", "–" if value is None else f"{value:.6g}", "–",
                         "not computed" if value is None else "not published"])  # fmt: skip
            continue
        back = agrees(line, value)
        apart = "–" if " " in line["value"] else f"{value - float(line['value']):+.6f}"
        body.append([column, line["value"], f"{value:.6g}", apart, "reproduced" if back else "not reproduced"])
    title = f"{found.source}: {found.n} samples, row {found.row}" if found.n else f"{found.row}: {found.source}"
    return title, ["number", "published", "recomputed", "difference", "verdict"], body
