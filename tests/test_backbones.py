"""One contract for all backbones: exact frames, proven masks, padding invariance, adapters."""

import numpy as np
import pytest
import torch

from dashvlm.backbones.adapters import (
    apply_peft,
    count_parameters,
    enable_gradient_checkpointing,
    linear_targets,
    load_trained,
)
from dashvlm.backbones.base import IGNORED
from dashvlm.backbones.tiny import twin_folder
from dashvlm.backbones.twin_files import twin_of
from dashvlm.config.imports import resolve
from dashvlm.data.clip import Observation
from dashvlm.errors import CheckpointError, ConfigError
from dashvlm.tasks.crash import CrashTask

from .conftest import FAMILIES

LORA = {
    "method": "lora", "roles": ["language"], "targets": [], "rank": 4, "alpha": 8, "dropout": 0.0,
    "use_dora": False, "use_rslora": False, "quantization": None, "train_roles": [],
}  # fmt: skip
CHOICES = ("No", "Yes")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def make(family, cache, config):
    spec = config(f"model={family}", "model.checkpoint=tiny", "data=synthetic")["model"]
    folder = str(twin_folder(twin_of(spec), cache / "twins"))

    def build(quantization=None, checkpoint=folder):
        load = resolve("backbone", spec["_target_"])
        return load(checkpoint, twin_of(spec)["image_kwargs"], spec["roles"], "float32", quantization)

    return build


def chat(n):
    return CrashTask("crash_yes_no").messages(Observation(tuple(0.5 * i for i in range(n))))


