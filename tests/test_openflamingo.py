"""OpenFlamingo against golden tensors of the reference implementation, and its checkpoints."""

import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from dashvlm.backbones.openflamingo import load
from dashvlm.backbones.openflamingo.configuration import OpenFlamingoConfig
from dashvlm.backbones.openflamingo.convert import convert_state, load_pt
from dashvlm.backbones.openflamingo.modeling import OpenFlamingoForConditionalGeneration
from dashvlm.backbones.tiny import twin_folder
from dashvlm.backbones.twin_files import twin_of
from dashvlm.errors import CheckpointError, DataError

from .conftest import REAL

GOLDEN = REAL / "flamingo_golden"
CASES = {
    "mosaic_every1": {"qk_ln": True, "every": 1, "layers": 2},
    "mpt_every2": {"qk_ln": False, "every": 2, "layers": 4},
}


def tiny(qk_ln=True, every=1, layers=2, post=True, act="quick_gelu"):
    return OpenFlamingoForConditionalGeneration(
        OpenFlamingoConfig(
            image_token_id=62, eoc_token_id=61, cross_attn_every_n_layers=every, resampler_depth=2, num_latents=5,
            num_heads=2, head_dim=8, vision_post_layernorm=post,
            vision_config={"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                           "image_size": 28, "patch_size": 14, "hidden_act": act},
            text_config={"d_model": 16, "n_heads": 2, "n_layers": layers, "vocab_size": 64, "max_seq_len": 64,
                         "attn_config": {"qk_ln": qk_ln, "alibi": True}},
        )
    ).eval()  # fmt: skip


@pytest.fixture(params=CASES)
def golden(request):
    if not GOLDEN.exists():
        pytest.skip("the golden tensors are not part of the project")
    tensors = load_file(GOLDEN / f"{request.param}.safetensors")
    net = tiny(**CASES[request.param])
    state = convert_state({k[2:]: v.float() for k, v in tensors.items() if k.startswith("w.")})
    found = net.load_state_dict(state, strict=False)
    assert found.missing_keys == ["lm_head.weight"]  # tied
    assert not found.unexpected_keys
    return net, tensors


def inputs(t):
    return {
        "input_ids": t["i.input_ids"],
        "pixel_values": t["i.vision_x"][:, :, 0].float(),
        "attention_mask": t["i.attention_mask"],
    }


def test_logits_loss_and_gradients_match_the_reference(golden):
    net, t = golden
    out = net(**inputs(t), labels=t["i.labels"])
    real = t["i.attention_mask"].bool()
    assert (out.logits - t["o.logits"])[real].abs().max() < 1e-5
    assert abs(out.loss - t["o.loss"]) < 1e-5
    out.loss.backward()
    gates = [p.grad for n, p in net.named_parameters() if n.endswith("attn_gate.weight")]
    assert (torch.cat(gates) - t["o.grad_attn_gate"]).abs().max() < 1e-5
    assert (net.model.perceiver.latents.grad - t["o.grad_latents"]).abs().max() < 1e-5
    net.config.vision_post_layernorm = False
    assert (net(**inputs(t)).logits - t["o.logits_no_ln_post"])[real].abs().max() < 1e-5


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("cache", [False, True])
def test_generated_sequences_match_the_reference(golden, beams, cache):
    net, t = golden
    pixels = t["i.vision_x"][:, :, 0].float()
    length = t[f"o.gen_beam{beams}"].shape[1] - t["i.gen_ids"].shape[1]
    ids = net.generate(
        t["i.gen_ids"], pixel_values=pixels, attention_mask=t["i.gen_mask"], num_beams=beams, do_sample=False,
        max_new_tokens=length, use_cache=cache, pad_token_id=63,
    )  # fmt: skip
    expected = t[f"o.gen_beam{beams}"]
    assert ids.tolist() == expected[:, : ids.shape[1]].tolist()


def test_parameter_counts_at_the_published_size():
    with torch.device("meta"):
        net = OpenFlamingoForConditionalGeneration(
            OpenFlamingoConfig(
                vision_config={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                               "num_attention_heads": 16, "image_size": 224, "patch_size": 14},
                text_config={"d_model": 2048, "n_heads": 16, "n_layers": 24, "vocab_size": 50280,
                             "attn_config": {"qk_ln": True, "alibi": True}},
            )
        )  # fmt: skip

    def count(part):
        return sum(p.numel() for n, p in net.named_parameters() if part in n)

    assert count("perceiver") == 63_019_008
    assert count("gated_cross_attn_layer") == 881_000_496
    assert count("gated_cross_attn_layer") // 24 == 36_708_354
    assert count("perceiver") + count("gated_cross_attn_layer") + 50280 * 2048 == 1_046_992_944
    net.tie_weights()
    assert sum(p.numel() for p in net.parameters()) == 2_558_330_928


def reference_state(net):
    """The net's weights under open_flamingo's names, with its aliased copies."""
    state = {}
    for key, value in net.state_dict().items():
        key = key.removeprefix("model.").replace("_gate.weight", "_gate")
        if key.startswith(("blocks.", "wte.", "norm_f.")):
            state[f"lang_encoder.transformer.{key}"] = value
            if key.startswith("blocks."):
                state[f"lang_encoder.old_decoder_blocks.{key[7:]}"] = value
        elif not key.startswith("lm_head"):
            state[key] = value
    return state


def test_released_and_full_pt_files_load_and_foreign_ones_do_not(tmp_path):
    net, other = tiny(), tiny()
    torch.save(reference_state(net), tmp_path / "full.pt")
    released = {
        k: v for k, v in reference_state(net).items() if "gated" in k or k.startswith("perceiver") or "wte" in k
    }
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in released.items()}}, tmp_path / "released.pt")
    assert load_pt(other, tmp_path / "full.pt") == []
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    assert "vision_encoder" in load_pt(tiny(), tmp_path / "released.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this OpenFlamingo"):
        load_pt(tiny(layers=1), tmp_path / "full.pt")
    torch.save({"some.other.weight": torch.ones(2)}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="1 foreign keys"):
        load_pt(tiny(), tmp_path / "foreign.pt")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"perceiver.latents": Payload()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(CheckpointError, match="cannot be read as weights"):
            load_pt(tiny(), tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_its_own_folder_reloads_to_the_bit(tmp_path, config, cache):
    spec = config("model=openflamingo", "model.checkpoint=tiny", "data=synthetic")["model"]
    backbone = load(str(twin_folder(twin_of(spec), cache / "twins")), {}, spec["roles"], gate_init=0.5)
    backbone.net.save_pretrained(tmp_path)
    backbone.encoder.processor.save_pretrained(tmp_path)
    again = load(str(tmp_path), {}, spec["roles"])
    pairs = zip(backbone.net.state_dict().values(), again.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    gates = [p for n, p in again.net.named_parameters() if n.endswith("attn_gate.weight")]
    assert gates
    assert all(float(g.detach()) == 0.5 for g in gates)


def test_the_processor_refuses_more_images_than_tokens(config, cache):
    import numpy as np
    from PIL import Image

    spec = config("model=openflamingo", "model.checkpoint=tiny", "data=synthetic")["model"]
    processor = load(str(twin_folder(twin_of(spec), cache / "twins")), {}, spec["roles"]).encoder.processor
    picture = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(DataError, match="1 <image> for 2 images"):
        processor(text=["<image>x"], images=[[picture, picture]])
    demo = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
    ]
    text = processor.apply_chat_template([*demo, *demo, demo[0]], add_generation_prompt=True)
    assert text.count("<image>") == 3
    assert text.count("<|endofchunk|>") == 2
    assert text.endswith("Assistant:")
    batch = processor(text=[text, processor.apply_chat_template(demo)], images=[[picture] * 3, [picture]])
    assert batch["pixel_values"].shape[:2] == (2, 3)
