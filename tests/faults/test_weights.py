"""Weights and checkpoints with a flipped bit are found before anything is scored, and no state needs a helping hand."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dashvlm.errors import CheckpointError
from dashvlm.safety import checksums
from dashvlm.training.checkpoints import BEFORE_LAST, BEST, LAST, read_checkpoint, resume_point, write_checkpoint
from tests.conftest import SMALL, Trials

WORDS = [*SMALL, "trainer.max_steps=6", "trainer.val_every_n_steps=3", "callbacks.checkpoint.every_n_steps=1",
         "objective.generate=false", "data.eval_horizons_s=[]", "peft.dropout=0.1"]  # fmt: skip


def flip(path, rng):
    """Flip one bit of a file; return which."""
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return bit


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that was never disturbed: its configuration and its folder."""
    import dashvlm.engine.run

    cfg, folder = config(*WORDS), tmp_path_factory.mktemp("whole")
    dashvlm.engine.run.run(cfg, folder)
    return cfg, folder


def test_every_flipped_bit_in_weights_is_found(finished_run, tmp_path):
    rng, run = random.Random(1), tmp_path / "run"
    with Trials("flipped bits: weights") as trials:
        shutil.copytree(finished_run, run)
        shutil.copy(run / "trained.safetensors", run / "start.safetensors")
        checksums.note(run, checksums.WEIGHTS)
        checksums.verify_weights(run)
        for name in ("trained.safetensors", "start.safetensors", "adapter/adapter_model.safetensors"):
            kept = (run / name).read_bytes()
            for _ in range(10):
                bit = flip(run / name, rng)
                try:
                    checksums.verify_weights(run)
                    trials.check(False, (name, bit))
                except CheckpointError as error:
                    trials.check(str(run / name) in error.what, (name, bit))
                (run / name).write_bytes(kept)


def test_every_flipped_bit_in_checkpoints_is_found(whole, tmp_path):
    rng = random.Random(2)
    with Trials("flipped bits: checkpoints") as trials:
        for name in (LAST, BEFORE_LAST, BEST):
            path = tmp_path / name
            for _ in range(10):
                shutil.copy(whole[1] / "checkpoints" / name, path)
                read_checkpoint(path)
                bit = flip(path, rng)
                try:
                    read_checkpoint(path)
                    trials.check(False, (name, bit))
                except CheckpointError:
                    trials.check(True)
    path.write_bytes((whole[1] / "checkpoints" / BEST).read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_a_sealed_checkpoint_is_an_ordinary_file_of_torch(tmp_path):
    write_checkpoint({"state_dict": {"a": torch.arange(5)}}, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]["a"].tolist() == [0, 1, 2, 3, 4]
    torch.save({"state_dict": {}}, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(tmp_path / "b.ckpt")


def test_two_last_checkpoints_are_kept_and_nothing_goes_through_tmpdir(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    for step in (1, 2, 3):
        write_checkpoint({"step": step}, tmp_path / LAST)
    assert read_checkpoint(tmp_path / LAST)["step"] == 3
    assert read_checkpoint(tmp_path / BEFORE_LAST)["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [LAST, BEFORE_LAST]


@pytest.mark.parametrize("verb", ["evaluate", "export", "predict"])
def test_a_run_with_a_flipped_bit_is_not_scored(dashvlm, finished_run, tmp_path, verb):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    flip(run / "trained.safetensors", random.Random(3))
    video = next(iter(finished_run.parent.parent.rglob("*.mp4")), None)
    words = [f"video={video}"] if verb == "predict" else []
    if verb == "predict" and video is None:
        import pandas as pd

        words = [f"video={pd.read_parquet(run / 'predictions.parquet')['path'][0]}"]
    done = dashvlm(verb, f"run={run}", *words, check=False)
    assert done.returncode == 2
    assert "trained.safetensors is damaged or was replaced" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_starts_from_damaged_weights_does_not_begin(dashvlm, finished_run, tmp_path):
    run = tmp_path / finished_run.name
    shutil.copytree(finished_run, run)
    flip(run / "trained.safetensors", random.Random(4))
    done = dashvlm("train", *SMALL, "trainer.max_steps=1", f"start_from={run}", check=False)
    assert done.returncode == 1
    assert "trained.safetensors is damaged or was replaced" in done.stderr + done.stdout


def test_weights_that_are_not_listed_are_not_trusted(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    known = json.loads((run / checksums.FILE).read_text())
    del known["sha256"]["trained.safetensors"]
    (run / checksums.FILE).write_text(json.dumps(known))
    with pytest.raises(CheckpointError):
        checksums.verify_weights(run)


def test_weights_and_files_that_are_gone_are_said(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "leakage.json").unlink()
    assert checksums.changed(run) == ["leakage.json"]
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is damaged"):
        checksums.verify_weights(run)


DAMAGE = {
    "last": (LAST,), "previous": (BEFORE_LAST,), "best": (BEST,), "both": (LAST, BEFORE_LAST),
    "all": (LAST, BEFORE_LAST, BEST),
}  # fmt: skip


@pytest.mark.parametrize(
    "what", [pytest.param(n, marks=pytest.mark.exhaustive) if n in ("previous", "all") else n for n in DAMAGE]
)
def test_a_run_with_damaged_checkpoints_goes_on_from_what_is_whole(whole, tmp_path, what, caplog):
    import dashvlm.engine.run

    caplog.set_level("INFO", "dashvlm")
    cfg, reference = whole
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    for name in ("result.json", "predictions.parquet", "trained.safetensors", checksums.FILE):
        (folder / name).unlink()
    rng = random.Random(5)
    for name in DAMAGE[what]:
        flip(folder / "checkpoints" / name, rng)
    dashvlm.engine.run.run(cfg, folder)
    one, two = load_file(reference / "trained.safetensors"), load_file(folder / "trained.safetensors")
    assert all(torch.equal(one[k], two[k]) for k in one)
    steps = {"last": "resuming at batch 5", "previous": "resuming at batch 6"}
    assert steps.get(what, "training starts over") in caplog.text
    if what != "previous":
        assert "is damaged" in caplog.text
    for name in (LAST, BEST):
        read_checkpoint(folder / "checkpoints" / name)


def test_parts_of_a_killed_writer_are_cleared_and_nothing_is_resumed_from_them(tmp_path):
    (tmp_path / f"{LAST}.123.part").write_bytes(b"half")
    assert resume_point(tmp_path) is None
    assert not list(tmp_path.iterdir())