def frames(n, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (n, 72, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_exactly_the_given_frames_reach_the_vision_tower(make, n):
    backbone = make()
    batch = backbone.encoder.encode([chat(n)], [frames(n)])
    seen = []
    names = ("vision_model", "visual", "vision_tower", "vision_encoder")
    tower = next(m for name, m in backbone.net.named_modules() if name.endswith(names))
    tower.register_forward_pre_hook(
        lambda m, a, k: seen.append(k.get("grid_thw", a[0] if a else k.get("pixel_values"))),
        with_kwargs=True,
    )
    with torch.no_grad():
        backbone.score(batch, CHOICES)
    assert len(seen[0].reshape(-1, *seen[0].shape[-1:])) >= n if seen[0].ndim == 2 else True
    assert seen[0].shape[0] == n or seen[0].shape[:2].numel() == n


def test_pixels_matter_and_so_does_each_frame(make):
    backbone = make().eval()
    base = frames(3)
    with torch.no_grad():
        first = backbone.score(backbone.encoder.encode([chat(3)], [base]), CHOICES)
        for place in range(3):
            other = base.copy()
            other[place] = 255 - other[place]
            changed = backbone.score(backbone.encoder.encode([chat(3)], [other]), CHOICES)
            assert (changed - first).abs().max() > 1e-6


@pytest.mark.parametrize("answer", CHOICES)
def test_the_mask_covers_the_answer_and_its_end_exactly(make, answer):
    backbone = make()
    batch = backbone.encoder.encode([chat(2), chat(4)], [frames(2), frames(4)], [answer, answer])
    tokenizer = backbone.encoder.tokenizer
    for row in range(2):
        kept = batch["labels"][row][batch["labels"][row] != IGNORED]
        assert kept[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(kept[:-1]).strip() == answer
    prompt = backbone.encoder.encode([chat(2)], [frames(2)])["input_ids"][0]
    start = int((batch["labels"][0] != IGNORED).nonzero()[0])
    row = batch["input_ids"][0]
    assert row[:start].tolist()[-len(prompt) :] == prompt.tolist()


def test_loss_equals_the_networks_own(make):
    backbone = make().eval()
    batch = backbone.encoder.encode([chat(2), chat(3)], [frames(2), frames(3)], ["Yes", "No"])
    with torch.no_grad():
        assert backbone.loss(batch).item() == pytest.approx(backbone.net(**batch).loss.item(), abs=1e-5)


def test_score_is_the_answers_first_token_and_ignores_padding_and_batch(make):
    backbone = make().eval()
    chats, pictures = [chat(3)] * 3, [frames(3, s) for s in range(3)]
    long = CrashTask("crash_yes_no").messages(Observation((0.0, 0.5, 1.0), question="Is it so? " * 20))
    with torch.no_grad():
        together = backbone.score(backbone.encoder.encode([*chats, long], [*pictures, frames(3)]), CHOICES)
        for row in range(3):
            batch = backbone.encoder.encode([chats[row]], [pictures[row]])
            alone = backbone.score(batch, CHOICES)
            assert (alone[0] - together[row]).abs().max() < 1e-4
            logits = backbone.net(**batch).logits[0, -1]
            ids = backbone.encoder.choice_tokens(CHOICES)
            assert (logits[ids].log_softmax(-1) - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize("how", ["last", "mean"])
def test_pooling_ignores_padding(make, how):
    backbone = make().eval()
    long = CrashTask("crash_yes_no").messages(Observation((0.0, 0.5), question="Is it so? " * 20))
    with torch.no_grad():
        alone = backbone.pooled(backbone.encoder.encode([chat(2)], [frames(2)]), how)
        together = backbone.pooled(backbone.encoder.encode([chat(2), long], [frames(2), frames(2)]), how)
    assert (alone[0] - together[0]).abs().max() < 1e-4


def test_lora_stays_on_its_side_and_all_of_it_learns(make):
    backbone = make()
    torch.manual_seed(0)
    apply_peft(backbone, LORA)
    assert not [n for n in backbone.trainable() if "vision" in n or "visual" in n or ".lora_" not in n]
    batch = backbone.encoder.encode([chat(2)], [frames(2)], ["Yes"])
    optimizer = torch.optim.SGD(backbone.trainable().values(), 0.05)
    losses = []
    for _ in range(3):
        loss = backbone.loss(batch)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        grads = {n: p.grad.abs().sum().item() for n, p in backbone.trainable().items()}
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(g > 0 for g in grads.values())


def test_checkpointing_gives_the_same_gradients(make):
    found = []
    for checkpointing in (False, True):
        backbone = make()
        torch.manual_seed(0)
        apply_peft(backbone, LORA)
        for p in backbone.trainable().values():
            torch.nn.init.normal_(p, std=0.02)
        backbone.train()
        if checkpointing:
            enable_gradient_checkpointing(backbone)
        torch.manual_seed(0)
        backbone.loss(backbone.encoder.encode([chat(2)], [frames(2)], ["No"])).backward()
        found.append([p.grad.clone() for p in backbone.trainable().values()])
    assert max((a - b).abs().max() for a, b in zip(*found, strict=True)) < 1e-5


def test_adapter_reloads_to_the_bit_and_merges_without_moving_logits(make, tmp_path):
    import peft

    backbone = make()
    apply_peft(backbone, LORA)
    for p in backbone.trainable().values():
        torch.nn.init.normal_(p, std=0.05)
    backbone.eval()
    batch = backbone.encoder.encode([chat(2)], [frames(2)])
    with torch.no_grad():
        before = backbone.net(**batch).logits
        backbone.net.save_pretrained(str(tmp_path / "adapter"))
        again = peft.PeftModel.from_pretrained(make().net, str(tmp_path / "adapter")).eval()
        assert (again(**batch).logits - before).abs().max() == 0
        merged = backbone.net.merge_and_unload()
        assert (merged(**batch).logits - before).abs().max() < 1e-4


def test_generate_gives_only_new_text(make):
    texts = make().eval().generate(make().encoder.encode([chat(1), chat(2)], [frames(1), frames(2)]), 4)
    assert len(texts) == 2
    assert not any("Answer Yes or No" in t for t in texts)


def test_4_bit_keeps_every_gradient_after_an_evaluation(make):
    """The trap: on CPUs with AVX512-BF16 an evaluation repacks 4-bit layers and drops gradients."""
    grads = []
    for evaluate_first in (False, True):
        backbone = make("nf4")
        torch.manual_seed(0)
        apply_peft(backbone, {**LORA, "quantization": "nf4"})
        torch.manual_seed(1)
        for p in backbone.trainable().values():
            torch.nn.init.normal_(p, std=0.05)
        if evaluate_first:
            backbone.eval()
            with torch.no_grad():
                backbone.score(backbone.encoder.encode([chat(2)], [frames(2)]), CHOICES)
        backbone.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            backbone.loss(backbone.encoder.encode([chat(2)], [frames(2)], ["Yes"])).backward()
        grads.append([p.grad.float().norm().item() for p in backbone.trainable().values()])
    assert np.allclose(grads[0], grads[1], rtol=0.05)
    assert min(grads[1]) > 0


def test_unknown_roles_and_targets_list_near_names(make):
    backbone = make()
    with pytest.raises(ConfigError, match=r"use one of .*language"):
        linear_targets(backbone, ["langauge"])
    leaf = linear_targets(backbone, ["language"])[0].rsplit(".", 1)[-1]
    with pytest.raises(ConfigError, match=f"did you mean .*{leaf}"):
        linear_targets(backbone, ["language"], [leaf[:-2] + leaf[-1] + leaf[-2]])


def test_census_counts_every_parameter_once(make):
    backbone = make()
    total = sum(p.numel() for p in backbone.parameters())
    rows = count_parameters(backbone)
    assert rows[-1]["parameters"] == total
    assert not [r for r in rows if r["part"] == "other"]


def test_a_foreign_or_incomplete_state_is_refused(make):
    backbone = make()
    apply_peft(backbone, LORA)
    state = {n: p.detach().clone() for n, p in backbone.trainable().items()}
    load_trained(backbone, state, "x")
    first = next(iter(state))
    with pytest.raises(CheckpointError, match="1 trainable parameters are missing"):
        load_trained(backbone, {k: v for k, v in state.items() if k != first}, "x")
    with pytest.raises(CheckpointError, match="1 keys are foreign"):
        load_trained(backbone, {**state, "other": state[first]}, "x")


def test_a_missing_checkpoint_is_one_clear_error(make):
    with pytest.raises(CheckpointError, match=r"model\.checkpoint=nobody/nothing cannot be loaded"):
        make(checkpoint="nobody/nothing")


def test_loss_of_a_right_padded_batch_is_the_mean_of_its_parts(make):
    backbone = make().eval()
    # The same number of frames: a cross-attention model sees padding images otherwise.
    chats = [CrashTask("crash_yes_no").messages(Observation((0.0, 0.5), question="Is it so? " * n)) for n in (1, 20)]
    with torch.no_grad():
        together = backbone.loss(backbone.encoder.encode(chats, [frames(2, 0), frames(2, 1)], ["Yes", "No"]))
        alone = [
            backbone.loss(backbone.encoder.encode([c], [frames(2, i)], [a]))
            for i, (c, a) in enumerate(zip(chats, ("Yes", "No"), strict=True))
        ]
    lengths = [len(backbone.encoder._suffix(a)[0]) for a in ("Yes", "No")]
    expected = sum(loss * n for loss, n in zip(alone, lengths, strict=True)) / sum(lengths)
    assert together.item() == pytest.approx(expected.item(), abs=1e-4)


def test_flipping_the_label_changes_no_inference_input(make):
    import dataclasses

    from dashvlm.data.clip import Clip, Sample
    from dashvlm.data.items import Item
    from dashvlm.training.collate import Collate

    clip = Clip("c", "c.mp4", "g", "test", 1, 5.0, 4.0, 9.0, 10.0)
    other = dataclasses.replace(clip, label=0, event_time_s=None, alert_time_s=None)
    collate = Collate(CrashTask("crash_yes_no"), make().encoder, stage="predict", supervision="prompt")
    times = np.array([3.5, 4.0, 4.5])
    batches = [
        collate([Item(0, Sample("c@0.5", c, 0.5, 5.0, tuple(times), 0), frames(3), times)])["inputs"]
        for c in (clip, other)
    ]
    assert batches[0].keys() == batches[1].keys()
    assert all(torch.equal(batches[0][k], batches[1][k]) for k in batches[0])


def test_generate_works_after_training_steps(make):
    backbone = make()
    apply_peft(backbone, LORA)
    optimizer = torch.optim.SGD(backbone.trainable().values(), 0.1)
    backbone.train()
    for _ in range(2):
        backbone.loss(backbone.encoder.encode([chat(2)], [frames(2)], ["Yes"])).backward()
        optimizer.step()
        optimizer.zero_grad()
    backbone.eval()
    both = backbone.generate(backbone.encoder.encode([chat(2), chat(2)], [frames(2), frames(2, 1)]), 3)
    alone = backbone.generate(backbone.encoder.encode([chat(2)], [frames(2)]), 3)
    assert both[0] == alone[0]
