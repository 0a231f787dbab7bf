"""Runs in fresh processes: sweep, skip, failure, resume to the bit, two processes as one."""

import contextlib
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dashvlm.data.samplers import StreamSampler
from dashvlm.training.optim import schedule

from .conftest import SMALL

SHORT = [
    *SMALL,
    "trainer.max_steps=6",
    "trainer.val_every_n_steps=3",
    "callbacks.checkpoint.every_n_steps=1",
]


def run_folders(output):
    return sorted(p.parent for p in output.glob("*/config.yaml"))


def test_a_sweep_trains_once_then_skips(dashvlm, tmp_path):
    words = [*SMALL, "-m", "data.num_frames=1,2,3", "trainer.max_steps=3"]
    first = dashvlm("train", *words)
    runs = tmp_path / "runs"
    folders = run_folders(runs)
    assert len(folders) == 3
    for folder in folders:
        for name in (
            "result.json",
            "predictions.parquet",
            "adapter/adapter_model.safetensors",
            "job.log",
            "trained.safetensors",
            "quarantine.csv",
            "leakage.json",
        ):
            assert (folder / name).exists(), name
    assert "feasibility" in first.stdout
    assert "3 runs" in first.stdout.split("written:")[0].split("sweep ")[-1]
    assert first.stdout.count("sweep ") == 1
    table = pd.read_csv(runs / "summary.csv")
    assert sorted(table["data.num_frames"]) == [1, 2, 3]
    assert (runs / "summary.png").stat().st_size > 5000
    assert "| num_frames |" in (runs / "summary.md").read_text()
    stamp = {f: (f / "result.json").stat().st_mtime_ns for f in folders}
    again = dashvlm("train", *words)
    assert again.stdout.count("done before, skipped") == 3
    assert stamp == {f: (f / "result.json").stat().st_mtime_ns for f in folders}


def test_one_failing_job_stops_no_other_and_its_log_says_why(dashvlm, tmp_path):
    words = [
        *SMALL,
        "-m",
        "optim.lr=1e-4,1e35",
        "trainer.max_steps=3",
        "trainer.gradient_clip_val=null",
    ]
    done = dashvlm("train", *words, check=False)
    assert done.returncode == 1
    folders = run_folders(tmp_path / "runs")
    failed = [f for f in folders if (f / "failed.json").exists()]
    assert len(failed) == 1
    assert len([f for f in folders if (f / "result.json").exists()]) == 1
    log = (failed[0] / "job.log").read_text()
    assert "Traceback" in log
    assert "the loss is" in log
    assert "drive" in json.loads((failed[0] / "failed.json").read_text())["message"]
    assert "Traceback" not in done.stderr
    again = dashvlm("train", *words, check=False)
    assert again.stdout.count("done before, skipped") == 1
    assert "failed before, running again" in again.stdout


def final_state(output):
    folder = run_folders(output)[0]
    return (
        folder,
        load_file(folder / "trained.safetensors"),
        pd.read_parquet(folder / "predictions.parquet"),
    )


def assert_same_run(one, two):
    (_, a, rows_a), (_, b, rows_b) = one, two
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (rows_a["score"] == rows_b["score"]).all()


