"""What is measured of multiple choice, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dashvlm.data.frames import FrameStore
from dashvlm.metrics.functional import Array
from dashvlm.tasks.evaluation import DetailTable, Evaluation
from dashvlm.tasks.mcq.metrics import evaluate_choice, monitor_choice, said_choice


def right(table: pd.DataFrame) -> Array:
    """1 where the choice with the highest score is the right one."""
    said = np.array([said_choice(s) for s in table["scores"]])
    return np.asarray(said == table["target"].to_numpy(), dtype=np.float64)


def verdict(row: Any, right: float) -> str:
    """Failed, right or wrong: what was written plays no part."""
    return "failed" if row.get("status") == "failed" else "right" if right >= 1.0 else "wrong"


def letters(result: Mapping[str, Any]) -> list[DetailTable]:
    """The confusion of letters, or how often each was said where no answer is known."""
    if not result["counts"]["test_clips"]:
        answers = result["answers"]
        return [("answers, none of them known", list(answers), [[str(n) for n in answers.values()]])]
    said = list(next(iter(result["confusion"].values())))
    rows = [[true, *(str(row[s]) for s in said)] for true, row in result["confusion"].items()]
    return [("right letter (rows) and said letter", ["right", *said], rows)]


def plots(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
    """See :func:`dashvlm.tasks.mcq.plots.draw`."""
    from dashvlm.tasks.mcq.plots import draw

    return draw(rows, results, folder, store)


CHOICE = Evaluation(
    name="choice",
    numbers=evaluate_choice,
    primary="accuracy",
    columns={
        "accuracy": "accuracy", "majority_accuracy": "majority", "random_accuracy": "random",
        "text_only_accuracy": "text only", "pixels_off_accuracy": "no pixels", "answer_accuracy": "as written",
        "parse_rate": "parsed", "latency_s": "s/sample",
    },
    right=right,
    monitor=monitor_choice,
    monitors={"accuracy": "max", "log_loss": "min"},
    verdict=verdict,
    details=letters,
    plots=plots,
)  # fmt: skip
