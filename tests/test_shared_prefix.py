"""Questions about one clip share its frames: losses, gradients, scores and texts equal those of a pass for each row."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dashvlm.backbones.encoder import HFEncoder
from dashvlm.config.identity import run_id
from dashvlm.data.items import SampleDataset
from dashvlm.data.samplers import StreamSampler
from dashvlm.engine.build import build_module
from dashvlm.engine.prepare import prepare_data
from dashvlm.engine.run import run
from dashvlm.errors import ConfigError

from .conftest import FAMILIES, SMALL_WORLD

WORLD = [*SMALL_WORLD, "task=crash", "trainer.accelerator=cpu", "model.checkpoint=tiny"]
SHARING = [f for f in FAMILIES if f != "llama32_vision"]  # it reads a contact sheet
QUESTIONS = ["Is it red?", "How many lanes are there, and which may turn left?", "Stop?", "Who goes first here?"]
ANSWERS = ["Yes", "Three", "No, never", "Left"]
CLIP_OF = [0, 0, 1, 0]


def _chat(count, question):
    return [
        {"role": "user", "content": [*({"type": "image"} for _ in range(count)), {"type": "text", "text": question}]}
    ]


def _frames(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 120, 200, 3), dtype=np.uint8)


def _both(backbone, answers=None):
    """The same rows, each whole, and with clips shared."""
    clips = [_frames(3), _frames(2, seed=1)]
    chats = [_chat(len(clips[c]), q) for c, q in zip(CLIP_OF, QUESTIONS, strict=True)]
    whole = backbone.encoder.encode(chats, [clips[c] for c in CLIP_OF], answers)
    return whole, backbone.ready(backbone.encoder.encode_shared(chats, clips, CLIP_OF, answers))


def _backbone(config, family, *words):
    module = build_module(config(*WORLD, f"model={family}", "model.dtype=float32", "peft.dropout=0.0", *words))
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return module.backbone


@pytest.mark.parametrize("family", SHARING)
def test_losses_and_gradients(config, family):
    backbone = _backbone(config, family).train()
    whole, shared = _both(backbone, ANSWERS)
    assert shared["prefix"].tolist()[0] > 0.3 * shared["attention_mask"].sum(1)[0]
    found = []
    for batch in (whole, shared):
        backbone.zero_grad()
        loss = backbone.loss(batch)
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in backbone.trainable().items()}))
        assert torch.equal(backbone.answers(batch).mask.sum(1), backbone.answers(whole).mask.sum(1))
    (one, grads), (two, others) = found
    assert torch.allclose(one, two, atol=1e-5)
    assert max(float((g - others[n]).abs().max()) for n, g in grads.items()) < 1e-5
    assert any(float(g.abs().max()) > 1e-4 for g in grads.values())
    assert torch.allclose(backbone.answers(whole).logprobs, backbone.answers(shared).logprobs, atol=1e-5)


@pytest.mark.parametrize("family", SHARING)
def test_scores_and_texts(config, family):
    backbone = _backbone(config, family).eval()
    with torch.no_grad():
        whole, shared = _both(backbone)
        one, two = backbone.score(whole, ["Yes", "No"]), backbone.score(shared, ["Yes", "No"])
        assert torch.allclose(one, two, atol=1e-5)
        assert one.std(0).min() > 1e-6
        texts, scores = backbone.generate_and_score(shared, ["Yes", "No"], 8)
        assert torch.allclose(scores, one, atol=1e-5)
        assert texts == backbone.generate(whole, 8) == backbone.generate(shared, 8)


def _run(config, folder, *words):
    folder.mkdir()
    result = run(config(*WORLD, "model.dtype=float32", "peft.dropout=0.0", *words), folder)
    return result, pd.read_parquet(folder / "predictions.parquet"), load_file(folder / "trained.safetensors")


def _close(one, two):
    assert one[1]["sample_id"].tolist() == two[1]["sample_id"].tolist()
    scores = [np.stack([np.pad(s, (0, 4 - len(s))) for s in r[1]["scores"]]) for r in (one, two)]
    assert np.allclose(*scores, atol=1e-4)
    assert one[1]["text"].tolist() == two[1]["text"].tolist()
    assert max(float((v - two[2][k]).abs().max()) for k, v in one[2].items()) < 1e-3


@pytest.mark.parametrize(
    "words",
    [["task.reorder=true"], *(pytest.param(w, marks=pytest.mark.long)
                              for w in ([], ["task.answer_with=text"], ["data.features=off"]))],
    ids=str,
)  # fmt: skip
def test_runs_of_questions_are_the_same(config, tmp_path, monkeypatch, words):
    words = ["task=mcq", "model=smolvlm2", "trainer.max_steps=4", "data.by_clip=true", "data.num_workers=0", *words]
    words += ["optim.lr=1e-4", "data.support_frames=never"]
    plain = _run(config, tmp_path / "plain", *words, "objective.shared_clips=false")
    seen, encode = [], HFEncoder.encode_shared
    monkeypatch.setattr(HFEncoder, "encode_shared", lambda self, chats, clips, *a, **k: seen.append(
        (len(chats), len(clips))) or encode(self, chats, clips, *a, **k))  # fmt: skip
    shared = _run(config, tmp_path / "shared", *words)
    assert seen
    assert all(rows > clips for rows, clips in seen)
    _close(plain, shared)


def test_pairs_share_their_prompt(config, tmp_path):
    words = ["task=caption", "objective=dpo", "task.pairs=wrong_positions", "objective.max_new_tokens=8"]
    words += ["model=smolvlm2", "trainer.max_steps=3", "optim.lr=1e-4"]
    plain = _run(config, tmp_path / "plain", *words, "objective.shared_clips=false")
    shared = _run(config, tmp_path / "shared", *words)
    assert np.allclose(*(r[1]["margin"].astype(float) for r in (plain, shared)), atol=1e-3, equal_nan=True)
    assert max(float((v - shared[2][k]).abs().max()) for k, v in plain[2].items()) < 1e-3


@pytest.mark.parametrize(
    ("words", "shares"),
    [([], True), (["objective.shared_clips=false"], False), (["+objective.generation.num_beams=2"], False),
     (["+objective.generation={num_beams: 1, do_sample: false}"], True), (["task.reasoning=true"], False),
     (["objective=pooled"], False), (["++model.loader_options.frames=contact_sheet"], False)],
)  # fmt: skip
def test_what_is_shared(config, words, shares):
    module = build_module(config(*WORLD, "model=smolvlm2", *words))
    assert module.collate("predict").share is shares


def test_gradient_checkpointing_keeps_no_prefix_in_training(config):
    module = build_module(config(*WORLD, "model=smolvlm2", "model.gradient_checkpointing=true"))
    assert (module.collate("train").share, module.collate("predict").share) == (False, True)


def test_questions_of_a_clip_follow_each_other_and_each_comes_once_a_turn():
    keys = ["a", "b", "a", "c", "b", "a"]
    sampler = StreamSampler(6, 4, 6, seed=3, together=keys)
    order = [number for batch in sampler for number, _ in batch]
    for turn in range(4):
        part = order[6 * turn : 6 * turn + 6]
        assert sorted(part) == list(range(6))
        runs = [k for k, _ in itertools.groupby(keys[i] for i in part)]
        assert len(runs) == 3
    again = StreamSampler(6, 4, 6, seed=3, together=keys, start=2)
    assert list(again) == list(sampler)[2:]
    assert len({tuple(order[6 * t : 6 * t + 6]) for t in range(4)}) > 1


def test_batches_of_similar_length_hold_every_sample_once_a_turn():
    lengths = np.random.default_rng(0).integers(1, 1000, 50).tolist()
    sampler = StreamSampler(50, 4, 50, seed=1, lengths=lengths, window=5)
    batches = [[number for number, _ in batch] for batch in sampler]
    order = [number for batch in batches for number in batch]
    assert all(sorted(order[50 * t : 50 * t + 50]) == list(range(50)) for t in range(4))
    spread = np.mean([np.ptp([lengths[i] for i in b]) for b in batches])
    drawn = StreamSampler(50, 4, 50, seed=1)
    assert spread < 0.5 * np.mean([np.ptp([lengths[i] for i, _ in b]) for b in drawn])
    assert list(StreamSampler(50, 4, 50, seed=1, lengths=lengths, window=5, start=9)) == list(sampler)[9:]
    firsts = [max(lengths[i] for i in b) for b in batches[:5]]
    assert firsts != sorted(firsts)  # not from short to long


def test_a_run_by_length_is_another_run_and_not_by_clip_as_well(config, tmp_path):
    cfg = config(*WORLD, "model=smolvlm2", "data.length_window=4")
    assert run_id(cfg) != run_id(config(*WORLD, "model=smolvlm2"))
    with pytest.raises(ConfigError, match="choose one"):
        config(*WORLD, "model=smolvlm2", "data.length_window=4", "data.by_clip=true")
    (tmp_path / "run").mkdir()
    assert run(config(*WORLD, "model=smolvlm2", "data.length_window=4", "trainer.max_steps=2"), tmp_path / "run")[
        "steps"
    ]


@pytest.mark.parametrize("family", SHARING)
def test_a_prompt_that_asks_before_it_shows_is_not_shared(config, family):
    backbone = _backbone(config, family).eval()
    clip = _frames(2)
    chats = [[{"role": "user", "content": [{"type": "text", "text": q}, {"type": "image"}, {"type": "image"}]}]
             for q in QUESTIONS[:2]]  # fmt: skip
    with torch.no_grad():
        whole = backbone.score(backbone.encoder.encode(chats, [clip, clip]), ["Yes", "No"])
        batch = backbone.encoder.encode_shared(chats, [clip], [0, 0])
        assert "clip_of" not in batch
        assert torch.allclose(whole, backbone.score(batch, ["Yes", "No"]), atol=1e-6)


def test_dropout_augmentation_and_mixed_pictures_are_not_shared(config):
    words = [*WORLD, "model=smolvlm2"]
    assert build_module(config(*words, "peft.dropout=0.0")).collate("train").share
    assert not build_module(config(*words, "peft.dropout=0.1")).collate("train").share
    frames = ["model=llama32_vision", "model.loader_options.frames=images"]
    assert not build_module(config(*WORLD, *frames, "peft.dropout=0.0")).collate("predict").share
    cfg = config(*words, "peft.dropout=0.0", "data.augmentation={crop: 0.1}")
    data, module = prepare_data(cfg), build_module(cfg)
    dataset = SampleDataset(data.samples["train"], data.store, augmentation=cfg["data"]["augmentation"])
    batch = module.collate("train")([dataset[0, 0], dataset[0, 1]])
    assert "clip_of" not in batch["inputs"]
