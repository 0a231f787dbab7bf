"""Names in a configuration are looked up, not imported: payloads by command line, run folder, study and adapter."""

import json
import shutil
import sys

import pytest
import yaml

from dashvlm.backbones.tiny import _class
from dashvlm.config.imports import PACKAGES, construct, resolve
from dashvlm.errors import ConfigError
from dashvlm.safety import checksums
from tests.conftest import ROOT, SMALL, Trials

PAYLOADS = [
    "os.system", "os.popen", "os.execv", "posix.system", "builtins.exec", "builtins.eval", "builtins.__import__",
    "builtins.open", "subprocess.run", "subprocess.Popen", "subprocess.check_output", "shutil.rmtree", "pty.spawn",
    "pickle.loads", "torch.load", "yaml.unsafe_load", "yaml.load", "importlib.import_module", "runpy.run_path",
    "functools.partial", "operator.methodcaller", "code.interact", "ctypes.CDLL", "types.FunctionType", "timeit.timeit",
    "hydra.utils.instantiate", "hydra.utils.get_method", "torch.hub.load", "logging.os.system",
    "torch.nn.utils.rnn.torch.os.system", "dashvlm.os.system", "dashvlm.engine.run.os.system",
    "dashvlm.sweep.subprocess.run",
    "dashvlm.sweep.subprocess", "dashvlm.data.guard.pickle.loads", "dashvlm.data.guard.subprocess.Popen",
    "dashvlm.data.guard.serve", "dashvlm.config.imports.importlib.import_module", "dashvlm.config.imports.resolve",
    "dashvlm.errors",
    "dashvlm.safety.files.write_json", "dashvlm.safety.files._write", "dashvlm.safety.checksums.note",
    "dashvlm.engine.run._export",
    "dashvlm.backbones.tiny.twin_folder", "dashvlm.backbones.tiny._build", "dashvlm.backbones.tiny.shutil.rmtree",
    "dashvlm.backbones.processors.save_processor", "dashvlm.backbones.hf.transformers.pipeline",
    "dashvlm.backbones.openflamingo.convert.torch.load", "dashvlm.tasks.base.jinja2.Template",
    "dashvlm.tasks.base.Task", "dashvlm.tasks.base._template", "dashvlm.tasks.crash.cells",
    "dashvlm.data.formats.bvpi_build.Path.unlink",
    "dashvlm.data.formats.synthetic.write_video", "dashvlm.data.formats.synthetic.shutil.rmtree",
    "dashvlm.data.formats.jsonl.Path", "dashvlm.objectives.dpo.torch.load", "dashvlm.objectives.text.TextModule",
    "dashvlm.tasks.crash.CrashTask.__init__", "dashvlm.tasks..crash.CrashTask", "dashvlm.tasks.crash.CrashTask\n",
    " dashvlm.tasks.crash.CrashTask", "dashvlm/tasks/crash.CrashTask", "../dashvlm.tasks.crash.CrashTask",
    "dashvlm.tasks.crash:CrashTask", "__import__('os').system('true')", "", "dashvlm.tasks.nothing.x", "x" * 10_000,
]  # fmt: skip
KEYS = {"task": ("task", "_target_"), "objective": ("objective", "_target_"), "backbone": ("model", "_target_"),
        "importer": ("data", "importer")}  # fmt: skip


STARTS = ("os.system", "os.exec", "os.posix_spawn", "pty.spawn", "subprocess.Popen")


def _noticed(event, words):
    """Note what starts a process, but for our own."""
    own = "git" in str(words) or "dashvlm.data.guard" in str(words)
    if event in STARTS and sys._dashvlm_watch and not own:
        sys._dashvlm_watch[-1].append(event)


@pytest.fixture
def started(monkeypatch):
    """Processes and shells that this process starts, by an audit hook; hooks stay, so there is one for all tests."""
    seen = []
    if not hasattr(sys, "_dashvlm_watch"):
        sys._dashvlm_watch = []
        sys.addaudithook(_noticed)
    sys._dashvlm_watch.append(seen)
    yield seen
    sys._dashvlm_watch.pop()


def test_no_payload_is_found_under_any_kind(started):
    with Trials("names: looked up") as trials:
        for payload in PAYLOADS:
            for kind in PACKAGES:
                try:
                    found = resolve(kind, payload)
                except ConfigError as error:
                    trials.check("may not name" in str(error), payload)
                else:
                    trials.check(False, f"{payload} is {found}")
    assert not started


def test_an_object_of_another_kind_is_not_found():
    assert resolve("task", "dashvlm.tasks.crash.CrashTask")
    for kind in ("objective", "backbone", "importer"):
        with pytest.raises(ConfigError):
            resolve(kind, "dashvlm.tasks.crash.CrashTask")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"prompt": "crash_yes_no", "nope": 1}, "does not take"), ({"prompt": 3}, "wrong type"),
     ({"prompt": "crash_yes_no", "print_times": "yes"}, "wrong type"),
     ({"prompt": "../../../../etc/passwd"}, "unknown task.prompt"), ({"prompt": "/tmp/evil"}, "unknown task.prompt")],
)  # fmt: skip
def test_options_must_fit_the_signature(options, said):
    with pytest.raises(ConfigError, match=said):
        construct("task", "dashvlm.tasks.crash.CrashTask", **options)
    assert construct("task", "dashvlm.tasks.crash.CrashTask", prompt="crash_yes_no").prompt == "crash_yes_no"


