"""Vision encoders as rivals: the same frames, exact pixels, trained, resumed, scored over drives and exported."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from dashvlm.api import compose
from dashvlm.config.rules import check
from dashvlm.data.clip import Observation
from dashvlm.engine.build import build_module
from dashvlm.safety.files import read_json
from tests.conftest import ENCODERS, SMALL_WORLD

WORDS = ["model.checkpoint=tiny", "task=crash", *SMALL_WORLD, "trainer.accelerator=cpu"]
DRIVES = [
    "model.checkpoint=tiny", "task=crash", "data=drives", "data.options.num_drives=6", "data.options.fps=5",
    "data.options.shortest_s=9", "data.options.longest_s=10", "data.batch_size=4", "task.stream=true",
    "trainer.accelerator=cpu",
]  # fmt: skip
PAIRED = {"videomae": True, "vjepa2": True, "image_encoder": False}


def _module(cache, name, *words):
    return build_module(compose(f"model={name}", *WORDS, f"paths.cache_dir={cache}", *words)).eval()


def _frames(count, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, 48, 80, 3), dtype=np.uint8)


def test_every_encoder_is_here():
    assert set(ENCODERS) == set(PAIRED)


@pytest.mark.parametrize("name", ENCODERS)
def test_frames_are_whole_normalised_and_in_order(cache, name):
    encoder = _module(cache, name).backbone.encoder
    frames = np.stack([np.full((48, 80, 3), 50 * i, np.uint8) for i in range(3)])
    frames[:, :, :8] = 255  # a centre crop would lose the edge
    pixels = encoder.encode([[]], [frames])["pixel_values"][0]
    shown = pixels[1:] if PAIRED[name] else pixels
    assert len(pixels) == (4 if PAIRED[name] else 3)
    if PAIRED[name]:
        assert torch.equal(pixels[0], pixels[1])  # the oldest is shown twice
    mean, std = (torch.tensor(v)[:, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for number, frame in enumerate(shown):
        assert torch.allclose(frame[:, 32, 40:], (50 * number / 255 - mean) / std, atol=1e-5)
        assert torch.allclose(frame[:, 32, :2], (1.0 - mean) / std, atol=0.02)
    assert len(encoder.encode([[]], [frames[:2]])["pixel_values"][0]) == 2


@pytest.mark.parametrize("name", ENCODERS)
def test_pixels_matter_and_neighbours_in_the_batch_do_not(cache, name):
    module = _module(cache, name)
    one, two = _frames(4), _frames(4, 1)
    with torch.no_grad():
        both = module.compute_scores({"inputs": module.backbone.encoder.encode([[], []], [one, two])})
        alone = module.compute_scores({"inputs": module.backbone.encoder.encode([[]], [two])})
    assert torch.allclose(both[1], alone[0], atol=1e-6)
    assert not torch.allclose(both[0], both[1], atol=1e-6)


@pytest.mark.parametrize("name", ["videomae", "vjepa2"])
def test_a_video_encoder_sees_the_order_of_the_frames(cache, name):
    module, frames = _module(cache, name), _frames(4)
    with torch.no_grad():
        forth, back = (
            module.compute_scores({"inputs": module.backbone.encoder.encode([[]], [f])}) for f in (frames, frames[::-1])
        )
    assert not torch.allclose(forth, back, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 8, 15])
def test_videomae_keeps_its_positions_whatever_the_number_of_frames(cache, count):
    """The fixed positions of fewer frames are the first of those of sixteen."""
    few, many = _module(cache, "videomae", f"data.num_frames={count}"), _module(cache, "videomae", "data.num_frames=16")
    mine = few.backbone.base().embeddings.position_embeddings
    assert mine.shape[1] == (count + count % 2) // 2 * 64
    assert torch.allclose(mine, many.backbone.base().embeddings.position_embeddings[:, : mine.shape[1]])


def test_batch_statistics_stay_as_they_were(cache):
    module = _module(cache, "image_encoder")
    before = {n: b.clone() for n, b in module.backbone.net.named_buffers()}
    module.train()
    batch = {
        "inputs": module.backbone.encoder.encode([[], []], [_frames(3), _frames(3, 1)]),
        "labels": torch.tensor([0, 1]),
    }
    module.compute_loss(batch).backward()
    assert all(torch.equal(before[n], b) for n, b in module.backbone.net.named_buffers())


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_brings_its_objective_and_refuses_text(cache, name):
    cfg = compose(f"model={name}", *WORDS, f"paths.cache_dir={cache}")
    assert (cfg["objective"]["name"], cfg["objective"]["pooling"]) == ("pooled", "mean")
    wrong = {**cfg, "objective": {**cfg["objective"], "name": "sft"}}
    assert any("reads and writes no text" in e and "objective=pooled" in e for e in check(wrong))
    last = {**cfg, "objective": {**cfg["objective"], "pooling": "last"}}
    assert any("corner of the picture" in e for e in check(last)) == PAIRED[name]
    four_bit = {**cfg, "peft": {**cfg["peft"], "quantization": "nf4"}}
    assert any("4-bit weights are for language models" in e for e in check(four_bit))
    assert compose("model=smolvlm2", *WORDS, "objective=pooled")["objective"]["pooling"] == "last"


@pytest.mark.parametrize("name", ENCODERS)
def test_trained_resumed_scored_over_drives_and_exported(dashvlm, tmp_path, name):
    words = [f"model={name}", *DRIVES, "data.num_frames=3", "trainer.max_steps=4", "trainer.val_every_n_steps=2"]
    words += ["callbacks.checkpoint.every_n_steps=2"]
    dashvlm("train", *words)
    (run,) = (tmp_path / "runs").glob(f"crash-{name}-pooled-*")
    result = read_json(run / "result.json")
    assert result["metrics"]["stream_ap"]["value"] > 0
    assert result["stream"]["events"] == 3
    stream = pd.read_parquet(run / "stream.parquet")
    assert stream["score"].notna().all()
    assert stream["score"].nunique() > 10
    assert stream["pixels_off_score"].nunique() == 1
    # Interrupted behind its first checkpoint, the same words give the same bits.
    weights = (run / "trained.safetensors").read_bytes()
    for file in ("result.json", "trained.safetensors", "predictions.parquet"):
        (run / file).unlink()
    (run / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
    dashvlm("train", *words)
    assert (run / "trained.safetensors").read_bytes() == weights
    dashvlm("export", f"run={run}", f"output={tmp_path}/x")
    again = transformers.AutoModel.from_pretrained(tmp_path / "x" / "merged")
    assert sum(p.numel() for p in again.parameters()) > 10_000
    assert (tmp_path / "x" / "merged" / "preprocessor_config.json").is_file()
    assert (tmp_path / "x" / "merged" / "head.safetensors").is_file()


@pytest.mark.long
def test_a_vlm_and_its_rivals_end_in_one_table_with_costs(dashvlm, tmp_path):
    words = [*DRIVES, "data.num_frames=4", "trainer.max_steps=2", "objective=pooled"]
    done = dashvlm("train", "-m", "model=smolvlm2,videomae,vjepa2", *words)
    table = pd.read_csv(tmp_path / "runs" / "summary.csv")
    assert set(table["model.name"]) == {"smolvlm2", "videomae", "vjepa2"}
    assert (table["status"] == "done").all()
    assert table[["seconds", "trainable", "stream_ap", "roc_auc"]].notna().all().all()
    assert "recall at 2 FA/h" in done.stdout
    assert "stream AP" in done.stdout


def test_an_observation_has_no_text_for_an_encoder(cache):
    module = _module(cache, "videomae")
    seen = Observation((0.0, 0.5, 1.0))
    batch = module.backbone.encoder.encode([module.task.messages(seen)], [_frames(3)])
    other = module.backbone.encoder.encode([[]], [_frames(3)])
    assert torch.equal(batch["pixel_values"], other["pixel_values"])
