"""Every YAML composes; every wrong word on the command line is named with what was meant."""

import ast
import itertools
import subprocess
import sys
import time

import pytest
import yaml

from dashvlm.config.cli import composing
from dashvlm.config.find import CONF
from dashvlm.config.identity import run_id
from dashvlm.config.imports import PACKAGES, resolve
from dashvlm.config.overrides import check_overrides, flags_first, plain
from dashvlm.errors import ConfigError
from dashvlm.tasks.check import check

from .conftest import ROOT

GROUPS = (
    "model",
    "task",
    "data",
    "objective",
    "peft",
    "optim",
    "trainer",
    "callbacks",
    "logger",
    "experiment",
    "debug",
)
OPTIONS = [f"{g}={p.stem}" for g in GROUPS for p in sorted((CONF / g).glob("*.yaml")) if p.stem != "base"]


def composed(*overrides):
    from hydra import compose

    with composing():
        return plain(compose("train", overrides=list(overrides)))


def test_there_are_as_many_options_as_expected():
    assert len(OPTIONS) >= 25


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_passes_the_check(option):
    group, name = option.split("=")
    data = yaml.safe_load((CONF / group / f"{name}.yaml").read_text()) if group == "data" else {}
    remote = ["peft=frozen"] if name == "openai" and group == "model" else []  # it cannot be trained
    labels = ["data.labels=labels.csv"] if name in ("nexar_reasoning", "nexar_sft") else []  # they teach rationales
    cfg = composed(option, "model.checkpoint=tiny", *remote, *labels, *(f"task={t}" for t in data.get("tasks", ())[:1]))
    assert check(cfg) == []
    assert resolve("objective", cfg["objective"]["_target_"])
    assert resolve("importer", cfg["data"]["importer"])


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: p.relative_to(CONF).as_posix())
def test_every_file_says_what_it_is_for(path):
    assert any(line.startswith("# ") and "@package" not in line for line in path.read_text().splitlines()[:3])


def test_a_task_brings_its_data_and_the_command_line_wins():
    assert composed()["data"]["name"] == "nexar"
    assert composed("task=crash", "data=synthetic")["data"]["name"] == "synthetic"
    assert composed("data=synthetic", "task=crash")["data"]["name"] == "synthetic"
    assert composed("experiment=crash_demo")["data"]["name"] == "synthetic"
    assert composed("experiment=crash_demo", "data=jsonl")["data"]["name"] == "jsonl"


def test_a_task_needs_data_that_can_answer_it_and_a_metric_that_it_measures():
    assert check(composed("task=mcq")) == []
    assert composed("task=mcq")["data"]["name"] == "roadbuddy"
    assert "for task=mcq, got task=crash" in check(composed("data=roadbuddy"))[0]
    assert "measures val/loss" in check(composed("task=scene", "callbacks.checkpoint.monitor=val/roc_auc"))[0]
    assert composed("task=scene", "callbacks=early_stopping")["callbacks"]["early_stopping"]["monitor"] == "val/loss"
    assert "needs a task with a JSON schema" in check(composed("objective.constrained=true"))[0]
    wrong = ["task=mcq", "callbacks.checkpoint.monitor=val/log_loss", "task.answer_with=text", "task.reorder=true",
             "data.shots.most=2", "objective.prefix=x"]  # fmt: skip
    found = "\n".join(check(composed(*wrong)))
    for part in (
        "better the lower",
        "whole texts do not depend",
        "at least data.shots.least=4",
        "scored by its choices",
    ):
        assert part in found
    assert "scored by what is written" in check(composed("task=scene", "objective.generate=false"))[0]
    assert "needs a task with two answers" in check(composed("task=mcq", "objective=pooled"))[0]


