"""Full and read-only disks: real small file systems, mounted for a test. Skipped where nothing may be mounted."""

import contextlib
import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from dashvlm.training.callbacks import Checkpoint
from dashvlm.training.checkpoints import read_checkpoint
from tests.conftest import SMALL, Trials

WORDS = [*SMALL, "trainer.max_steps=6", "callbacks.checkpoint.every_n_steps=1", "objective.generate=false",
         "data.eval_horizons_s=[]"]  # fmt: skip


@pytest.fixture
def disk(tmp_path):
    """Mount a small file system: ``disk(megabytes) -> folder``."""
    mounted = []

    def mount(megabytes):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
        done = subprocess.run(words, capture_output=True, check=False)
        if done.returncode:
            pytest.skip("nothing may be mounted here (needs root)")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=False)


def fill(place):
    """Fill a disk to its last byte."""
    with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
    with contextlib.suppress(OSError), (place / "ballast2").open("wb", buffering=0) as file:
        while True:
            file.write(b"x")


def empty(place):
    for path in place.glob("ballast*"):
        path.unlink()


@pytest.mark.parametrize("full_after", [2, pytest.param(5, marks=pytest.mark.exhaustive)])
def test_a_full_disk_keeps_the_old_checkpoint_and_says_what_to_do(dashvlm, disk, tmp_path, monkeypatch, full_after):
    place = disk(24)
    save, saves = Checkpoint._save, []

    def filling(self, trainer, name):
        saves.append(name)
        if len(saves) == full_after:
            fill(place)
        save(self, trainer, name)

    monkeypatch.setattr(Checkpoint, "_save", filling)
    with Trials("full and read-only disks") as trials:
        done = dashvlm("train", *WORDS, output=place / "runs", check=False)
        folder = next((place / "runs").glob("crash-*"))
        trials.check(done.returncode == 1 and "Traceback" not in done.stderr + done.stdout, done.stderr[-500:])
        trials.check(f"{folder}/checkpoints" in done.stderr and "make room" in done.stderr, done.stderr[-500:])
        steps = [read_checkpoint(p)["global_step"] for p in sorted(folder.glob("checkpoints/*.ckpt"))]
        trials.check(bool(steps) and not list(folder.glob("checkpoints/*.part")), steps)
        monkeypatch.setattr(Checkpoint, "_save", save)
        empty(place)
        dashvlm("train", *WORDS, output=place / "runs")
        dashvlm("train", *WORDS, output=tmp_path / "whole")
        one = load_file(next((tmp_path / "whole").glob("crash-*")) / "trained.safetensors")
        two = load_file(folder / "trained.safetensors")
        trials.check(all(torch.equal(one[k], two[k]) for k in one), "other bits")


@pytest.mark.parametrize("verb", ["train", "evaluate", "report", "export"])
def test_a_disk_without_room_or_rights_is_one_clear_error(dashvlm, disk, finished_run, verb):
    words = {"train": WORDS, "evaluate": [f"run={finished_run}"], "report": [],
             "export": [f"run={finished_run}"]}[verb]  # fmt: skip
    words = [*words]
    with Trials("full and read-only disks") as trials:
        for state in ("full", "read-only"):
            place = disk(2)
            if verb == "report":
                shutil.copytree(finished_run, place / "runs" / finished_run.name)
            if state == "full":
                fill(place)
            else:
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            extra = [f"output={place}/export"] if verb == "export" else []
            done = dashvlm(verb, *words, *extra, output=place / "runs", check=False)
            clear = done.returncode in (1, 2) and "Traceback" not in done.stderr and str(place) in done.stderr
            trials.check(clear and "do:" in done.stderr, (state, done.returncode, done.stderr[-500:]))


def test_a_complete_cache_may_be_read_only(dashvlm, disk, tmp_path):
    place = disk(64)
    dashvlm("train", *WORDS, f"paths.cache_dir={place / 'cache'}", f"paths.output_dir={tmp_path / 'first'}", last=True)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    with Trials("full and read-only disks") as trials:
        done = dashvlm("train", *WORDS, "seed=5", f"paths.cache_dir={place / 'cache'}", check=False, last=True)
        trials.check(done.returncode == 0, done.stderr[-800:])
        found = list((tmp_path / "runs").glob("crash-*/result.json"))
        trials.check(len(found) == 1 and json.loads(found[0].read_text())["status"] == "done")
        # What is not in it cannot be added: one clear error that names the folder.
        words = ["data.num_frames=4", f"paths.cache_dir={place / 'cache'}"]
        other = dashvlm("train", *WORDS, *words, check=False, last=True)
        clear = "Traceback" not in other.stderr and "Read-only" in other.stderr and str(place) in other.stderr
        trials.check(other.returncode in (0, 1, 2) and (clear or other.returncode == 0), other.stderr[-800:])
