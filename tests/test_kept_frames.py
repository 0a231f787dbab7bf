"""What a model makes of a frame is made once: equal to making it each time, to the bit, in runs of every family."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMModel

from dashvlm.backbones.frame_encoder import FrameEncoder
from dashvlm.data import entries
from dashvlm.data.encoded import FORMAT, EncodedFrames, EncodedStore, joined
from dashvlm.data.entries import Entries
from dashvlm.data.frames import FrameStore
from dashvlm.data.items import SampleDataset
from dashvlm.data.samples import balanced_part
from dashvlm.engine.ahead import encode_ahead
from dashvlm.engine.build import build_backbone, build_module
from dashvlm.engine.fit import build_trainer
from dashvlm.engine.kept import features_of
from dashvlm.engine.prepare import prepare_data
from dashvlm.engine.run import run
from dashvlm.errors import ConfigError

from .conftest import FAMILIES, SMALL_WORLD

WORLD = [*SMALL_WORLD, "task=crash", "trainer.accelerator=cpu", "model.checkpoint=tiny", "data.eval_horizons_s=[1.0]"]
OFF = ["data.features=off", "data.encoded=off"]
AS_IMAGES = {"llama32_vision": ["model.loader_options.frames=images"]}
NO_FEATURES = ["llama32_vision"]  # its vision half mixes the frames of a prompt


def _long(names, kept):
    """Of some names those that run by default; the others take long together."""
    return [n if n in kept else pytest.param(n, marks=pytest.mark.long) for n in names]


def _chat(count):
    return [{"role": "user", "content": [*({"type": "image"} for _ in range(count)), {"type": "text", "text": "?"}]}]


def _frames(count, height=120, width=200, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("answers", [None, ["Yes", "No, not at all"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_of_kept_frames_equal_the_processors(config, family, answers):
    backbone = build_backbone(config(*WORLD, f"model={family}", *AS_IMAGES.get(family, ())))
    encoder = backbone.encoder
    for other in (_frames(3, seed=1), _frames(2, seed=2), _frames(3, 96, 64, seed=3)):  # as many, fewer, smaller
        clips, chats = [_frames(3), other], [_chat(3), _chat(len(other))]
        wanted = encoder.encode(chats, clips, answers)
        found = backbone.ready(encoder.encode(chats, [encoder.apart.encode(c) for c in clips], answers))
        assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in wanted.items()}
        assert all(torch.equal(v, wanted[k]) for k, v in found.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_kept_as_whole_numbers(config, family):
    encoder = build_backbone(config(*WORLD, f"model={family}", *AS_IMAGES.get(family, ()))).encoder
    assert encoder.apart.encode(_frames(2)).arrays["pixel_values"].dtype == np.uint8


def test_pixels_that_cannot_be_normalised_again_are_kept_as_they_are(config, monkeypatch):
    encoder = build_backbone(config(*WORLD, "model=smolvlm2")).encoder
    real = type(encoder.processor.image_processor)
    plain = real.normalize
    monkeypatch.setattr(real, "normalize", lambda self, *a, **k: plain(self, *a, **k) ** 3)
    kept = encoder.apart.encode(_frames(2))
    assert kept.arrays["pixel_values"].dtype == np.float32
    wanted = encoder.encode([_chat(2)], [_frames(2)])
    assert torch.equal(encoder.encode([_chat(2)], [kept])["pixel_values"], wanted["pixel_values"])


def _run(config, folder, *words):
    folder.mkdir()
    result = run(config(*WORLD, *words), folder)
    rows = pd.read_parquet(folder / "predictions.parquet").drop(columns="latency_s")
    curves = pd.read_csv(folder / "metrics" / "metrics.csv")
    return result, rows, curves, load_file(folder / "trained.safetensors")


def _same(one, two):
    pd.testing.assert_frame_equal(one[1], two[1])
    pd.testing.assert_frame_equal(one[2].filter(regex="loss|val/"), two[2].filter(regex="loss|val/"))
    assert one[3].keys() == two[3].keys()
    assert all(torch.equal(v, two[3][k]) for k, v in one[3].items())
    numbers = [{k: v for k, v in r[0]["metrics"].items() if "latency" not in k} for r in (one, two)]
    assert json.dumps(numbers[0]) == json.dumps(numbers[1])


@pytest.mark.parametrize("family", _long(FAMILIES, ["qwen3_vl", "openflamingo"]))
def test_runs_with_kept_frames_are_the_same_to_the_bit(config, tmp_path, family):
    words = [f"model={family}", *AS_IMAGES.get(family, ()), "trainer.max_steps=6", "trainer.val_every_n_steps=3"]
    plain = _run(config, tmp_path / "plain", *words, *OFF)
    assert plain[0]["kept"]["what"] == "nothing"
    pixels = _run(config, tmp_path / "pixels", *words, "data.features=off", "data.encoded=on")
    assert pixels[0]["kept"]["what"] == "pixels"
    _same(plain, pixels)
    if family in NO_FEATURES:
        with pytest.raises(ConfigError, match=r"data\.features=on"):
            _run(config, tmp_path / "features", *words, "data.features=on")
    else:
        features = _run(config, tmp_path / "features", *words, "data.features=on")
        assert features[0]["kept"]["what"] == "features"
        _same(plain, features)


@pytest.fixture
def trainer(config):
    return build_trainer(config(*WORLD, "model=smolvlm2"), logger=False, enable_checkpointing=False)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in NO_FEATURES])
def test_texts_from_kept_features_are_the_same_with_beams_too(config, trainer, family):
    backbone = build_backbone(config(*WORLD, f"model={family}")).eval()
    clips, chats = [_frames(3), _frames(2, seed=1)], [_chat(3), _chat(2)]
    plain = backbone.encoder.encode(chats, clips)
    made = [features_of(backbone, backbone.encoder.apart.encode(c), trainer) for c in clips]
    kept = backbone.ready(backbone.encoder.encode(chats, made))
    assert "pixel_values" not in kept
    for options in ({}, {"num_beams": 3}):
        assert backbone.generate(plain, 6, options) == backbone.generate(kept, 6, options)
    assert torch.equal(backbone.score(plain, ["Yes", "No"]), backbone.score(kept, ["Yes", "No"]))  # still whole
    drawn = []
    for batch in (plain, kept):
        torch.manual_seed(0)
        ids, mask = backbone.sample(batch, 3, 5)
        drawn.append((ids, backbone.completion_logprobs(batch, ids, mask), backbone.pooled(batch, "mean")))
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


OTHERS = {
    "mcq by text": ["task=mcq", "task.answer_with=text"],
    "mcq reordered": ["task=mcq", "task.reorder=true"],
    "scene": ["task=scene", "objective.constrained=true", "objective.max_new_tokens=20"],
    "preferences": ["task=caption", "objective=dpo", "task.pairs=wrong_positions", "objective.max_new_tokens=8"],
    "rewards": ["objective=grpo", "objective.max_new_tokens=6", "task.reasoning=true"],
    "classifier": ["objective=pooled"],
    "demonstrations": ["data.shots.share=0.5", "data.shots.least=1", "data.shots.most=2", "data.shots.eval=1"],
    "frames by the clip's length": ["data.sampling=fps", "data.sample_fps=0.8"],
    "gradient checkpointing": ["model.gradient_checkpointing=true"],
    "autocast": ["trainer.precision=bf16-mixed"],
    "workers": ["data.num_workers=2"],
}  # fmt: skip


@pytest.mark.parametrize("kind", _long(OTHERS, ["mcq by text", "rewards", "demonstrations", "autocast"]))
def test_tasks_and_objectives_do_not_notice(config, tmp_path, kind):
    words = ["model=qwen3_vl", "trainer.max_steps=2", "data.eval_horizons_s=[]", *OTHERS[kind]]
    plain = _run(config, tmp_path / "plain", *words, *OFF)
    features = _run(config, tmp_path / "features", *words, "data.features=on")
    _same(plain, features)


def test_latency_is_that_of_the_whole_model(config, tmp_path):
    rows = _run(config, tmp_path / "run", "model=qwen3_vl", "trainer.max_steps=2", "data.features=on")
    table = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    timed = table["latency_s"].notna()
    assert 0 < timed.sum() <= 16
    assert table[timed]["primary"].all()
    assert rows[0]["latency_s"] == pytest.approx(table["latency_s"].mean())


@pytest.fixture
def looked_at(monkeypatch):
    """Clips whose frames a loader of this process took from the frame store."""
    found, plain = [], SampleDataset.__getitem__

    def counted(self, key):
        if not self.blank and "failed" not in self.samples[key[0] if isinstance(key, tuple) else key].clip.extra:
            found.append(key)
        return plain(self, key)

    monkeypatch.setattr(SampleDataset, "__getitem__", counted)
    return found


@pytest.mark.parametrize("kind", ["features", "encoded"])
def test_what_is_kept_is_used_and_never_made_twice(config, tmp_path, monkeypatch, looked_at, kind):
    cfg = ["model=smolvlm2", "trainer.max_steps=4", "data.num_workers=0", "data.frame_size=[60,80]"]
    cfg += [*OFF, f"data.{kind}=on"]
    made, plain = [], FrameEncoder.encode
    monkeypatch.setattr(FrameEncoder, "encode", lambda self, f: made.append(len(f)) or plain(self, f))
    _run(config, tmp_path / "one", *cfg)
    first, timed = sum(made), len(looked_at)
    assert first > 1
    assert timed <= 16 * (kind == "features")  # the samples whose latency is taken
    made.clear()
    looked_at.clear()
    _run(config, tmp_path / "two", *cfg, "data.num_frames=2", "data.frame_interval_s=0.7")  # other times too
    assert len(looked_at) <= 16 * (kind == "features")
    again = sum(made)
    made.clear()
    _run(config, tmp_path / "three", *cfg, "optim.lr=0.02")
    assert sum(made) == 2 < again < first  # a picture of all values, and a frame that says how large they are


def test_damaged_entries_cost_time_only(config, tmp_path, cache):
    words = ["model=smolvlm2", "trainer.max_steps=4", "data.num_workers=0", "data.frame_size=[60,96]"]
    plain = _run(config, tmp_path / "plain", *words, *OFF)
    _run(config, tmp_path / "made", *words, "data.features=on")
    for file in cache.rglob("*.features"):
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    entries._headers.clear()
    _same(plain, _run(config, tmp_path / "damaged", *words, "data.features=on"))


def test_features_follow_the_weights_that_make_them(config, tmp_path, trainer):
    words = [*WORLD, "model=smolvlm2", "data.features=on"]
    cfg = config(*words)
    data, keys = prepare_data(cfg), []
    for change in (0.0, 0.0, 1e-3):
        module = build_module(cfg)
        with torch.no_grad():
            next(iter(module.backbone.base().model.connector.parameters())).add_(change)
        keys.append(encode_ahead(cfg, data, module, trainer)[0].encoded.made_by)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("words", "what", "why"),
    [
        (["peft.roles=[language,vision]"], "pixels", "vision half or the connector train"),
        (["peft=full"], "pixels", "vision half or the connector train"),
        (["data.augmentation={crop: 0.1}"], "nothing", "data.augmentation"),
        (["data.pixels=off"], "nothing", "data.pixels=off"),
        (["trainer.max_steps=1", "trainer.val_every_n_steps=1", "data.eval_horizons_s=[]"], "nothing", "used"),
        (["data.store_gb=0.00001"], "nothing", "data.store_gb"),
        (["++model.loader_options.frames=contact_sheet"], "nothing", "pictures of their own"),
        ([], "features", "used"),
    ],
)
def test_what_is_kept_and_why(config, trainer, words, what, why):
    cfg = config(*WORLD, "model=smolvlm2", *words)
    kept = encode_ahead(cfg, prepare_data(cfg), build_module(cfg), trainer)[1]
    assert (kept.what, why in kept.why) == (what, True)


@pytest.mark.parametrize("words", [["data.augmentation={crop: 0.1}"], ["peft=full"], ["data.store_gb=0.00001"]])
def test_what_cannot_be_kept_is_an_error_where_it_is_asked_for(config, trainer, words):
    cfg = config(*WORLD, "model=smolvlm2", "data.features=on", *words)
    with pytest.raises(ConfigError, match=r"data\.features=on"):
        encode_ahead(cfg, prepare_data(cfg), build_module(cfg), trainer)


def test_dropout_in_the_vision_half_keeps_pixels(config, trainer):
    cfg = config(*WORLD, "model=smolvlm2")
    module = build_module(cfg)
    for part in module.backbone.base().model.vision_model.modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.5
    kept = encode_ahead(cfg, prepare_data(cfg), module, trainer)[1]
    assert (kept.what, "draws at random" in kept.why) == ("pixels", True)


def test_views_of_one_value_stay_views():
    ones = EncodedFrames({"mask": np.broadcast_to(np.int64(1), (2, 40, 40)), "x": np.arange(4).reshape(2, 2)})
    both = joined([ones, ones])
    assert both.arrays["mask"].strides == (0, 0, 0)
    assert (both.arrays["mask"].shape, both.arrays["x"].tolist()) == ((4, 40, 40), [[0, 1], [2, 3], [0, 1], [2, 3]])
    other = EncodedFrames({"mask": np.broadcast_to(np.int64(0), (1, 40, 40)), "x": np.zeros((1, 2), int)})
    assert joined([ones, other]).arrays["mask"][:, 0, 0].tolist() == [1, 1, 0]


def _prefills(monkeypatch, counts):
    plain = SmolVLMModel.forward

    def counted(self, input_ids=None, **kwargs):
        if input_ids is not None and input_ids.shape[1] > 8:  # not the tokens that are written one by one
            counts.append(len(input_ids))
        return plain(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(SmolVLMModel, "forward", counted)


def test_a_test_pass_reads_each_prompt_once(config, tmp_path, monkeypatch):
    """Text and scores come from one pass; equal prompts with grey frames are asked once (it was 2 + 1 a sample)."""
    counts: list[int] = []
    _prefills(monkeypatch, counts)
    words = ["model=smolvlm2", "trainer.skip_fit=true", "data.eval_horizons_s=[]", "objective.generate=true"]
    _, rows, *_ = _run(config, tmp_path / "run", *words, *OFF, "data.eval_batch_size=2")
    prompts = rows["prompt"].nunique()
    assert sum(counts) == len(rows) + prompts < 2 * len(rows)
    assert rows["text"].notna().all()
    assert rows["pixels_off_score"].nunique() == prompts


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_from_the_pass_that_writing_begins_with_are_those_of_a_pass_of_their_own(config, family):
    backbone = build_backbone(config(*WORLD, f"model={family}", *AS_IMAGES.get(family, ()))).eval()
    batch = backbone.encoder.encode([_chat(3), _chat(3)], [_frames(3), _frames(3, seed=1)])
    alone = backbone.score(batch, ["Yes", "No"])
    for options in ({}, {"num_beams": 2}):
        texts, scores = backbone.generate_and_score(batch, ["Yes", "No"], 5, options)
        assert texts == backbone.generate(batch, 5, options)
        assert torch.allclose(scores, alone, atol=1e-6)


def test_a_part_of_the_validation_split_has_all_labels_and_groups(config, tmp_path):
    cfg = config(*WORLD, "model=smolvlm2", "data.splits={train: 0.2, val: 0.6, test: 0.2}")
    val = prepare_data(cfg).samples["val"]
    part = balanced_part(val, 8)
    assert part == balanced_part(val, 8)
    assert [s.clip.label for s in part].count(1) == 4
    assert len({s.clip.group for s in part}) == min(6, len({s.clip.group for s in val}))
    assert balanced_part(val, 1000) == val
    result = _run(config, tmp_path / "run", "model=smolvlm2", "trainer.max_steps=2", "data.val_limit=2")[0]
    assert any("2 of 4 samples (data.val_limit)" in a for a in result["alarms"])


def test_what_was_put_is_what_is_got(counter_video, tmp_path):
    video, times = counter_video("kept")
    frames = FrameStore(tmp_path / "frames")
    store = EncodedStore(Entries(tmp_path / "kept", "kept", 1.0), frames, "a")
    rng = np.random.default_rng(0)

    def made(count, dtype=np.float32):
        arrays = {"x": rng.random((count, 3, 2)).astype(dtype), "one": rng.integers(0, 9, (count,))}
        arrays["bits"] = rng.integers(0, 9, (count, 4), np.uint16)
        return EncodedFrames(arrays | {"mask": np.broadcast_to(np.int64(1), (count, 20, 20))})

    first, second = made(2), made(2)
    assert store.get(video, times[:1]) is None
    assert store.lacking(video, times[:4]).tolist() == times[:4].tolist()
    store.put(video, times[[0, 2]], first)
    assert store.lacking(video, times[:4]).tolist() == times[[1, 3]].tolist()
    assert store.get(video, times[:2]) is None
    store.put(video, times[[1, 3]], second)
    found, true = store.get(video, [times[3], times[0], times[3]])
    assert true.tolist() == [times[3], times[0], times[3]]
    for name in ("x", "bits", "one"):
        assert found.arrays[name].dtype == first.arrays[name].dtype
        wanted = [second.arrays[name][1], first.arrays[name][0], second.arrays[name][1]]
        assert np.array_equal(found.arrays[name], np.stack(wanted))
    assert found.arrays["mask"].shape == (3, 20, 20)
    assert (found.arrays["mask"] == 1).all()
    again = made(2)
    store.put(video, times[[0, 4]], again)  # what is there stays
    assert np.array_equal(store.get(video, times[:1])[0].arrays["x"], first.arrays["x"][:1])
    assert np.array_equal(store.get(video, times[4:5])[0].arrays["x"], again.arrays["x"][1:])
    other = made(1, np.float16)
    store.put(video, times[:1], other)  # of another kind: the file is written anew
    assert store.get(video, times[:1])[0].arrays["x"].dtype == np.float16
    assert store.get(video, times[1:2]) is None
    assert EncodedStore(store.entries, frames, "b").get(video, times[:1]) is None


def test_a_header_that_does_not_fit_is_no_entry(counter_video, tmp_path):
    video, times = counter_video("kept")
    store = EncodedStore(Entries(tmp_path / "kept", "kept", 1.0), FrameStore(tmp_path / "frames"), "a")
    key = json.dumps([FORMAT, store.frames.key(video), "a"])
    for about in ({}, {"constant": {"mask": [1, "float128x", [4]]}}, {"constant": 3}):
        with store.entries.locked(key):
            store.entries.write(key, about, [0], {"x": np.zeros((1, 2), np.float32)})
        entries._headers.clear()
        assert store.get(video, times[:1]) is None


def test_a_black_clip_tells_nothing_of_the_arithmetic_and_mixes_with_others(config):
    backbone = build_backbone(config(*WORLD, "model=smolvlm2"))
    encoder, black = backbone.encoder, np.zeros((2, 120, 200, 3), np.uint8)
    kept = [encoder.apart.encode(black), encoder.apart.encode(_frames(2))]
    assert [k.arrays["pixel_values"].dtype for k in kept] == [np.uint8, np.uint8]
    plain = encoder.encode([_chat(2)], [_frames(2)])["pixel_values"][0].numpy()
    mixed = [kept[0], EncodedFrames({**kept[1].arrays, "pixel_values": plain})]
    found = backbone.ready(encoder.encode([_chat(2)] * 2, mixed))
    wanted = encoder.encode([_chat(2)] * 2, [black, _frames(2)])
    assert torch.equal(found["pixel_values"], wanted["pixel_values"])
