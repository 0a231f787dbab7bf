"""Published numbers computed again: from published predictions, or from a model's published dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dashvlm.errors import ConfigError, DataError
from dashvlm.reproductions.published import Recomputed, Table
from dashvlm.reproductions.studies import Result, Study, agrees, bounds, read_table, verdict


def recompute(study: Study, files: Sequence[Path], options: Mapping[str, Any]) -> list[Recomputed]:
    """Compute the published numbers of a study again; each file finds its row by what is in it.

    Args:
        study: ``recompute`` in its file says how predictions are scored (``nexar``, ``bvpi_captions``,
            ``bvpi_fields``, ``bvpi_objects``); ``footprints`` says which rows follow from a model's dimensions,
            and with which words of the command line.
        files: published predictions.
        options: the ``report`` configuration; ``row`` is the row that the files are expected to be of, or ``auto``.

    Returns:
        A result a file and a footprint; ``row`` is empty where a file is none of the published ones.

    Raises:
        ConfigError: if the study has no published predictions, or ``row`` is none of its rows.
        DataError: if a file cannot be used, or is not of the row that it is said to be.
    """
    how, named = str(study.spec.get("recompute") or ""), str(options.get("row") or "auto")
    splits = {line["row"]: line["split"] for line in read_table(study, "published") if line["kind"] == "measured"}
    if files and not how:
        raise ConfigError(f"study={study.name} has no published predictions", do="leave predictions= out")
    if named == "none":
        raise ConfigError(
            "row=none: predictions of your own have a verb of their own",
            do=f"python -m dashvlm.score task={study.task} predictions=FILE truth=FILE published={study.name}",
        )
    if named not in ("auto", *splits):
        raise ConfigError(
            f"row={named} is not in the published table", do=f"use one of auto, {', '.join(repr(s) for s in splits)}"
        )
    if named != "auto" and not files:
        raise ConfigError(f"row={named} says what predictions are of", do="add predictions=FILE")
    made = [_footprint(row, words) for row, words in (study.spec.get("footprints") or {}).items()]
    found: list[Recomputed] = []
    if how == "nexar":
        found = [_nexar(path) for path in files]
    elif files:
        from dashvlm.reproductions.bvpi import build

        found = build(how, files, options, {str(v): row for row, v in _digests(study).items()})
    for one in found:
        row = _row_of(study, one)
        if named not in ("auto", row):
            raise DataError(
                f"{one.source} is not the published file of {named}",
                got=f"by its rows and numbers it is {f'that of {row}' if row else 'none of the published ones'}",
                do=f"leave row= out; {named} is published with {study.sources.get(named, {}).get('file', 'no file')}",
            )
        known, meant = study.sources.get(row, {}), splits.get(row)
        published = bool(row) and str(known.get("rows")) == one.digest
        made.append(replace(one, row=row, source=str(known["file"]) if published else one.source))
        same = {line["column"] for line in read_table(study, "published") if line["row"] == row}
        differs = {c: v for c, v in (known.get("differs") or {}).items() if c in same and c in one.published}
        if differs:
            one.notes.append(
                f"{', '.join(differs)}: known to differ from the published row; "
                f"{known.get('because', 'no reason known')}"
            )
        if one.split and meant and one.split not in (meant, "unknown"):
            one.notes.append(f"{one.source} is of the {one.split} split, the published row {row} of {meant}")
    return made


def unknown(study: Study, made: Sequence[Recomputed]) -> list[str]:
    """Files that are none of the study's published ones."""
    return [f"{one.source} ({one.n} rows)" for one in made if one.n and not one.row]


def _digests(study: Study) -> dict[str, str]:
    return {row: str(known["rows"]) for row, known in study.sources.items() if known.get("rows")}


def _row_of(study: Study, found: Recomputed) -> str:
    """The published row of a file: by its rows, or by its numbers where the published file's rows are not known."""
    digests = _digests(study)
    same = [row for row, digest in digests.items() if digest == found.digest]
    if same:
        return same[0]
    by_row: dict[str, list[Result]] = {}
    for line in read_table(study, "published"):
        by_row.setdefault(line["row"], []).append(line)
    values = {c: v for c, v in found.published.items() if math.isfinite(v)}
    fitting = []
    for row, lines in by_row.items():
        good, wrong, _ = verdict(lines, values)
        if row not in digests and len(good) > 1 and not wrong:
            fitting.append(row)
    if len(fitting) > 1:
        found.notes.append(f"{' and '.join(fitting)} are published with these very numbers")
    return fitting[0] if len(fitting) == 1 else ""


def _nexar(path: Path) -> Recomputed:
    from dashvlm.reproductions.nexar import corrected_scores, published_scores, read_responses, reasons

    found = read_responses(path)
    corrected, constant, counts = corrected_scores(found)
    counted = {"corrected": counts, "constant": counts}
    notes = [*reasons(found), *found.notes]
    return Recomputed("", path.name, len(found.target), published_scores(found), "", corrected, constant, counted,
                      notes, digest=found.digest)  # fmt: skip


def _footprint(row: str, words: Sequence[str]) -> Recomputed:
    """Parameters of a model and of its adapters, counted on its published dimensions."""
    from dashvlm.backbones.footprint import footprint, trainable_parameters
    from dashvlm.config.cli import compose_train

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
    of = f"row {found.row}" if found.row else "none of the published rows"
    title = f"{found.source}: {found.n} samples, {of}" if found.n else f"{found.row}: {found.source}"
    return title, ["number", "published", "recomputed", "difference", "verdict"], body


def print_published(name: str, path: Path, options: Mapping[str, Any]) -> None:
    """Print the numbers by a published table's own definition."""
    from dashvlm.data.formats.bvpi_build import csv_files
    from dashvlm.report.tables import print_table
    from dashvlm.reproductions.studies import load_study

    study = load_study(name)
    known = {"row": "auto", "clean": options["clean"], "text_key": options["columns"]["text"], "spice": False,
             "annotations": options["annotations"], "captions": None}  # fmt: skip
    truth = Path(str(options["truth"] or ""))
    if study.task == "caption" and truth.is_dir() and str(truth) != ".":
        captions, annotations = csv_files(truth)
        known |= {"captions": str(captions), "annotations": options["annotations"] or annotations}
    elif truth.is_file() and truth.suffix == ".csv":
        known["captions"] = str(truth)
    for found in recompute(study, [path], known):
        if found.n:
            title, header, body = against_published(study, found)
            print_table(f"by the published definition of {name}: {title}", header, body, found.notes)
