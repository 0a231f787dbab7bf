"""A whole drive asked moment by moment: what frames cost, that sharing them changes nothing, and what a person sees."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch

from dashvlm.api import compose
from dashvlm.data.anchors import stream_samples
from dashvlm.data.clip import Clip
from dashvlm.data.datamodule import ClipDataModule
from dashvlm.data.formats.inputs import read_events, videos_of
from dashvlm.data.stretches import StretchDataset
from dashvlm.data.synthetic.drives import draw_long_scenes
from dashvlm.data.synthetic.encode import counter_frame, read_counter, write_video
from dashvlm.data.video import index_video
from dashvlm.engine.build import build_module
from dashvlm.engine.fit import build_trainer
from dashvlm.engine.load import build_store
from dashvlm.engine.scoring import predict_rows
from dashvlm.errors import DataError
from tests.conftest import ENCODERS, FAMILIES, SMALL

QUIET = ["trainer.accelerator=cpu", "trainer.progress=false", "data.short_history=pad_oldest"]


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """12 s at 5 frames a second, each with its number burnt in."""
    path = tmp_path_factory.mktemp("drive") / "drive.mp4"
    times = (np.arange(60) / 5).tolist()
    write_video(path, [counter_frame(i) for i in range(60)], times)
    return path


def _loaded(cache, model, *words):
    words = [f"model={model}", "model.checkpoint=tiny", "task=crash", "data=drives", *QUIET, *words]
    words += ["objective.generate=false"] if model in FAMILIES and "objective=pooled" not in words else []
    cfg = compose(*words, f"paths.cache_dir={cache}", "data.num_frames=3", "data.eval_batch_size=5")
    module = build_module(cfg, for_training=False).eval()
    loaders = ClipDataModule({}, build_store(cfg), module.collate, {**cfg["data"], "num_workers": 0}, 0)
    loaders.trainer = build_trainer(cfg, logger=False, enable_checkpointing=False)
    return cfg, module, loaders


def _asked(cache, drive, model, *words):
    cfg, module, loaders = _loaded(cache, model, *words)
    index = index_video(drive)
    clip = Clip("drive", str(drive), "drive", "test", None, None, None, index.duration_s, index.fps)
    return module, loaders, stream_samples([clip], cfg["data"])


@pytest.mark.parametrize("model", [*FAMILIES, *ENCODERS])
def test_scores_over_a_drive_are_those_of_whole_passes(cache, drive, model):
    module, loaders, samples = _asked(cache, drive, model)
    shared = predict_rows(module, loaders, samples, "stream")
    alone = predict_rows(module, loaders, samples, "predict")
    assert len(shared) == len(samples) == 24
    assert [r["frame_times_s"] for r in shared] == [r["frame_times_s"] for r in alone]
    one, two = (np.array([r["scores"] for r in rows]) for rows in (shared, alone))
    assert np.allclose(one, two, atol=1e-5)
    assert one[:, -1].std() > 1e-7  # the frames are not all the same to it


@pytest.mark.parametrize(
    "words",
    [["task.reasoning=true", "trainer.skip_fit=true"], ["data.num_workers=2"], ["data.pixels=off"],
     ["objective=pooled"], ["objective=pooled", "objective.pooling=mean"]],
    ids=" ".join,
)  # fmt: skip
def test_sharing_changes_nothing_for_reasons_workers_grey_frames_and_classifiers(cache, drive, words):
    words = [*words, "data.anchors=event", "peft.roles=[vision,language]"]
    cfg, module, loaders = _loaded(cache, "qwen3_vl", *words)
    for name, parameter in module.named_parameters():  # adapters that do something
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    loaders.options = cfg["data"]
    index = index_video(drive)
    clip = Clip("drive", str(drive), "drive", "test", None, None, None, index.duration_s, index.fps)
    samples = stream_samples([clip], cfg["data"])
    shared, alone = predict_rows(module, loaders, samples, "stream"), predict_rows(module, loaders, samples, "predict")
    one, two = (np.array([r["scores"] for r in rows]) for rows in (shared, alone))
    assert np.allclose(one, two, atol=1e-5)
    assert [r["frame_times_s"] for r in shared] == [r["frame_times_s"] for r in alone]


@pytest.mark.parametrize("model", ["smolvlm2", "qwen3_vl", "internvl3", "openflamingo", "image_encoder"])
def test_a_drive_costs_one_encoding_of_each_of_its_frames(cache, tmp_path, monkeypatch, model):
    """40 s at two anchors a second with ten frames: 80 x 10 frames are looked at, 80 and their history are encoded."""
    path = tmp_path / "long.mp4"
    times = (np.arange(200) / 5).tolist()
    write_video(path, [counter_frame(i) for i in range(200)], times)
    module, loaders, samples = _asked(cache, path, model, "data.frame_interval_s=1.0")
    samples = stream_samples([samples[0].clip], {**loaders.options, "num_frames": 10})
    encoded = []
    plain = module.backbone.encode_frames

    def counted(parts):
        found = plain(parts)
        encoded.append(len(found["image"]))
        return found

    monkeypatch.setattr(module.backbone, "encode_frames", counted)
    rows = predict_rows(module, loaders, samples, "stream")
    assert len(rows) == 80
    distinct = {t for r in rows for t in r["frame_times_s"]}
    assert len(distinct) == 80
    assert sum(encoded) <= 2 * len(distinct) < 80 * 10 / 4


def test_frames_of_a_stretch_are_the_ones_asked_for(cache, drive):
    _, loaders, samples = _asked(cache, drive, "smolvlm2")
    (stretch,) = list(StretchDataset(samples, loaders.store, 5))[:1]
    assert stretch.frames is not None
    for sample, picks in zip(stretch.samples, stretch.picks, strict=True):
        numbers = [read_counter(f) for f in stretch.frames[picks]]
        assert all(abs(n / 5 - min(t, 11.8)) <= 0.1 + 1e-6 for n, t in zip(numbers, sample.times_s, strict=True))
    assert len(stretch.frames) == len(set(stretch.frame_times_s.tolist()))


def test_a_damaged_frame_fails_the_anchors_that_see_it_and_no_others(cache, drive, monkeypatch):
    module, loaders, samples = _asked(cache, drive, "smolvlm2")
    want = [r["scores"] for r in predict_rows(module, loaders, samples, "stream")]
    plain = type(loaders.store).frames

    def torn(self, video, times):
        if any(6.0 <= t <= 6.4 for t in times):
            raise DataError("the file is damaged at 6 s")
        return plain(self, video, times)

    monkeypatch.setattr(type(loaders.store), "frames", torn)
    rows = predict_rows(module, loaders, samples, "stream")
    lost = {i for i, s in enumerate(samples) if any(6.0 <= t <= 6.4 for t in s.times_s)}
    assert {i for i, r in enumerate(rows) if r.get("status") == "failed"} == lost
    assert 0 < len(lost) < len(samples)
    assert all(np.allclose(r["scores"], want[i], atol=1e-5) for i, r in enumerate(rows) if i not in lost)


def test_a_stretch_is_bounded_by_its_frames(cache, drive):
    _, loaders, samples = _asked(cache, drive, "smolvlm2", "data.frame_interval_s=0.037", "data.num_frames=16")
    parts = StretchDataset(
        stream_samples([samples[0].clip], {**loaders.options, "num_frames": 16}), loaders.store, 5
    ).parts
    assert sum(len(p) for _, p in parts) == 24
    assert max(len({t for s in p for t in s.times_s}) for _, p in parts) <= 128
    assert len(parts) > 2


def test_a_drive_that_cannot_be_read_fails_row_by_row(cache, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"x" * 500)
    clip = Clip("bad", str(bad), "bad", "test", 1, 3.0, None, 5.0, 10.0)
    cfg = compose(
        "model=smolvlm2", "model.checkpoint=tiny", "task=crash", "data=drives", *QUIET, f"paths.cache_dir={cache}"
    )
    module = build_module(cfg, for_training=False).eval()
    loaders = ClipDataModule({}, build_store(cfg), module.collate, {**cfg["data"], "num_workers": 0}, 0)
    loaders.trainer = build_trainer(cfg, logger=False, enable_checkpointing=False)
    rows = predict_rows(module, loaders, stream_samples([clip], cfg["data"]), "stream")
    assert len(rows) == 10
    assert {r["status"] for r in rows} == {"failed"}


def test_long_drives_have_events_near_misses_and_safe_twins_of_the_same_look():
    scenes = list(draw_long_scenes(40, 0, 20.0, 40.0))
    assert [s.scene_id for s in scenes] == [s.scene_id for s in draw_long_scenes(40, 0, 20.0, 40.0)]
    events = [s for s in scenes if s.label]
    assert len(events) == 40
    for scene in events:
        assert scene.gap_m(scene.event_time_s) == pytest.approx(0.8)
        assert 0.5 < scene.event_time_s - scene.alert_time_s < 4
        assert scene.gap_m(scene.alert_time_s) > 2
        assert scene.gap_m(scene.event_time_s + 6) > 3  # it opens again: the file's length does not tell
    safe = [s for s in scenes if not s.label]
    assert min(s.gap_m(t) for s in safe for t in np.arange(0, s.duration_s, 0.2)) > 3
    assert np.mean([len(s.near_misses_s) for s in safe]) > 1
    twins = {s.drive.group: s.duration_s for s in events}
    assert all(twins[s.drive.group] == s.duration_s for s in safe)
    assert {e.scene_id[-1] for e in events} == {"a", "b"}  # the name does not tell


# -- a person's own videos -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    from tests.conftest import in_this_process

    folder = tmp_path_factory.mktemp("over-time") / "runs"
    in_this_process(cache, folder)("train", *SMALL, "trainer.max_steps=2", "objective.generate=false")
    return next(folder.glob("crash-*"))


def test_predict_takes_a_folder_marks_events_and_writes_a_page_each(run, dashvlm, tmp_path, drive):
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.copy(drive, videos / "one.mp4")
    shutil.copy(drive, videos / "two & <b>.mp4")
    (videos / "bad.mp4").write_bytes(b"x" * 300)
    (videos / "notes.txt").write_text("no video")
    events = tmp_path / "events.csv"
    events.write_text("file_name,time_of_event,time_of_alert\none.mp4,9.5,8.0\n")
    done = dashvlm(
        "predict",
        f"run={run}",
        f"video={videos}",
        f"events={events}",
        "stride_s=1",
        f"output={tmp_path}/out",
        "overlay=true",
    )
    assert "2 of 3 videos scored, 1 failed" in done.stdout
    assert "trained at single moments only" in done.stdout
    one = tmp_path / "out" / "one"
    risk = pd.read_csv(one / "risk.csv")
    assert risk["risk"].between(0, 1).all()
    assert (risk["note"] == "repeats its oldest frame").sum() == (risk["repeated_frames"] > 0).sum() > 0
    page = (one / "risk.html").read_text()
    assert '"event": 9.5' in page
    assert '"alert": 8.0' in page
    assert (one / "video.mp4").read_bytes() == drive.read_bytes()  # H.264 in MP4 plays as it is
    drawn = index_video(one / "risk.mp4")
    assert drawn.height >= 480
    assert len(drawn.times_s) == 60
    other = (tmp_path / "out" / "two & <b>" / "risk.html").read_text()
    assert "<b>" not in other.replace("<body>", "")
    assert "&lt;b&gt;" in other


def test_what_an_earlier_call_drew_goes_and_an_event_after_the_end_is_named(run, dashvlm, tmp_path, drive):
    words = [f"run={run}", f"video={drive}", "stride_s=2", f"output={tmp_path}/out"]
    dashvlm("predict", *words, "overlay=true", "event_s=5")
    assert (tmp_path / "out" / "risk.mp4").is_file()
    done = dashvlm("predict", *words, "event_s=50")
    assert "so it is not drawn" in done.stdout
    assert not (tmp_path / "out" / "risk.mp4").exists()
    assert '"event"' not in (tmp_path / "out" / "risk.html").read_text()
    risk = pd.read_csv(tmp_path / "out" / "risk.csv")
    top = risk[risk["note"].isna()]["risk"].max()  # not where frames are repeated
    assert f"highest risk {top:.3f}" in done.stdout


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here")
def test_other_codecs_are_written_anew_for_the_browser(run, dashvlm, tmp_path):
    path = tmp_path / "old.avi"
    made = ["-f", "lavfi", "-i", "testsrc=size=160x96:rate=5:duration=3", "-c:v", "mpeg4", str(path)]
    subprocess.run(["ffmpeg", "-v", "error", *made], check=True)
    dashvlm("predict", f"run={run}", f"video={path}", "stride_s=1", "event_s=2.5", f"output={tmp_path}/out")
    shown = index_video(tmp_path / "out" / "video.mp4")
    assert shown.codec == "h264"
    assert shown.height == 480
    assert np.allclose(shown.times_s, index_video(path).times_s, atol=1e-3)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
def test_the_cursor_follows_the_video_in_a_browser(run, dashvlm, tmp_path, drive):
    dashvlm("predict", f"run={run}", f"video={drive}", "stride_s=0.5", f"output={tmp_path}/out")
    seen = {}
    for moment in (3.0, 9.0):
        done = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--timeout=5000", "--dump-dom",
             f"file://{tmp_path}/out/risk.html#t={moment}"],
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        place = re.search(r'id="cursor" x1="([\d.]+)"', done.stdout)
        said = re.search(r"<output[^>]*>([\d.]+) s", done.stdout)
        assert place is not None, done.stdout[-500:]
        assert said is not None
        assert float(said.group(1)) == moment
        seen[moment] = float(place.group(1))
    assert (seen[9.0] - seen[3.0]) / 846 == pytest.approx(6 / 12, abs=0.01)  # in proportion to the time


def test_what_video_and_events_mean(tmp_path, drive):
    shutil.copy(drive, tmp_path / "b.mp4")
    shutil.copy(drive, tmp_path / "a.MP4")
    assert [p.name for p in videos_of(str(tmp_path))] == ["a.MP4", "b.mp4"]
    assert [p.name for p in videos_of(f"{tmp_path}/*.mp4")] == ["b.mp4"]
    with pytest.raises(DataError, match="no video"):
        videos_of(f"{tmp_path}/*.mkv")
    (tmp_path / "e.csv").write_text("id,time_of_event,time_of_alert,target\n7,19.5,18.1,1\n8,,,0\n")
    found = read_events(tmp_path / "e.csv")
    assert found == {"00007.mp4": {"alert": 18.1, "event": 19.5}, "00008.mp4": {"alert": None, "event": None}}
    (tmp_path / "e.csv").write_text("file_name,event_time_s\nx.mp4,soon\n")
    with pytest.raises(DataError, match="not a number of seconds"):
        read_events(tmp_path / "e.csv")
    (tmp_path / "e.csv").write_text("file_name,event_time_s,alert_time_s\nx.mp4,2,4\n")
    with pytest.raises(DataError, match="after the event"):
        read_events(tmp_path / "e.csv")
    (tmp_path / "e.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no file name"):
        read_events(tmp_path / "e.csv")
