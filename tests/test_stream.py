"""Risk over whole drives: what is counted, what is drawn, and that sharing frames changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashvlm.api import compose
from dashvlm.config.identity import run_id
from dashvlm.data.anchors import drawn_samples, label_at, labelled_moments, positive_window, stream_samples
from dashvlm.data.clip import Clip, Observation
from dashvlm.errors import ConfigError
from dashvlm.metrics.stream import Drive, count_alarms, operating_points
from dashvlm.safety.files import read_json, read_yaml, write_yaml
from dashvlm.shortcuts.moment import prior_over
from dashvlm.tasks.base import make_task
from dashvlm.tasks.binary import SCORES
from dashvlm.tasks.binary.stream import evaluate_stream
from dashvlm.tasks.evaluation import evaluate_files
from tests.conftest import SMALL

OPTIONS: dict[str, Any] = {
    "sampling": "anchored", "num_frames": 4, "frame_interval_s": 0.5, "short_history": "skip", "sampling_seed": 0,
    "negative_reference": "matched", "horizon_s": 0.5, "anchors": "stream",
    "stream": {"window_s": 2.0, "per_clip": 8, "positive_share": 0.5, "stride_s": 0.5, "refractory_s": 5.0},
}  # fmt: skip


def _clip(
    name: str, label: int | None, event: float | None = None, alert: float | None = None, long: float = 30.0
) -> Clip:
    return Clip(name, f"{name}.mp4", name, "train", label, event, alert, long, 10.0)


# -- counting ------------------------------------------------------------------------------------


def _plainly(drives: list[Drive], stride: float, refractory: float, rate: float) -> tuple[float, float | None]:
    """The same in a few lines: try every risk as a threshold, walk through every drive."""
    hours = sum(stride for d in drives for y, r in zip(d.label, d.risk, strict=True) if y == 0 and r == r) / 3600
    events = [d for d in drives if d.event_s is not None]
    best: tuple[float, float | None] = (0.0, None)
    for level in sorted({float(r) for d in drives for r in d.risk if r == r}, reverse=True):
        false, leads = 0, []
        for d in drives:
            last = -np.inf
            for t, r, y in zip(d.time_s, d.risk, d.label, strict=True):
                if y == 0 and r >= level and t - last >= refractory - 1e-9:
                    false, last = false + 1, t
            hits = [t for t, r, y in zip(d.time_s, d.risk, d.label, strict=True) if y == 1 and r >= level]
            if hits and d.event_s is not None:
                leads.append(d.event_s - hits[0])
        if false / hours <= rate and leads:
            best = len(leads) / len(events), float(np.mean(leads))
    return best


@st.composite
def _drives(draw: Any) -> list[Drive]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(2, 12))  # few levels: ties are the hard case
    found = []
    for number in range(draw(st.integers(2, 7))):
        times = np.arange(0.0, float(rng.uniform(6, 25)), 0.5)
        risk = np.round(rng.random(len(times)) * levels) / levels
        risk[rng.random(len(times)) < 0.05] = np.nan
        event = float(rng.uniform(3, times[-1])) if number % 2 else None
        label = np.zeros(len(times), np.int64)
        if event is not None:
            label[times >= event - 2] = 1
            label[times > event] = -1
        found.append(Drive(times, risk, label, event))
    return found


@given(_drives(), st.sampled_from([0.5, 2.0, 6.0, 60.0, 300.0]), st.sampled_from([0.5, 2.0, 5.0]))
@settings(max_examples=150, deadline=None)
def test_recall_at_a_rate_is_what_a_plain_walk_finds(drives: list[Drive], rate: float, refractory: float) -> None:
    (recall,), (lead,) = operating_points(drives, 0.5, refractory).at([rate])
    wanted, seconds = _plainly(drives, 0.5, refractory, rate)
    assert float(recall) == pytest.approx(wanted)
    assert (np.isnan(float(lead)) and seconds is None) or float(lead) == pytest.approx(seconds)


@given(_drives())
@settings(max_examples=50, deadline=None)
def test_weights_are_repetitions(drives: list[Drive]) -> None:
    times = np.random.default_rng(len(drives)).integers(0, 3, len(drives))
    times[:2] = 1
    repeated = [d for d, n in zip(drives, times, strict=True) for _ in range(n)]
    mine = operating_points(drives, 0.5, 5.0).at([6.0, 60.0], times.astype(float))
    theirs = operating_points(repeated, 0.5, 5.0).at([6.0, 60.0])
    assert mine[0] == pytest.approx(theirs[0])
    assert mine[1] == pytest.approx(theirs[1], nan_ok=True)


def test_an_alarm_counts_once_in_the_refractory_time() -> None:
    times = np.arange(0.0, 20.0, 0.5)
    assert count_alarms(times, np.ones(40), [0.5], 5.0).tolist() == [4]
    assert count_alarms(times, np.ones(40), [0.5], 0.5).tolist() == [40]
    assert count_alarms([0.0, 4.9, 5.0, 9.9, 10.0], [1, 1, 1, 1, 1], [0.5], 5.0).tolist() == [3]
    assert count_alarms(times, np.zeros(40), [0.5], 5.0).tolist() == [0]


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 10]))
@settings(max_examples=60, deadline=None)
def test_a_finer_stride_changes_nothing_where_the_risk_holds_as_long(seed: int, finer: int) -> None:
    """Risk that holds for half a second: the same alarms and recalls; risk that does not: never fewer."""
    rng = np.random.default_rng(seed)
    coarse = np.arange(0.0, 30.0, 0.5)
    fine = np.arange(0.0, 30.0 - 1e-9, 0.5 / finer)
    risk, levels = rng.random(len(coarse)).round(1), np.linspace(0, 1, 11)
    held = np.repeat(risk, finer)
    assert (count_alarms(coarse, risk, levels, 5.0) == count_alarms(fine, held, levels, 5.0)).all()
    rough = np.where(np.arange(len(fine)) % finer == 0, held, rng.random(len(fine)))
    assert (count_alarms(coarse, risk, levels, 5.0) <= count_alarms(fine, rough, levels, 5.0)).all()


def test_a_lower_threshold_never_raises_fewer_alarms() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = count_alarms(np.sort(rng.uniform(0, 60, 80)), rng.random(80), np.linspace(1, 0, 40), 5.0)
        assert (np.diff(counts) >= 0).all()


# -- from the table --------------------------------------------------------------------------------


def _table(risk: Any, clips: int = 60, stride: float = 0.5) -> pd.DataFrame:
    """Drives of 40 s, half of them with an event at 30 s that can be seen from 28 s on."""
    rows = []
    for number in range(clips):
        event = 30.0 if number % 2 else None
        for time in np.arange(0.0, 40.0, stride):
            label = 0 if event is None or time < 28 else 1 if time <= 30 else None
            rows.append({"clip_id": f"c{number}", "group": f"g{number}", "time_s": time, "target": label,
                         "score": risk(number, time, event), "event_time_s": event,
                         "window_start_s": None if event is None else 28.0, "stride_s": stride,
                         "refractory_s": 5.0, "pixels_off_score": 0.5, "time_prior": time / 40,
                         "near_misses_s": [10.0]})  # fmt: skip
    return pd.DataFrame(rows).astype({"target": "Int64", "event_time_s": float, "window_start_s": float})


def test_a_model_that_sees_the_event_is_told_from_one_that_is_always_alarmed() -> None:
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 0.1, (60, 80))

    def sees(number: int, time: float, event: float | None) -> float:
        seen = event is not None and 28.5 <= time <= 30
        return float(noise[number, int(time * 2)]) + (0.8 if seen else 0.1)

    seen = evaluate_stream(_table(sees))
    assert seen["metrics"]["stream_recall@0.5"]["value"] == 1.0
    assert seen["metrics"]["stream_mtta_s@2"]["value"] == pytest.approx(1.5)
    assert seen["metrics"]["near_miss_roc_auc"]["value"] == 1.0
    assert seen["metrics"]["early_roc_auc"]["low"] < 0.5 < seen["metrics"]["early_roc_auc"]["high"]
    assert seen["baselines"]["constant_stream_recall@2"]["value"] == 0.0
    # 5 negative anchors in 80, of each clip: the share of positive moments
    positive, all_counted = 30 * 5, 30 * 80 + 30 * 61
    assert seen["baselines"]["constant_stream_ap"]["value"] == pytest.approx(positive / all_counted)
    assert seen["stream"]["hours"] == pytest.approx((30 * 80 + 30 * 56) * 0.5 / 3600)
    by_time = {r["time_to_event_s"]: r for r in seen["stream"]["by_time_to_event"]}
    assert by_time[1.0]["roc_auc"]["value"] == pytest.approx(1.0)
    assert by_time[4.0]["roc_auc"]["value"] < 0.75
    assert not [a for a in seen["alarms"] if "useless" in a]

    near = pd.DataFrame({"primary": True, "group": [f"g{i}" for i in range(60)], "target": [i % 2 for i in range(60)],
                         "score": [0.9 if i % 2 else 0.2 for i in range(60)]})  # fmt: skip
    always = evaluate_stream(_table(lambda n, t, e: 0.87), anchors=near)
    assert always["metrics"]["stream_recall@6"]["value"] == 0.0
    assert any("good at anchors, useless on the stream" in a for a in always["alarms"])
    assert always["metrics"]["stream_roc_auc"]["value"] == 0.5
    assert not evaluate_stream(_table(sees), anchors=near)["alarms"][1:]

    def halfway(number: int, time: float, event: float | None) -> float:
        return sees(number, time, event) if number % 4 else float(noise[number, int(time * 2)])

    some = evaluate_stream(_table(halfway), anchors=near)
    assert some["metrics"]["stream_recall@2"]["value"] == pytest.approx(1.0)
    misses = evaluate_stream(_table(lambda n, t, e: sees(n, t, e if n % 3 else None)), anchors=near)
    assert any("much less on the stream" in a for a in misses["alarms"])


def test_a_model_that_knows_the_clip_long_before_is_called_out() -> None:
    found = evaluate_stream(_table(lambda n, t, e: 0.6 + n / 1000 if e else 0.3 + n / 1000))
    assert found["metrics"]["early_roc_auc"]["value"] == 1.0
    assert any("long before the event" in a for a in found["alarms"])


def test_an_event_without_an_anchor_is_left_out_and_said() -> None:
    table = _table(lambda n, t, e: 0.5)
    table = table[~((table["clip_id"] == "c1") & (table["target"] == 1).fillna(False))]
    found = evaluate_stream(table)
    assert found["stream"]["events"] == 29
    assert found["stream"]["unseen_events"] == ["c1"]
    assert any("no anchor in their window" in a for a in found["alarms"])


def test_a_failed_event_is_missed_and_failed_time_is_no_time() -> None:
    good = _table(lambda n, t, e: 0.9 if e and t >= 28 else 0.1)
    failed = good.assign(score=good["score"].where(good["clip_id"] != "c1"))
    assert evaluate_stream(failed)["metrics"]["stream_recall@2"]["value"] == pytest.approx(29 / 30)
    failed = good.assign(score=good["score"].where(good["clip_id"] != "c0"))
    assert evaluate_stream(good)["stream"]["hours"] - evaluate_stream(failed)["stream"]["hours"] == pytest.approx(
        40 / 3600
    )


def test_time_in_the_clip_is_no_sign_of_an_event():
    """A risk that only falls, or only rises, with time tells nothing of the clips: no alarm, and 0.5 at all times."""
    rng = np.random.default_rng(1)
    for sign in (1, -1):
        table = _table(lambda n, t, e, s=sign: 0.5 + s * t / 100 + float(rng.uniform(0, 0.02)))
        found = evaluate_stream(table)
        assert found["metrics"]["early_roc_auc"]["value"] == pytest.approx(0.5, abs=0.05)
        assert not any("long before" in a for a in found["alarms"])
        # Within a bin of two seconds time still tells a little.
        assert all(abs(r["roc_auc"]["value"] - 0.5) < 0.3 for r in found["stream"]["by_time_to_event"])


def test_noise_does_not_tell_events_from_near_misses_and_failures_are_wrong():
    rng = np.random.default_rng(0)
    noise = rng.random((400, 80))
    table = _table(lambda n, t, e: float(noise[n, int(t * 2)]), clips=400)
    near = evaluate_stream(table)["metrics"]["near_miss_roc_auc"]
    assert near["value"] == pytest.approx(0.5, abs=0.07)
    sees = _table(lambda n, t, e: 0.9 if e and 28 <= t <= 30 and n % 4 == 1 else 0.2)
    before = evaluate_stream(sees)["metrics"]["near_miss_roc_auc"]["value"]
    missed = sees["clip_id"].isin([f"c{i}" for i in range(3, 60, 4)])
    after = evaluate_stream(sees.assign(score=sees["score"].where(~missed)))["metrics"]["near_miss_roc_auc"]["value"]
    assert after < before


def test_an_event_at_an_unknown_time_is_named():
    table = _table(lambda n, t, e: 0.5).assign(clip_label=lambda t: t["event_time_s"].notna().astype(int))
    none = table[table["clip_id"] == "c1"].assign(event_time_s=np.nan, window_start_s=np.nan, target=pd.NA)
    found = evaluate_stream(pd.concat([table[table["clip_id"] != "c1"], none.astype({"target": "Int64"})]))
    assert any("no known time" in a for a in found["alarms"])


def test_the_order_of_the_rows_and_clips_that_nobody_labelled_change_nothing():
    rng = np.random.default_rng(3)
    noise = rng.random((60, 80))
    good = _table(lambda n, t, e: float(noise[n, int(t * 2)]) / 2 + (0.4 if e and 28 <= t <= 30 else 0))
    want = evaluate_stream(good)
    mixed = good.sort_values("time_s", kind="stable")
    assert evaluate_stream(mixed)["metrics"]["stream_ap"] == pytest.approx(want["metrics"]["stream_ap"])
    assert evaluate_stream(mixed)["metrics"]["early_roc_auc"] == pytest.approx(want["metrics"]["early_roc_auc"])
    unknown = good[good["clip_id"] == "c0"].assign(clip_id="u", group="g0", target=pd.NA, score=0.99)
    more = evaluate_stream(pd.concat([good, unknown.astype({"target": "Int64"})]))
    assert more["stream"]["hours"] == pytest.approx(want["stream"]["hours"])
    for mine, theirs in zip(more["stream"]["by_time_to_event"], want["stream"]["by_time_to_event"], strict=True):
        assert mine["roc_auc"]["value"] == pytest.approx(theirs["roc_auc"]["value"])
        assert mine["safe_clips"] == theirs["safe_clips"]


def test_an_unreadable_clip_with_an_event_is_a_missed_event():
    clip = replace(_clip("a", 1, 20.0), extra={"failed": "torn"})
    safe = replace(_clip("b", 0), extra={"failed": "x"})
    for policy in ("pad_oldest", "skip", "error"):
        found = stream_samples([clip, safe], {**OPTIONS, "short_history": policy})
        assert [s.clip.label for s in found] == [1, 0]


# -- anchors -----------------------------------------------------------------------------------------


def test_a_moment_has_the_label_of_its_time() -> None:
    clip = _clip("a", 1, 20.0, alert=17.5)
    assert positive_window(clip, 2.0) == (17.5, 20.0)
    assert [label_at(clip, t, 2.0) for t in (0.0, 17.49, 17.5, 20.0, 20.01)] == [0, 0, 1, 1, None]
    assert positive_window(_clip("b", 1, 1.0), 2.0) == (0.0, 1.0)
    assert label_at(_clip("c", 0), 25.0, 2.0) == 0
    assert label_at(_clip("d", 1), 25.0, 2.0) is None
    assert label_at(_clip("e", None), 3.0, 2.0) is None


def test_drawn_anchors_are_in_their_window_matched_and_the_same_each_time() -> None:
    clips = [_clip(f"p{i}", 1, 10.0 + i % 15) for i in range(40)] + [_clip(f"n{i}", 0) for i in range(40)]
    samples, left = drawn_samples(clips, OPTIONS)
    assert not left
    assert samples == drawn_samples(clips, OPTIONS)[0]
    mine = [s for s in samples if s.clip.clip_id == "p3"]
    assert sum(s.clip.label == 1 for s in mine) == 4
    assert len(mine) == 8
    assert all(11.0 <= s.anchor_s <= 13.0 for s in mine if s.clip.label == 1)
    assert all(1.5 <= s.anchor_s < 11.0 for s in mine if s.clip.label == 0)
    positive = {s.anchor_s for s in samples if s.clip.label == 1}
    assert {s.anchor_s for s in samples if s.clip.clip_id.startswith("n")} <= positive
    assert len({s.sample_id for s in samples}) == len(samples)
    other, _ = drawn_samples(clips, {**OPTIONS, "sampling_seed": 1})
    assert [s.anchor_s for s in other] != [s.anchor_s for s in samples]
    free, _ = drawn_samples(clips, {**OPTIONS, "negative_reference": "clip_end"})
    assert max(s.anchor_s for s in free if s.clip.label == 0) > 26


def test_clips_without_a_known_event_or_history_are_left_out_and_named() -> None:
    clips = [_clip("unknown", 1), _clip("short", 1, 1.0), _clip("good", 1, 9.0), _clip("safe", 0)]
    samples, left = drawn_samples(clips, OPTIONS)
    assert [c.clip_id for c in left] == ["unknown", "short"]
    assert {s.clip.clip_id for s in samples} == {"good", "safe"}
    padded, _ = drawn_samples(clips, {**OPTIONS, "short_history": "pad_oldest"})
    assert {s.clip.clip_id for s in padded} == {"short", "good", "safe"}


def test_the_grid_covers_the_clip() -> None:
    samples = stream_samples([_clip("a", 1, 20.0)], OPTIONS)
    assert samples[0].anchor_s == 1.5
    assert samples[-1].anchor_s == pytest.approx(29.5)
    assert len(stream_samples([_clip("a", 1, 20.0)], {**OPTIONS, "short_history": "pad_oldest"})) == 60
    moments = labelled_moments([_clip("a", 1, 20.0), _clip("b", 0)], OPTIONS)
    assert len(moments) == 41 + 60
    assert moments[:, 2].sum() == 5


def test_the_prior_over_time_is_the_share_of_the_training_moments() -> None:
    train, label = np.array([0.5, 0.6, 1.5, 1.6]), np.array([0.0, 0.0, 1.0, 1.0])
    assert prior_over(train, label, np.array([0.1, 1.9, 7.0]), 1.0).tolist() == pytest.approx([0.5 / 3, 2.5 / 3, 0.5])


# -- the question, and evaluation on request ----------------------------------------------------------


def test_the_question_says_the_window_that_is_taught_and_the_published_one_stays_by_name():
    def asked(*words: str) -> str:
        return make_task(compose("task=crash", "data=drives", *words)).messages(Observation((0.0,)))[0]["content"][-1][
            "text"
        ]

    assert "within the next 2 seconds" in asked()
    assert "within the next 3 seconds" in asked("data.stream.window_s=3")
    assert "within 1 to 2 seconds" in asked("task.question=published")
    assert "within 1 to 2 seconds" in asked("data.anchors=event")
    assert "within the next 2 seconds" in asked("data.anchors=event", "task.question=window")
    assert "Is it wet?" in asked("task.question='Is it wet?'")


def test_what_cannot_be_asked_at_any_moment_says_so():
    for words, message in (
        (["task=mcq", "data=synthetic", "data.anchors=stream"], "asked of a clip, not of a moment"),
        (["task=crash", "data=synthetic", "data.sampling=uniform", "task.stream=true"], "looks at whole clips"),
        (["task=crash", "data=synthetic", "data.anchors=stream", "task.reasoning=true"], "one moment of a clip"),
    ):
        with pytest.raises(ConfigError, match=message):
            compose(*words)


def test_settings_of_the_stream_name_another_run_only_where_they_act():
    name = run_id(compose("task=crash", "data=synthetic"))
    assert name == run_id(compose("task=crash", "data=synthetic", "data.anchors=event"))
    others = ["data.anchors=stream", "task.stream=true", "data.stream.window_s=3", "data.stream.per_clip=5"]
    assert len({name, *(run_id(compose("task=crash", "data=synthetic", w)) for w in others)}) == 5
    said = [run_id(compose("task=crash", "data=drives", *w)) for w in ([], ["task.window_s=7"], ["task.anchors=event"])]
    assert len(set(said)) == 3  # another question is another run


def test_a_run_of_single_anchors_is_scored_over_whole_clips_on_request(dashvlm, tmp_path):
    dashvlm("train", *SMALL, "trainer.max_steps=2", "objective.generate=false")
    (run,) = (tmp_path / "runs").glob("crash-*")
    assert "stream" not in read_json(run / "result.json")
    config = read_yaml(run / "config.yaml")  # as one of before there was a stream
    for key in ("anchors", "stream"):
        del config["data"][key]
    for key in ("anchors", "stream", "window_s"):
        del config["task"][key]
    write_yaml(run / "config.yaml", config)
    done = dashvlm("evaluate", f"run={run}", "stream=true", "data.stream.stride_s=1")
    assert "over whole clips" in done.stdout
    (folder,) = (tmp_path / "runs").glob("eval-*")
    found = read_json(folder / "result.json")
    assert found["stream"]["stride_s"] == 1.0
    stream = pd.read_parquet(folder / "stream.parquet")
    assert set(stream.groupby("clip_id")["time_s"].diff().dropna().round(6)) == {1.0}
    assert {"stream_recall@2", "stream_ap", "dad_mtta_s"} <= set(found["metrics"])
    assert evaluate_files(folder, SCORES, int(config["seed"]))["stream"]["events"] == found["stream"]["events"]
    assert (folder / "plots" / "stream.png").stat().st_size > 5000
