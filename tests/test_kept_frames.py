"""What a model makes of a frame is made once: equal to making it each time, to the bit, in runs of every family."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dashvlm.data.encoded import EncodedFrames, joined
from dashvlm.engine.build import build_backbone, build_module
from dashvlm.engine.fit import build_trainer
from dashvlm.engine.run import run
from dashvlm.errors import ConfigError

from .conftest import FAMILIES, SMALL_WORLD

WORLD = [*SMALL_WORLD, "task=crash", "trainer.accelerator=cpu", "model.checkpoint=tiny", "data.eval_horizons_s=[1.0]"]
OFF = ["data.features=off", "data.encoded=off"]
AS_IMAGES = {"llama32_vision": ["model.loader_options.frames=images"]}
NO_FEATURES = ["llama32_vision"]  # its vision half mixes the frames of a prompt


def _chat(count):
    return [{"role": "user", "content": [*({"type": "image"} for _ in range(count)), {"type": "text", "text": "?"}]}]


def _frames(count, height=120, width=200, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("answers", [None, ["Yes", "No, not at all"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_of_kept_frames_equal_the_processors(config, family, answers):
    encoder = build_backbone(config(*WORLD, f"model={family}", *AS_IMAGES.get(family, ()))).encoder
    for other in (_frames(3, seed=1), _frames(2, seed=2), _frames(3, 96, 64, seed=3)):  # as many, fewer, smaller
        clips, chats = [_frames(3), other], [_chat(3), _chat(len(other))]
        wanted = encoder.encode(chats, clips, answers)
        found = encoder.encode(chats, [encoder.apart.encode(c) for c in clips], answers)
        found = {k: encoder.apart.normalised(v) if v.dtype == torch.uint8 else v for k, v in found.items()}
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
    numbers = [{k: v for k, v in r[0]["metrics"].items()} for r in (one, two)]
    assert json.dumps(numbers[0]) == json.dumps(numbers[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_runs_with_kept_frames_are_the_same_to_the_bit(config, tmp_path, family):
    words = [f"model={family}", *AS_IMAGES.get(family, ()), "trainer.max_steps=6", "trainer.val_every_n_steps=3"]
    plain = _run(config, tmp_path / "plain", *words, *OFF)
    assert plain[0]["kept"]["what"] == "nothing"
    pixels = _run(config, tmp_path / "pixels", *words, "data.features=off", "data.encoded=on")
    assert pixels[0]["kept"]["what"] == "pixels"
    _same(plain, pixels)
    if family in NO_FEATURES:
        with pytest.raises(ConfigError, match="data.features=on"):
            _run(config, tmp_path / "features", *words, "data.features=on")
    else:
        features = _run(config, tmp_path / "features", *words, "data.features=on")
        assert features[0]["kept"]["what"] == "features"
        _same(plain, features)
