"""The verbs a user types, one after the other on one finished run."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import yaml

from .conftest import REAL, ROOT, SMALL, in_this_process


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    """A finished run with the W&B logger offline."""
    output = tmp_path_factory.mktemp("verbs")
    words = [
        *SMALL,
        "trainer.max_steps=2",
        "trainer.log_every_n_steps=1",
        "logger=wandb",
        "logger.mode=offline",
        "logger.tags=[canary]",
    ]
    in_this_process(cache, output)("train", *words)
    return next(output.glob("crash-*"))


def test_the_verbs_are_listed():
    done = subprocess.run([sys.executable, "-m", "dashvlm"], capture_output=True, text=True, cwd=ROOT)
    for verb in ("train", "evaluate", "predict", "report", "inspect", "export"):
        assert re.search(rf"^  {verb} ", done.stdout, re.MULTILINE)


def test_a_row_for_every_sample_at_every_horizon(run):
    rows = pd.read_parquet(run / "predictions.parquet")
    result = json.loads((run / "result.json").read_text())
    assert sorted(rows["horizon_s"].unique()) == [0.5, 1.0, 1.5]
    assert rows["sample_id"].is_unique
    assert result["counts"]["rows"] == len(rows) == 3 * result["counts"]["test_clips"]
    gap = rows.apply(lambda r: np.abs(r["frame_times_s"] - r["requested_times_s"]).max(), axis=1)
    assert gap.max() <= 0.5 / 5 + 1e-6
    assert (rows["frame_times_s"].map(len) == 3).all()
    assert rows["score"].between(0, 1).all()
    assert set(rows["status"]) <= {"parsed", "unparsed", "refused"}


def test_every_number_can_be_recomputed_from_the_predictions(run):
    from dashvlm.tasks.binary import SCORES
    from dashvlm.tasks.evaluation import evaluate

    result = json.loads((run / "result.json").read_text())
    again = evaluate(pd.read_parquet(run / "predictions.parquet"), SCORES, 42)
    for name, value in again["metrics"].items():
        stored = result["metrics"][name]["value"]
        assert stored is None or stored == pytest.approx(value["value"])


def test_the_wandb_run_has_our_id_config_group_and_tables(run):
    files = list(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1
    assert run.name in files[0].name
    wanted = (b"canary", b"predictions", b"test/roc_auc", b"num_frames", b"plots/")
    for _ in range(60):  # W&B's own process writes the file, and takes its time on a busy machine
        raw = files[0].read_bytes()
        if all(part in raw for part in wanted):
            break
        time.sleep(0.5)
    assert [part for part in wanted if part not in raw] == []
    header = pd.read_csv(run / "metrics" / "metrics.csv")
    assert {"train/loss", "val/roc_auc", "test/roc_auc"} <= set(header)


def test_evaluate_scores_a_run_on_other_data_and_a_bare_backbone(run, dashvlm, tmp_path):
    dashvlm("evaluate", f"run={run}", "data=synthetic", *SMALL[4:], "data.options.seed=7")
    folder = next((tmp_path / "runs").glob("eval-*"))
    assert json.loads((folder / "result.json").read_text())["counts"]["rows"] > 0
    done = dashvlm("evaluate", *SMALL, output=tmp_path / "zero")
    assert "ROC AUC" in done.stdout or "roc_auc" in done.stdout


@pytest.mark.parametrize(
    "words",
    [["model=qwen3_vl"], ["model.checkpoint=500M"], ["peft=full"], ["objective=pooled"], ["objective.loss=x"],
     ["task=mcq"], ["optim.lr=1"], ["start_from=x"], ["experiment=mcq_demo"], ["callbacks=early_stopping"]],
    ids=lambda w: w[0],
)  # fmt: skip
def test_words_that_would_change_what_was_trained_are_refused(run, words, dashvlm):
    done = dashvlm("evaluate", f"run={run}", *words, check=False)
    assert done.returncode == 2
    assert "belongs to what was trained" in done.stderr or "there is no key" in done.stderr or "data=" in done.stderr


def test_words_that_can_act_on_an_evaluation_do(run, dashvlm, tmp_path):
    out = tmp_path / "asked"
    dashvlm("evaluate", f"run={run}", "task.question=What now?", "seed=7", "objective.generate=true", output=out)
    folder = next(out.glob("eval-*"))
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    trained = yaml.safe_load((run / "config.yaml").read_text())
    assert (cfg["seed"], cfg["task"]["question"], cfg["objective"]["generate"]) == (7, "What now?", True)
    assert "What now?" in pd.read_parquet(folder / "predictions.parquet")["prompt"].iloc[0]
    assert cfg["trainer"]["precision"] == trained["trainer"]["precision"]
    assert cfg["model"] == trained["model"]
    assert {k: v for k, v in cfg["task"].items() if k != "question"} == {
        k: v for k, v in trained["task"].items() if k not in ("question",)
    } | {"reasoning": False}


def test_precision_is_the_runs_unless_asked():
    from dashvlm.evaluate import _merged

    data, given = {"name": "x", "options": {}, "root": "r"}, {"paths": {}, "logger": {}, "sweep": {}, "seed": 1}
    trained = {"data": data, "trainer": {"precision": "bf16-mixed"}, "task": {"name": "crash"}, "objective": {}}
    trained |= {"model": {"name": "m"}}
    asked = {**trained, **given, "trainer": {"precision": "32-true", "devices": 1}}
    for said, precision in (([], "bf16-mixed"), (["trainer.precision"], "32-true")):
        assert _merged(trained, asked, said)["trainer"] == {"precision": precision, "devices": 1}


def test_evaluate_on_the_same_data_gives_the_runs_own_scores(run, dashvlm, tmp_path):
    dashvlm("evaluate", f"run={run}", *SMALL[3:-1])
    folder = next((tmp_path / "runs").glob("eval-*"))
    one, two = (pd.read_parquet(f / "predictions.parquet") for f in (run, folder))
    assert np.allclose(one["score"], two["score"], atol=1e-6)


def test_predict_writes_risk_over_time(run, dashvlm, cache, tmp_path):
    video = next(cache.glob("synthetic/*/videos/*.mp4"))
    dashvlm(
        "predict",
        f"run={run}",
        f"video={video}",
        "stride_s=0.4",
        "overlay=true",
        f"output={tmp_path}/p",
    )
    risk = pd.read_csv(tmp_path / "p" / "risk.csv")
    assert risk["time_s"].is_monotonic_increasing
    assert risk["risk"].between(0, 1).all()
    assert (risk["repeated_frames"] > 0).any()
    assert (tmp_path / "p" / "risk.png").stat().st_size > 5000
    from dashvlm.data.video import index_video

    assert len(index_video(tmp_path / "p" / "risk.mp4").times_s) == len(index_video(video).times_s)


def test_predict_explains_a_bad_video_and_a_bad_run(run, dashvlm, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"x" * 100)
    for words, message in (
        ([f"run={run}", f"video={tmp_path}/bad.mp4"], "not a readable video"),
        ([f"run={tmp_path}", f"video={tmp_path}/bad.mp4"], "not a readable video"),
        ([f"run={run}"], "either input or video"),
    ):
        done = dashvlm("predict", *words, check=False)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_export_merges_with_parity_and_loads_with_plain_libraries(run, dashvlm, tmp_path):
    done = dashvlm("export", f"run={run}", f"output={tmp_path}/x")
    difference = float(re.search(r"as it is loaded: ([\d.e+-]+)", done.stdout).group(1))
    assert difference < 1e-4
    import transformers

    merged = transformers.AutoModelForImageTextToText.from_pretrained(str(tmp_path / "x" / "merged"))
    assert not [n for n, _ in merged.named_parameters() if "lora" in n]
    assert "95 %" in (tmp_path / "x" / "README.md").read_text()
    assert (tmp_path / "x" / "adapter" / "adapter_config.json").exists()


def test_report_makes_a_table_of_a_folder(run, dashvlm):
    done = dashvlm("report", output=run.parent)
    assert run.name in done.stdout
    assert (run.parent / "report.csv").exists()


def test_inspect_model_lists_targets_and_near_names(dashvlm):
    done = dashvlm("inspect", "model=smolvlm2", "model.checkpoint=tiny", "peft.targets=[q_porj]")
    assert "q_proj x2" in done.stdout
    assert "did you mean q_proj" in done.stdout


def test_inspect_data_prints_the_card(dashvlm, tmp_path):
    done = dashvlm("inspect", *SMALL)
    assert "groups in several splits: 0" in done.stdout
    card = json.loads((tmp_path / "runs" / "inspect-synthetic" / "card.json").read_text())
    assert [r["clips"] for r in card["splits"]] == [12, 4, 4, 20]
    assert (tmp_path / "runs" / "inspect-synthetic" / "contact_sheet.png").stat().st_size > 20_000


def test_a_missing_dataset_says_what_is_missing(dashvlm):
    done = dashvlm("train", "model.checkpoint=tiny", "data.root=/nowhere", check=False)
    assert done.returncode == 2
    assert "/nowhere/train.csv" in done.stderr
    assert "data=synthetic" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the real clips are not part of the project")
@pytest.mark.long
def test_the_sweep_runs_on_real_clips_and_shows_all_twelve_points(dashvlm, tmp_path):
    place = [
        "model=smolvlm2",
        "model.checkpoint=tiny",
        "task=crash",
        "data=nexar",
        f"data.root={REAL / 'dad_mini'}",
        "data.frame_size=[96,160]",
        "data.num_workers=0",
    ]
    dashvlm(
        "train",
        *place,
        "trainer.max_steps=2",
        "data.frame_interval_s=0.2",
        "-m",
        "data.num_frames=5,10",
    )
    rows = pd.read_csv(tmp_path / "runs" / "summary.csv")
    assert (rows["status"] == "done").all()
    done = dashvlm("inspect", *place)
    assert "groups in several splits: 0" in done.stdout
    card = json.loads((tmp_path / "runs" / "inspect-nexar" / "card.json").read_text())
    assert not any(p["feasible"] for p in card["feasibility"])
    assert len(card["feasibility"]) == 12  # the configured point is one of them
