"""Checkpoints as they are on the hub: real tokenizers, templates and settings, random weights."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from dashvlm.backbones.hf import check_family, load
from dashvlm.backbones.hf_backbone import HFBackbone
from dashvlm.backbones.tiny import twin_folder
from dashvlm.backbones.twin_files import twin_of
from dashvlm.engine.build import build_backbone
from dashvlm.errors import CheckpointError

from .conftest import ROOT, SMALL

LAYOUTS = ROOT.parent / "shared" / "data" / "layouts"
FAMILIES = {  # layout -> (model=, answer as it is taught, ids of Yes and No)
    "smolvlm2_small": ("smolvlm2", " Yes<end_of_utterance>", (9230, 2838)),
    "qwen2_5_vl": ("qwen2_5_vl", "Yes<|im_end|>", (9454, 2753)),
    "qwen3_vl": ("qwen3_vl", "Yes<|im_end|>", (9454, 2753)),
    "internvl3": ("internvl3", "Yes<|im_end|>", (9454, 2753)),
    "openflamingo": ("openflamingo", " Yes<|endofchunk|>", (6279, 1621)),
}


@pytest.fixture(scope="module", params=FAMILIES)
def hub(request, tmp_path_factory, cache):
    """A folder as the hub has it, with random weights: (name of the layout, folder)."""
    source = LAYOUTS / request.param
    if not source.exists():
        pytest.skip("the layouts are not part of the project")
    folder = tmp_path_factory.mktemp(request.param)
    for file in source.iterdir():
        shutil.copy(file, folder / file.name)
    if not (folder / "tokenizer.json").exists():
        shutil.copy(LAYOUTS / request.param.removesuffix("_small") / "tokenizer.json", folder)
    torch.manual_seed(0)
    kept = {p.name: p.read_bytes() for p in folder.iterdir()}
    config = transformers.AutoConfig.from_pretrained(folder)
    net = transformers.AutoModelForImageTextToText.from_config(config)
    net.save_pretrained(folder)
    for name, content in kept.items():  # the hub's own settings, not those that saving writes
        (folder / name).write_bytes(content)
    return request.param, folder


@pytest.fixture(scope="module")
def backbone(hub, config):
    name, folder = hub
    cfg = config(f"model={FAMILIES[name][0]}", *SMALL[2:], f"model.checkpoint={folder}", "model.dtype=float32")
    return build_backbone(cfg).eval()


QUESTION = {"type": "text", "text": "Is a collision likely? Answer Yes or No."}
CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "then"}, {"type": "image"}, QUESTION]}]


def frames():
    return np.random.default_rng(0).integers(0, 255, (2, 96, 160, 3), dtype=np.uint8)


def test_prompts_and_scores_equal_a_plain_script(hub, backbone):
    """The same messages through transformers alone, as a model card shows it."""
    from PIL import Image

    name, _ = hub
    encoder, pictures = backbone.encoder, [Image.fromarray(f) for f in frames()]
    ours = encoder.encode([CHAT], [frames()])
    text = encoder.processor.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    begins = encoder.tokenizer.bos_token is not None and text.startswith(encoder.tokenizer.bos_token)
    theirs = encoder.processor(
        text=[text], images=[pictures], return_tensors="pt", images_kwargs=encoder.image_kwargs,
        **({"add_special_tokens": False} if begins else {}),
    )  # fmt: skip
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    yes, no = FAMILIES[name][2]
    with torch.no_grad():
        logits = backbone.net(**theirs).logits[0, -1].float()
        scores = backbone.score(ours, ["No", "Yes"])[0]
    assert torch.allclose(scores, logits[[no, yes]].log_softmax(-1), atol=1e-5)


def test_the_taught_answer_is_the_answer_and_its_end(hub, backbone):
    name, _ = hub
    batch = backbone.encoder.encode([CHAT], [frames()], ["Yes"])
    taught = batch["input_ids"][0][batch["labels"][0] != -100]
    assert backbone.encoder.tokenizer.decode(taught) == FAMILIES[name][1]


def test_generation_is_greedy_and_stops_at_every_end(hub, backbone):
    batch = backbone.encoder.encode([CHAT], [frames()])
    listed = json.loads((hub[1] / "generation_config.json").read_text()).get("eos_token_id")
    ends = backbone.end_tokens()
    assert set(listed if isinstance(listed, list) else [listed] if listed is not None else []) <= set(ends)
    with torch.no_grad():
        ids = batch["input_ids"]
        for _ in range(5):  # by hand, the likeliest token each time
            extra = {k: v for k, v in batch.items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")}
            if "mm_token_type_ids" in batch:
                kinds = batch["mm_token_type_ids"]
                pad = kinds.new_zeros(1, ids.shape[1] - kinds.shape[1])
                extra["mm_token_type_ids"] = torch.cat([kinds, pad], 1)
            logits = backbone.net(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits[0, -1]
            ids = torch.cat([ids, logits.argmax()[None, None]], 1)
    wanted = ids[:, batch["input_ids"].shape[1] :]
    assert backbone.generate(batch, 5) == backbone.encoder.decode(wanted)


def test_a_folder_of_another_family_is_refused(hub, config):
    name, folder = hub
    for other in {FAMILIES[n][0] for n in FAMILIES} - {FAMILIES[name][0]}:
        cfg = config(f"model={other}", *SMALL[2:], f"model.checkpoint={folder}")
        with pytest.raises(CheckpointError, match="belongs to another family"):
            build_backbone(cfg)


def test_the_original_internvl_layout_names_its_twin(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat", "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(CheckpointError, match="-hf"):
        check_family(str(tmp_path), "internvl")


def with_post_processor(config, tmp_path, model, template, tokens):
    """A twin whose tokenizer adds tokens by itself, as Llama's does."""
    cfg = config(f"model={model}", *SMALL[1:])
    source = twin_folder(twin_of(cfg["model"]), tmp_path / "twins")
    folder = tmp_path / "changed"
    shutil.copytree(source, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    special = [(t, tokenizer.convert_tokens_to_ids(t)) for t in tokens(tokenizer)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template(*[t for t, _ in special]), special_tokens=special
    )
    tokenizer.save_pretrained(folder)
    found = transformers.AutoTokenizer.from_pretrained(folder)
    assert found("a").input_ids != found("a", add_special_tokens=False).input_ids  # it does add
    twin = twin_of(cfg["model"])
    made = load(str(folder), twin.get("image_kwargs", cfg["model"]["image_kwargs"]), cfg["model"]["roles"],
                frames=(cfg["model"].get("loader_options") or {}).get("frames", "images"))  # fmt: skip
    plain = load(str(source), twin.get("image_kwargs", cfg["model"]["image_kwargs"]), cfg["model"]["roles"],
                 frames=(cfg["model"].get("loader_options") or {}).get("frames", "images"))  # fmt: skip
    return made, plain


def test_a_tokenizer_that_adds_its_begin_token_does_not_double_it(config, tmp_path):
    made, plain = with_post_processor(
        config, tmp_path, "llama32_vision", lambda begin: f"{begin} $A", lambda t: [t.bos_token]
    )
    for answers in (None, ["Yes"]):
        ours, expected = (b.encoder.encode([CHAT], [frames()], answers) for b in (made, plain))
        assert ours["input_ids"].tolist() == expected["input_ids"].tolist()
        assert ours["input_ids"][0].tolist().count(made.encoder.tokenizer.bos_token_id) == 1


def test_a_tokenizer_that_adds_an_end_token_adds_none_behind_the_prompt(config, tmp_path):
    made, plain = with_post_processor(config, tmp_path, "smolvlm2", lambda end: f"$A {end}", lambda t: [t.eos_token])
    for answers in (None, ["Yes"]):
        ours, expected = (b.encoder.encode([CHAT], [frames()], answers) for b in (made, plain))
        assert ours["input_ids"].tolist() == expected["input_ids"].tolist()


def test_sampling_stops_at_each_of_several_ends(config):
    backbone: HFBackbone = build_backbone(config(*SMALL)).eval()
    batch = backbone.encoder.encode([CHAT], [frames()])
    torch.manual_seed(0)
    ids, mask = backbone.sample(batch, 4, 24)
    other = int(ids[0, 2])  # a token that was drawn becomes an end, as a second id of eos_token_id
    backbone.base().generation_config.eos_token_id = [backbone.encoder.end_token, other]
    torch.manual_seed(0)
    again, shorter = backbone.sample(batch, 4, 24)
    assert int(shorter[0].sum()) <= 3
    assert int(mask[0].sum()) > int(shorter[0].sum())
    assert again[0, : int(shorter[0].sum())].tolist() == ids[0, : int(shorter[0].sum())].tolist()


def test_a_checkpoints_penalties_do_not_act_unless_the_run_asks(config):
    backbone = build_backbone(config(*SMALL)).eval()
    batch = backbone.encoder.encode([CHAT], [frames()])
    before = backbone.generate(batch, 12)
    backbone.base().generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=0.1, num_beams=2)
    assert backbone.generate(batch, 12) == before
    assert backbone.generate(batch, 12, {"repetition_penalty": 5.0}) != before
