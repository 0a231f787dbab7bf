"""Datasets of accident anticipation in their own layouts, and the numbers as their scripts define them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from dashvlm.data.formats.anticipation import ccd, consensus, dad
from dashvlm.data.formats.nexar import rows as nexar
from dashvlm.data.synthetic.encode import counter_frame, write_video
from dashvlm.errors import DataError
from dashvlm.metrics.anticipation import curve, summary
from dashvlm.safety.files import read_json
from dashvlm.tasks.binary.metrics import evaluate_binary
from tests.conftest import REAL

TINY = [
    "model=smolvlm2", "model.checkpoint=tiny", "task=crash", "trainer.max_steps=2", "trainer.accelerator=cpu",
    "data.num_frames=2", "data.frame_interval_s=0.3",
]  # fmt: skip


def _video(path, seconds=2.0, fps=5):
    times = (np.arange(round(seconds * fps)) / fps).tolist()
    write_video(path, [counter_frame(i) for i in range(len(times))], times)


# -- numbers ---------------------------------------------------------------------------------------


def _walk(risks: Any, positive: Any, accident: Any, seconds: float) -> dict[str, float]:
    """The published procedure step by step: thresholds up from the lowest risk, equal recalls merged, trapezoids."""
    points = []
    for level in np.arange(max(min(r.min() for r in risks), 0.0), 1.0, 0.001):
        caught, times, said = 0, 0.0, 0
        for risk, flag, frame in zip(risks, positive, accident, strict=True):
            over = [i for i, r in enumerate(risk) if r >= level]
            said += bool(over)
            if over and flag:
                caught, times = caught + 1, times + over[0] / frame
        if caught:
            points.append((caught / sum(positive), caught / said, 1 - times / caught))
    recalls = sorted({p[0] for p in points})
    merged = []
    for recall in recalls:
        same = [p for p in points if p[0] == recall]
        last = recall == recalls[-1]
        best = same[0][1:] if last else (max(p[1] for p in same), max(p[2] for p in same))
        merged.append((recall, *best))
    area, before = merged[0][1] * merged[0][0], merged[0]
    for point in merged[1:]:
        area += (before[1] + point[1]) * (point[0] - before[0]) / 2
        before = point
    near = min(merged, key=lambda p: abs(p[0] - 0.8))
    first = next((p for p in merged if p[0] >= 0.8), (np.nan, np.nan))
    return {
        "ap": area,
        "mtta_s": float(np.mean([p[2] for p in merged])) * seconds,
        "tta_s@r80": near[2] * seconds,
        "p@r80": first[1],
    }


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_numbers_are_those_of_the_published_procedure(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = [1, 0, 1, 1, 0, 0, 1]
    accident = [int(rng.integers(5, 20)) for _ in positive]
    risks = [np.round(rng.uniform(0.01, 0.99, a if p else 25), 2) for p, a in zip(positive, accident, strict=True)]
    _, reached, left = curve(risks, positive, accident)
    assert {k: float(v) for k, v in summary(reached, left, positive, 5.0).items()} == pytest.approx(
        _walk(risks, positive, accident, 5.0)
    )
    twice = summary(reached, left, positive, 5.0, np.array([2.0, 1, 1, 1, 1, 1, 1]))
    again = _walk([risks[0], *risks], [1, *positive], [accident[0], *accident], 5.0)
    assert {k: float(v) for k, v in twice.items()} == pytest.approx(again)


def test_a_model_that_warns_at_once_has_the_whole_clip_and_nothing_is_undefined() -> None:
    risks, flags = [np.full(10, 0.9), np.full(20, 0.1)], [1, 0]
    _, reached, left = curve(risks, flags, [10, 0])
    found = summary(reached, left, flags, 4.0)
    assert float(found["mtta_s"]) == pytest.approx(4.0)
    # Of the highest recall their procedure takes the lowest threshold, at which the negative is called too.
    assert float(found["ap"]) == pytest.approx(0.5)
    none = summary(reached, left, [0, 0], 4.0)
    assert np.isnan(float(none["ap"]))


def test_nexars_number_is_the_mean_over_its_groups() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"clip_id": [f"c{i}" for i in range(60)], "group": [f"c{i}" for i in range(60)], "horizon_s": 0.5,
         "primary": True, "target": pd.array([i % 2 for i in range(60)], dtype="Int64"), "score": rng.random(60),
         "status": None, "answer": None,
         "slice_time_to_accident": ["0.5", "1.0", "1.5"] * 20}
    )  # fmt: skip
    want = np.mean(
        [
            average_precision_score(p["target"].astype(int), p["score"])
            for _, p in table.groupby("slice_time_to_accident")
        ]
    )
    found = evaluate_binary(table)["metrics"]["nexar_map"]
    assert found["value"] == pytest.approx(want)
    assert found["low"] < want < found["high"]
    assert "nexar_map" not in evaluate_binary(table.drop(columns="slice_time_to_accident"))["metrics"]


# -- layouts ---------------------------------------------------------------------------------------


@pytest.fixture
def carcrash(tmp_path):
    labels = {"000001": [0] * 32 + [1] * 18, "000002": [0] * 40 + [1] * 10, "000003": [0] * 50}
    lines = [
        f"000001,{labels['000001']},000036,QnB1,Day,Normal,Yes",
        f"000002,{labels['000002']},000111,QnB1,Night,Rainy,No",
        f"000003,{labels['000003']},000200,zz77,Day,Snowy,Yes",
        "000004,[0, 1],torn",
    ]
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "Crash-1500.txt").write_text("\n".join(lines) + "\n")
    for name in ("000001", "000002"):
        _video(tmp_path / "videos" / "Crash-1500" / f"{name}.mp4", 5.0, 10)
    _video(tmp_path / "videos" / "Normal" / "000001.mp4", 5.0, 10)
    (tmp_path / "vgg16_features").mkdir()
    (tmp_path / "vgg16_features" / "train.txt").write_text("positive/000001.npz 1\nnegative/000001.npz 0\n")
    (tmp_path / "vgg16_features" / "test.txt").write_text("positive/000002.npz 1\n")
    return tmp_path


def test_ccd_is_read_with_events_sources_and_who_takes_part(carcrash):
    found = {r["clip_id"]: r for r in ccd(carcrash, {})}
    ego, other, normal = found["crash_000001"], found["crash_000002"], found["normal_000001"]
    assert (ego["label"], ego["event_time_s"], ego["group"]) == (1, 3.2, "youtube_QnB1")
    assert ego["extra"]["slices"] == {"timing": "Day", "weather": "Normal", "ego": "involved"}
    assert other["label"] == 0
    assert "event_time_s" not in other
    assert other["extra"]["slices"]["ego"] == "not involved"
    assert (normal["label"], normal["video"]) == (0, "videos/Normal/000001.mp4")
    assert "no frame is labelled" in found["crash_000003"]["problem"]
    assert "not a line of CCD" in found["Crash-1500.txt:4"]["problem"]
    positive = {r["clip_id"]: r for r in ccd(carcrash / "videos", {"non_ego": "positive"})}
    assert (positive["crash_000002"]["label"], positive["crash_000002"]["event_time_s"]) == (1, 4.0)
    assert positive["crash_000002"]["video"] == "Crash-1500/000002.mp4"
    official = {r["clip_id"]: r.get("split") for r in ccd(carcrash, {"official_split": True})}
    assert (official["crash_000001"], official["crash_000002"], official["normal_000001"]) == ("train", "test", "train")
    with pytest.raises(DataError, match=r"Crash-1500\.txt"):
        list(ccd(carcrash / "vgg16_features", {}))
    with pytest.raises(DataError, match="non_ego"):
        list(ccd(carcrash, {"non_ego": "maybe"}))


def test_dad_is_read_from_its_folders(tmp_path):
    for part in ("training/positive", "training/negative", "testing/positive"):
        _video(tmp_path / "videos" / part / "000001.mp4", 5.0, 20)
    found = {r["clip_id"]: r for r in dad(tmp_path, {})}
    assert found["training/positive/000001"]["event_time_s"] == 4.5
    assert found["testing/positive/000001"]["split"] == "test"
    assert found["training/negative/000001"]["label"] == 0
    with pytest.raises(DataError, match="training/"):
        list(dad(tmp_path / "videos" / "training", {}))


def test_consensus_alerts_move_the_window_and_leave_others_accidents_out(tmp_path):
    head = "id,batch,Event-type,Nexar-vehicle-involved,min_support,Time-of-alert,Time-of-collision,Diff,"
    head += "article_category,label\n"
    lines = [
        "a.mp4,1,Collision,yes,10,1.2,3.4,2.2,pos-ego,1", "b.mp4,1,Collision,no,10,1.0,3.0,2.0,pos,1",
        "c,1,,,10,,,,neg,0", "d.mp4,1,Collision,yes,10,5.0,3.0,2.0,pos-ego,1",
        "gone.mp4,1,Collision,yes,10,1,2,1,x,1",
    ]  # fmt: skip
    (tmp_path / "dad.csv").write_text(head + "\n".join(lines) + "\n")
    for name in ("a", "b", "d"):
        _video(tmp_path / "clips" / f"{name}.mp4")
    _video(tmp_path / "clips" / "images_c.avi")
    found = {r["clip_id"]: r for r in consensus(tmp_path, {})}
    assert (found["a"]["label"], found["a"]["event_time_s"], found["a"]["alert_time_s"]) == (1, "3.4", "1.2")
    assert found["b"]["label"] == 0
    assert found["b"]["extra"]["slices"]["ego"] == "not involved"
    assert (found["c"]["label"], found["c"]["video"]) == (0, "clips/images_c.avi")
    assert "no video of that name" in found["gone"]["problem"]
    assert {r["clip_id"]: r for r in consensus(tmp_path, {"non_ego": "unlabelled"})}["b"]["label"] is None
    odd = [
        "a.mp4,1,C,1.0,9,nan,3.4,,x,",
        "b.mp4,1,C,0.0,9,1,3,2,x,",
        "c,1,C,no,9,,nan,,x,positive",
        "d.mp4,1,C,perhaps,9,1,3,2,x,1",
    ]
    (tmp_path / "dad.csv").write_text(head + "\n".join(odd) + "\n")
    found = {r["clip_id"]: r for r in consensus(tmp_path, {})}
    assert (found["a"]["label"], found["a"]["alert_time_s"]) == (1, None)
    assert (found["b"]["label"], found["b"]["extra"]["slices"]["ego"]) == (0, "not involved")
    assert "no Time-of-collision" in found["c"]["problem"]
    assert "neither yes nor no" in found["d"]["problem"]
    (tmp_path / "dad.csv").write_text(head + "\n".join(lines) + "\n")
    (tmp_path / "second.csv").write_text(head)
    with pytest.raises(DataError, match="one annotation file"):
        list(consensus(tmp_path, {}))
    assert len(list(consensus(tmp_path, {"file": "dad.csv", "split": "test"}))) == 5


def test_a_late_alert_is_quarantined_and_the_slices_reach_the_table(tmp_path, dashvlm):
    head = "id,Nexar-vehicle-involved,Time-of-alert,Time-of-collision,label\n"
    lines = [f"v{i},{'yes' if i % 4 else 'no'},1.0,1.6,1" if i % 2 == 0 else f"v{i},,,,0" for i in range(24)]
    (tmp_path / "x.csv").write_text(head + "\n".join([*lines, "v24,yes,1.9,1.6,1"]) + "\n")
    for i in range(25):
        _video(tmp_path / f"v{i}.mp4")
    done = dashvlm("inspect", "data=consensus", f"data.root={tmp_path}", "data.max_bad_fraction=0.1")
    assert "after the event" in done.stdout
    words = ["data=consensus", f"data.root={tmp_path}", "data.max_bad_fraction=0.1", *TINY]
    dashvlm("train", *words)
    (run,) = (tmp_path / "runs").glob("crash-*")
    assert {s["value"] for s in read_json(run / "result.json")["slices"]} >= {"no accident"}


def _hub(root):
    head = "file_name,time_of_event,time_of_alert,light_conditions,weather,scene,time_to_accident\n"
    for part, start in (("train", 0), ("test-public", 100), ("test-private", 200)):
        for kind, times in (("positive", "1.5,1.0"), ("negative", ",")):
            names = [f"{start + 50 * (kind == 'negative') + i:05d}.mp4" for i in range(6)]
            ahead = [("0.5", "1.0", "1.5")[i % 3] if part != "train" else "" for i in range(6)]
            cells = times if part == "train" else times.replace("1.5,1.0", "20.1,18.4")
            (root / part / kind).mkdir(parents=True)
            (root / part / kind / "metadata.csv").write_text(
                head + "".join(f"{n},{cells},Normal,Clear,Urban,{a}\n" for n, a in zip(names, ahead, strict=True))
            )
            for name in names:
                _video(root / part / kind / name)


def test_the_official_test_of_nexar_is_read_from_the_hubs_layout_and_scored_by_its_groups(tmp_path, dashvlm):
    root = tmp_path / "nexar"
    _hub(root)
    found = {r["clip_id"]: r for r in nexar(root, {})}
    test = found["test-public/00100"]
    assert (test["split"], test["label"], test["event_time_s"]) == ("test", 1, None)
    assert (test["extra"]["anchor"], test["extra"]["submission_id"]) == ("clip_end", "00100")
    assert test["extra"]["slices"]["time_to_accident"] == "0.5"
    assert found["00000"]["event_time_s"] == "1.5"
    (root / "solution.csv").write_text(
        "id,target,group,Usage\n" + "".join(f"{100 + i},1,{i % 3},Public\n" for i in range(6))
    )
    assert {r["clip_id"]: r for r in nexar(root, {})}["test-public/00102"]["extra"]["slices"]["time_to_accident"] == "2"
    (root / "solution.csv").unlink()
    dashvlm("train", "data=nexar", f"data.root={root}", "data.eval_horizons_s=[]", *TINY)
    (run,) = (tmp_path / "runs").glob("crash-*")
    table = pd.read_parquet(run / "predictions.parquet")
    assert len(table) == 24
    assert {round(t[-1], 6) for t in table["requested_times_s"]} == {1.8}  # the last frame of a clip that was cut
    parts = [
        average_precision_score(p["target"].astype(int), p["score"]) for _, p in table.groupby("slice_time_to_accident")
    ]
    assert read_json(run / "result.json")["metrics"]["nexar_map"]["value"] == pytest.approx(np.mean(parts))
    private = table[table["slice_part"] == "private"].groupby("slice_time_to_accident")
    parts = [average_precision_score(p["target"].astype(int), p["score"]) for _, p in private]
    found = read_json(run / "result.json")["metrics"]
    assert found["nexar_map_private"]["value"] == pytest.approx(np.mean(parts))
    assert "nexar_map_public" in found
    sent = pd.read_csv(run / "submission.csv", dtype={"id": str})
    assert sorted(sent["id"]) == sorted(f"{s + 50 * k + i:05d}" for s in (100, 200) for k in (0, 1) for i in range(6))
    assert list(sent.columns) == ["id", "score"]
    assert sent["score"].between(0, 1).all()


def test_training_over_whole_clips_loses_no_clip_of_the_official_test(tmp_path, dashvlm):
    root = tmp_path / "nexar"
    _hub(root)
    (root / "test-public" / "positive" / "00100.mp4").write_bytes(b"torn")
    words = ["data.anchors=stream", "data.stream.window_s=0.5", "data.eval_horizons_s=[]", "data.max_bad_fraction=0.1"]
    dashvlm("train", "data=nexar", f"data.root={root}", *words, *TINY)
    (run,) = (tmp_path / "runs").glob("crash-*")
    table = pd.read_parquet(run / "predictions.parquet")
    assert len(table) == 24
    assert table["target"].sum() == 12
    assert (table["status"] == "failed").sum() == 1
    assert len(pd.read_csv(run / "submission.csv")) == 24
    assert "nexar_map" in read_json(run / "result.json")["metrics"]


@pytest.mark.skipif(not (REAL / "dad_mini" / "full").is_dir(), reason="no real clips here")
def test_real_clips_of_dad_as_their_own_layout(tmp_path):
    clips = sorted((REAL / "dad_mini" / "full").glob("*.mp4"))
    folder = tmp_path / "training" / "positive"
    folder.mkdir(parents=True)
    for clip in clips:
        (folder / clip.name).symlink_to(clip)
    assert len(list(dad(tmp_path, {}))) == len(clips) > 5
