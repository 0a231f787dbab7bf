"""A number is right or absent: a figure that fails costs none, an undefined one chooses nothing, new content is new."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dashvlm.config.identity import run_id
from dashvlm.data.frames import FrameStore
from dashvlm.data.manifest import build_manifest, fingerprint
from dashvlm.engine.build import build_module
from dashvlm.engine.results import plot_run
from dashvlm.engine.run import _noted, run
from dashvlm.safety.checksums import checkpoint_fingerprint, sampled_hash
from dashvlm.tasks.binary import SCORES
from dashvlm.tasks.binary.metrics import monitor_binary
from dashvlm.training.callbacks import Checkpoint, PatientStopping

from .conftest import SMALL


def small(config, tmp_path, *more):
    cfg = config(*SMALL, "trainer.max_steps=4", *more, output=str(tmp_path))
    folder = tmp_path / "run"
    folder.mkdir()
    return cfg, folder


def test_a_figure_that_fails_costs_a_note_and_no_result(config, tmp_path, monkeypatch):
    def broken(*_):
        raise TypeError("nothing to show")

    cfg, folder = small(config, tmp_path)
    monkeypatch.setattr("dashvlm.engine.run.plot_run", broken)
    monkeypatch.setattr("dashvlm.engine.run.finish", broken)  # of the loggers, W&B among them
    run(cfg, folder)
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "done"
    assert result["notes"] == ["the plots failed: TypeError: nothing to show"]
    assert len(pd.read_parquet(folder / "predictions.parquet")) == result["counts"]["rows"]


def test_a_note_keeps_what_was_wrong():
    notes = []
    with _noted("a figure", notes):
        raise ValueError("x" * 500)
    assert notes[0].startswith("a figure failed: ValueError: x")
    assert len(notes[0]) < 250


def test_rows_without_any_error_have_no_worst_errors_and_all_other_plots(tmp_path):
    rows = pd.DataFrame(
        {
            "primary": True,
            "target": pd.array([0, 1, 0, 1], "Int64"),
            "score": [0.1, 0.9, 0.2, 0.8],
            "clip_id": list("abcd"),
            "path": "absent.mp4",
            "frame_times_s": [[0.0]] * 4,
        }
    )
    value = {"value": 1.0, "low": 1.0, "high": 1.0}
    results = {
        "metrics": {"roc_auc": value, "ap": value, "ece": value},
        "confusion": {"tn": 2, "fp": 0, "fn": 0, "tp": 2},
    }
    made = plot_run(SCORES, rows, results, tmp_path, FrameStore(tmp_path / "store"))
    assert sorted(made) == ["confusion", "pr", "reliability", "roc"]


def test_an_undefined_validation_metric_is_undefined():
    one_class = monitor_binary(np.ones(4), np.array([[0.2, 0.8]] * 4))
    assert np.isnan(one_class["roc_auc"])
    assert one_class["accuracy"] == 1.0


def test_undefined_validations_choose_nothing_and_are_said(config, tmp_path, monkeypatch):
    cfg, folder = small(config, tmp_path, "trainer.val_every_n_steps=1")
    undefined = dataclasses.replace(SCORES, monitor=lambda *_: {"roc_auc": float("nan"), "accuracy": 0.5})
    monkeypatch.setattr("dashvlm.tasks.crash.CrashTask.evaluation", undefined)
    result = run(cfg, folder)
    assert result["validation"]["best"] is None
    assert not (folder / "checkpoints" / "best.ckpt").exists()
    assert any(
        "val/roc_auc was undefined in 4 validations" in a and "last weights are kept" in a for a in result["alarms"]
    )
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    kept = load_file(folder / "trained.safetensors")
    assert kept.keys() == last.keys()
    assert all(torch.equal(kept[name], last[name]) for name in kept)


class Trainer:
    """As much of a trainer as a callback looks at."""

    sanity_checking, global_step, is_global_zero, world_size = False, 3, False, 1
    state = type("State", (), {"fn": "fit"})
    fast_dev_run, should_stop = False, False

    def __init__(self, value):
        self.callback_metrics = {"val/roc_auc": torch.tensor(value)}
        self.saved = []

    def save_checkpoint(self, path, weights_only):
        self.saved.append(path.stem)


def test_a_defined_value_is_best_whatever_was_undefined_before(tmp_path):
    point = Checkpoint(tmp_path, 1, "val/roc_auc", "max", 1, 1)
    for value, saved in ((float("nan"), ["last"]), (0.4, ["best", "last"]), (float("nan"), ["last"]), (0.3, ["last"])):
        trainer = Trainer(value)
        point.on_validation_end(trainer, None)
        assert trainer.saved == saved
    assert (point.best, point.undefined) == (pytest.approx(0.4), 2)


def test_early_stopping_passes_over_undefined_values():
    stop = PatientStopping("val/roc_auc", mode="max", patience=1)
    for _ in range(5):
        stop._run_early_stopping_check(Trainer(float("nan")))
    assert stop.wait_count == 0
    assert stop.stopped_epoch == 0


def test_seconds_count_interrupted_sessions(config, tmp_path):
    cfg, folder = small(config, tmp_path, "callbacks.checkpoint.every_n_steps=1")
    sessions = folder / "checkpoints" / "sessions"
    sessions.mkdir(parents=True)
    (sessions / "another-session.txt").write_text("3600.0\n")
    result = run(cfg, folder)
    assert 3600 < result["seconds"]["fit"] < result["seconds"]["all"] < 3600 + 300
    assert len(list(sessions.glob("*.txt"))) == 2


@pytest.mark.parametrize(
    "words", [("optim.warmup=100",), ("callbacks=early_stopping", "data.splits={train: 0.7, val: 0, test: 0.3}")]
)
def test_settings_that_cannot_act_raise_an_alarm(words, config, tmp_path):
    cfg, folder = small(config, tmp_path, *words)
    alarms = " ".join(run(cfg, folder)["alarms"])
    assert (
        "optim.warmup=100 is not shorter" if "warmup" in words[0] else "early_stopping had nothing to look at"
    ) in alarms


# -- identity -----------------------------------------------------------------------------------------


def test_equal_settings_have_one_name(config):
    one = run_id(config(*SMALL, "data.horizon_s=1"))
    assert run_id(config(*SMALL, "data.horizon_s=1.0")) == one
    assert run_id(config(*SMALL, "data.horizon_s=1.5")) != one
    assert run_id(config(*SMALL, "optim.lr=0.0001")) == run_id(config(*SMALL, "optim.lr=1e-4"))


def test_only_what_decides_the_result_is_in_the_name(config):
    cfg = config("model=smolvlm2", "task=crash", "data=synthetic")
    moved = {
        **cfg,
        "task": {**cfg["task"], "_target_": "elsewhere.Task"},
        "data": {**cfg["data"], "importer": "elsewhere.rows"},
    }
    assert run_id(moved) == run_id(cfg)
    twin = {**cfg, "model": {**cfg["model"], "twin": {"model": "another"}}}
    assert run_id(twin) == run_id(cfg)
    tiny = {**cfg, "model": {**cfg["model"], "checkpoint": "tiny"}}
    other = {**tiny, "model": {**tiny["model"], "twin": {"model": "another"}}}
    assert run_id(tiny) != run_id(other)
    assert run_id({**cfg, "data": {**cfg["data"], "decode_timeout_s": 5}}) == run_id(cfg)


def test_new_weights_in_a_folder_are_another_run(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    (folder / "config.json").write_text("{}")
    model = {"checkpoint": str(folder)}
    before = checkpoint_fingerprint(model)
    shutil.copytree(folder, tmp_path / "copy")
    assert checkpoint_fingerprint({"checkpoint": str(tmp_path / "copy")}) == before
    raw = bytearray(3_000_000)
    raw[:100] = b"x" * 100
    (folder / "model.safetensors").write_bytes(raw)
    assert checkpoint_fingerprint(model) != before
    assert checkpoint_fingerprint({"checkpoint": "500M"}) == {}
    assert checkpoint_fingerprint({"checkpoint": "tiny", "loader_options": {"base": str(folder)}}) != {}


def test_a_replaced_video_of_equal_size_is_another_dataset(tmp_path, counter_video):
    path, _ = counter_video("replaced", num_frames=100)
    root = tmp_path / "d"
    root.mkdir()
    shutil.copy(path, root / "a.mp4")
    rows = [{"clip_id": "a", "video": "a.mp4", "label": 0, "split": "test"}]

    def hashed():
        made = build_manifest("x", rows, root, FrameStore(tmp_path / "store"), {"test": 1.0}, 0)
        return fingerprint(made)

    before = hashed()
    raw = bytearray((root / "a.mp4").read_bytes())
    raw[-40] ^= 1
    (root / "b.mp4").write_bytes(raw)
    (root / "b.mp4").replace(root / "a.mp4")
    assert hashed() != before
    shutil.copy(path, root / "b.mp4")
    (root / "b.mp4").replace(root / "a.mp4")
    assert hashed() == before  # the same content at another time


def test_sampled_hashes_see_the_size_both_ends_and_blocks_between(tmp_path):
    size = 5_000_000
    file = tmp_path / "x"
    file.write_bytes(bytes(size))
    before = sampled_hash(file, size)
    for place in (0, 65_535, size // 2 + 100, size - 1):
        raw = bytearray(size)
        raw[place] = 1
        file.write_bytes(raw)
        assert sampled_hash(file, size) != before
    file.write_bytes(bytes(size + 1))
    assert sampled_hash(file, size + 1) != before


def test_a_sweep_over_the_data_alone_ends_well(dashvlm):
    done = dashvlm("train", *SMALL, "debug=data", "-m", "data.num_frames=2,3")
    assert done.returncode == 0


# -- precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_parts_trained_in_full_beside_adapters_move_in_16_bit_networks(precision, config, tmp_path):
    cfg, folder = small(
        config, tmp_path, "model.dtype=bfloat16", "peft.train_roles=[connector]", f"trainer.precision={precision}",
        "optim.lr=1e-6", "optim.warmup=0",
    )  # fmt: skip
    before = {n: p.detach().clone() for n, p in build_module(cfg).named_parameters() if "modules_to_save" in n}
    assert {p.dtype for p in before.values()} == {torch.float32}
    run(cfg, folder)
    after = load_file(folder / "trained.safetensors")
    for name, value in before.items():
        share = float((after[name] != value).float().mean())
        assert share > 0.9, name  # in bfloat16 nearly all updates of this size round to nothing


def test_a_part_in_32_bit_leaves_the_network_its_precision(config):
    module = build_module(config(*SMALL, "model.dtype=bfloat16", "peft.train_roles=[connector]"))
    assert {p.dtype for p in module.parameters() if not p.requires_grad} == {torch.bfloat16}