def test_a_twin_names_models_configurations_and_processors_only(started):
    with Trials("names: twins") as trials:
        others = (
            "pipeline",
            "Trainer",
            "TrainingArguments",
            "AutoTokenizer.from_pretrained",
            "utils",
            "os",
            "__file__",
        )
        for name in (*others, "__file__", "logging.os.system", "HfArgumentParser", "TextStreamer", "cached_file", ""):
            try:
                trials.check(False, f"{name} is {_class(name)}")
            except ConfigError:
                trials.check(True)
    assert _class("SmolVLMConfig").__name__ == "SmolVLMConfig"
    assert not started


@pytest.mark.parametrize("kind", KEYS)
def test_the_command_line_refuses_payloads(dashvlm, tmp_path, started, kind):
    node, key = KEYS[kind]
    with Trials("names: command line") as trials:
        for payload in PAYLOADS[::8]:
            if not payload or not payload.isascii() or any(c in payload for c in "\n ()'") or len(payload) > 100:
                continue
            done = dashvlm("train", *SMALL, f"{node}.{key}={payload}", check=False)
            trials.check(done.returncode in (1, 2) and "Traceback" not in done.stderr, (payload, done.stderr[-300:]))
    assert not list((tmp_path / "runs").glob("*/result.json")) if (tmp_path / "runs").exists() else True
    assert not started


def edited(source, target, changes):
    """A copy of a run whose configuration was changed, with the checksums that an attacker would write."""
    shutil.copytree(source, target)
    config = yaml.safe_load((target / "config.yaml").read_text())
    for path, value in changes.items():
        node = config
        *parents, last = path
        for name in parents:
            node = node[name]
        node[last] = value
    (target / "config.yaml").write_text(yaml.safe_dump(config))
    checksums.note(target, ["config.yaml"])
    return target


def files_of(folder):
    return {p for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "payloads", [PAYLOADS[2::12], pytest.param(PAYLOADS, marks=pytest.mark.exhaustive)], ids=["some", "all"]
)
def test_a_foreign_run_folder_executes_and_writes_nothing(dashvlm, finished_run, tmp_path, started, payloads):
    outside = tmp_path / "outside"
    outside.mkdir()
    with Trials("names: run folders") as trials:
        for number, payload in enumerate(payloads):
            kind = list(KEYS)[number % 4]
            run = edited(finished_run, tmp_path / f"run{number}", {KEYS[kind]: payload, ("paths", "cache_dir"):
                         str(outside), ("paths", "output_dir"): str(outside)})  # fmt: skip
            before = files_of(run)
            verb = ("evaluate", "export")[number % 2] if kind != "importer" else "evaluate"
            done = dashvlm(verb, f"run={run}", check=False)
            clean = done.returncode == 2 and "Traceback" not in done.stderr and files_of(run) == before
            trials.check(clean and not any(outside.iterdir()), (payload, verb, done.returncode, done.stderr[-500:]))
            shutil.rmtree(run)
    assert not started


def test_the_places_of_a_foreign_run_are_not_used(dashvlm, finished_run, tmp_path):
    """A run of somebody else names its own cache and output; predict and export write to this user's."""
    outside = tmp_path / "outside"
    places = {("paths", k): str(outside) for k in ("cache_dir", "output_dir", "data_dir")}
    run = edited(finished_run, tmp_path / "run", places)
    dashvlm("export", f"run={run}")
    assert not outside.exists()


def test_a_foreign_run_cannot_name_an_endpoint_that_gets_the_key(dashvlm, finished_run, tmp_path):
    run = edited(finished_run, tmp_path / "run", {("model", "_target_"): "dashvlm.backbones.api.load"})
    done = dashvlm("export", f"run={run}", check=False, env={"OPENAI_API_KEY": "sk-canary-0123456789abcdef"})
    assert done.returncode == 2
    assert "names a model behind an endpoint" in done.stderr


def test_a_foreign_adapter_executes_nothing(dashvlm, finished_run, tmp_path, started):
    """What adapter_config.json names is neither imported nor loaded: weights come from trained.safetensors."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    path = run / "adapter" / "adapter_config.json"
    known = json.loads(path.read_text())
    known |= {"auto_mapping": {"parent_library": "antigravity", "base_model_class": "os.system"},
              "base_model_name_or_path": "../../evil", "peft_type": "os.system", "_target_": "os.system"}  # fmt: skip
    path.write_text(json.dumps(known))
    done = dashvlm("export", f"run={run}", check=False)
    assert done.returncode == 2
    assert "adapter_config.json is damaged or was replaced" in done.stderr
    checksums.note(run, checksums.WEIGHTS)  # an attacker's would fit
    dashvlm("export", f"run={run}")
    assert "antigravity" not in sys.modules
    assert not started


def test_a_foreign_study_executes_nothing(dashvlm, tmp_path, started, monkeypatch):
    from dashvlm.reproductions import studies

    folder = tmp_path / "experiments"
    shutil.copytree(ROOT / "experiments" / "nexar_models", folder / "nexar_models")
    monkeypatch.setattr(studies, "STUDIES", folder)
    path = folder / "nexar_models" / "study.yaml"
    text = path.read_text()
    with Trials("names: studies") as trials:
        for payload in ("_target_: os.system", "importer: os.system", "x: !!python/object/apply:os.system [true]"):
            path.write_text(f"{text}\n{payload}\n")
            done = dashvlm("report", "study=nexar_models", check=False)
            trials.check("Traceback" not in done.stderr, done.stderr[-300:])
    assert not started