def test_all_wrong_words_are_reported_at_once():
    with composing(), pytest.raises(ConfigError) as error:
        check_overrides("train", ["model=smolvlm3", "data.nmu_frames=5", "num_frames=3", "data=synthetic"])
    text = str(error.value)
    assert "3 errors" in text
    assert "did you mean smolvlm2?" in text
    assert text.count("did you mean data.num_frames?") == 2


def test_all_wrong_values_are_reported_at_once_without_torch():
    code = (
        "import sys; from dashvlm.sweep import launch; "
        "rc = launch(['data=synthetic', '-m', 'data.num_frames=5,0', 'data.reader=decrod', 'optim.lr=-1']); "
        "assert rc == 2, rc; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for part in (
        "data.num_frames=0",
        "did you mean decord?",
        "optim.lr=-1: must be a number above 0",
        "3 errors",
    ):
        assert part in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["--help", "--cfg"])
def test_help_and_cfg_answer_fast_without_torch(flag):
    words = [flag] if flag == "--help" else ["--cfg", "job"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dashvlm.train", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0
    assert "data" in done.stdout
    assert "| torch" not in done.stderr
    assert time.perf_counter() - started < 10  # two seconds alone; tests may share the machine


def test_flags_may_stand_in_the_middle():
    assert flags_first(["a=1", "-m", "b=2,3"]) == ["-m", "a=1", "b=2,3"]


def test_run_id_ignores_where_and_how_fast_but_not_what():
    base = composed("data=synthetic")
    same = composed(
        "data=synthetic",
        "paths.output_dir=/x",
        "data.num_workers=3",
        "logger=wandb",
        "data.root=/y",
    )
    assert run_id(base) == run_id(same)
    changed = [
        "data.num_frames=6",
        "seed=1",
        "optim.lr=0.1",
        "peft.rank=4",
        "objective=pooled",
        "task.print_times=false",
    ]
    ids = [run_id(composed("data=synthetic", c)) for c in changed] + [run_id(base)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.exec", "dashvlm.engine.scoring.subprocess.run", "dashvlm.engine.run.os.system",
     "dashvlm.sweep.subprocess",
     "dashvlm.config.imports.importlib.import_module", "torch.load", "dashvlm.errors",
     "dashvlm.engine.run.build_module",
     "dashvlm.nope.x", "dashvlm.engine.run.yaml.load", "functools.partial"],
)  # fmt: skip
def test_nothing_foreign_can_be_named_as_target(name):
    for kind in PACKAGES:
        with pytest.raises(ConfigError, match="may not name"):
            resolve(kind, name)


# -- layering -----------------------------------------------------------------------------------

PACKAGE = sorted((ROOT / "dashvlm").rglob("*.py"))


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def module(path):
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


FORBIDDEN = [
    ("dashvlm.config.rules", ("hydra", "omegaconf", "torch", "pandas")),
    (
        "dashvlm.tasks",
        (
            "dashvlm.backbones",
            "dashvlm.objectives",
            "dashvlm.training",
            "torch",
            "transformers",
            "hydra",
        ),
    ),
    (
        "dashvlm.backbones",
        ("dashvlm.tasks", "dashvlm.objectives", "dashvlm.training", "hydra", "pytorch_lightning"),
    ),
    ("dashvlm.data.clip", ("torch", "dashvlm.tasks", "hydra")),
    ("dashvlm.data.sampling", ("torch", "hydra", "av", "pandas")),
    ("dashvlm.metrics", ("torch", "hydra", "dashvlm.data", "dashvlm.backbones")),
    (
        "dashvlm.report",
        ("torch", "dashvlm.backbones", "dashvlm.training", "dashvlm.engine.run", "dashvlm.engine.build"),
    ),
    ("dashvlm.data", ("dashvlm.backbones", "dashvlm.training", "dashvlm.objectives", "hydra")),
    ("dashvlm.engine.run", ("hydra",)),
    ("dashvlm.engine.build", ("hydra",)),
    ("dashvlm.engine.fit", ("hydra",)),
    ("dashvlm.engine.scoring", ("hydra",)),
]


