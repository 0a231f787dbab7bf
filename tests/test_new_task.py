"""A task that this project does not have is one folder and one YAML; everything that shows runs takes it up."""

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from .conftest import ROOT, checked

TASK = '''"""Day or night?"""

from dashvlm.config.imports import configurable
from dashvlm.tasks.base import Task, need_target
from dashvlm.tasks.binary import SCORES
from dashvlm.text.parsing import parse_yes_no


@configurable("task")
class DaylightTask(Task):
    """Is it dark? Two choices."""

    name = "daylight"
    evaluation = SCORES
    choices = ("No", "Yes")

    def default_question(self):
        """The question."""
        return "Is it dark?"

    def target(self, sample):
        """Whether the scene is not by day."""
        scene = sample.clip.extra.get("scene")
        return None if scene is None else int(scene["drive"]["light"] != "day")

    def answer(self, sample):
        """The word."""
        return self.choices[need_target(self.target(sample), sample)]

    def parse(self, text, seen):
        """Strictly."""
        return parse_yes_no(text)
'''
PROMPT = "{% for age in ages_s %}{{ image }}{% endfor %}{{ question }} Answer Yes or No."
YAML = """# @package _global_
defaults:
  - override /data: synthetic
task:
  _target_: dashvlm.tasks.daylight.DaylightTask
  name: daylight
  prompt: daylight
  print_times: false
  question: null
data: {tasks: [daylight], num_frames: 1, reference: clip_end, horizon_s: 0.0, eval_horizons_s: []}
callbacks: {checkpoint: {monitor: val/roc_auc, mode: max}}
"""


@pytest.fixture(scope="module")
def with_daylight(tmp_path_factory):
    """A copy of the project with the task in it, and its runs: train, a sweep, the report and the audit."""
    place = tmp_path_factory.mktemp("project")
    for name in ("dashvlm", "conf", "experiments"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    folder = place / "dashvlm" / "tasks" / "daylight"
    (folder / "prompts").mkdir(parents=True)
    (folder / "__init__.py").write_text(TASK)
    (folder / "prompts" / "daylight.j2").write_text(PROMPT)
    (place / "conf" / "task" / "daylight.yaml").write_text(YAML)

    def call(verb, *words, check=True):
        done = subprocess.run(
            [sys.executable, "-m", f"dashvlm.{verb}", *words, "paths.output_dir=runs", "paths.cache_dir=cache"],
            cwd=place, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(place)},
        )  # fmt: skip
        return (checked(done) if check else done).stdout

    small = ["model=smolvlm2", "model.checkpoint=tiny", "task=daylight", "data.options.num_drives=30",
             "data.options.duration_s=4.0", "data.options.fps=5", "peft=full", "optim.lr=1e-3", "trainer=cpu",
             "data.options.width=64"]  # fmt: skip
    sweep = call("train", *small, "trainer.max_steps=60", "trainer.val_every_n_steps=20", "-m", "data.num_frames=1,2")
    # In six drives the order of the rows may tell the light by chance: the audit then fails, which is its verdict.
    card = call("inspect", "data=synthetic", "task=daylight", "audit=true", *small[3:6], check=False)
    return place, sweep, call("report"), card


@pytest.mark.long
def test_a_fifth_task_trains_and_is_measured(with_daylight):
    place, sweep, _, _ = with_daylight
    results = [json.loads(p.read_text()) for p in sorted((place / "runs").glob("daylight-*/result.json"))]
    assert len(results) == 2
    assert all(r["evaluation"] == "binary" and r["primary_metric"] == "roc_auc" for r in results)
    assert max(r["metrics"]["roc_auc"]["value"] for r in results) > 0.8  # one look at the sky tells
    assert "ROC AUC" in sweep
    assert "majority" in sweep
    rows = pd.read_parquet(next((place / "runs").glob("daylight-*/predictions.parquet")))
    assert "Is it dark?" in rows["prompt"].iloc[0]


@pytest.mark.long
def test_tables_plots_html_and_audit_show_it(with_daylight):
    place, _, report, card = with_daylight
    runs = place / "runs"
    assert "2 runs of daylight" in report
    assert (runs / "summary.png").is_file()
    page = (runs / "report.html").read_text()
    assert "daylight" in page
    assert "false alarm" in page or "missed" in page or "hit" in page
    assert all((run.parent / "plots" / "roc.png").is_file() for run in runs.glob("daylight-*/result.json"))
    assert "readers that see no pixels" in card
    assert "contact_sheet.png" in card
    assert all(json.loads(p.read_text())["audit"] for p in runs.glob("daylight-*/result.json"))
