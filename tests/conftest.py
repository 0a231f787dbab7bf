"""Shared fixtures: small real videos, small configurations, runs in fresh processes."""

import contextlib
import faulthandler
import io
import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data"

# Families with a tiny twin; a model behind an endpoint has none.
TWINS = {p.stem: p.read_text() for p in (ROOT / "conf" / "model").glob("*.yaml") if "twin:" in p.read_text()}
ENCODERS = sorted(name for name, text in TWINS.items() if "vision.load" in text)  # they read no text
FAMILIES = sorted(set(TWINS) - set(ENCODERS))

SMALL_WORLD = [
    "data=synthetic", "data.options.num_drives=10", "data.options.duration_s=4.0",
    "data.options.fps=5", "data.num_frames=3", "data.batch_size=4",
]  # fmt: skip
SMALL = [
    "model=smolvlm2",
    "model.checkpoint=tiny",
    "task=crash",
    *SMALL_WORLD,
    "trainer.accelerator=cpu",
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache (frames, twins, rendered world) for all tests."""
    folder = tmp_path_factory.getbasetemp()
    # Parallel test workers share it; what lies in it is written under locks.
    folder = (folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def fresh_dashvlm(cache, tmp_path):
    """Run a verb in a process of its own, as a user does: ``fresh_dashvlm("train", *words) -> CompletedProcess``."""

    def call(verb, *words, output=None, check=True, env=None, timeout=300):
        place = [f"paths.output_dir={output or tmp_path / 'runs'}", f"paths.cache_dir={cache}"]
        done = subprocess.run(
            [sys.executable, "-m", f"dashvlm.{verb}", *words, *place],
            capture_output=True, text=True, timeout=timeout, cwd=ROOT, env={**os.environ, **(env or {})},
        )  # fmt: skip
        return checked(done) if check else done

    return call


@pytest.fixture
def dashvlm(cache, tmp_path):
    """The same in this process, runs included, which saves seven seconds of imports for a verb and for each run.

    For tests of what verbs and runs do; tests of processes (isolation, kills, ddp) use ``fresh_dashvlm``.
    """
    return in_this_process(cache, tmp_path / "runs")


def checked(done):
    """A finished process; an error if it failed."""
    if done.returncode:
        raise AssertionError(f"{done.args}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def in_this_process(cache, folder):
    """A function that runs a verb here: ``call("train", *words) -> CompletedProcess``."""
    from dashvlm import sweep
    from dashvlm.engine.job import main

    def run_here(job, lock):
        for logger in _loggers():  # Hydra silences those it finds; a fresh process has none yet
            logger.disabled = False
        sys.argv = ["dashvlm.engine.job", str(job)]
        os.environ["DASHVLM_LOCK"] = str(os.dup(lock))
        return main(job)

    def call(verb, *words, output=None, check=True, env=None, last=False):
        """``last`` gives the words the last word, also about the cache."""
        places = [f"paths.output_dir={output or folder}", f"paths.cache_dir={cache}"]
        words = [*places, *words] if last else [*words, *places]
        out, err, code = io.StringIO(), io.StringIO(), 0
        with _as_it_was(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(ROOT):
            os.environ.update(env or {})
            sweep._in_fresh_process, sys.argv = run_here, [f"dashvlm.{verb}", *words]
            sweep._SINGLE.clear()
            sweep._MANIFESTS.clear()
            try:
                runpy.run_module(f"dashvlm.{verb}", run_name="__main__")
            except SystemExit as ended:
                code = int(ended.code or 0)
        done = subprocess.CompletedProcess([verb, *words], code, out.getvalue(), err.getvalue())
        return checked(done) if check else done

    return call


def _loggers():
    return [known for known in logging.root.manager.loggerDict.values() if isinstance(known, logging.Logger)]


@contextlib.contextmanager
def _as_it_was():
    """Put back what a process may change for itself: words, environment, logging."""
    from dashvlm import sweep

    environment, argv, spawn, root = dict(os.environ), sys.argv, sweep._in_fresh_process, logging.getLogger()
    level, handlers, states = root.level, root.handlers[:], [(x, x.level, x.disabled) for x in _loggers()]
    try:
        yield
    finally:
        sweep._in_fresh_process, sys.argv = spawn, argv
        os.environ.clear()
        os.environ.update(environment)
        for handler in [h for h in root.handlers if h not in handlers]:
            with contextlib.suppress(OSError):  # on a full disk
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        for logger, its_level, disabled in states:
            logger.setLevel(its_level)
            logger.disabled = disabled
        logging.captureWarnings(False)
        faulthandler.enable(sys.__stderr__)


@pytest.fixture(scope="session")
def config(cache):
    """Compose a configuration in this process: ``config(*overrides) -> dict``."""

    def compose(*overrides, output="unused"):
        from dashvlm.sweep import make_plan

        place = [f"paths.output_dir={output}", f"paths.cache_dir={cache}"]
        return make_plan([*overrides, *place]).configs[0]

    return compose


@pytest.fixture(scope="session")
def counter_video(tmp_path_factory):
    """Write a video with a burnt-in frame counter: ``counter_video(**options) -> (path, times)``."""
    import numpy as np

    from dashvlm.data.synthetic.encode import counter_frame, set_rotation, write_video

    folder = tmp_path_factory.mktemp("counter")

    def make(name, num_frames=200, fps=20.0, b_frames=2, gop=30, variable=False, rotation=0):
        times = np.arange(num_frames) / fps
        if variable:
            times = np.cumsum(np.random.default_rng(0).uniform(0.4, 2.2, num_frames)) / fps
            times -= times[0]
        times = np.round(times * 90_000) / 90_000
        path = folder / f"{name}.mp4"
        turned = (np.ascontiguousarray(np.rot90(counter_frame(i), rotation // 90)) for i in range(num_frames))
        write_video(path, turned, times.tolist(), gop, b_frames)
        if rotation:
            set_rotation(path, rotation)
        return path, times

    return make


class Trials:
    """Counts what was tried against a class of faults, and what held; the table of ``make faults`` is made of it."""

    def __init__(self, kind):
        self.kind, self.tried, self.broken = kind, 0, []

    def check(self, held, what=""):
        self.tried += 1
        if not held:
            self.broken.append(what)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None:
            return
        if os.environ.get("FAULTS_FILE"):
            line = {"class": self.kind, "tried": self.tried, "held": self.tried - len(self.broken)}
            with Path(os.environ["FAULTS_FILE"]).open("a") as file:
                file.write(json.dumps(line) + "\n")
        assert self.tried
        assert not self.broken, f"{len(self.broken)} of {self.tried}: {self.broken[:5]}"


@pytest.fixture(scope="session")
def finished_run(cache, tmp_path_factory):
    """The folder of a small finished run, to be copied and not changed."""
    output = tmp_path_factory.mktemp("finished")
    in_this_process(cache, output)("train", *SMALL, "trainer.max_steps=2", "objective.generate=false")
    (folder,) = output.glob("crash-*")
    return folder
