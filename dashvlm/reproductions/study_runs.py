"""What the runs of a study found: its sweeps below a folder, seeds together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dashvlm.config.identity import identity_of
from dashvlm.errors import DataError
from dashvlm.report.collect import collect
from dashvlm.report.compare import over_seeds
from dashvlm.report.tables import COSTS
from dashvlm.reproductions.studies import Result, Study, result_line
from dashvlm.safety.files import is_name, read_json, read_lines, read_yaml
from dashvlm.tasks.evaluation import evaluate_files, evaluation_of

AUDIT = "failed_readers"
"""Metric of a result: readers without pixels that are better than chance; ``n`` is how many there are."""


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
        _as_the_study_says(study, form, folder, said)
        config = read_yaml(folder / "config.yaml")
        result = read_json(folder / "result.json")
        lacking = [k for k in ("evaluation", "metrics", "baselines", "counts", "split") if k not in result]
        if lacking or "test_clips" not in result["counts"]:
            raise DataError(f"{folder}/result.json is damaged", got=f"no {(lacking or ['counts.test_clips'])[0]}",
                            do="remove the folder and run the study again")  # fmt: skip
        again = evaluate_files(folder, evaluation_of(result), int(config["seed"]))
        for metric, value in {**again["metrics"], **again["baselines"]}.items():
            known = (result["metrics"] | result["baselines"]).get(metric, {}).get("value")
            if not _same(value["value"], known):
                raise DataError(
                    f"{folder}/result.json does not follow from its predictions",
                    got=f"{metric} {known}, not {value['value']}", do="remove the folder and run the study again",
                )  # fmt: skip
        label = _label(said, study, form) + ("" if result["split"] == "test" else f" ({result['split']} split)")
        found.setdefault((form, label), []).append(
            {"result": result, "again": again, "folder": folder, "identity": identity_of(config)}
        )
    out: list[Result] = []
    for (form, label), runs in sorted(found.items()):
        _only_seeds(label, runs)
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
            out.append(_line(form, label, metric, shown, runs))
        if form == "full":  # what a random twin costs says nothing
            out += [_line(form, label, name, value, runs) for name, value in _costs(runs).items()]
    return out


def _line(form: str, label: str, metric: str, value: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Result:
    result = runs[0]["result"]
    names = " ".join(r["folder"].name for r in runs)
    return result_line(
        form, label, metric, value, result["counts"]["test_clips"], names, str(result.get("commit") or "")
    )


def _costs(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a run cost, the mean over seeds; what was not measured is left out."""
    table = collect([r["folder"] for r in runs])
    means = {name: pd.to_numeric(table[name], errors="coerce").mean() for name in COSTS if name in table}
    return {n: {"value": float(v), "low": None, "high": None} for n, v in means.items() if math.isfinite(v)}


def _runs_of(study: Study, output: Path) -> list[tuple[str, Path, dict[str, str]]]:
    """Form, folder and overrides of each finished run that a sweep of the study asked for."""
    found: dict[tuple[str, str], tuple[str, Path, dict[str, str]]] = {}
    for path in sorted(output.glob("sweeps/*/jobs.jsonl")):
        for job in read_lines(path):
            words = job.get("overrides")
            if not is_name(job.get("run_id")) or not isinstance(words, list):
                continue
            said = dict(str(o).split("=", 1) for o in words if "=" in str(o))
            name, _, form = said.get("study", "").partition("/")
            folder = output / job["run_id"]
            if name == study.owner and (folder / "result.json").is_file():
                found[form, job["run_id"]] = form, folder, said
    return list(found.values())


FREE = ("study", "seed", "paths.", "logger", "hydra", "data.root", "data.labels", "start_from", "data.num_workers")
"""Words of a run that a study leaves open."""


def _as_the_study_says(study: Study, form: str, folder: Path, said: Mapping[str, str]) -> None:
    """A run stands in a study's table only with the study's settings.

    Raises:
        DataError: if a setting is another, is missing or was added: a twin is no real model.
    """
    wanted = dict(w.split("=", 1) for w in study.part(form).get("fixed") or ())
    mine = {k.lstrip("+"): v for k, v in said.items() if not k.lstrip("+").startswith(FREE)}
    other = [f"{k}={v}" for k, v in mine.items() if k not in study.axes(form) and _value(wanted.get(k)) != _value(v)]
    other += [f"{k}={v} is missing" for k, v in wanted.items() if k not in mine and not k.startswith(FREE)]
    if other:
        raise DataError(
            f"{folder} is tagged study={study.owner}/{form} and has other settings", got=", ".join(other[:4]),
            do="run what `make study` prints; runs of your own need no study=",
        )  # fmt: skip


def _value(word: str | None) -> float | str | None:
    """A word's value, however it is written: Hydra prints true as True and 1e-4 as 0.0001."""
    try:
        return None if word is None else float(word)
    except ValueError:
        return str(word).lower()


def _only_seeds(label: str, runs: Sequence[Mapping[str, Any]]) -> None:
    """Runs of one row must differ in their seed, and in nothing else: they are averaged."""
    keys = {k for r in runs for k in r["identity"]}
    differ = sorted(k for k in keys if len({json.dumps(r["identity"].get(k), default=str) for r in runs}) > 1)
    seeds = {r["identity"].get("seed") for r in runs}
    if len(runs) > 1 and (differ != ["seed"] or len(seeds) < len(runs)):
        raise DataError(
            f"{len(runs)} runs belong to the row {label} and are no seeds of one another",
            got=f"{', '.join(r['folder'].name for r in runs)} differ in {', '.join(differ[:4]) or 'nothing'}",
            do="remove the folders that are not meant, or their sweep's folder in sweeps/",
        )  # fmt: skip


def _label(said: Mapping[str, str], study: Study, form: str) -> str:
    """What distinguishes a run within its study: the values of the axes."""
    return ", ".join(f"{said.get(a, said.get('+' + a, '?'))}" for a in study.axes(form)) or "all"


def _same(value: Any, known: Any) -> bool:
    missing = [v is None or not math.isfinite(v) for v in (value, known)]
    return all(missing) or (not any(missing) and abs(value - known) <= 1e-9 * max(1.0, abs(known)))