def cut_at_step(folder, step):
    """Make a run look as if it had been killed right after a step: nothing but last.ckpt is left."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == step
    for name in ("result.json", "predictions.parquet", "trained.safetensors", "failed.json"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    "stops", [(2, 5, 7), pytest.param(range(1, 9), marks=pytest.mark.exhaustive)], ids=["some", "all"]
)
def test_resume_in_one_process_at_every_step_and_with_accumulation(config, tmp_path, monkeypatch, stops):
    """The same proof without process starts: stop after each checkpoint in turn."""
    import dashvlm.engine.run
    from dashvlm.training.callbacks import Checkpoint

    words = [*SMALL, "trainer.max_steps=5", "trainer.accumulate_grad_batches=2", "trainer.val_every_n_steps=2",
             "callbacks.checkpoint.every_n_steps=1", "peft.dropout=0.1", "objective.generate=false",
             "data.eval_horizons_s=[]"]  # fmt: skip
    cfg = config(*words)

    def run_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
        dashvlm.engine.run.run(cfg, folder)
        return load_file(folder / "trained.safetensors"), (folder / "checkpoints" / "last.ckpt")

    reference, _ = run_in(tmp_path / "whole")
    save = Checkpoint._save
    for stop_after in stops:
        folder, saves = tmp_path / f"stop{stop_after}", []

        def stop(self, trainer, name, saves=saves, stop_after=stop_after):
            save(self, trainer, name)
            saves.append(name)
            if len(saves) == stop_after:
                raise RuntimeError("killed here")

        monkeypatch.setattr(Checkpoint, "_save", stop)
        with contextlib.suppress(RuntimeError):
            run_in(folder)
        monkeypatch.setattr(Checkpoint, "_save", save)
        again, _ = run_in(folder)
        assert all(torch.equal(reference[k], again[k]) for k in reference), stop_after


@pytest.mark.long
def test_two_processes_train_on_the_same_samples_to_the_same_metrics(fresh_dashvlm, tmp_path):
    words = [*SHORT, "peft.dropout=0.0"]
    fresh_dashvlm("train", *words, output=tmp_path / "one")
    fresh_dashvlm("train", *words, "trainer=ddp", output=tmp_path / "two")
    (folder, one, rows_one), (_, two, rows_two) = (
        final_state(tmp_path / "one"),
        final_state(tmp_path / "two"),
    )
    assert rows_one["sample_id"].tolist() == rows_two["sample_id"].tolist()
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-4
    assert np.allclose(rows_one["score"], rows_two["score"], atol=1e-4)
    assert json.loads((folder / "result.json").read_text())["steps"] == 6


@pytest.mark.long
def test_ddp_under_multirun_runs_each_job_once(fresh_dashvlm, tmp_path):
    fresh_dashvlm("train", *SMALL, "trainer=ddp", "trainer.max_steps=2", "-m", "data.num_frames=1,2")
    folders = run_folders(tmp_path / "runs")
    assert len(folders) == 2
    assert all(len((f / "job.log").read_text().split("training on")) == 2 for f in folders)


@pytest.mark.parametrize(
    "words",
    [["objective=pooled"],
     ["objective=pooled", "objective.pooling=attention", "objective.loss=focal", "peft=freeze_text"],
     ["peft=qlora", "trainer.precision=bf16-mixed"], ["peft=full", "optim.lr_scale.vision=0.1"],
     ["data.augmentation={crop: 0.2, colour: 0.3, weather: 0.5, light: 0.5}", "data.num_workers=1"],
     ["data.sampling=uniform", "logger=tensorboard"]],
    ids=["pooled", "focal", "qlora", "full", "augmented", "uniform"],
)  # fmt: skip
def test_variants_end_with_finite_metrics(dashvlm, tmp_path, words):
    words = [("+" + w if w.startswith("optim.lr_scale") else w) for w in words]
    dashvlm("train", *SMALL, "trainer.max_steps=2", *words)
    result = json.loads((run_folders(tmp_path / "runs")[0] / "result.json").read_text())
    assert np.isfinite(result["metrics"]["roc_auc"]["value"])


@pytest.mark.parametrize("word", ["trainer.max_epochs=0", "trainer.max_steps=0", "peft=frozen"])
def test_no_step_is_the_model_as_it_is(dashvlm, tmp_path, word):
    dashvlm("train", *SMALL, "objective.max_new_tokens=4", word)
    (folder,) = (tmp_path / "runs").glob("crash-*")
    assert json.loads((folder / "result.json").read_text())["steps"] == 0
    assert all(not v.any() for k, v in load_file(folder / "trained.safetensors").items() if "lora_B" in k)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    import pickle

    from dashvlm.errors import CheckpointError
    from dashvlm.training.checkpoints import load_weights, write_checkpoint

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    for name, write in (
        ("a.ckpt", lambda p: write_checkpoint({"state_dict": Payload()}, p)),
        ("b.ckpt", lambda p: p.write_bytes(pickle.dumps(Payload()))),
    ):
        write(tmp_path / name)
        with pytest.raises(CheckpointError, match=r"cannot be read|is damaged"):
            load_weights(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_the_stream_sees_every_sample_equally_often_and_splits_over_processes():
    whole = StreamSampler(10, 4, 10, seed=3)
    seen = [i for batch in whole for i, _ in batch]
    assert sorted(seen) == sorted(list(range(10)) * 4)
    halves = [list(StreamSampler(10, 4, 10, 3, rank=r, world_size=2)) for r in (0, 1)]
    for number, batch in enumerate(whole):
        assert sorted(batch) == sorted(halves[0][number] + halves[1][number])
    assert list(StreamSampler(10, 4, 10, 3, start=6)) == list(whole)[6:]


def test_schedules():
    cosine = schedule("cosine", 100, 0.1)
    assert [cosine(0), cosine(9), cosine(10), round(cosine(55), 6), cosine(100)] == [
        0.1,
        1.0,
        1.0,
        0.5,
        0.0,
    ]
    assert schedule("constant", 10, 0)(9) == 1.0


def test_early_stopping_stops_and_the_last_steps_are_validated(config, tmp_path):
    import dashvlm.engine.run

    words = [*SMALL, "objective.generate=false", "data.eval_horizons_s=[]", "optim.lr=1e-12"]
    stopping = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.max_steps=30"]
    (tmp_path / "a").mkdir()
    assert (
        dashvlm.engine.run.run(config(*words, *stopping, "trainer.val_every_n_steps=2"), tmp_path / "a")["steps"] == 4
    )
    (tmp_path / "b").mkdir()
    words[-1] = "optim.lr=1e-3"
    result = dashvlm.engine.run.run(
        config(*words, "trainer.max_steps=5", "trainer.val_every_n_steps=4"), tmp_path / "b"
    )
    assert result["steps"] == 5
    assert result["validation"]["best"] is not None
    seen = pd.read_csv(tmp_path / "b" / "metrics" / "metrics.csv")["val/roc_auc"].dropna()
    assert len(seen) == 2  # after step 4, and after the fifth
