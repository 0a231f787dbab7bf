"""No code from a checkpoint: neither a model's, a processor's nor a template's, and no question asked."""

import json
import os
import pickle
import shutil

import pytest
import torch

from dashvlm.backbones.tiny import twin_folder
from dashvlm.backbones.twin_files import twin_of
from dashvlm.errors import DashVLMError
from tests.conftest import SMALL, Trials

CODE = "from pathlib import Path\nPath({canary!r}).write_text('executed')\nclass X: pass\nclass Y(X): pass\n"
TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ self._TemplateReference__context }}{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
    "{% for c in [].__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}", "{{ messages.append(1) }}",
    "{{ joiner.__init__.__globals__.os.popen('touch CANARY') }}", "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}", "{{ namespace.__init__.__globals__ }}", "{{ config.items() }}",
]  # fmt: skip


@pytest.fixture
def checkpoint(config, cache, tmp_path):
    """A small checkpoint in the hub's layout, to be poisoned."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(twin_folder(twin_of(config(*SMALL)["model"]), cache / "twins"), folder)
    return folder


def load(folder, config):
    from dashvlm.engine.build import build_backbone

    cfg = config(*SMALL)
    cfg["model"] |= {"checkpoint": str(folder), "image_kwargs": twin_of(cfg["model"]).get("image_kwargs", {})}
    return build_backbone(cfg)


FILES = ("config.json", "processor_config.json", "tokenizer_config.json", "preprocessor_config.json",
         "generation_config.json", "image_processor_config.json")  # fmt: skip


def test_code_beside_a_checkpoint_is_not_run(checkpoint, config, tmp_path, monkeypatch):
    """Each file of a checkpoint names classes of a module beside it, as remote code does."""
    canary = tmp_path / "executed"
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("a question was asked"))
    with Trials("code of checkpoints") as trials:
        for name in FILES:
            for kind in (
                "AutoConfig",
                "AutoModelForImageTextToText",
                "AutoProcessor",
                "AutoTokenizer",
                "AutoImageProcessor",
            ):
                folder = tmp_path / f"{name}-{kind}"
                shutil.copytree(checkpoint, folder)
                (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
                known = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
                named = ["evil.X", "evil.Y"] if kind == "AutoTokenizer" else "evil.X"
                known |= {"auto_map": {kind: named}}
                if kind == "AutoConfig" and name == "config.json":
                    known["model_type"] = "evil"
                (folder / name).write_text(json.dumps(known))
                try:
                    load(folder, config)
                    outcome = True  # the classes of transformers were taken
                except DashVLMError:
                    outcome = True
                except Exception as error:
                    outcome = f"{type(error).__name__}: {error}"
                trials.check(outcome is True and not canary.exists(), (name, kind, outcome))
                shutil.rmtree(folder)


def test_templates_run_in_the_sandbox(checkpoint, config, tmp_path):
    import numpy as np

    from dashvlm.data.clip import Observation
    from dashvlm.tasks.base import make_task

    backbone, task = load(checkpoint, config), make_task(config(*SMALL))
    chat = task.messages(Observation((0.0,)))
    canary = tmp_path / "CANARY"
    with Trials("templates") as trials:
        for template in TEMPLATES:
            processor = backbone.encoder.processor
            processor.chat_template = template.replace("CANARY", str(canary))
            try:
                text = str(dict(backbone.encoder.encode([chat], [np.zeros((1, 16, 16, 3), np.uint8)])))
            except Exception as error:
                text = str(error)
            trials.check(not canary.exists() and "subprocess.Popen" not in text and "root:x" not in text, template)


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "training_args.bin", "adapter_model.bin"])
def test_pickles_in_a_checkpoint_are_not_loaded(checkpoint, config, tmp_path, name):
    canary = tmp_path / "executed"
    for path in checkpoint.glob("*.safetensors"):
        path.unlink() if name != "training_args.bin" else None
    torch.save({"a": Payload(canary)}, checkpoint / name)
    (checkpoint / "x.pkl").write_bytes(pickle.dumps(Payload(canary)))
    if name == "training_args.bin":
        load(checkpoint, config)
    else:
        with pytest.raises((DashVLMError, OSError)):
            load(checkpoint, config)
    assert not canary.exists()


def test_reading_only_a_configuration_runs_and_asks_nothing(dashvlm, checkpoint, tmp_path, monkeypatch):
    """``inspect model=`` and the check of a family read config.json alone."""
    canary = tmp_path / "executed"
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("a question was asked"))
    (checkpoint / "evil.py").write_text(CODE.format(canary=str(canary)))
    known = json.loads((checkpoint / "config.json").read_text())
    known |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.X"}}
    (checkpoint / "config.json").write_text(json.dumps(known))
    for words in (["inspect", "model=smolvlm2"], ["evaluate", *SMALL]):
        done = dashvlm(*words, f"model.checkpoint={checkpoint}", check=False)
        assert not canary.exists()
        assert done.returncode == 2
        assert "Traceback" not in done.stderr, done.stderr[-1500:]


@pytest.mark.parametrize("name", ["pipeline", "Trainer", "AutoModel", "os", "SmolVLMConfig", ""])
def test_a_checkpoint_names_processors_only(name):
    from dashvlm.backbones.processors import image_only

    with pytest.raises(DashVLMError, match="no processor of transformers"):
        image_only(name, None, None, "", {})
