"""Runs against each other on the same samples: paired differences, McNemar, the best of many, seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from dashvlm.metrics.intervals import RESAMPLES, Estimate, estimate, group_weights
from dashvlm.tasks.evaluation import Evaluation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Two runs on the samples they share.

    Attributes:
        samples: how many they share.
        first: the primary metric of the first run on these samples.
        second: of the second.
        difference: second minus first, resampled together.
        only_first: samples that only the first gets right.
        only_second: samples that only the second gets right.
        p_mcnemar: exact two-sided p of these counts (McNemar 1947, binomial form).
    """

    samples: int
    first: Estimate
    second: Estimate
    difference: Estimate
    only_first: int
    only_second: int
    p_mcnemar: float


def shared_rows(tables: Sequence[pd.DataFrame], unpadded: bool = False) -> list[pd.DataFrame]:
    """The rows of samples that all tables have, in one order.

    Args:
        tables: predictions.
        unpadded: only samples that had enough history everywhere, so that sweep points with different
            needs are compared on what all of them could see.
    """
    kept = []
    for table in tables:
        known = table[table["primary"] & table["target"].notna()]
        if unpadded and "num_padded" in known:
            known = known[known["num_padded"] == 0]
        kept.append(known.drop_duplicates("clip_id").set_index("clip_id"))
    ids = sorted(set.intersection(*(set(t.index) for t in kept)))
    return [t.loc[ids].reset_index() for t in kept]


def compare(first: pd.DataFrame, second: pd.DataFrame, kind: Evaluation, seed: int = 0) -> Comparison:
    """Compare two prediction tables on the samples they share, groups resampled together."""
    a, b = shared_rows([first, second])
    weights = group_weights(a["group"].tolist(), RESAMPLES, seed) if len(a) else np.ones((1, 0))
    ones = np.ones((1, len(a)))
    values = [(float(kind.of_resamples(t, ones)[0]), kind.of_resamples(t, weights)) for t in (a, b)]
    (one, drawn_one), (two, drawn_two) = values
    right = [kind.right(t) >= 1.0 for t in (a, b)]
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Comparison(
        len(a), estimate(one, drawn_one), estimate(two, drawn_two), estimate(two - one, drawn_two - drawn_one),
        only_a, only_b, p,
    )  # fmt: skip


def best_of(tables: Mapping[str, pd.DataFrame], kind: Evaluation, seed: int = 0) -> tuple[str, Estimate, float, float]:
    """The best of several runs, and how much of it is the choice itself.

    Returns:
        Its name, its value, the share of resamples in which it is best (ties are shared), and by how much the best
        value is too high on average because it was chosen on the data that it is reported on (the bootstrap's
        estimate: the winner's value in a resample minus its value on all data).
    """
    names = sorted(tables)
    rows = shared_rows([tables[n] for n in names])
    weights = group_weights(rows[0]["group"].tolist(), RESAMPLES, seed)
    ones = np.ones((1, len(rows[0])))
    values = np.array([float(kind.of_resamples(t, ones)[0]) for t in rows])
    drawn = np.nan_to_num(np.stack([kind.of_resamples(t, weights) for t in rows]), nan=-np.inf)
    best, tied = int(values.argmax()), drawn == drawn.max(0)
    optimism = float(np.mean(drawn.max(0) - (tied * values[:, None]).sum(0) / tied.sum(0)))
    share = float((tied[best] / tied.sum(0)).mean())
    return names[best], estimate(float(values[best]), drawn[best]), share, optimism


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t-interval over seeds; one seed has no interval."""
    found = np.array(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return Estimate(mean, mean - half, mean + half)
