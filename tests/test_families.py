"""Every family, objective and adapter through the whole run; and a family that nobody wrote code for."""

import copy
import json
import math
import shutil

import pytest

from dashvlm.config.find import CONF
from dashvlm.engine.build import build_backbone, build_module
from dashvlm.engine.run import run
from dashvlm.errors import CheckpointError

from .conftest import FAMILIES, SMALL_WORLD

WORLD = [*SMALL_WORLD, "task=crash", "trainer.accelerator=cpu", "data.eval_horizons_s=[]", "model.checkpoint=tiny"]


def test_all_seven_families_are_here():
    assert FAMILIES == ["internvl3", "llama32_vision", "openflamingo", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm2"]


@pytest.mark.parametrize(
    ("family", "objective", "peft"),
    [pytest.param(f, o, p, marks=[pytest.mark.long] * ((o, p) != ("sft", "lora") and f != "qwen3_vl"))
     for f in FAMILIES for o in ("sft", "pooled") for p in ("lora", "qlora")],
)  # fmt: skip
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


# -- what a model costs -------------------------------------------------------------------------

KNOWN = {
    ("smolvlm2", "256M"): 256_484_928, ("smolvlm2", "500M"): 507_482_304, ("smolvlm2", "2.2B"): 2_246_784_880,
    ("qwen2_vl", "2B"): 2.21e9, ("qwen2_vl", "7B"): 8.29e9, ("qwen2_5_vl", "3B"): 3.75e9, ("qwen2_5_vl", "7B"): 8.29e9,
    ("qwen3_vl", "2B"): 2.13e9, ("qwen3_vl", "4B"): 4.44e9, ("qwen3_vl", "8B"): 8.77e9,
    ("internvl3", "1B"): 0.938e9, ("internvl3", "2B"): 2.09e9, ("internvl3", "8B"): 7.94e9,
    ("internvl3", "3.5-4B"): 4.73e9, ("internvl3", "3.5-8B"): 8.53e9,
    ("llama32_vision", "11B"): 10.67e9, ("openflamingo", "3B"): 2_558_330_928,
}  # fmt: skip


def sized(config, family, checkpoint, *words):
    from pathlib import Path

    from dashvlm.backbones.footprint import footprint

    cfg = config(f"model={family}", f"model.checkpoint={checkpoint}", "data=synthetic", *words)
    return cfg, footprint(cfg["model"], Path(cfg["paths"]["cache_dir"]) / "twins", (480, 854))


@pytest.mark.parametrize(("family", "checkpoint"), KNOWN)
def test_published_dimensions_give_the_published_number_of_parameters(config, family, checkpoint):
    _, size = sized(config, family, checkpoint)
    assert sum(size.parameters.values()) == pytest.approx(KNOWN[family, checkpoint], rel=0.003)
    assert not size.parameters.get("other")


def test_visual_tokens_agree_with_the_processors(config):
    import numpy as np

    from dashvlm.backbones.footprint import visual_tokens
    from dashvlm.data.clip import Observation
    from dashvlm.tasks.crash import CrashTask

    frames = np.zeros((1, 480, 854, 3), np.uint8) + 90
    chat = CrashTask("crash_yes_no").messages(Observation((0.0,)))
    token = {"smolvlm2": "<image>", "qwen2_vl": "<|image_pad|>", "qwen2_5_vl": "<|image_pad|>",
             "qwen3_vl": "<|image_pad|>", "internvl3": "<IMG_CONTEXT>"}  # fmt: skip
    for family, name in token.items():
        backbone = build_backbone(config(*WORLD, f"model={family}"))
        for kwargs in (backbone.encoder.image_kwargs, _larger(family)):
            backbone.encoder.image_kwargs = kwargs
            ids = backbone.encoder.encode([chat], [frames])["input_ids"]
            count = int((ids == backbone.encoder.tokenizer.convert_tokens_to_ids(name)).sum())
            predicted = visual_tokens(backbone.base().config, kwargs, (480, 854))[0]
            assert predicted == count, (family, kwargs)


def _larger(family):
    if family == "smolvlm2":
        return {"do_image_splitting": False, "size": {"longest_edge": 64}}
    if family == "internvl3":
        return {"crop_to_patches": False, "min_patches": 1, "max_patches": 6}
    factor = 32 if family == "qwen3_vl" else 28
    return {"size": {"shortest_edge": 4 * factor**2, "longest_edge": 100 * factor**2}}


@pytest.mark.parametrize("family", FAMILIES)
def test_predicted_adapters_are_the_ones_that_train(config, family):
    from dashvlm.backbones.footprint import trainable_parameters

    cfg, size = sized(config, family, "tiny", "task=crash", "peft.roles=[vision,connector,language]")
    trained = sum(p.numel() for p in build_module(cfg).trained_state().values())
    assert trainable_parameters(size, cfg["peft"]) == trained


def test_predicted_activations_are_of_the_size_that_autograd_saves(config):
    import numpy as np
    import torch

    from dashvlm.backbones.footprint import memory_gb
    from dashvlm.data.clip import Observation
    from dashvlm.tasks.crash import CrashTask

    cfg, size = sized(config, "smolvlm2", "tiny", "task=crash", "peft=full", "data.batch_size=8", "data.num_frames=10")
    module = build_module(cfg)
    module.train()
    chat = CrashTask("crash_yes_no").messages(Observation(tuple(0.5 * i for i in range(10))))
    frames = np.zeros((10, 64, 64, 3), np.uint8) + 90
    batch = module.backbone.encoder.encode([chat] * 8, [frames] * 8, ["Yes"] * 8)
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module.backbone.loss(batch)
    ratio = memory_gb(size, cfg, 10, training=True)["activations"] * 1e9 / sum(saved.values())
    assert 0.4 < ratio < 2.5, ratio


def test_more_memory_allows_more_frames_and_checkpointing_helps(config):
    from dashvlm.backbones.footprint import largest_num_frames

    cfg, size = sized(config, "qwen3_vl", "4B", "trainer.precision=bf16-mixed", "data.batch_size=1")
    few, more = largest_num_frames(size, cfg, 24.0), largest_num_frames(size, cfg, 80.0)
    assert 0 < few < more
    cfg["model"]["gradient_checkpointing"] = True
    assert largest_num_frames(size, cfg, 24.0) > 3 * few
    assert largest_num_frames(size, cfg, 5.0) == 0


@pytest.mark.parametrize(
    ("words", "gigabytes"),
    [
        (["smolvlm2", "500M"], 4 * 0.507482304),  # stored in float32
        (["qwen3_vl", "4B"], 2 * 4.437815808),  # bfloat16
        (["smolvlm2", "500M", "model.dtype=bfloat16"], 2 * 0.507482304),
        (["qwen3_vl", "4B", "peft=full"], 4 * 4.437815808),  # trains in float32
        (["qwen3_vl", "4B", "peft=full", "trainer.precision=bf16-true"], 2 * 4.437815808),
    ],
)
def test_weights_are_counted_as_the_checkpoint_is_stored_and_loaded(config, words, gigabytes):
    from dashvlm.backbones.footprint import memory_gb

    cfg, size = sized(config, *words)
    assert memory_gb(size, cfg, 1, training=False)["weights"] == pytest.approx(gigabytes, rel=1e-3)


def test_a_folder_says_itself_how_it_is_stored_and_how_long_a_prompt_may_be(config, tmp_path):
    import transformers

    from dashvlm.backbones.tiny import twin_folder
    from dashvlm.backbones.twin_files import twin_of

    cfg = config("model=qwen3_vl", "model.checkpoint=tiny", "data=synthetic")
    made = transformers.AutoConfig.from_pretrained(twin_folder(twin_of(cfg["model"]), tmp_path / "twins"))
    made.dtype, made.text_config.max_position_embeddings = "bfloat16", 777
    made.save_pretrained(tmp_path / "folder")
    _, size = sized(config, "qwen3_vl", str(tmp_path / "folder"))
    assert (size.dtype, size.context) == ("bfloat16", 777)


def test_frames_are_bounded_by_the_context_too(config):
    from dashvlm.backbones.footprint import largest_num_frames, prompt_tokens

    cfg, size = sized(config, "smolvlm2", "500M")
    most = largest_num_frames(size, cfg, 1e6)
    assert prompt_tokens(size, cfg, most) <= 8192 < prompt_tokens(size, cfg, most + 1)


def test_ways_to_fit_do_fit_and_are_only_said_where_they_are_needed(config):
    from dashvlm.backbones.footprint import memory_gb, ways_to_fit

    cfg, size = sized(config, "qwen3_vl", "4B", "trainer.precision=bf16-mixed", "data.num_frames=10")
    assert memory_gb(size, cfg, 10, True)["total"] > 24
    ways = ways_to_fit(size, cfg, 10, 24.0)
    assert "model.gradient_checkpointing=true" in ways
    assert "peft=qlora" not in ways  # activations are what is too much
    for way in ways:
        words = ["data.batch_size=1"] if way.startswith("data.batch") else [way]
        again, other = sized(config, "qwen3_vl", "4B", "trainer.precision=bf16-mixed", "data.num_frames=10", *words)
        assert memory_gb(other, again, int(again["data"]["num_frames"]), True)["total"] <= 24, way
    assert ways_to_fit(size, cfg, 10, 1.0) == []
    together = ways_to_fit(size, cfg, 40, 9.0)
    assert [w.count(" and ") for w in together] == [2]


def test_inspect_says_what_would_make_it_fit(dashvlm):
    words = [*SMALL_WORLD, "model=qwen3_vl", "model.checkpoint=4B", "data.num_frames=10", "memory_gb=24"]
    out = " ".join(dashvlm("inspect", *words).stdout.split())
    assert "as the checkpoint is stored, bfloat16" in out
    assert "does not fit into memory_gb=24" in out
    assert "good to a factor of two" in out


def test_out_of_memory_is_a_result_and_names_three_knobs(config, tmp_path, monkeypatch):
    import torch

    import dashvlm.engine.job
    import dashvlm.engine.run
    from dashvlm.errors import OutOfMemory
    from dashvlm.report.collect import collect
    from dashvlm.training.module import VLMModule

    def full(self, batch, batch_idx):
        self.longest = 99
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(VLMModule, "training_step", full)
    cfg = config(*WORLD, "model=smolvlm2")
    with pytest.raises(OutOfMemory) as error:
        dashvlm.engine.run.run(cfg, tmp_path)
    assert "3 frames a sample (99 tokens)" in str(error.value)
    assert error.value.do.count(";") == 2
    import yaml

    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    assert dashvlm.engine.job.main(folder) == 1
    row = collect([folder]).iloc[0]
    assert row["status"] == "oom"
    assert "out of memory" in row["message"]


@pytest.mark.parametrize(
    ("family", "objective"),
    [pytest.param(f, o, marks=[pytest.mark.long] * ((f, o) != ("smolvlm2", "pooled"))) for f in FAMILIES
     for o in ("sft", "pooled")],
)  # fmt: skip
def test_every_family_resumes_to_the_bit(config, tmp_path, monkeypatch, family, objective):
    import contextlib

    import torch
    from safetensors.torch import load_file

    from dashvlm.training.callbacks import Checkpoint

    words = [f"model={family}", f"objective={objective}", "trainer.max_steps=4", "trainer.val_every_n_steps=4"]
    words += ["callbacks.checkpoint.every_n_steps=2", "peft.dropout=0.1"]
    cfg = config(*WORLD, *words)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    run(cfg, tmp_path / "whole")
    save = Checkpoint._save

    def stop(self, trainer, name):
        save(self, trainer, name)
        raise KeyError("killed here")

    monkeypatch.setattr(Checkpoint, "_save", stop)
    with contextlib.suppress(KeyError):
        run(cfg, tmp_path / "cut")
    assert not (tmp_path / "cut" / "result.json").exists()
    monkeypatch.setattr(Checkpoint, "_save", save)
    run(cfg, tmp_path / "cut")
    whole, cut = (load_file(tmp_path / name / "trained.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


def finished(config, folder, *words):
    """A run of three large steps, so that the adapter matters: its configuration and its module as scored."""
    from dashvlm.engine.build import load_run

    cfg = config(*WORLD, "trainer.max_steps=3", "optim.lr=0.01", "model.dtype=float32", *words)
    folder.mkdir()
    run(cfg, folder)
    (folder / "config.yaml").write_text(json.dumps(cfg))
    return cfg, load_run(folder, cfg["paths"])[1]


def logits_of(net, cfg, module):
    import torch

    from dashvlm.export import _example

    with torch.no_grad():
        return net(**_example(cfg, module)).logits.float()


@pytest.mark.parametrize(
    "words",
    [["model=smolvlm2"], ["model=qwen3_vl", "peft.roles=[language,lm_head]"],
     ["model=openflamingo", "peft.roles=[language,lm_head]"], ["model=smolvlm2", "peft.roles=[language,lm_head]"]],
    ids=" ".join,
)  # fmt: skip
def test_merged_weights_loaded_with_plain_libraries_are_the_scored_run(config, tmp_path, words):
    """Also with an adapter on an output layer that shares its weights with the embeddings."""
    import transformers
    from peft import PeftModel

    from dashvlm.export import merge

    cfg, module = finished(config, tmp_path / "run", *words)
    scored = logits_of(module.backbone.net, cfg, module)
    difference = merge(cfg, module, tmp_path / "run", tmp_path / "merged")
    merged = transformers.AutoModelForImageTextToText.from_pretrained(str(tmp_path / "merged")).eval()
    assert not [n for n, _ in merged.named_parameters() if "lora" in n]
    again = logits_of(merged, cfg, module)
    assert difference == pytest.approx(float((scored - again).abs().max()), abs=1e-6)
    assert difference < 1e-4
    stored = build_backbone(cfg).encoder.checkpoint
    base = transformers.AutoModelForImageTextToText.from_pretrained(stored, dtype="float32").eval()
    assert (logits_of(base, cfg, module) - scored).abs().max() > 1e-2  # the adapter does matter
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).eval()
    assert (logits_of(adapted, cfg, module) - scored).abs().max() < 1e-4


def test_a_4_bit_run_is_compared_with_what_was_scored_and_merges_into_that(config, tmp_path):
    import transformers

    from dashvlm.export import merge

    cfg, module = finished(config, tmp_path / "run", "model=smolvlm2", "peft=qlora")
    scored = logits_of(module.backbone.net, cfg, module)
    found = {}
    for into in ("original", "dequantised"):
        found[into] = merge(cfg, module, tmp_path / "run", tmp_path / into, into)
        merged = transformers.AutoModelForImageTextToText.from_pretrained(str(tmp_path / into)).eval()
        here = float((scored - logits_of(merged, cfg, module)).abs().max())
        assert found[into] == pytest.approx(here, abs=0.02)  # 16-bit pixels and 32-bit ones
    assert found["dequantised"] < found["original"] / 3


def test_export_refuses_what_is_not_the_run_and_offers_what_is(config, tmp_path, dashvlm):
    finished(config, tmp_path / "run", "model=smolvlm2", "peft=qlora")
    done = dashvlm("export", f"run={tmp_path / 'run'}", "max_difference=0.005", check=False)
    assert done.returncode == 2
    assert "not the run that was scored" in done.stderr
    assert "merge_into=dequantised" in done.stderr
    assert not list((tmp_path / "run" / "export").glob("merged*"))
    assert (tmp_path / "run" / "export" / "adapter").is_dir()
    dashvlm("export", f"run={tmp_path / 'run'}", "merge_into=dequantised")
    assert (tmp_path / "run" / "export" / "merged" / "config.json").is_file()
    wrong = dashvlm("export", f"run={tmp_path / 'run'}", "merge_into=thin_air", check=False)
    assert "use one of original, dequantised" in wrong.stderr


# -- native video -------------------------------------------------------------------------------

VIDEO = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl3"]


def has_torchvision():
    import transformers

    return transformers.utils.is_torchvision_available()


@pytest.mark.skipif(not has_torchvision(), reason="native video needs torchvision (extra: video)")
@pytest.mark.parametrize("family", VIDEO)
def test_native_video_shows_every_frame_with_true_relative_times(config, tmp_path, family):
    import numpy as np
    import torch

    from dashvlm.data.clip import Observation
    from dashvlm.tasks.crash import CrashTask

    cfg = config(*WORLD, f"model={family}", "model.loader_options.frames=video")
    # A twin built without torchvision has no video half.
    cfg["paths"]["cache_dir"] = str(tmp_path)
    backbone = build_backbone(cfg).eval()
    frames = np.random.default_rng(0).integers(0, 255, (4, 72, 96, 3), dtype=np.uint8)
    task = CrashTask("crash_yes_no")
    early, late = (task.messages(Observation(tuple(start + 0.5 * i for i in range(4)))) for start in (3.0, 33.0))
    batch = backbone.encoder.encode([early], [frames])
    again = backbone.encoder.encode([late], [frames])
    assert batch["input_ids"].tolist() == again["input_ids"].tolist()
    text = backbone.encoder.tokenizer.decode(batch["input_ids"][0])
    if family == "qwen3_vl":
        assert "<0.2 seconds>" in text  # the mean of 0.0 and 0.5
        assert "<1.2 seconds>" in text
    if family == "qwen2_5_vl":
        assert batch["second_per_grid_ts"][0] == pytest.approx(1.0)  # two frames, 0.5 s each
    with torch.no_grad():
        first = backbone.score(batch, ("No", "Yes"))
        for place in range(4):
            other = frames.copy()
            other[place] = 255 - other[place]
            changed = backbone.score(backbone.encoder.encode([early], [other]), ("No", "Yes"))
            assert (changed - first).abs().max() > 1e-6
    labels = backbone.encoder.encode([early], [frames], ["Yes"])["labels"]
    assert backbone.encoder.decode(labels[labels != -100][None])[0] == "Yes"


@pytest.mark.parametrize("family", ["smolvlm2", "llama32_vision"])
def test_families_without_usable_video_say_so(config, family):
    from dashvlm.errors import ConfigError

    cfg = config(*WORLD, f"model={family}", "++model.loader_options.frames=video")
    with pytest.raises(ConfigError, match="not possible with this family"):
        build_backbone(cfg)
