import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from dashvlm.metrics import functional as F
from dashvlm.metrics.intervals import estimate, group_weights, mean_estimate
from dashvlm.tasks.binary import SCORES
from dashvlm.tasks.evaluation import evaluate

cases = st.integers(0, 10_000)
PAIRS = {
    "roc_auc": lambda y, s, w: sk.roc_auc_score(y, s, sample_weight=w),
    "ap": lambda y, s, w: sk.average_precision_score(y, s, sample_weight=w),
    "accuracy": lambda y, s, w: sk.accuracy_score(y, s >= 0.5, sample_weight=w),
    "balanced_accuracy": lambda y, s, w: sk.balanced_accuracy_score(y, s >= 0.5, sample_weight=w),
    "mcc": lambda y, s, w: sk.matthews_corrcoef(y, s >= 0.5, sample_weight=w),
    "precision": lambda y, s, w: sk.precision_score(y, s >= 0.5, sample_weight=w, zero_division=np.nan),
    "recall": lambda y, s, w: sk.recall_score(y, s >= 0.5, sample_weight=w),
    "f1": lambda y, s, w: sk.f1_score(y, s >= 0.5, sample_weight=w),
    "brier": lambda y, s, w: sk.brier_score_loss(y, s, sample_weight=w),
}


@given(cases)
def test_metrics_equal_scikit_learn_with_weights_and_ties(seed):
    rng = np.random.default_rng(seed)
    y = np.append([0, 1], rng.integers(0, 2, 38))
    s = np.round(rng.random(40), rng.integers(1, 4))
    w = rng.integers(0, 4, (3, 40)).astype(float)
    w[:, :2] = 1
    for name, reference in PAIRS.items():
        ours = F.METRICS[name](y, s, w)
        for row in range(3):
            assert ours[row] == pytest.approx(reference(y, s, w[row]), abs=1e-12, nan_ok=True), name


def test_ece_equals_torchmetrics():
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    rng = np.random.default_rng(0)
    y, s = rng.integers(0, 2, 500), rng.random(500)
    theirs = binary_calibration_error(torch.tensor(s), torch.tensor(y), n_bins=10, norm="l1")
    # torchmetrics compares the confidence of "positive" in the binary case, as we do
    assert float(F.ece(y, s)) == pytest.approx(float(theirs), abs=1e-6)


def test_undefined_is_nan_and_scores_out_of_range_are_refused():
    assert np.isnan(F.roc_auc([1, 1], [0.2, 0.3]))
    assert np.isnan(F.precision([0, 1], [0.1, 0.2]))
    with pytest.raises(ValueError, match="within"):
        F.accuracy([0], [1.5])


def one_threshold_at_a_time(matrix, h, w):
    """The definition, slowly: at each threshold the mean of the longest horizon whose score reaches it."""
    means = []
    for threshold in np.unique(matrix):
        warned = np.where(matrix >= threshold, h, -np.inf).max(axis=1)
        hit = np.isfinite(warned)
        total = (w * hit).sum(-1)
        means.append(
            np.where(total > 0, (w * np.where(hit, warned, 0)).sum(-1) / np.where(total > 0, total, 1), np.nan)
        )
    return np.nanmean(means, axis=0) if np.isfinite(means).any() else np.full(len(w), np.nan)


@given(st.integers(0, 2**32 - 1))
def test_time_to_accident_needs_no_loop_over_thresholds(seed):
    r = np.random.default_rng(seed)
    clips, horizons = r.integers(1, 12), r.integers(1, 4)
    scores = r.integers(0, 5, (clips, horizons)) / 4 if r.random() < 0.5 else r.random((clips, horizons))
    h, w = r.permutation([0.5, 1.0, 1.5])[:horizons], r.integers(0, 3, (7, clips)).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample without any clip has no mean
        expected = one_threshold_at_a_time(scores, h, w)
    np.testing.assert_allclose(F.mean_time_to_accident(scores, h, w), expected, atol=1e-12)


def test_mean_time_to_accident():
    # at thresholds .2 and .4 both warn (.2: 1.0 and 1.0; .4: 1.0 and 0.5), at .6 and .8 one does
    scores = [[0.8, 0.4], [0.6, 0.2]]
    assert float(F.mean_time_to_accident(scores, [0.5, 1.0])) == pytest.approx((1.0 + 0.75 + 0.5 + 0.5) / 4)


def test_bootstrap_keeps_groups_together_and_covers():
    groups = np.repeat([f"g{i}" for i in range(30)], 4)
    weights = group_weights(groups.tolist(), 200, 0)
    assert (weights.reshape(200, 30, 4) == weights.reshape(200, 30, 4)[..., :1]).all()
    assert (weights.sum(1) == 120).all()


def table(target, score, **more):
    n = len(target)
    return pd.DataFrame(
        {
            "clip_id": [f"c{i}" for i in range(n)], "group": [f"g{i // 2}" for i in range(n)],
            "horizon_s": 0.5, "primary": True, "target": target, "score": score, "num_padded": 0,
            "status": None, "answer": None, "pixels_off_score": 0.5, **more,
        }
    )  # fmt: skip


