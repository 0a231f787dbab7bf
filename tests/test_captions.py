"""Caption metrics: published digits, no Java, one process, jars with checksums, CLIPScore."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dashvlm.metrics import java
from dashvlm.metrics.captions import caption_scores, clean

from .conftest import REAL

BVPI = REAL / "bvpi"
PUBLISHED = BVPI / "published_openflamingo"
real = pytest.mark.skipif(not BVPI.exists(), reason="the real BVPI files are not part of the project")
needs_java = pytest.mark.skipif(
    subprocess.run(["which", "java"], capture_output=True).returncode != 0, reason="Java is not installed"
)
REFERENCES = ["The sidewalk is centered in the view.", "A person stands on the left.", "The path's clear, isn't it?"]


def test_without_java_what_its_tokeniser_decides_is_absent_and_said(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    java.java_version.cache_clear()
    scores = caption_scores(REFERENCES, REFERENCES)
    java.java_version.cache_clear()
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr", "METEOR", "SPICE"):
        assert "no java on the path" in scores.unavailable[name]
        assert name not in scores.values
    assert set(scores.values) == {"avg_prediction_length", "avg_target_length"}
    assert scores.values["avg_target_length"] == pytest.approx(sum(len(r.split()) for r in REFERENCES) / 3)


@needs_java
def test_line_breaking_characters_do_not_shift_the_captions():
    bad = ["a\rb", "c\u2028d", "e\x0bf", "g\x0ch", "i\nj", "k\u2029l", "", "m\x85n"]
    assert java.ptb_tokenize(bad) == ["a b", "c d", "e f", "g h", "i j", "k l", "", "m n"]


@needs_java
def test_meteor_uses_one_process(monkeypatch):
    started = []
    popen = subprocess.Popen

    class Counted(popen):
        def __init__(self, command, *args, **kwargs):
            started.append(list(command))
            super().__init__(command, *args, **kwargs)

    java._meteor_process.cache_clear()
    monkeypatch.setattr(subprocess, "Popen", Counted)
    first = java.meteor(["a b c"] * 40, ["a b c"] * 40)
    second = java.meteor(["a b c d"] * 300, ["a b x d"] * 300)
    assert first[0] == pytest.approx(1.0, abs=0.05)
    assert len(second[1]) == 300
    assert sum("meteor-1.5.jar" in " ".join(map(str, c)) for c in started) == 1


def test_spice_says_what_is_missing(tmp_path):
    problem = java.spice_problem(tmp_path)
    assert "stanford-corenlp-3.6.0.jar" in problem or "java" in problem
    for name in java.CORENLP:
        (tmp_path / name).write_bytes(b"")
    try:
        version = java.java_version()
    except java.Unavailable:
        return
    assert ("nashorn" in str(java.spice_problem(tmp_path))) == (version >= 15)


def test_jars_are_fetched_with_their_checksum_or_not_kept(tmp_path):
    import functools
    import hashlib
    import http.server
    import threading

    from dashvlm.metrics.fetch_spice import JARS, fetch

    root = tmp_path / "central"
    for number, (name, place) in enumerate(JARS.items()):
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / name).write_bytes(name.encode())
        digest = hashlib.sha1(b"other" if number == 0 else name.encode()).hexdigest()
        (root / place / f"{name}.sha1").write_text(digest)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    problems = fetch(tmp_path / "jars", central=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    bad = next(iter(JARS))
    assert len(problems) == 1
    assert "checksum" in problems[0]
    assert not (tmp_path / "jars" / bad).exists()
    assert len(list((tmp_path / "jars").glob("*.jar"))) == len(JARS) - 1
    again = fetch(tmp_path / "jars", source=root / JARS[bad])
    assert again == []


def test_cleaning_rules_keep_what_they_say():
    assert clean("User: x Assistant: A path.", "chat") == "A path."
    assert clean("A path.\n\nmore", "openflamingo") == "A path."
    assert clean("A path. Assistant: x", "none") == "A path. Assistant: x"


def test_clip_scores_are_cosines_whatever_the_batch(tmp_path):
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    from dashvlm.backbones.tiny import _tokenizer
    from dashvlm.metrics.clip import clip_score, clip_scores

    words: PreTrainedTokenizerFast = _tokenizer(
        {
            "tokenizer": {
                "special": ["<s>", "</s>", "<pad>"],
                "pad_token": "<pad>",
                "eos_token": "</s>",
                "bos_token": "<s>",
            }
        }
    )
    words.padding_side = "right"
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config={**small, "vocab_size": len(words), "eos_token_id": words.eos_token_id},
                        vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=16)  # fmt: skip
    net = CLIPModel(config).eval()
    net.save_pretrained(tmp_path / "clip")
    words.save_pretrained(tmp_path / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "clip"
    )
    pictures = []
    for number in range(3):
        pictures.append(tmp_path / f"{number}.png")
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(pictures[-1])
    texts = [f"{t}</s>" for t in ("a path", "the sidewalk is on the left", "a person is close")]
    one = clip_scores(pictures, texts, str(tmp_path / "clip"), batch=1)
    assert one == pytest.approx(clip_scores(pictures, texts, str(tmp_path / "clip"), batch=3), abs=1e-3)
    assert all(-100 <= s <= 100 for s in one)
    assert clip_score(one) == pytest.approx(max(sum(one) / 3, 0))


def test_no_file_is_written_into_the_package_of_the_metrics():
    package = Path(java._package())
    before = {p for p in package.rglob("*") if "__pycache__" not in str(p)}
    caption_scores(REFERENCES, REFERENCES)
    assert {p for p in package.rglob("*") if "__pycache__" not in str(p)} == before


@real
@needs_java
def test_published_captions_are_reproduced_to_every_digit():
    rows = json.loads((PUBLISHED / "inference_results_openflamingo_test.json").read_text())
    published = json.loads((PUBLISHED / "evaluation_metrics_openflamingo.json").read_text())
    scores = caption_scores([r["target"] for r in rows], [r["prediction"] for r in rows])
    for name in set(published) - {"SPICE", "CLIPScore"}:
        assert scores.values[name] == pytest.approx(published[name], abs=1e-12), name
