"""Real signals and kills to real processes: a checkpoint, a line, the right exit code, nobody left, equal bits."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from dashvlm.safety import checksums
from dashvlm.training.checkpoints import LAST, read_checkpoint
from tests.conftest import ROOT, SMALL, Trials

# Steps enough that a signal meets training, not its end.
STEPS = 200
WORDS = [*SMALL, f"trainer.max_steps={STEPS}", "trainer.val_every_n_steps=50", "callbacks.checkpoint.every_n_steps=10",
         "objective.generate=false", "data.eval_horizons_s=[]", "peft.dropout=0.1"]  # fmt: skip


def processes():
    """(pid, parent, session, words) of every process that lives, zombies apart."""
    found = []
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, parent, _, session = (place / "stat").read_text().rpartition(")")[2].split()[:4]
            words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if state != "Z":
                found.append((int(place.name), int(parent), int(session), words))
    return found


pytestmark = pytest.mark.xdist_group("processes")  # one undisturbed run for all


class Command:
    """``dashvlm train`` in a session of its own, with what it prints."""

    def __init__(self, output, cache, *words, verb="train", job=None):
        output.mkdir(parents=True, exist_ok=True)
        self.output, self.file = output, output / f"terminal-{time.time_ns()}.txt"
        place = [f"paths.output_dir={output}", f"paths.cache_dir={cache}"]
        command = [sys.executable, "-m", f"dashvlm.{verb}", *WORDS, *words, *place] if job is None else job
        with self.file.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, start_new_session=True, stdout=file, stderr=file, env=dict(os.environ)
            )

    @property
    def text(self):
        return self.file.read_text()

    def child(self):
        """The process that trains."""
        return next(
            pid for pid, parent, _, words in processes() if parent == self.process.pid and "dashvlm.engine.job" in words
        )

    def left(self):
        """Processes of the session that live, zombies apart."""
        return [one for one in processes() if one[2] == self.process.pid]

    def wait(self, timeout=120):
        return self.process.wait(timeout)


def run_of(output):
    return next(iter(output.glob("crash-*")), None)


def until(what, timeout=120):
    end = time.time() + timeout
    while time.time() < end:
        if what():
            return True
        time.sleep(0.02)
    raise AssertionError("it never came to it")


def training(output, step=10):
    """Whether a run has a checkpoint of at least a step."""
    path = (run_of(output) or output) / "checkpoints" / LAST
    try:
        return path.exists() and read_checkpoint(path)["global_step"] >= step
    except Exception:
        return False


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The same run, never disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert Command(output, cache).wait(300) == 0
    return output


def equal(one, two):
    a, b = run_of(one), run_of(two)
    x, y = load_file(a / "trained.safetensors"), load_file(b / "trained.safetensors")
    rows = [pd.read_parquet(f / "predictions.parquet")["score"] for f in (a, b)]
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) and (rows[0] == rows[1]).all()


NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
SOME = {("SIGTERM", "parent"): (), ("SIGINT", "group"): pytest.mark.long, ("SIGUSR1", "child"): pytest.mark.long}


@pytest.mark.parametrize(
    ("name", "target"),
    [pytest.param(n, t, marks=SOME.get((n, t), pytest.mark.exhaustive), id=f"{n}-{t}") for n in NAMES
     for t in ("parent", "child", "group")],
)  # fmt: skip
def test_a_signal_ends_in_a_checkpoint_and_a_line(whole, cache, tmp_path, name, target):
    signum, output = getattr(signal, name), tmp_path / "runs"
    with Trials("signals") as trials:
        command = Command(output, cache, *(["data.num_workers=1"] if target == "group" else []))
        until(lambda: training(output) or command.process.poll() is not None)
        place = {"parent": command.process.pid, "group": command.process.pid}.get(target) or command.child()
        (os.killpg if target == "group" else os.kill)(place, signum)
        code = command.wait(60)
        until(lambda: not command.left(), 15)
        step = read_checkpoint(run_of(output) / "checkpoints" / LAST)["global_step"]
        trials.check(code == 128 + signum, f"exit code {code}: {command.text[-600:]}")
        trials.check("Traceback" not in command.text, command.text[-600:])
        trials.check(f"stopped by {name}" in command.text and "same command" in command.text, command.text[-300:])
        trials.check(10 <= step < STEPS and not (run_of(output) / "result.json").exists(), f"stopped at step {step}")
        assert Command(output, cache).wait() == 0
        trials.check(equal(whole, output), "other bits")


@pytest.mark.long
def test_a_second_command_waits_and_nobody_trains_twice(whole, cache, tmp_path):
    output = tmp_path / "runs"
    first = Command(output, cache)
    until(lambda: training(output))
    second = Command(output, cache)
    until(lambda: "waiting for it" in second.text)
    by_hand = Command(output, cache, job=[sys.executable, "-m", "dashvlm.engine.job", str(run_of(output))])
    until(lambda: "waiting for it" in by_hand.text)
    os.kill(by_hand.process.pid, signal.SIGTERM)
    assert by_hand.wait(20) == 143
    # The parent is killed: its child must end by itself, with a checkpoint, before the other may begin.
    child = first.child()
    os.kill(first.process.pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{child}"), 30)
    assert second.wait() == 0
    assert not first.left()
    assert "resuming at batch" in second.text
    assert equal(whole, output)


@pytest.mark.long
def test_a_killed_worker_of_the_loader_is_said_and_the_same_command_goes_on(whole, cache, tmp_path):
    output = tmp_path / "runs"
    command = Command(output, cache, "data.num_workers=1")
    until(lambda: training(output))
    workers = [pid for pid, _, _, words in command.left() if "forkserver" in words]
    assert workers
    os.kill(max(workers), signal.SIGKILL)
    assert command.wait() == 1
    until(lambda: not command.left(), 15)
    assert "worker" in command.text
    assert Command(output, cache).wait() == 0
    assert equal(whole, output)


@pytest.mark.long
@pytest.mark.parametrize("count", [2, pytest.param(30, marks=pytest.mark.exhaustive)])
def test_kills_at_random_moments_lose_nothing(whole, cache, tmp_path, count):
    rng = random.Random(count)
    with Trials("SIGKILL at a random moment") as trials:
        for number in range(count):
            output = tmp_path / f"runs{number}"
            started = time.perf_counter()
            command = Command(output, cache)
            until(lambda output=output: run_of(output) is not None)
            time.sleep(rng.uniform(2.0, 11.0))
            if command.process.poll() is None:
                os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()
            until(lambda command=command: not command.left(), 15)
            for path in run_of(output).glob("checkpoints/*.ckpt"):
                read_checkpoint(path)
            ended = Command(output, cache).wait() == 0
            trials.check(ended and equal(whole, output), f"killed after {time.perf_counter() - started:.1f} s")
            shutil.rmtree(output)


PLACES = ("0.01", "0.3", "0.7", "0.99", "before seal", "after seal", "before fsync", "before rename", "after rename",
          "after sync")  # fmt: skip


@pytest.mark.parametrize(
    "places",
    [
        ("after rename",),
        pytest.param(("0.5", "before fsync"), marks=pytest.mark.long),
        pytest.param(PLACES * 2, marks=pytest.mark.exhaustive),
    ],
)
def test_kills_inside_a_checkpoints_write_lose_no_checkpoint(whole, cache, tmp_path, places):
    rng = random.Random(len(places))
    with Trials("SIGKILL inside a checkpoint's write") as trials:
        for number, place in enumerate(places):
            output = tmp_path / f"runs{number}"
            folder = output / run_of(whole).name
            folder.mkdir(parents=True)
            config = yaml.safe_load((run_of(whole) / "config.yaml").read_text())
            config["paths"]["output_dir"] = str(output)
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            checksums.note(folder, ["config.yaml"])
            write = rng.randint(1, 6)
            job = [sys.executable, "-m", "tests.faults.killed_job", str(folder), str(write), place]
            dying = Command(output, cache, job=job)
            assert dying.wait() == -signal.SIGKILL, dying.text[-600:]
            until(lambda dying=dying: not dying.left(), 15)
            kept = sorted(folder.glob("checkpoints/*.ckpt"))
            for path in kept:
                read_checkpoint(path)  # none that is there is half
            known = bool(kept) or write == 1
            ended = Command(output, cache).wait() == 0
            trials.check(known and ended and equal(whole, output), f"write {write}, {place}")
            shutil.rmtree(output)


@pytest.mark.long
def test_a_configuration_edited_by_hand_is_refused_where_it_changes_the_result(whole, cache, tmp_path):
    output = tmp_path / "runs"
    shutil.copytree(whole, output)
    folder = run_of(output)
    (folder / "result.json").unlink()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    job = [sys.executable, "-m", "dashvlm.engine.job", str(folder)]
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 7}))
    refused = Command(output, cache, job=job)
    assert refused.wait() == 1
    assert "was changed by hand, and the change would change the result" in refused.text
    assert "Traceback" not in refused.text
    config["trainer"]["log_every_n_steps"] = 3
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    accepted = Command(output, cache, job=job)
    assert accepted.wait() == 0
    assert "was changed by hand, in nothing that changes the result" in accepted.text
    assert equal(whole, output)