@pytest.mark.parametrize(("layer", "forbidden"), FORBIDDEN, ids=[f[0] for f in FORBIDDEN])
def test_imports_run_one_way(layer, forbidden):
    mine = [p for p in PACKAGE if module(p) == layer or module(p).startswith(layer + ".")]
    assert mine
    for path, name in itertools.chain.from_iterable(((p, n) for n in imports(p, top_level_only=True)) for p in mine):
        assert not any(name == f or name.startswith(f + ".") for f in forbidden), f"{module(path)} imports {name}"


def test_wandb_and_hydra_stay_where_they_belong():
    for path in PACKAGE:
        for name in imports(path):
            if name.split(".")[0] == "wandb":
                assert module(path).startswith(("dashvlm.training.loggers", "dashvlm.report"))
            if name.split(".")[0] == "hydra":
                verbs = (
                    "dashvlm.config.overrides",
                    "dashvlm.config.cli",
                    "dashvlm.sweep",
                    "dashvlm.evaluate",
                    "dashvlm.inspect",
                    "dashvlm.score",
                    "dashvlm.api",
                )
                assert module(path) in verbs
            assert name.split(".")[0] != "lightning"


def test_no_drawers():
    assert not [p for p in PACKAGE if p.stem in ("utils", "helpers", "common", "misc")]


def test_no_call_of_transformers_may_run_a_checkpoints_code():
    """Each Auto class says so itself: its default asks on a terminal, also where only a configuration is read."""
    found = 0
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = ast.unparse(node.func.value).rsplit(".", 1)[-1]
            if node.func.attr == "from_pretrained" and owner.startswith("Auto"):
                found += 1
                said = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert said.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
    assert found >= 8


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "score", "inspect", "label", "report", "export"])
def test_the_help_of_a_verb_fits_on_a_screen(verb):
    from dashvlm.config.help import short_help

    lines = short_help(verb).splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) < 80
    assert any(line.startswith(f"  dashvlm {verb} ") for line in lines)
    keys = [k for k in yaml.safe_load((CONF / f"{verb}.yaml").read_text()) if k not in ("defaults", "sweep")]
    assert [k for k in keys if not any(line.startswith(f"  {k} ") for line in lines)] == []
    if verb in ("train", "evaluate"):
        for group in ("model", "task", "data", "objective", "peft", "trainer"):
            assert any(line.startswith(f"  {group} ") for line in lines)


@pytest.mark.parametrize(("flag", "hydra"), [("--hydra-help", True), ("--help", False)])
def test_hydras_own_help_stays_reachable(flag, hydra):
    done = subprocess.run([sys.executable, "-m", "dashvlm.train", flag], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert ("hydra" in done.stdout.splitlines()[0].lower()) == hydra
    assert ("fit one configuration" in done.stdout.lower()) == (not hydra)


@pytest.mark.parametrize(
    ("accelerator", "driver", "cuda", "bf16", "expected"),
    [
        ("cpu", True, True, True, "32-true"), ("auto", False, True, True, "32-true"),
        ("auto", True, False, True, "32-true"), ("auto", True, True, True, "bf16-mixed"),
        ("gpu", True, True, False, "16-mixed"),
    ],
)  # fmt: skip
def test_the_precision_fits_the_card(accelerator, driver, cuda, bf16, expected, monkeypatch, tmp_path):
    import torch

    from dashvlm.config import overrides

    monkeypatch.setattr(overrides, "DRIVERS", (str(tmp_path if driver else tmp_path / "none"),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    made = composed("task=crash", "data=synthetic", f"trainer.accelerator={accelerator}")
    assert made["trainer"]["precision"] == expected
    kept = composed("task=crash", "data=synthetic", "trainer.precision=64-true", f"trainer.accelerator={accelerator}")
    assert kept["trainer"]["precision"] == "64-true"
