"""Every family, objective and adapter through the whole run; and a family that nobody wrote code for."""

import copy
import json
import math
import shutil

import pytest

from dashvlm.build import build_backbone, build_module
from dashvlm.config import CONF
from dashvlm.errors import CheckpointError
from dashvlm.run import run

from .conftest import SMALL_WORLD

FAMILIES = sorted(p.stem for p in (CONF / "model").glob("*.yaml"))
WORLD = [*SMALL_WORLD, "task=crash", "trainer.accelerator=cpu", "data.eval_horizons_s=[]", "model.checkpoint=tiny"]


def test_all_seven_families_are_here():
    assert FAMILIES == ["internvl3", "llama32_vision", "openflamingo", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm2"]


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["lora", "qlora"])
@pytest.mark.parametrize("objective", ["sft", "pooled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_ends_with_finite_metrics(config, tmp_path, family, objective, peft):
    words = [f"model={family}", f"objective={objective}", f"peft={peft}", "trainer.max_steps=4"]
    folder = tmp_path / "run"
    folder.mkdir()
    result = run(config(*WORLD, *words), folder)
    assert result["steps"] == 4
    assert result["counts"]["failed_rows"] == 0
    for name in ("roc_auc", "ap", "brier"):
        assert math.isfinite(result["metrics"][name]["value"])
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("preset", sorted(p.stem for p in (CONF / "peft").glob("*.yaml")))
def test_every_preset_attaches_to_a_model_it_is_meant_for(config, preset):
    family = "openflamingo" if preset == "gates" else "smolvlm2"
    objective = "pooled" if preset in ("frozen",) or "freeze" in preset else "sft"
    module = build_module(config(*WORLD, f"model={family}", f"peft={preset}", f"objective={objective}"))
    trained = module.trained_state()
    assert trained or preset == "frozen"
    if preset == "gates":
        assert all("gated_cross_attn_layer" in n for n in trained)
    if preset == "freeze_text":
        assert not any("text_model" in n for n in trained)


def test_rank_and_alpha_by_role(config):
    cfg = config(*WORLD, "model=smolvlm2", "peft.roles=[language,vision]", "+peft.rank_by_role.vision=2")
    ranks = {n: p.shape[0] for n, p in build_module(cfg).trained_state().items() if "lora_A" in n}
    assert {r for n, r in ranks.items() if "vision_model" in n} == {2}
    assert {r for n, r in ranks.items() if "text_model" in n} == {16}


def test_llama_gets_one_contact_sheet_or_a_warning(config, caplog):
    import numpy as np

    from dashvlm.data.clip import Observation
    from dashvlm.tasks.crash import CrashTask

    cfg = config(*WORLD, "model=llama32_vision")
    chat = CrashTask("crash_yes_no").messages(Observation((0.0, 0.5, 1.0)))
    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8)
    batch = build_backbone(cfg).encoder.encode([chat], [frames])
    assert batch["pixel_values"].shape[:2] == (1, 1)
    assert "frame 3" in build_backbone(cfg).encoder.decode(batch["input_ids"])[0]
    cfg["model"]["loader_options"]["frames"] = "images"
    assert build_backbone(cfg).encoder.encode([chat], [frames])["pixel_values"].shape[:2] == (1, 3)
    assert "one image a prompt" in caplog.text


def test_a_checkpoint_of_another_family_is_refused(config):
    cfg = config(*WORLD, "model=smolvlm2")
    other = copy.deepcopy(cfg)
    folder = build_backbone(cfg).encoder.checkpoint
    other["model"] = config(*WORLD, "model=internvl3")["model"]
    other["model"]["checkpoint"] = folder
    with pytest.raises(CheckpointError, match="belongs to another family"):
        build_backbone(other)


def test_pickled_weights_are_refused_and_not_run(config, tmp_path):
    import os

    import torch

    cfg = config(*WORLD, "model=smolvlm2")
    folder = tmp_path / "model"
    shutil.copytree(build_backbone(cfg).encoder.checkpoint, folder)

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (folder / "model.safetensors").unlink()
    torch.save({"x": Payload()}, folder / "pytorch_model.bin")
    cfg["model"]["checkpoint"] = str(folder)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        build_backbone(cfg)
    assert not (tmp_path / "executed").exists()


EIGHTH = """
_target_: dashvlm.backbones.hf.load
name: eighth
checkpoint: tiny
dtype: auto
attn_implementation: null
gradient_checkpointing: false
image_kwargs: {}
roles: {vision: '^model\\.vision_model\\.', connector: '^model\\.connector\\.', language: '^model\\.text_model\\.'}
twin:
  image_kwargs: {do_image_splitting: false, size: {longest_edge: 64}}
  model: Idefics3ForConditionalGeneration
  tokenizer:
    special: [<|endoftext|>, <|im_start|>, <|im_end|>, <end_of_utterance>, <fake_token_around_image>, <image>, <global-img>]
    bos_token: <|im_start|>
    eos_token: <end_of_utterance>
    pad_token: <|im_end|>
    extra_special_tokens: {fake_image_token: <fake_token_around_image>, image_token: <image>, end_of_utterance_token: <end_of_utterance>, global_image_token: <global-img>}
  image_processor: {class: Idefics3ImageProcessor, size: {longest_edge: 64}, max_image_size: {longest_edge: 64}, do_image_splitting: false}
  processor: {class: Idefics3Processor, image_seq_len: 4}
  config:
    class: Idefics3Config
    scale_factor: 4
    image_token_id: id:<image>
    vision_config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, image_size: 64, patch_size: 8}
    text_config: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
                  num_key_value_heads: 2, vocab_size: vocab, pad_token_id: 'id:<|im_end|>', bos_token_id: 'id:<|im_start|>', eos_token_id: 'id:<end_of_utterance>'}
  chat_template: "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end_of_utterance>\\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
"""  # noqa: E501


def test_an_eighth_family_takes_one_yaml_and_no_python(config, tmp_path):
    import yaml

    cfg = config(*WORLD, "model=smolvlm2", "trainer.max_steps=2")
    cfg["model"] = yaml.safe_load(EIGHTH)
    (tmp_path / "run").mkdir()
    result = run(cfg, tmp_path / "run")
    assert math.isfinite(result["metrics"]["roc_auc"]["value"])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
