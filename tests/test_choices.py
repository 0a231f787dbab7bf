"""Every choice that ``conf/`` offers runs, or is refused in one clear error. Choices of several groups share a run."""

import itertools
import json

import pandas as pd
import pytest
from safetensors.torch import load_file

from .conftest import ROOT, SMALL

GROUPS = ("peft", "optim", "callbacks", "logger", "debug")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true")
SHORT = [*SMALL, "data.options.num_drives=6", "trainer.max_steps=1", "objective.max_new_tokens=2"]


def choices(group):
    return sorted(p.stem for p in (ROOT / "conf" / group).glob("*.yaml"))


def together():
    """As many runs as the largest group has choices; the others turn over."""
    turns = {g: itertools.cycle(c for c in choices(g) if c != "data") for g in GROUPS} | {
        "trainer.precision": itertools.cycle(PRECISIONS)
    }
    for peft in choices("peft"):
        words = [f"{g}={peft if g == 'peft' else next(turn)}" for g, turn in turns.items()]
        text = (ROOT / "conf" / "peft" / f"{peft}.yaml").read_text()
        quantised = "nf4" in text or "qlora" in text or "crash_risk_r4" in text
        if peft == "gates":
            words += ["model=openflamingo"]
        if quantised and words[-1].endswith("-true"):
            words[-1] = "trainer.precision=bf16-mixed"  # the pair is refused
        yield words
    yield ["debug=data"]


@pytest.mark.parametrize("words", list(together()), ids=lambda w: w[0])
def test_choices_of_all_groups_run(dashvlm, tmp_path, words):
    dashvlm("train", *SHORT, *words, "+logger.mode=offline" if "logger=wandb" not in words else "logger.mode=offline")
    found = list((tmp_path / "runs").glob("crash-*/result.json"))
    if "debug=data" in words:
        assert not found  # the data alone were looked at
        return
    result = json.loads(found[0].read_text())
    assert result["status"] == "done"
    assert result["metrics"]["accuracy"]["value"] is not None


def test_all_choices_are_among_them():
    said = {w for words in together() for w in words}
    for group in GROUPS:
        assert {f"{group}={c}" for c in choices(group)} <= said
    assert {f"trainer.precision={p}" for p in PRECISIONS} <= said


@pytest.mark.parametrize("trainer", [t for t in choices("trainer") if t in ("gpu", "fsdp")])
def test_a_trainer_without_its_hardware_is_one_clear_error(dashvlm, tmp_path, trainer):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    words = [w for w in SHORT if not w.startswith("trainer.accelerator")]
    done = dashvlm("train", *words, f"trainer={trainer}", check=False)
    assert done.returncode
    assert "trainer.accelerator=gpu" in done.stdout + done.stderr
    assert "do:" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
@pytest.mark.parametrize("family", ["openflamingo", "qwen3_vl", "internvl3", "llama32_vision"])
def test_whole_precisions_train_and_write_in_every_kind_of_network(dashvlm, tmp_path, family, precision):
    dashvlm("train", *SHORT, f"model={family}", f"trainer.precision={precision}")
    (found,) = (tmp_path / "runs").glob("crash-*/result.json")
    assert json.loads(found.read_text())["metrics"]["accuracy"]["value"] is not None
    kinds = {str(v.dtype) for v in load_file(found.parent / "trained.safetensors").values()}
    assert kinds == {"torch.bfloat16" if precision == "bf16-true" else "torch.float64"}


def test_a_glob_and_a_range_sweep_and_an_interval_says_what_it_needs(dashvlm, tmp_path):
    dashvlm("train", *SHORT, "-m", "peft=glob(lora*)", "data.num_frames=range(2,4)")
    table = pd.read_csv(tmp_path / "runs" / "summary.csv")
    assert sorted(table["data.num_frames"]) == [2, 3]
    for words in (["-m"], []):
        done = dashvlm("train", *SHORT, *words, "optim.lr=interval(1e-5,1e-3)", check=False)
        assert done.returncode == 2
        assert "hydra/sweeper=optuna" in done.stderr


@pytest.mark.long
def test_optuna_draws_from_intervals_and_looks_at_validation(fresh_dashvlm, tmp_path):
    pytest.importorskip("optuna")
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "-m", "optim.lr=interval(1e-5,1e-3)"]
    done = fresh_dashvlm("train", *SHORT, *words)
    table = pd.read_csv(tmp_path / "runs" / "summary.csv")
    assert len(table) == 2
    assert table["optim.lr"].between(1e-5, 1e-3).all()
    assert "direction" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["hydra.job.chdir=true"], "relative to where it was typed"),
        (["peft.roles=[]"], "adapters need a part to sit in"),
        (["data.num_frames=2,3"], "add -m"),
        (["peft=qlora", "trainer.precision=bf16-true"], "would cast 4-bit weights"),
    ],
)
def test_words_that_cannot_act_are_refused(dashvlm, words, told):
    done = dashvlm("train", *SHORT, *words, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["train", pytest.param("inspect", marks=pytest.mark.long), "report"])
def test_an_output_folder_below_a_file_is_one_clear_error(fresh_dashvlm, tmp_path, verb):
    (tmp_path / "file").write_text("")
    words = SHORT if verb != "report" else ["study=nexar_models"]
    done = fresh_dashvlm(verb, *words, output=tmp_path / "file" / "runs", check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_its_best_checkpoint_a_run_starts_over_and_ends_the_same(dashvlm, tmp_path):
    words = [*SHORT, "trainer.max_steps=4", "trainer.val_every_n_steps=2", "callbacks.checkpoint.every_n_steps=1"]
    dashvlm("train", *words)
    (found,) = (tmp_path / "runs").glob("crash-*/result.json")
    first, trained = json.loads(found.read_text()), load_file(found.parent / "trained.safetensors")
    found.unlink()
    (found.parent / "checkpoints" / "best.ckpt").unlink()
    dashvlm("train", *words)
    assert all(t in (found.parent / "job.log").read_text() for t in ("best.ckpt is gone", "training starts over"))
    again = json.loads(found.read_text())
    assert again["metrics"]["roc_auc"] == first["metrics"]["roc_auc"]
    assert all((v == trained[k]).all() for k, v in load_file(found.parent / "trained.safetensors").items())
