"""What is measured of predictions, and how it is shown. Every number comes from the predictions table alone.

Whoever has ``predictions.parquet`` can recompute every number. A package below ``dashvlm.tasks`` lists its evaluations
in ``EVALUATIONS``; ``result.json`` of a run names the one it was measured with.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import dashvlm.tasks
from dashvlm.data.frames import FrameStore
from dashvlm.errors import DataError
from dashvlm.metrics.functional import Array
from dashvlm.metrics.intervals import RESAMPLES, group_weights, mean_estimate
from dashvlm.safety.files import read_table

DetailTable = tuple[str, list[str], list[list[str]]]
"""Title, header and cells."""


def mean_loss(target: Array, scores: Array) -> dict[str, float]:
    """Validation of tasks that write text: the mean loss of the answers [N]."""
    return {"loss": float(np.mean(scores))}


def no_details(result: Mapping[str, Any]) -> list[DetailTable]:
    """No further tables."""
    return []


def is_right(row: Any, right: float) -> str:
    """``failed``, ``right``, ``unparsed`` or ``wrong``."""
    if row.get("status") == "failed":
        return "failed"
    if right >= 1.0:
        return "right"
    return "unparsed" if row.get("status") in ("unparsed", "refused") else "wrong"


@dataclass(frozen=True)
class Evaluation:
    """The numbers of a kind of task, and how tables, plots and the report show them.

    Attributes:
        name: stands in ``result.json``.
        numbers: predictions table and seed -> ``metrics`` and ``baselines`` (name -> value, low, high), ``counts``,
            ``alarms`` (sentences) and what the kind adds.
        primary: the metric that a sweep compares; higher is better.
        columns: metric -> title, in the order in which a reader compares them; the CSV has everything.
        right: predictions table -> how right each row is, between 0 and 1; a failed row is 0.
        monitor: targets [N] and scores [N, C] (losses [N] of written answers) -> validation metrics.
        monitors: validation metric -> ``max`` or ``min``; a checkpoint may be chosen by these.
        primary_values: table and weights [R, N] -> the primary metric [R]; by default the weighted mean of ``right``.
        nearness: table -> what the gallery sorts by, 1 for a perfect row; by default ``right``.
        shown: row and its ``right`` -> the number that the gallery shows.
        verdict: row and its ``right`` -> a word for the gallery.
        details: ``result.json`` -> further tables.
        plots: predictions, results, folder and frame store -> name -> PNG file.
        overlay: predictions by the run's label -> a figure of all runs, where there is one.
        stream: table of the anchors over whole clips, seed and predictions near events -> as ``numbers``, where a
            kind can be asked at any moment.
        stream_plots: that table, results and folder -> name -> PNG file.
        stream_overlay: ``result.json`` by the run's label -> a figure of all runs over whole clips.
        unscored: the evaluation of predictions that are answers without a score, where that is another one.
        chance: value of the primary metric that guessing reaches, where it is fixed.
    """

    name: str
    numbers: Callable[[pd.DataFrame, int], dict[str, Any]]
    primary: str
    columns: Mapping[str, str]
    right: Callable[[pd.DataFrame], Array]
    monitor: Callable[[Array, Array], dict[str, float]] = mean_loss
    monitors: Mapping[str, str] = field(default_factory=lambda: {"loss": "min"})
    primary_values: Callable[[pd.DataFrame, Array], Array] | None = None
    nearness: Callable[[pd.DataFrame], Array] | None = None
    shown: Callable[[Any, float], float] = lambda row, right: right
    verdict: Callable[[Any, float], str] = is_right
    details: Callable[[Mapping[str, Any]], Sequence[DetailTable]] = no_details
    plots: Callable[[pd.DataFrame, Mapping[str, Any], Path, FrameStore], dict[str, Path]] | None = None
    overlay: Callable[[Mapping[str, pd.DataFrame]], Any] | None = None
    stream: Callable[[pd.DataFrame, int, pd.DataFrame], dict[str, Any]] | None = None
    stream_plots: Callable[[pd.DataFrame, Mapping[str, Any], Path], dict[str, Path]] | None = None
    stream_overlay: Callable[[Mapping[str, Mapping[str, Any]]], Any] | None = None
    unscored: Evaluation | None = None
    chance: float | None = None

    def of_resamples(self, table: pd.DataFrame, weights: Array) -> Array:
        """The primary metric under weights [R, N]."""
        if self.primary_values is not None:
            return self.primary_values(table, weights)
        total = weights.sum(-1)
        return np.asarray((weights * self.right(table)).sum(-1) / np.where(total > 0, total, np.nan))


@functools.cache
def evaluations() -> Mapping[str, Evaluation]:
    """All evaluations by name, in the order of the packages that list them."""
    packages = sorted(p.name for p in pkgutil.iter_modules(dashvlm.tasks.__path__) if p.ispkg)
    modules = [importlib.import_module(f"dashvlm.tasks.{name}") for name in packages]
    return {found.name: found for module in modules for found in getattr(module, "EVALUATIONS", ())}


def evaluation_of(result: Mapping[str, Any]) -> Evaluation:
    """The evaluation that a ``result.json`` names; the first results of this project name none and were yes or no.

    Raises:
        DataError: if there is none of that name.
    """
    name = result.get("evaluation", "binary")
    found = evaluations().get(name) if isinstance(name, str) else None
    if found is None:
        raise DataError(
            f"evaluation {str(name)[:40]!r} is not known", got=f"known are {', '.join(evaluations())}",
            do="was the run made with a task that is not installed here?",
        )  # fmt: skip
    return found


def evaluate(table: pd.DataFrame, evaluation: Evaluation, seed: int = 0) -> dict[str, Any]:
    """Compute metrics, baselines and alarms.

    Args:
        table: the predictions.
        evaluation: of the task.
        seed: of the bootstrap.

    Returns:
        The content of ``result.json`` that comes from the table: see :class:`Evaluation`.
    """
    found = evaluation.numbers(table, seed) | {"evaluation": evaluation.name, "primary_metric": evaluation.primary}
    metrics, baselines, alarms = measured_by_objective(table[table["primary"]], seed)
    found["metrics"] |= metrics
    found["baselines"] |= baselines
    found["alarms"] += alarms
    return found


def evaluate_files(folder: Path, evaluation: Evaluation, seed: int = 0) -> dict[str, Any]:
    """What a run's own tables give: ``predictions.parquet``, and ``stream.parquet`` where whole clips were scored.

    Returns:
        See :func:`evaluate`; with ``stream`` for whole clips.
    """
    rows = read_table(folder / "predictions.parquet")
    found = evaluate(rows, evaluation, seed)
    if evaluation.stream is not None and (folder / "stream.parquet").is_file():
        whole = evaluation.stream(read_table(folder / "stream.parquet"), seed, rows)
        for part in ("metrics", "baselines"):
            found[part] |= whole[part]
        found["alarms"] += whole["alarms"]
        found["stream"] = whole["stream"]
    return found


def measured_by_objective(main: pd.DataFrame, seed: int) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Means of what an objective measured (rewards, preferences), before training and after.

    Returns:
        Metrics; the values before training and of a reader of lengths as baselines; alarms.
    """
    names = {c: c for c in main if c == "format" or c == "reward" or c.startswith("reward_")}
    names |= {
        c: n for c, n in {"preferred": "preference_accuracy", "likelier": "likelier_accuracy"}.items() if c in main
    }
    metrics, baselines, alarms = {}, {}, []
    for column, name in names.items():
        known = main[main[column].notna()]
        if known.empty:
            continue
        weights = group_weights(known["group"].tolist(), RESAMPLES, seed)
        after = known[column].to_numpy(float)
        metrics[name] = vars(mean_estimate(after, weights))
        if f"before_{column}" in known and known[f"before_{column}"].notna().all():
            before = known[f"before_{column}"].to_numpy(float)
            baselines[f"before_{name}"] = vars(mean_estimate(before, weights))
            gain = mean_estimate(after - before, weights)
            metrics[f"{name}_gain"] = vars(gain)
            if name in ("reward", "preference_accuracy") and gain.low <= 0:
                alarms.append(f"no clear gain: {name} changed by {gain} since the start")
        if column == "preferred" and (known["chosen_tokens"] != known["rejected_tokens"]).any():
            apart = (known["chosen_tokens"] - known["rejected_tokens"]).to_numpy(float)
            longer = mean_estimate(0.5 + 0.5 * np.sign(apart), weights)
            baselines[f"longer_{name}"] = vars(longer)
            if longer.value > 0.9 or longer.value < 0.1:
                which = "longer" if longer.value > 0.5 else "shorter"
                alarms.append(f"length decides the pairs: the {which} text is the better one in {longer}")
    return metrics, baselines, alarms
