"""Whole runs on folders in the hub's layout: every objective and task, then evaluate, predict and export."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from dashvlm.backbones.constrained import keep_to_schema
from dashvlm.backbones.encoder import _resized_once
from dashvlm.backbones.openflamingo.processing import OpenFlamingoProcessor
from dashvlm.data.synthetic.encode import counter_frame, write_video
from dashvlm.text.scene_schema import SCHEMA

from .conftest import ROOT, SMALL_WORLD
from .test_hub_checkpoints import FAMILIES, LAYOUTS, hub  # noqa: F401

WORLD = [*SMALL_WORLD, "data.options.num_drives=6", "data.num_frames=2", "data.batch_size=2", "data.eval_batch_size=4",
         "trainer.accelerator=cpu", "trainer.max_steps=1", "objective.max_new_tokens=3"]  # fmt: skip


def words_of(hub):  # noqa: F811
    name, folder = hub
    return [f"model={FAMILIES[name][0]}", f"model.checkpoint={folder}"]


def result_of(folder):
    (found,) = folder.glob("*/result.json")
    return found.parent, json.loads(found.read_text())


def chain(hub, dashvlm, tmp_path):  # noqa: F811
    """Train, evaluate, predict and export say the same."""
    dashvlm("train", *words_of(hub), "task=crash", *WORLD)
    run, result = result_of(tmp_path / "runs")
    assert np.isfinite(result["metrics"]["accuracy"]["value"])
    assert len(json.loads((run / "result.json").read_text())["checkpoint"]["fingerprint"]) == 16
    dashvlm("evaluate", f"run={run}", output=tmp_path / "again")
    _, again = result_of(tmp_path / "again")
    assert again["metrics"]["brier"]["value"] == pytest.approx(result["metrics"]["brier"]["value"], abs=1e-6)
    write_video(tmp_path / "clip.mp4", (counter_frame(i) for i in range(40)), [i / 10 for i in range(40)], 10, 0)
    done = dashvlm("predict", f"run={run}", f"video={tmp_path / 'clip.mp4'}")
    assert "written" in done.stdout
    done = dashvlm("export", f"run={run}")
    assert "parity" in done.stdout
    merged = run / "export" / "merged"
    assert (merged / "config.json").is_file()
    kept = json.loads((merged / "config.json").read_text())
    assert kept["model_type"] == transformers.AutoConfig.from_pretrained(hub[1]).model_type


@pytest.mark.parametrize("hub", ["smolvlm2_small", "openflamingo"], indirect=True)
def test_sft_evaluate_predict_and_export_say_the_same(hub, dashvlm, tmp_path):  # noqa: F811
    chain(hub, dashvlm, tmp_path)


@pytest.mark.exhaustive
def test_so_they_do_for_every_family(hub, dashvlm, tmp_path):  # noqa: F811
    chain(hub, dashvlm, tmp_path)


TASKS = {
    "pooled": ["task=crash", "objective=pooled"], "qlora": ["task=crash", "peft=qlora"], "mcq": ["task=mcq"],
    "scene": ["task=scene"], "caption": ["task=caption"],
    "grpo": ["task=crash", "objective=grpo", "task.reasoning=true", "objective.num_generations=2"],
}  # fmt: skip
FIRST = dict(zip(FAMILIES, TASKS, strict=False)) | {"qwen3_vl": "grpo"}
"""What each family does by default; the other pairs are exhaustive."""


def run_of(hub, dashvlm, tmp_path, name):  # noqa: F811
    words = [w for w in WORLD if name != "pooled" or not w.startswith("objective.")]
    dashvlm("train", *words_of(hub), *TASKS[name], *words)
    _, result = result_of(tmp_path / "runs")
    assert result["status"] == "done"
    assert result["counts"]["failed_rows"] == 0
    if name == "grpo":
        assert np.isfinite(result["metrics"]["reward"]["value"])


def test_each_family_runs_another_task(hub, dashvlm, tmp_path):  # noqa: F811
    run_of(hub, dashvlm, tmp_path, FIRST[hub[0]])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TASKS)
def test_every_task_and_objective_runs(hub, dashvlm, tmp_path, name):  # noqa: F811
    run_of(hub, dashvlm, tmp_path, name)


@pytest.mark.exhaustive
@pytest.mark.skipif(not LAYOUTS.is_dir(), reason="the layouts are not part of the project")
def test_the_full_500m_trains_a_step_on_a_cpu(dashvlm, tmp_path):
    import shutil

    folder = tmp_path / "500M"
    shutil.copytree(LAYOUTS / "smolvlm2", folder)
    kept = {p.name: p.read_bytes() for p in folder.iterdir()}
    net = transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.from_pretrained(folder))
    assert sum(p.numel() for p in net.parameters()) == 507_482_304
    net.save_pretrained(folder)
    del net
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    words = ["data.limit=2", "data.batch_size=1", "data.eval_batch_size=2", "objective.generate=false"]
    words += ["data.eval_horizons_s=[]", "data.num_frames=1"]
    dashvlm("train", "model=smolvlm2", f"model.checkpoint={folder}", "task=crash", *WORLD, *words)
    run, result = result_of(tmp_path / "runs")
    assert result["steps"] == 1
    moved = [v for k, v in load_file(run / "trained.safetensors").items() if "lora_B" in k]
    assert any(v.any() for v in moved)


# -- what real files have ------------------------------------------------------------------------


def test_a_template_keeps_its_line_end_behind_a_block(tmp_path):
    class Tokenizer:
        chat_template = None

    written = "{% for m in messages %}User: {{ m }}{% endfor %}\nAssistant:"
    kept = OpenFlamingoProcessor(None, Tokenizer(), written).tokenizer.chat_template
    import jinja2

    made = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(kept).render(messages=["x"])
    assert made == "User: x\nAssistant:"
    assert OpenFlamingoProcessor(None, Tokenizer(), kept).tokenizer.chat_template == kept


def test_a_frame_is_resized_once_where_the_tower_is_smaller_than_the_budget():
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    processor = SmolVLMImageProcessorPil(do_image_splitting=False, max_image_size={"longest_edge": 384})

    class Holder:
        image_processor = processor

    kwargs = _resized_once({"do_image_splitting": False, "size": {"longest_edge": 512}}, Holder)
    assert kwargs["size"] == {"height": 384, "width": 384}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 854, 3), dtype=np.uint8))
    made = processor([[picture]], return_tensors="pt", **kwargs)["pixel_values"][0, 0]
    straight = np.asarray(picture.resize((384, 384), Image.Resampling(processor.resample)), np.float32)
    expected = torch.from_numpy((straight / 255 - 0.5) / 0.5).permute(2, 0, 1)
    assert torch.allclose(made, expected, atol=1e-5)
    splits = {"do_image_splitting": True, "size": {"longest_edge": 2048}}
    assert _resized_once(dict(splits), Holder) == splits


@pytest.mark.parametrize("blank", [True, False])
def test_an_object_may_follow_the_blank_that_a_template_writes(config, blank):
    """With SmolVLM's tokenizer ``' {'`` is one token, and what the template has taught."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    base = Tokenizer(models.BPE())
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    base.train_from_iterator([' {"road_type": "urban"}'] * 50, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<end>")
    (first, *_) = tokenizer(' {"road_type"').input_ids
    assert tokenizer.decode([first]).startswith(" {")
    scores = keep_to_schema(SCHEMA, tokenizer, len(tokenizer), blank)(torch.zeros(1, 1, dtype=torch.long),
                                                                     torch.zeros(1, len(tokenizer)))  # fmt: skip
    assert bool(torch.isfinite(scores[0, first])) is blank
    assert bool(torch.isfinite(scores[0, tokenizer.convert_tokens_to_ids("{")]))


def test_the_blank_is_read_from_the_template(config):
    from dashvlm.engine.build import build_backbone

    from .conftest import SMALL

    assert build_backbone(config("model=openflamingo", *SMALL[1:])).encoder.leads_with_blank
    assert not build_backbone(config("model=qwen3_vl", *SMALL[1:])).encoder.leads_with_blank


# -- what the hub and this machine lack ----------------------------------------------------------


@pytest.fixture(scope="module")
def refusing_hub():
    """A hub that knows one gated repository and nothing else."""
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            gated = "gated" in self.path
            self.send_response(403 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *said):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("online", [True, False])
def test_a_repository_that_cannot_be_had_is_named_with_its_address(refusing_hub, tmp_path, online):
    """Asked for over HTTP, in a process that has this hub's address."""
    asked = {
        "meta/gated-model": "ask for access at https://huggingface.co/meta/gated-model, then log in",
        "some/missing": "look at https://huggingface.co/some/missing: the name may be wrong",
    }
    if not online:
        asked = {"some/missing": "where there is a network: hf download some/missing"}
    code = (
        "import sys\nfrom dashvlm.backbones.hf import check_family, load\nfrom dashvlm.errors import CheckpointError\n"
        "for name in sys.argv[1:]:\n    check_family(name, 'smolvlm')\n"
        "    try:\n        load(name, {}, {})\n    except CheckpointError as error:\n        print(error)"
    )
    env = {"HF_ENDPOINT": refusing_hub, "HF_HUB_OFFLINE": str(int(not online)), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", code, *asked], cwd=ROOT, env={**os.environ, **env},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for told in asked.values():
        assert told in " ".join(done.stdout.split())


def test_a_missing_attention_package_is_named(config):
    from dashvlm.engine.build import build_backbone
    from dashvlm.errors import CheckpointError

    from .conftest import SMALL

    with pytest.raises(CheckpointError, match="flash_attention_2: its package is not installed") as error:
        build_backbone(config(*SMALL, "model.attn_implementation=flash_attention_2"))
    assert "sdpa" in str(error.value)


@pytest.mark.parametrize("named", ["Qwen2_5_VLImageProcessor", "Qwen3VLImageProcessorFast", "NoSuchImageProcessor"])
def test_an_image_processor_that_transformers_does_not_know_is_that_of_the_models_type(config, tmp_path, named):
    import shutil

    from dashvlm.backbones.processors import load_processor
    from dashvlm.backbones.tiny import twin_folder
    from dashvlm.backbones.twin_files import twin_of

    from .conftest import SMALL

    source = twin_folder(twin_of(config("model=qwen2_5_vl", *SMALL[1:])["model"]), tmp_path / "twins")
    folder = shutil.copytree(source, tmp_path / "named")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_processor_type": named}))
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    ours, known = (load_processor(str(f)).image_processor([picture], return_tensors="pt") for f in (folder, source))
    assert torch.equal(ours["pixel_values"], known["pixel_values"])


def test_a_revision_reaches_all_parts_and_the_result_names_the_commit(tmp_path, monkeypatch, config):
    """A cache in the hub's layout with two commits of one repository."""
    import shutil

    from dashvlm.backbones.tiny import twin_folder
    from dashvlm.backbones.twin_files import twin_of
    from dashvlm.engine.build import build_backbone

    from .conftest import SMALL

    source = twin_folder(twin_of(config(*SMALL)["model"]), tmp_path / "twins")
    repo = tmp_path / "hub" / "models--me--model"
    commits = {"main": "a" * 40, "v1": "b" * 40}
    for name, commit in commits.items():
        shutil.copytree(source, repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / name).write_text(commit)
    template = repo / "snapshots" / commits["v1"] / "chat_template.jinja"
    template.write_text(template.read_text().replace("Assistant:", "Helper:"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    chat = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    for revision, word in ((None, "Assistant:"), ("v1", "Helper:")):
        words = [w for w in SMALL if not w.startswith("model.checkpoint")]
        cfg = config(*words, "model.checkpoint=me/model", f"model.revision={revision or 'null'}")
        made = build_backbone(cfg)
        assert made.commit == commits[revision or "main"]
        assert word in made.encoder.processor.apply_chat_template(chat, add_generation_prompt=True)
        remade, arguments = made.encoder.__reduce__()  # as a loader worker gets it
        assert word in remade(*arguments).processor.apply_chat_template(chat, add_generation_prompt=True)
