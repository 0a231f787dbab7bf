"""The package as users meet it: a wheel without the repository, the console script, the API."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dashvlm import api
from dashvlm.errors import ConfigError, DataError, TrainingError

from .conftest import ROOT, SMALL, checked

pytestmark = pytest.mark.long
FAST = [*SMALL, "trainer.max_steps=1", "objective.max_new_tokens=2"]


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """A run made through the API."""
    places = [f"paths.output_dir={tmp_path_factory.mktemp('api') / 'runs'}", f"paths.cache_dir={cache}"]
    return api.train(api.compose(*FAST, *places)), places


def test_a_run_comes_back_with_its_numbers(run, capfd):
    made, _ = run
    assert made.folder.name.startswith("crash-smolvlm2-sft-")
    assert made.config["data"]["num_frames"] == 3
    value = made.metrics["accuracy"]
    assert value.value == made.result["metrics"]["accuracy"]["value"]
    assert value.low <= value.value <= value.high
    assert made.baselines["majority_accuracy"].value == 0.5
    assert isinstance(made.alarms, list)
    assert len(made.predictions) == made.result["counts"]["rows"]
    again = api.load_run(made.folder)
    assert again == made
    (row,) = again.predict(made.predictions["path"].iloc[0], stride_s=1.0)
    assert row["status"] == "scored"
    assert [t for t, _ in row["risk"]] == [0.0, 1.0, 2.0, 3.0]
    assert capfd.readouterr().out == ""  # quiet


def test_runs_are_evaluated_and_read_as_a_table(run, capfd):
    made, places = run
    other = api.evaluate(made, "seed=3", *places)
    assert other.folder.name.startswith("eval-crash")
    assert other.result["metrics"]["accuracy"] == made.result["metrics"]["accuracy"]
    table = api.read_sweep(made.folder.parent)
    assert isinstance(table, pd.DataFrame)
    assert set(table["run_id"]) == {made.folder.name, other.folder.name}
    assert {"accuracy", "accuracy.low", "data.num_frames"} <= set(table)
    with pytest.raises(ConfigError, match="belongs to what was trained"):
        api.evaluate(made, "peft=lora", *places)
    assert capfd.readouterr().out == ""


def test_errors_come_as_exceptions(tmp_path, cache):
    with pytest.raises(ConfigError) as error:
        api.compose("data.num_frames=0", "model=smolvlm")
    assert "did you mean" in str(error.value)
    with pytest.raises(ConfigError, match="num_frames=0"):
        api.compose("data.num_frames=0")
    for call in (api.load_run, api.read_sweep):
        with pytest.raises(DataError):
            call(tmp_path)
    places = [f"paths.output_dir={tmp_path / 'runs'}", f"paths.cache_dir={cache}"]
    with pytest.raises((TrainingError, DataError)):
        api.train(api.compose(*FAST, "data.splits={train: 0, val: 0.5, test: 0.5}", *places))
    undefined = {"metrics": {"x": {"value": None, "low": None, "high": None}}, "status": "done"}
    made = api.Run(tmp_path)
    made.__dict__["result"] = undefined
    assert np.isnan(made.metrics["x"].value)


@pytest.mark.parametrize(("words", "said"), [
    (["data.num_frames=2,4"], "several values make a sweep"), ([5], "not a word"), ([["seed=1"]], "not a word"),
    (["-m", "seed=1"], "flags are of the command line"), (["crash_demo"], "experiment=crash_demo"),
    (["seed=1 data.num_frames=2"], "several words"), (["seed=x"], "seed=x"),
])  # fmt: skip
def test_what_is_no_word_is_one_clear_error(words, said):
    with pytest.raises(ConfigError, match=said):
        api.compose(*words)


def test_arguments_are_checked(run, tmp_path):
    made, places = run
    for call in (api.load_run, api.read_sweep, made.predict):
        with pytest.raises(ConfigError, match="a path is needed"):
            call(None)
    for stride_s in (0, -1, "0.5", float("nan")):
        with pytest.raises(ConfigError, match="stride_s"):
            made.predict(made.predictions["path"].iloc[0], stride_s=stride_s)
    with pytest.raises(DataError, match="name its parent"):
        api.read_sweep(made.folder)
    with pytest.raises(ConfigError, match="first argument"):
        api.evaluate(made, "run=elsewhere", *places)
    for wrong in ({}, "experiment=crash_demo"):
        with pytest.raises(ConfigError, match="train needs a configuration"):
            api.train(wrong)
    config = api.compose(*FAST, *places)
    for group, key, value in (("data", "num_frames", "four"), ("trainer", "max_steps", -5)):
        with pytest.raises(ConfigError, match=f"{group}.{key}={value}"):
            api.train({**config, group: {**config[group], key: value}})
    with pytest.raises(ConfigError, match="debug=data"):
        api.train(api.compose(*FAST, "debug=data", *places))


def test_files_are_private_and_the_caller_keeps_its_own_permissions(run, tmp_path):
    made, _ = run
    assert (made.folder / "predictions.parquet").stat().st_mode & 0o077 == 0
    before = os.umask(0o022)
    try:
        made.predict(made.predictions["path"].iloc[0], stride_s=2.0, output=str(tmp_path / "out"))
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "predictions.jsonl").stat().st_mode & 0o077 == 0


def test_changed_data_are_another_run(cache, tmp_path, run):
    from dashvlm import sweep

    made, _ = run
    for number, path in enumerate(sorted(set(made.predictions["path"]))):
        split = ("train", "train", "val", "test")[number]
        (tmp_path / split).mkdir(exist_ok=True)
        (tmp_path / split / f"{number}.mp4").write_bytes(Path(path).read_bytes())
        with (tmp_path / f"{split}.jsonl").open("a") as file:
            file.write(json.dumps({"video": f"{split}/{number}.mp4", "label": number % 2}) + "\n")
    words = ["model=smolvlm2", "model.checkpoint=tiny", "task=crash", "data=jsonl", f"data.root={tmp_path}",
             f"paths.cache_dir={cache}", f"paths.output_dir={tmp_path / 'r'}"]  # fmt: skip
    first = sweep._folder_of(api.compose(*words))[0]
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text(lines[0] + "\n")
    sweep.forget_manifests()
    assert sweep._folder_of(api.compose(*words))[0] != first


def test_a_composed_configuration_needs_no_other_hydra(run):
    from hydra import initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert api.compose(*FAST)["data"]["num_frames"] == 3


def test_own_configurations_are_found(fresh_dashvlm, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [override /data: synthetic]\ndata: {num_frames: 7}\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    words = ["experiment=mine", "--cfg", "job"]
    assert "num_frames: 7" in fresh_dashvlm("train", f"--config-dir={tmp_path / 'own'}", *words).stdout
    assert "num_frames: 7" in fresh_dashvlm("train", *words, env={"DASHVLM_CONF": str(tmp_path / "own")}).stdout
    data = fresh_dashvlm("train", "--config-dir", str(tmp_path / "own"), "experiment=mine", "debug=data",
                         "data.options.num_drives=6", "data.options.duration_s=4", "data.options.fps=5")  # fmt: skip
    assert "7x64x64x3" in data.stdout
    wrong = fresh_dashvlm("train", f"--config-dir={tmp_path / 'own'}", "experiment=mime", check=False)
    assert wrong.returncode == 2
    assert "did you mean mine?" in wrong.stderr
    nowhere = fresh_dashvlm("train", "--config-dir=/nowhere", "experiment=mine", check=False)
    assert nowhere.returncode == 2
    assert "there is no folder /nowhere" in nowhere.stderr
    nothing = fresh_dashvlm("train", "experiment=mine", "--config-dir", check=False)
    assert nothing.returncode == 2


@pytest.mark.parametrize(("words", "code", "said"), [
    ([], 0, "train "), (["--help"], 0, "first command"), (["trian"], 1, "did you mean train?"),
    (["train", "seed=x"], 2, "seed=x"),
])  # fmt: skip
def test_the_console_script_runs_verbs(words, code, said):
    done = subprocess.run(
        [sys.executable, "-m", "dashvlm", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert said in done.stdout + done.stderr


def test_a_plain_script_may_call_the_api(tmp_path):
    """Without ``if __name__ == "__main__"``: workers that render and load must not run the script again."""
    places = [f"paths.output_dir={tmp_path / 'runs'}", f"paths.cache_dir={tmp_path / 'new'}"]
    words = [*FAST, "data.num_workers=1", *places]
    (tmp_path / "script.py").write_text(
        "from dashvlm import api\n"
        "print('begins')\n"
        f"run = api.train(api.compose(*{words!r}))\n"
        f"print(api.evaluate(run, 'seed=3', 'data.num_workers=1', *{places!r}).metrics['accuracy'])\n"
    )
    line = [sys.executable, str(tmp_path / "script.py")]
    done = checked(subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200))
    assert done.stdout.count("begins") == 1


def test_a_wheel_works_without_the_repository(tmp_path, cache):
    source = tmp_path / "source"
    checked(subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], capture_output=True, text=True, check=False))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    checked(subprocess.run(build, capture_output=True, text=True, check=False))
    checked(subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")],
                           capture_output=True, text=True, check=False))  # fmt: skip
    python = tmp_path / "venv" / "bin" / "python"
    wheel = next(tmp_path.glob("dashvlm-*.whl"))
    install = [*pip, "--python", str(python), "install", "--no-deps", str(wheel)]
    checked(subprocess.run(install, capture_output=True, text=True, check=False))
    # What it depends on comes from here; the package itself does not.
    packages = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    away = tmp_path / "away"
    away.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def call(*words):
        done = subprocess.run(
            [str(w) for w in words], cwd=away, env=environment, capture_output=True, text=True, check=False
        )
        return checked(done).stdout

    script = tmp_path / "venv" / "bin" / "dashvlm"
    places = ["paths.output_dir=runs", f"paths.cache_dir={cache}"]
    where = call(python, "-c", "import dashvlm; print(dashvlm.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    call(script, "train", "experiment=crash_demo", "debug=fast", "data.options.num_drives=10", *places)
    assert list((away / "runs").glob("crash-*/result.json"))
    assert "runs of crash" in call(script, "report", *places)
    call(script, "report", "study=nexar_grpo", *places)
    five = (
        "from dashvlm import api\n"
        f"words = ['experiment=crash_demo', 'debug=fast', 'data.options.num_drives=10', *{places!r}]\n"
        "run = api.train(api.compose(*words))\n"
        "print(run.metrics['roc_auc'])\n"
        "print(api.load_run(run.folder).predict(run.predictions['path'][0], stride_s=2.0)[0]['status'])\n"
        "print(len(api.read_sweep('runs')))\n"
    )
    (away / "five.py").write_text(five)
    assert "scored" in call(python, "five.py")