def test_degenerate_predictors_raise_an_alarm():
    y = [0, 1] * 20
    assert any("every score is" in a for a in evaluate(table(y, [0.7] * 40), SCORES)["alarms"])
    spread = np.linspace(0.6, 0.9, 40)
    assert any("every clip is called positive" in a for a in evaluate(table(y, spread), SCORES)["alarms"])
    rng = np.random.default_rng(0)
    assert any("not better than chance" in a for a in evaluate(table(y, rng.random(40)), SCORES)["alarms"])
    good = np.where(y, 0.9, 0.1) + rng.normal(0, 0.01, 40)
    assert evaluate(table(y, good), SCORES)["alarms"] == []
    leaky = evaluate(table(y, good, pixels_off_score=good), SCORES)["alarms"]
    assert any("shortcut" in a for a in leaky)


def test_a_failed_row_counts_as_wrong_and_stays_in_the_count():
    y = [0, 1] * 20
    score = np.where(y, 0.9, 0.1).astype(float)
    score[[0, 1]] = np.nan
    found = evaluate(table(y, score), SCORES)
    assert found["counts"]["test_clips"] == 40
    assert found["counts"]["failed_rows"] == 2
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(38 / 40)
    assert any("2 rows could not be computed" in a for a in found["alarms"])


def test_parse_rate_stands_beside_the_answers():
    y = [0, 1] * 20
    status = ["parsed"] * 30 + ["unparsed"] * 10
    answer = pd.array([*y[:30], *[None] * 10], dtype="Int64")
    found = evaluate(table(y, np.where(y, 0.9, 0.1), status=status, answer=answer), SCORES)
    assert found["metrics"]["parse_rate"]["value"] == pytest.approx(0.75)
    assert found["metrics"]["answer_accuracy"]["value"] == pytest.approx(0.75)


def test_failed_rows_flatter_no_metric_and_hide_no_baseline():
    y = [0, 1] * 20
    score = np.where(y, 0.9, 0.1).astype(float)
    near = table(y, score)
    far = table(y, score, horizon_s=1.0, primary=False)
    rows = pd.concat([near, far], ignore_index=True)
    rows.loc[[0, 1, 40, 41], ["score", "pixels_off_score"]] = np.nan
    rows.loc[[0, 1, 40, 41], "status"] = "failed"
    found = evaluate(rows, SCORES)
    assert found["metrics"]["ap@1s"]["value"] < 1.0
    assert found["metrics"]["map_horizons"]["value"] < 1.0
    assert "parse_rate" not in found["metrics"]
    assert found["baselines"]["pixels_off_roc_auc"]["value"] < 0.5


def test_intervals_are_the_middle_95_percent_of_resamples():
    found = estimate(0.5, np.linspace(0.0, 1.0, 1001))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.025, 0.975))
    half = estimate(0.5, np.linspace(0.0, 1.0, 1001), level=0.5)
    assert (half.low, half.high) == pytest.approx((0.25, 0.75))
    some = estimate(0.5, np.array([0.2, np.nan, 0.2, np.inf]))
    assert (some.low, some.high) == pytest.approx((0.2, 0.2))
    assert np.isnan(estimate(0.5, np.array([np.nan])).low)


def test_the_mean_and_its_resamples_are_weighted_means():
    values, weights = np.array([1.0, 2.0, 6.0]), np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    found = mean_estimate(values, weights)
    assert found.value == pytest.approx(3.0)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile([1.0, 3.0, 6.0], [0.025, 0.975])))
    empty = mean_estimate(values, np.zeros((2, 3)))  # a resample without rows has no mean
    assert (empty.value, np.isnan(empty.low)) == (pytest.approx(3.0), True)
    assert np.isnan(mean_estimate(np.array([]), np.zeros((2, 0))).value)


def test_resamples_draw_whole_groups():
    weights = group_weights(["a", "a", "b", "c"], 500, 0)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()  # as many groups as there are
    assert weights.mean(0) == pytest.approx(np.ones(4), abs=0.15)


def test_metrics_by_blocks_of_weights_are_those_of_all_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    target, score = rng.integers(0, 2, 40).astype(float), rng.random(40).round(1)
    weights = rng.multinomial(40, np.full(40, 1 / 40), 23).astype(float)
    functions = {**F.METRICS, "recall_at": lambda y, s, w: F.recall_at(y, s, 0.2, w)}
    functions["macro_f1"] = lambda y, s, w: F.macro_f1(y.astype(int), (s > 0.5).astype(int), w)
    whole = {name: metric(target, score, weights) for name, metric in functions.items()}
    rows = {name: [metric(target, score, w) for w in weights] for name, metric in functions.items()}
    for block in (1, 100, 400, 919, 920):
        monkeypatch.setattr(F, "BLOCK", block)
        for name, metric in functions.items():
            found = metric(target, score, weights)
            assert found.shape == (23,)
            assert np.allclose(found, whole[name], atol=1e-12, equal_nan=True)
            assert np.allclose(found, rows[name], atol=1e-12, equal_nan=True)
    monkeypatch.setattr(F, "BLOCK", 100)
    assert F.confusion(target, score, weights).shape == (23, 4)
    assert F.roc_auc(target, score, weight=weights).shape == (23,)
    assert F.roc_auc(target, score).shape == ()
