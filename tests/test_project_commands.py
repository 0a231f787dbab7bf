"""What the five projects do by hand: kept checkpoints, any split, own prompts, lengths, chats, mixes, forms, hub."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dashvlm.backbones import footprint
from dashvlm.backbones.hf import four_bit_dtype
from dashvlm.config.identity import run_id
from dashvlm.data.clip import Clip, Sample
from dashvlm.data.formats import bvpi
from dashvlm.data.samples import build_samples
from dashvlm.engine.build import build_backbone, build_module, checkpoint_file
from dashvlm.engine.load import build_store, load_manifest, rows_of
from dashvlm.engine.prepare import prepare_data
from dashvlm.errors import CheckpointError, ConfigError, DataError, TrainingError
from dashvlm.labels.ask import OUTCOMES, label_template, requests_for
from dashvlm.safety.files import read_table
from dashvlm.tasks.base import make_task, observe
from dashvlm.tasks.caption import CaptionTask
from dashvlm.text.annotation_form import FORM_OBJECTS, SCHEMA, VEGETATION, annotation_form
from dashvlm.text.navigation import IN_THE_WAY, OBJECTS, SIDES, Truth, cue_alone, navigation_cue, parse_fields, with_cue
from dashvlm.training.checkpoints import load_weights

from .conftest import REAL, ROOT, SMALL

# -- checkpoints, splits, tables --------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(cache, tmp_path_factory):
    """A run of three epochs that kept a checkpoint of each, with a template of its own."""
    from .conftest import in_this_process

    folder = tmp_path_factory.mktemp("kept")
    prompt = folder / "mine.j2"
    prompt.write_text("{% for age in ages_s %}{{ image }} {% endfor %}Crash? Yes or No.")
    words = [*SMALL, "trainer.max_epochs=3", "callbacks.checkpoint.keep=all", "csv=true", "verbose=true"]
    words += ["trainer.log_every_n_steps=1"]
    done = in_this_process(cache, folder)("train", *words, f"task.prompt_file={prompt}", "objective.max_new_tokens=4")
    (run,) = folder.glob("crash-*")
    prompt.unlink()
    return run, done


def test_a_checkpoint_of_each_epoch_is_kept_and_can_be_scored(kept, dashvlm, tmp_path):
    run, _ = kept
    names = sorted(p.stem for p in (run / "checkpoints").glob("step-*.ckpt"))
    assert len(names) == 3
    last = load_weights(run / "checkpoints" / "last.ckpt")
    first, third = (load_weights(run / "checkpoints" / f"{n}.ckpt") for n in (names[0], names[2]))
    assert all(torch.equal(third[k], last[k]) for k in last)
    assert any(not torch.equal(first[k], last[k]) for k in last)
    scores = {}
    for name in (names[0], f"{names[2]}.ckpt", "last"):
        dashvlm("evaluate", f"run={run}", f"checkpoint={name}", output=tmp_path / name)
        (folder,) = (tmp_path / name).glob("eval-*")
        scores[name] = read_table(folder / "predictions.parquet")["score"].tolist()
        assert yaml.safe_load((folder / "config.yaml").read_text())["checkpoint"] == name.removesuffix(".ckpt")
    assert scores["last"] == scores[f"{names[2]}.ckpt"] != scores[names[0]]
    wrong = dashvlm("evaluate", f"run={run}", "checkpoint=step-9", check=False)
    assert wrong.returncode == 2
    assert "step-000003" in wrong.stderr
    assert "of which run?" in dashvlm("evaluate", *SMALL, "checkpoint=last", check=False).stderr
    with pytest.raises(ConfigError, match="no checkpoint"):
        checkpoint_file(run, "../../secret")


@pytest.mark.parametrize("splits", ["{train: 0.6, val: 0.2, test: 0.2}", "{train: 0.8, val: 0.0, test: 0.2}"])
def test_the_newest_checkpoints_are_kept_with_and_without_validation(splits, dashvlm, tmp_path):
    words = ["trainer.max_epochs=3", "callbacks.checkpoint.keep=2", f"data.splits={splits}", "objective.generate=false"]
    dashvlm("train", *SMALL, *words)
    (run,) = (tmp_path / "runs").glob("crash-*")
    names = sorted(int(p.stem.split("-")[1]) for p in (run / "checkpoints").glob("step-*.ckpt"))
    steps = json.loads((run / "result.json").read_text())["steps"]
    assert names == [steps * 2 // 3, steps]


def test_any_split_is_scored_by_itself_and_named(kept, dashvlm, tmp_path):
    run, _ = kept
    done = dashvlm("evaluate", f"run={run}", "splits=[train,val]")
    folders = sorted((tmp_path / "runs").glob("eval-*"))
    found = {}
    for folder in folders:
        rows = read_table(folder / "predictions.parquet")
        (split,) = set(rows["split"])
        result = json.loads((folder / "result.json").read_text())
        found[split] = set(rows["clip_id"])
        assert result["split"] == split
        assert f"these are numbers of the {split} split, not of the test split" in result["alarms"]
    assert set(found) == {"train", "val"}
    assert not found["train"] & found["val"]
    assert any("were trained on" in line for line in done.stdout.splitlines())
    assert "a list of train, val and test" in dashvlm("evaluate", f"run={run}", "splits=[all]", check=False).stderr


def test_predictions_as_csv_are_read_by_score_and_every_sample_is_told(kept, dashvlm):
    run, _ = kept
    rows = read_table(run / "predictions.parquet")
    rows = rows[rows["primary"]].reset_index(drop=True)
    table = pd.read_csv(run / "predictions.csv")
    assert table.columns[:2].tolist() == ["file_name", "risk"]
    assert table["risk"].tolist() == (rows["score"] >= 0.5).astype(int).tolist()
    assert table["file_name"].tolist() == [f"{c}.mp4" for c in rows["clip_id"]]
    log = (run / "job.log").read_text()
    assert all(f"{i} | target " in log for i in rows["sample_id"])
    read = dashvlm("score", "task=crash", f"predictions={run / 'predictions.csv'}")
    assert "score from 'score'" in read.stdout
    table[["file_name", "risk"]].assign(label=rows["target"]).to_csv(run.parent / "theirs.csv", index=False)
    read = dashvlm("score", "task=crash", f"predictions={run.parent / 'theirs.csv'}", check=False)
    assert read.returncode == 0, read.stderr
    assert "from 'risk'" in read.stdout


def test_the_curves_hold_the_learning_rate(kept):
    table = pd.read_csv(kept[0] / "metrics" / "metrics.csv")
    (column,) = [c for c in table if c.startswith("lr-")]
    rates = table[column].dropna()
    assert len(rates) == 9
    assert rates.iloc[-1] < rates.max() == pytest.approx(2e-4)


# -- prompts and lengths ------------------------------------------------------------------------------


def test_a_prompt_of_ones_own_is_shown_and_belongs_to_the_run(kept, config, tmp_path):
    run, _ = kept
    assert set(read_table(run / "predictions.parquet")["prompt"]) == {"[frame] [frame] [frame] Crash? Yes or No."}
    one, two, other = (tmp_path / n for n in ("a.j2", "b.j2", "c.j2"))
    for path, text in ((one, "{{ image }}a"), (two, "{{ image }}a"), (other, "{{ image }}b")):
        path.write_text("{% for x in ages_s %}" + text + "{% endfor %}")
    names = [run_id(config(*SMALL, f"task.prompt_file={p}")) for p in (one, two, other)]
    assert names[0] == names[1] != names[2]
    assert run_id(config(*SMALL)) not in names


def test_another_prompt_than_the_trained_one_raises_an_alarm(kept, dashvlm, tmp_path):
    run, _ = kept
    dashvlm("evaluate", f"run={run}", "task.question=Crash?", output=tmp_path / "other")
    dashvlm("evaluate", f"run={run}", output=tmp_path / "same")
    alarms = {}
    for name in ("other", "same"):
        (path,) = (tmp_path / name).glob("eval-*/result.json")
        alarms[name] = json.loads(path.read_text())["alarms"]
    told = "task.question is not the one that the run was trained with"
    assert told in alarms["other"]
    assert not any("was trained with" in a for a in alarms["same"])


def test_templates_that_cannot_be_used_are_refused(config, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        config(*SMALL, f"task.prompt_file={tmp_path / 'none.j2'}")
    large = tmp_path / "large.j2"
    large.write_text("x" * 70_000)
    with pytest.raises(ConfigError, match="is no prompt"):
        config(*SMALL, f"task.prompt_file={large}")
    for text, why in (
        ("{{ nothing }}", "cannot be used"),
        ("{% if %}", "cannot be used"),
        ("no frame", "shows 0 frames of 1"),
    ):
        (tmp_path / "bad.j2").write_text(text)
        with pytest.raises(ConfigError, match=why):  # before any job starts
            config(*SMALL, f"task.prompt_file={tmp_path / 'bad.j2'}")
    (tmp_path / "bad.j2").write_text("{{ ''.__class__.__mro__ }}{% for a in ages_s %}{{ image }}{% endfor %}")
    with pytest.raises(ConfigError, match="unsafe"):
        config(*SMALL, f"task.prompt_file={tmp_path / 'bad.j2'}")


def test_the_teachers_prompt_is_ours_the_published_one_or_a_file(config, tmp_path):
    cfg = config(*SMALL)
    task = make_task({**cfg, "task": {**cfg["task"], "reasoning": True}})
    samples = build_samples(load_manifest(cfg, build_store(cfg)).split("train")[:1], cfg["data"])[0]
    told = OUTCOMES[samples[0].clip.label]

    class Listening:
        """Keeps the system prompt of each request."""

        def request(self, chat, frames, system):
            asked.append(system)

    asked = []
    mine = tmp_path / "mine.j2"
    mine.write_text("Judge it.{% if told %} It was {{ told }}.{% endif %}")
    for name in ("published", str(mine), "five_factors"):
        requests_for(samples, ["told", "blind"], task, build_store(cfg), Listening(), label_template(name))
    assert asked[0].startswith("You are an expert in accident reconstruction and traffic analysis. You will analyze")
    assert f"In this particular scenario, there was {told}." in asked[0]
    assert "In this particular scenario" not in asked[1]
    assert asked[1].count("\n") == asked[0].count("\n") == 6
    assert asked[2:4] == [f"Judge it. It was {told}.", "Judge it."]
    assert "What followed is known" in asked[4]
    with pytest.raises(ConfigError, match="is no file"):
        label_template("fife_factors")
    for text, why in (("", "is empty"), ("Judge it.", "tells no outcome")):
        mine.write_text(text)
        with pytest.raises(ConfigError, match=why):
            label_template(str(mine), tells=True)
    mine.write_text("{{ label }}")
    with pytest.raises(ConfigError, match="cannot be used"):
        label_template(str(mine))


def _batch(config, words):
    cfg = config(*SMALL, "data.num_frames=2", "task=caption", "data=synthetic", *words)
    module = build_module(cfg)
    data = prepare_data(cfg)
    from dashvlm.data.items import SampleDataset

    items = SampleDataset(data.samples["train"], data.store)
    return module, [items[n] for n in range(4)]


def test_a_long_sample_is_refused_or_its_answer_cut_and_never_its_frames(config):
    module, items = _batch(config, [])
    whole = module.collate("train")(items)
    length = whole["inputs"]["attention_mask"].sum(1)
    prompt = (whole["inputs"]["labels"] != -100).int().argmax(1)
    limit = int(length.min()) - 3
    module, items = _batch(config, [f"objective.max_tokens={limit}"])
    with pytest.raises(TrainingError, match=f"more than objective.max_tokens={limit}"):
        module.collate("train")(items)
    module, items = _batch(config, [f"objective.max_tokens={limit}", "objective.too_long=truncate"])
    cut = module.collate("train")(items)
    assert cut["truncated"] == sorted({i.sample.clip.clip_id for i in items})
    assert cut["inputs"]["input_ids"].shape[1] == limit
    assert torch.equal(cut["inputs"]["pixel_values"], whole["inputs"]["pixel_values"])
    assert ((cut["inputs"]["labels"] != -100).sum(1) == limit - prompt).all()
    assert module.collate("predict")(items)["inputs"]["input_ids"].shape[1] == int(prompt.max())  # scored as it is
    shortest = int(length.min())  # as long as it may be: not cut
    module, items = _batch(config, [f"objective.max_tokens={shortest}", "objective.too_long=truncate"])
    longer = {i.sample.clip.clip_id for i, n in zip(items, length.tolist(), strict=True) if n > shortest}
    assert set(module.collate("train")(items)["truncated"]) == longer
    assert longer
    assert len(longer) < len(items)
    module, items = _batch(config, [f"objective.max_tokens={int(prompt.min()) - 1}", "objective.too_long=truncate"])
    with pytest.raises(TrainingError, match="those are never cut"):
        module.collate("train")(items)


@pytest.mark.slow
def test_cut_answers_are_counted_in_the_result(config, dashvlm, tmp_path):
    words = ["task=caption", "data=synthetic", "data.num_frames=1", "trainer.max_steps=2", "objective.max_new_tokens=4",
             "trainer.log_every_n_steps=1"]  # fmt: skip
    module, items = _batch(config, ["data.num_frames=1"])
    labels = module.collate("train")(items)["inputs"]["labels"]
    limit = int((labels != -100).int().argmax(1).max()) + 9
    dashvlm("train", *SMALL, *words, f"objective.max_tokens={limit}", "objective.too_long=truncate")
    (run,) = (tmp_path / "runs").glob("caption-*")
    alarms = json.loads((run / "result.json").read_text())["alarms"]
    assert any(f"training clips were cut to objective.max_tokens={limit}" in a for a in alarms)
    (cut,) = [int(a.split()[3]) for a in alarms if "were cut to" in a]
    assert 4 < cut <= 8  # two batches of four, each clip once
    assert pd.read_csv(run / "metrics" / "metrics.csv")["train/truncated"].dropna().tolist() == [4.0, 4.0]


def test_the_window_around_annotated_moments_is_a_key():
    clip = Clip("c", "c.mp4", "c", "train", None, None, None, 10.0, 10.0, {"support_frames": [5.0]})
    options = {
        "sampling": "uniform", "num_frames": 2, "frame_interval_s": 1.0, "sample_fps": 1.0, "reference": "clip_end",
        "negative_reference": "matched", "horizon_s": 0.0, "short_history": "pad_oldest", "sampling_seed": 0,
        "support_frames": "always",
    }  # fmt: skip
    for window, expected in ((0.5, (4.75, 5.25)), (2.0, (4.0, 6.0))):
        (sample,), _ = build_samples([clip], {**options, "support_window_s": window})
        assert sample.times_s == expected


# -- files of theirs ----------------------------------------------------------------------------------


def picture(path, number=0, size=(48, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path.name


TWIN = ["model=smolvlm2", "model.checkpoint=tiny", "trainer.accelerator=cpu"]
CHATS = {
    "standard": {"messages": [{"role": "user", "content": "<image>\nWhat is there?"},
                              {"role": "assistant", "content": "A wall."}], "images": ["0.png"]},
    "sharegpt": {"conversations": [{"from": "human", "value": "<image>What is there?"},
                                   {"from": "gpt", "value": "A wall."}], "image": "0.png"},
    "parts": {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is there?"}]},
                           {"role": "assistant", "content": [{"type": "text", "text": "A wall."}]}],
              "images": ["0.png"]},
    "urls": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "0.png"}},
                                                       {"type": "text", "text": "What is there?"}]},
                          {"role": "assistant", "content": "A wall."}]},
    "frames": {"messages": [{"role": "user", "content": "<video>What is there?"},
                            {"role": "assistant", "content": "A wall."}], "videos": [["0.png", "1.png"]]},
}  # fmt: skip


def test_chats_of_other_tools_are_read_alike(config, tmp_path):
    for n in (0, 1):
        picture(tmp_path / f"{n}.png", n)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({**c, "id": k}) + "\n" for k, c in CHATS.items()))
    (tmp_path / "val.json").write_text(json.dumps([{**CHATS["standard"], "id": "v", "group": "v"}]))
    cfg = config(*TWIN, "task=caption", "data=messages", f"data.root={tmp_path}")
    made = load_manifest(cfg, build_store(cfg))
    assert {c.clip_id: c.split for c in made.clips} == {**dict.fromkeys(CHATS, "train"), "v": "val"}
    task = make_task(cfg)
    for clip in made.clips:
        assert clip.extra["question"] == "What is there?"
        sample = Sample("s", clip, 0.0, 0.0, (0.0,), 0)
        assert task.answer(sample) == "A wall."
    assert made.clips[4].duration_s > made.clips[0].duration_s  # two frames
    (tmp_path / "train.jsonl").write_text(json.dumps({**CHATS["standard"], "system": "Be brief."}))
    (row,) = [r for r in rows_of(cfg["data"]) if r["split"] == "train"]
    assert row["question"] == "Be brief.\nWhat is there?"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"images": ["0.png"]}, "no messages"),
        ({**CHATS["standard"], "images": []}, "0 images and 0 videos"),
        ({**CHATS["standard"], "videos": ["a.mp4"]}, "1 images and 1 videos"),
        ({**CHATS["standard"], "images": [{"bytes": 1}]}, "must be names of files"),
        ({**CHATS["standard"], "messages": CHATS["standard"]["messages"] * 2}, "2 questions and 2 answers"),
        ({**CHATS["standard"], "messages": CHATS["standard"]["messages"][:1]}, "no answer"),
        (
            {**CHATS["standard"], "messages": [*CHATS["standard"]["messages"], CHATS["standard"]["messages"][1]]},
            "1 questions and 2 answers",
        ),
        ({**CHATS["standard"], "messages": [{"role": "robot", "content": "x"}]}, "unknown role"),
        ({**CHATS["standard"], "messages": "text"}, "no messages"),
        ({**CHATS["standard"], "images": ["0.png", "0.png"]}, "1 <image> in the text for 2 pictures"),
        ({**CHATS["standard"], "messages": CHATS["standard"]["messages"][::-1]}, "questions and 1 answers"),
        (
            {**CHATS["standard"], "messages": CHATS["standard"]["messages"][:1], "chosen": {}, "rejected": {}},
            "a preference row",
        ),
        (["a"], "not an object"),
    ],
)
def test_chats_that_are_none_are_quarantined_with_the_reason(row, why, config, tmp_path):
    picture(tmp_path / "0.png")
    good = json.dumps({**CHATS["standard"], "id": "good"})
    (tmp_path / "train.jsonl").write_text(f"{good}\n{json.dumps(row)}\n")
    cfg = config(*TWIN, "task=caption", "data=messages", f"data.root={tmp_path}", "data.max_bad_fraction=1.0")
    made = load_manifest(cfg, build_store(cfg))
    assert [c.clip_id for c in made.clips] == ["good"]
    assert why in made.quarantine[0].reason


def test_lettered_options_and_yes_or_no_become_what_their_tasks_need(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "Which way?\nA. left\nB. right\nAnswer with a letter."},
                      {"role": "assistant", "content": "B"}], "videos": ["a.mp4"]},
        {"messages": [{"role": "system", "content": "You drive."}, {"role": "user", "content": "<video>Crash?"},
                      {"role": "assistant", "content": "Yes"}], "videos": ["b.mp4"]},
    ]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = {"root": str(tmp_path), "importer": "dashvlm.data.formats.messages.rows", "options": {}}
    choice, crash = rows_of(data)
    assert (choice["choices"], choice["extra"]["answer"]) == (["left", "right"], 1)
    assert choice["question"] == "Which way?\nAnswer with a letter."
    assert (crash["question"], crash["label"]) == ("You drive.\nCrash?", 1)


def test_any_dataset_is_written_as_chats_and_read_again(dashvlm, config, tmp_path):
    target = tmp_path / "chats"
    done = dashvlm("inspect", *SMALL, "data.num_frames=2", f"write_messages={target}")
    cfg = config(*TWIN, "task=crash", "data=messages", f"data.root={target}", "data.num_frames=2")
    again = load_manifest(cfg, build_store(cfg))
    first = prepare_data(config(*SMALL, "data.num_frames=2"))
    assert {c.clip_id: (c.split, c.label, c.group) for c in again.clips} == {
        c.clip_id: (c.split, c.label, c.group) for c in first.manifest.clips
    }
    assert f"train: {len(first.samples['train'])} rows" in done.stdout
    line = json.loads((target / "train.jsonl").read_text().splitlines()[0])
    sample = next(s for s in first.samples["train"] if s.clip.clip_id == line["id"])
    shown = first.store.frames(Path(sample.clip.path), sample.times_s)[0]
    read = [np.asarray(Image.open(target / name)) for name in line["images"]]
    assert np.array_equal(np.stack(read), shown)
    assert line["messages"][0]["content"].count("<image>") == 2
    assert line["messages"][1]["content"] in ("Yes", "No")


def test_chats_that_we_wrote_ask_with_the_same_words_about_the_same_times(dashvlm, config, tmp_path):
    words = [*SMALL, "data.num_frames=3", "data.frame_interval_s=0.4"]
    dashvlm("inspect", *words, f"write_messages={tmp_path / 'chats'}")
    cfg = config(*words)
    first, task = prepare_data(cfg), make_task(cfg)
    again = config(*TWIN, "task=crash", "data=messages", f"data.root={tmp_path / 'chats'}", "data.num_frames=3")
    second = {s.clip.clip_id: s for s in prepare_data(again).samples["train"]}
    for sample in first.samples["train"]:
        other = second[sample.clip.clip_id]
        shown = [
            task.messages(observe(s, d.store.frames(Path(s.clip.path), s.times_s)[1].tolist()))
            for s, d in ((sample, first), (other, prepare_data(again)))
        ]
        texts = ["".join(p.get("text", "@") for p in chat[0]["content"]) for chat in shown]
        assert texts[0] == texts[1]
        assert "0.8 s ago" in texts[0]
    full = dashvlm("inspect", *words, f"write_messages={tmp_path / 'chats'}", check=False)
    assert "is not empty" in full.stderr
    assert "cannot be written" in dashvlm("inspect", *words, "write_messages=/proc/x", check=False).stderr
    (tmp_path / "chats" / "frames" / "train" / "000000" / "frame_times.json").write_text('{"00.png": 1}')
    torn = load_manifest({**again, "data": {**again["data"], "max_bad_fraction": 1.0}}, build_store(again))
    problems = [q.reason for q in torn.quarantine] + [str(c.extra.get("failed")) for c in torn.clips]
    assert sum("does not give each picture a time" in p for p in problems) == 1, problems


def test_parts_without_a_split_get_one_by_their_group_and_their_own_defaults(config, tmp_path):
    """The example of docs/data.md: captions of BVPI and scenes of BDD100K as chats in one file."""
    lines = ["image_path,target,split"]
    for n in range(12):
        picture(tmp_path / "bvpi" / f"{n}.png", n)
        lines.append(f"{n}.png,A path.,{'train' if n < 10 else 'val'}")
    (tmp_path / "bvpi" / "captions.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "bvpi" / "s.csv").write_text("image,score\n" + "".join(f"{n}.png,{n / 10}\n" for n in range(10)))
    (tmp_path / "bdd100k").mkdir()
    for n in range(20):
        picture(tmp_path / "bdd100k" / f"{n}.png", n)
    rows = [{**CHATS["standard"], "images": [f"{n}.png"], "id": str(n), "group": f"drive{n // 2}"} for n in range(20)]
    (tmp_path / "bdd100k" / "bdd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = "{bvpi: {share: 0.7, options: {clip_scores: s.csv}}, "
    parts += "bdd: {format: messages, folder: bdd100k, share: 0.3, options: {file: bdd.jsonl}}}"
    words = [*TWIN, "task=caption", "data=mix", f"data.root={tmp_path}", "data.max_bad_fraction=0.9"]
    cfg = config(*words, f"data.options.parts={parts}")
    made = load_manifest(cfg, build_store(cfg))
    names = [c.clip_id.split("/")[0] for c in made.split("train")]
    assert names.count("bvpi") == 7  # 0.3 and above: the filter's own default, 0.28
    assert names.count("bdd") == 3
    assert {c.split for c in made.clips if c.clip_id.startswith("bdd/")} == {"train", "val", "test"}
    with pytest.raises(ConfigError, match="bdd100k is for task=scene, got task=caption"):
        config(*words, "data.options.parts={bvpi: {}, bdd100k: {}}")


def test_choices_are_written_as_letters_that_score_reads(dashvlm, tmp_path):
    words = [
        "model=internvl3",
        *SMALL[1:2],
        "task=mcq",
        *SMALL[3:],
        "trainer.max_steps=1",
        "objective.max_new_tokens=2",
    ]
    dashvlm("train", *words, "csv=true", "data.limit=4")
    (run,) = (tmp_path / "runs").glob("mcq-*")
    table, rows = pd.read_csv(run / "predictions.csv"), read_table(run / "predictions.parquet")
    assert set(table["target"]) <= set("ABCD")
    assert table["predicted"].tolist() == ["ABCD"[int(np.argmax(v))] for v in rows["scores"]]
    accuracy = json.loads((run / "result.json").read_text())["metrics"]["accuracy"]["value"]
    assert (table["predicted"] == table["target"]).mean() == pytest.approx(accuracy)
    done = dashvlm("score", "task=mcq", f"predictions={run / 'predictions.csv'}", check=False)
    assert done.returncode == 0, done.stderr
    assert "from 'predicted'" in done.stdout


def test_words_that_cannot_act_on_a_finished_run_are_named(dashvlm):
    dashvlm("train", *SMALL, "trainer.max_steps=1", "objective.generate=false")
    done = dashvlm("train", *SMALL, "trainer.max_steps=1", "objective.generate=false", "csv=true",
                   "callbacks.checkpoint.keep=all")  # fmt: skip
    assert "csv=true, callbacks.checkpoint.keep=all: no effect on a finished run" in done.stdout + done.stderr


def test_roots_that_are_swept_over_stand_in_the_table(dashvlm, tmp_path):
    roots = [tmp_path / name for name in ("freeway", "road")]
    for number, root in enumerate(roots):
        for split in ("train", "val", "test"):
            for n in range(2):
                picture(root / split / f"{n}.png", n + 10 * number)
            lines = [json.dumps({"video": f"{n}.png", "text": "Crash?", "label": n}) for n in range(2)]
            (root / f"{split}.jsonl").write_text("\n".join(lines))
    words = [*TWIN, "task=crash", "data=jsonl", "data.num_frames=1", "trainer.max_steps=1", "objective.generate=false"]
    dashvlm("train", *words, "-m", f"data.root={roots[0]},{roots[1]}")
    text = (tmp_path / "runs" / "summary.md").read_text()
    assert "freeway" in text
    assert "road" in text


def mixed(tmp_path, **changes):
    """Two parts of 20 and 10 training rows, two and one validation rows."""
    for name, count in (("a", 20), ("b", 10)):
        for n in range(count + count // 10):
            picture(tmp_path / name / f"{n}.png", n)
        for split, numbers in (("train", range(count)), ("val", range(count, count + count // 10))):
            lines = [json.dumps({**CHATS["standard"], "images": [f"{n}.png"], "id": str(n)}) for n in numbers]
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(lines))
    parts = {"a": {"format": "messages", "share": 0.5}, "b": {"format": "messages", "share": 0.5}}
    return {k: {**v, **changes.get(k, {})} for k, v in parts.items()}


def test_several_datasets_make_one_run_with_the_shares_that_were_asked(config, tmp_path):
    parts = mixed(tmp_path)

    def load(parts):
        text = json.dumps(parts).replace('"', "")
        cfg = config(*TWIN, "task=caption", "data=mix", f"data.root={tmp_path}", f"data.options.parts={text}")
        made = load_manifest(cfg, build_store(cfg))
        return {s: [c.clip_id.split("/")[0] for c in made.split(s)] for s in ("train", "val")}, made

    found, made = load(parts)
    assert (found["train"].count("a"), found["train"].count("b")) == (10, 10)
    assert (found["val"].count("a"), found["val"].count("b")) == (2, 1)
    assert len({c.clip_id for c in made.clips}) == len({c.group for c in made.clips}) == 23  # equal names stay apart
    assert all(c.extra["slices"]["part"] in "ab" for c in made.clips)
    found, _ = load({"a": {"format": "messages", "share": 3}, "b": {"format": "messages", "share": 1}})
    assert (found["train"].count("a"), found["train"].count("b")) == (20, 7)
    found, _ = load({"a": {"format": "messages"}, "b": {"format": "messages"}})
    assert (found["train"].count("a"), found["train"].count("b")) == (20, 10)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (None, "needs two parts"),
        ({"a": {"format": "messages"}}, "needs two parts"),
        ({"a": {"format": "messages", "share": 1}, "b": {"format": "messages"}}, "for all parts or for none"),
        ({"a": {"format": "messages"}, "c": {"format": "messages"}}, "no folder c"),
        ({"a": {"format": "messages", "shares": 1}, "b": {"format": "messages"}}, "unknown shares"),
        ({"a": {"format": "no_such"}, "b": {"format": "messages"}}, "is no dataset"),
        ({"a": {"format": "messages", "share": "0.7"}, "b": {"format": "messages", "share": 1}}, "above 0"),
        ({"a": {"format": "messages", "folder": "../x"}, "b": {"format": "messages"}}, "no folder ../x below"),
        ({"a": {"format": "messages", "options": {"fil": "x"}}, "b": {"format": "messages"}}, "did you mean file"),
    ],
)
def test_parts_that_are_none_are_refused(parts, why, tmp_path):
    mixed(tmp_path)
    data = {"root": str(tmp_path), "importer": "dashvlm.data.formats.mix.rows", "options": {"parts": parts}}
    with pytest.raises((DataError, ConfigError), match=why):
        list(rows_of(data))


def test_image_and_caption_files_are_read_a_split_each(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        rows = [{"image": f"{split}/{n}.jpg", "caption": f" Path {n}. "} for n in range(count)]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    found = list(bvpi.rows(tmp_path, {}))
    assert [(r["clip_id"], r["split"], r["extra"]["caption"]) for r in found] == [
        *((f"train/{n}.jpg", "train", f"Path {n}.") for n in range(3)), ("val/0.jpg", "val", "Path 0."),
    ]  # fmt: skip
    (tmp_path / "more.json").write_text(json.dumps([{"image": "x.jpg"}]))
    (row,) = bvpi.rows(tmp_path, {"file": "more.json"})
    assert "missing sidewalk_pos" in row["problem"]
    sample = Sample("s", Clip("c", "c", "c", "train", None, None, None, 1, 1, found[0]["extra"]), 0, 0, (0.0,), 0)
    assert CaptionTask("caption", style="caption").answer(sample) == "Path 0."


def test_a_hub_data_set_with_pictures_inside_is_unpacked(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = {}
    for n in range(3):
        raw[n] = (tmp_path / picture(tmp_path / f"{n}.png", n)).read_bytes()
        (tmp_path / f"{n}.png").unlink()
    rows = [
        {"images": [{"bytes": raw[0], "path": "0a1b2c3d-x_frame_0.png"}, {"bytes": raw[1], "path": "b.png"}],
         "prompt": [{"role": "user", "content": "Describe."}], "completion": [{"role": "a", "content": "Fog."}]},
        {"images": [{"bytes": raw[2], "path": None}], "prompt": [], "completion": [{"role": "a", "content": "Sun."}]},
        {"images": [{"bytes": b"GIF89a", "path": "x.gif"}], "prompt": [], "completion": []},
    ]  # fmt: skip
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train-00000-of-00001.parquet")
    data = {"root": str(tmp_path), "importer": "dashvlm.data.formats.bdd100k.rows", "options": {}}
    for _ in range(2):  # unpacked once
        one, two, three = rows_of(data)
        assert (one["question"], one["extra"]["annotation"], one["group"]) == ("Describe.", "Fog.", "0a1b2c3d")
        assert [(tmp_path / name).read_bytes() for name in one["video"]] == [raw[0], raw[1]]
        assert two["extra"]["annotation"] == "Sun."
        assert "no JPEG" in three["problem"]
        assert "split" not in one
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match="a pointer of Git LFS"):
        list(rows_of(data))
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="has not the columns"):
        list(rows_of(data))


# -- annotations and cues -----------------------------------------------------------------------------

sides = st.lists(st.sampled_from(SIDES), min_size=1, max_size=3).map(tuple)
truths = st.builds(
    Truth,
    st.sampled_from((*SIDES, "unknown")),
    st.sampled_from((*SIDES, "front", "unknown")),
    *(
        st.dictionaries(st.sampled_from(names), sides, max_size=4)
        for names in (OBJECTS, OBJECTS, VEGETATION, VEGETATION)
    ),
)


@given(truths)
@settings(max_examples=150, deadline=None)
def test_every_annotation_in_a_prompt_is_valid_under_the_projects_schema(truth):
    jsonschema = pytest.importorskip("jsonschema")
    form = annotation_form("0001.jpg", truth)
    jsonschema.validate(form, SCHEMA)
    assert ("objects_on_sidewalk" in form) == (form["object_present"] == "Yes")
    assert ("objects_outside_sidewalk" in form) == (form["object_present_outside"] == "Yes")
    for name in FORM_OBJECTS:
        on = {**truth.near, **truth.vegetation_near}
        if name in on and name != "obstacle":
            assert form["objects_on_sidewalk"][name] == on[name][0].capitalize()


@pytest.mark.skipif(not (REAL / "bvpi").exists(), reason="the real BVPI files are not part of the project")
def test_every_real_annotation_fills_the_form():
    jsonschema = pytest.importorskip("jsonschema")
    from dashvlm.data.formats.bvpi_build import read_annotations

    found, _ = read_annotations(REAL / "bvpi" / "annotations_with_obj_pos.csv")
    forms = [annotation_form(name, truth) for name, truth in found.items()]
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for form in forms:
        validator.validate(form)
    assert len(forms) > 3000
    assert any(f.get("objects_outside_sidewalk", {}).get("trees", "not present") != "not present" for f in forms)


def test_the_form_of_a_file_keeps_grass_plants_and_trees(tmp_path):
    form = {
        "image": "a.jpg", "sidewalk_pos": "Center", "road_pos": "Left", "object_present": "Yes",
        "objects_on_sidewalk": {"obstacle": ["Left", "Right"], "grass": "Left"}, "object_present_outside": "Yes",
        "objects_outside_sidewalk": {"trees": "Right", "car": "Left"}, "split": "train", "caption": "A path.",
    }  # fmt: skip
    (tmp_path / "form.json").write_text(json.dumps([form]))
    (row,) = bvpi.rows(tmp_path, {"file": "form.json", "annotations_share": 1.0})
    told = json.loads(row["question"].split("Using road annotations: ")[1].split(", generate caption and cue.")[0])
    assert told["image"] == "a.jpg"
    assert told["objects_on_sidewalk"] | {"obstacle": ["Left", "Right"], "grass": "Left"} == told["objects_on_sidewalk"]
    assert (told["objects_outside_sidewalk"]["trees"], told["objects_outside_sidewalk"]["car"]) == ("Right", "Left")
    clip = Clip("c", "c", "c", "train", None, None, None, 1, 1, row["extra"])
    taught = CaptionTask("caption").answer(Sample("s", clip, 0, 0, (0.0,), 0))
    assert taught.endswith("Navigation: move straight. Context: A path.")
    free = CaptionTask("caption", style="caption").answer(Sample("s", clip, 0, 0, (0.0,), 0))
    assert free == "A path. Navigation: move straight."


@given(truths)
def test_a_cue_leads_to_a_side_that_is_free(truth):
    cue = navigation_cue(truth)
    blocked = {side for name in IN_THE_WAY for side in truth.near.get(name, ())}
    if cue == "move straight":
        assert "center" not in blocked
    elif cue.startswith("deviate"):
        assert "center" in blocked
        assert cue.split()[1] not in blocked
    else:
        assert blocked == set(SIDES)
    text = with_cue("Sidewalk: left. Nearby: x. Context: Navigation: y.", truth)
    assert text == f"Sidewalk: left. Nearby: x. Navigation: {cue}. Context: Navigation: y."
    assert parse_fields(text) == {"sidewalk_pos": "left"}
    assert cue_alone(truth).endswith(f"Navigation: {cue}.")


def test_shares_of_captions_and_cues_are_of_training_rows(tmp_path):
    forms = [
        {"image": f"{n:03d}.jpg", "sidewalk_pos": "Left", "road_pos": "Front", "object_present": "No",
         "object_present_outside": "No", "split": "train" if n < 150 else "val", "caption": "A path."}
        for n in range(200)
    ]  # fmt: skip
    (tmp_path / "form.json").write_text(json.dumps(forms))
    options = {"file": "form.json", "caption_share": 0.7, "navigation_share": 0.3}
    found = list(bvpi.rows(tmp_path, options))
    styles = [r["extra"].get("style") for r in found if r["split"] == "train"]
    assert styles.count("caption") + styles.count("cue") == 150
    assert 85 <= styles.count("caption") <= 125
    assert not any(r["extra"].get("style") for r in found if r["split"] == "val")
    row = next(r for r in found if r["extra"].get("style") == "cue")
    clip = Clip("c", "c", "c", "train", None, None, None, 1, 1, row["extra"])
    sample = Sample("s", clip, 0, 0, (0.0,), 0)
    task = CaptionTask("caption", text_dropout=1.0)
    assert task.target(sample) == {}
    assert task.training_answer(sample, 3) == "Nearby: no important close objects visible. Navigation: move straight."
    assert row["question"] == "Detect obstacles and suggest corrections."


# -- CLIP, tiles, cards, adapters, the hub ---------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory):
    """A small random CLIP in the hub's layout."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    from dashvlm.backbones.tiny import _tokenizer

    folder = tmp_path_factory.mktemp("clip")
    special = {"special": ["<s>", "</s>", "<pad>"], "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    words = _tokenizer({"tokenizer": special})
    words.padding_side = "right"
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "eos_token_id": words.eos_token_id}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    words.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_similarities_are_written_for_the_filter_that_reads_them(clip_model, dashvlm, tmp_path):
    root = tmp_path / "bvpi"
    lines = ["image_path,target,split"]
    for n in range(6):
        picture(root / "train" / f"{n}.png", n)
        lines.append(f"train/{n}.png,A path number {n}.,{'train' if n < 4 else 'test'}")
    lines.append("train/gone.png,A path.,train")
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    words = ["task=caption", "data=bvpi", f"data.root={root}", f"clip={clip_model}"]
    done = dashvlm("inspect", *words, f"clip_scores_to={root / 'scores.csv'}")
    assert "6 pictures, 1 missing" in done.stdout
    with (root / "scores.csv").open(newline="") as file:
        scores = {r["image"]: float(r["score"]) for r in csv.DictReader(file)}
    assert set(scores) == {f"{n}.png" for n in range(6)}
    assert all(-1 <= s <= 1 for s in scores.values())
    middle = sorted(scores[f"{n}.png"] for n in range(4))[2]
    rows = list(bvpi.rows(root, {"clip_scores": "scores.csv", "min_clip_score": middle}))
    kept = {r["clip_id"] for r in rows if r.get("split") == "train" and not r.get("problem")}
    assert kept == {f"train/{n}.png" for n in range(4) if scores[f"{n}.png"] >= middle}
    wrong = dashvlm("inspect", *SMALL, "clip_scores_to=x.csv", check=False)
    assert "is for pictures with captions" in wrong.stderr


def test_clipscore_of_a_new_models_texts(clip_model, dashvlm, tmp_path):
    from dashvlm.metrics.clip import clip_scores

    texts = []
    for n in range(3):
        picture(tmp_path / "p" / f"{n}.png", n)
        texts.append({"image": f"p/{n}.png", "prediction": f"A path number {n}.", "target": "A path."})
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    words = ["task=caption", f"predictions={tmp_path / 'texts.json'}", f"images={tmp_path}"]
    done = dashvlm("score", *words, f"clip={clip_model}")
    (folder,) = (tmp_path / "runs").glob("score-*")
    value = json.loads((folder / "result.json").read_text())["metrics"]["CLIPScore"]["value"]
    pictures = [tmp_path / "p" / f"{n}.png" for n in range(3)]
    assert value == pytest.approx(
        max(np.mean(clip_scores(pictures, [t["prediction"] for t in texts], str(clip_model))), 0), abs=1e-3
    )
    assert "CLIPScore" in done.stdout
    picture(tmp_path / "q" / "1.png", 9)  # the id names p/1.png
    dashvlm("score", *words, f"clip={clip_model}")
    assert json.loads((folder / "result.json").read_text())["metrics"]["CLIPScore"]["value"] == value
    picture(tmp_path / "r" / "1.png", 8)
    (tmp_path / "p" / "1.png").unlink()
    assert "several pictures could be p/1.png" in dashvlm("score", *words, f"clip={clip_model}", check=False).stderr
    for name in "qr":
        (tmp_path / name / "1.png").unlink()
    assert "1 of 3 pictures are missing" in dashvlm("score", *words, f"clip={clip_model}", check=False).stderr


def test_smolvlm_splits_only_pictures_of_more_than_a_thousand_patches(config):
    """A tile of 512 pixels has 1,024 patches of 16; a picture of that size stays whole."""
    words = [*SMALL, "model.image_kwargs.do_image_splitting=true"]
    encoder = build_backbone(config(*words)).encoder
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    square = encoder.processor.image_processor.max_image_size["longest_edge"]
    encoder.image_kwargs = {"do_image_splitting": True, "size": {"longest_edge": square}}
    whole = encoder.encode([chat], [np.zeros((1, square, square, 3), np.uint8)])
    encoder.image_kwargs = {"do_image_splitting": True, "size": {"longest_edge": 2 * square}}
    tiles = encoder.encode([chat], [np.zeros((1, 2 * square, 2 * square, 3), np.uint8)])
    assert (whole["pixel_values"].shape[1], tiles["pixel_values"].shape[1]) == (1, 5)


@pytest.mark.parametrize(("most", "tiles"), [(6, 7), (4, 5), (1, 1)])
def test_internvl_cuts_a_frame_into_at_most_so_many_tiles_and_a_thumbnail(most, tiles, config):
    """A frame of 2:3 fits six square tiles, four and, without a thumbnail, one; each has the same number of tokens."""
    encoder = build_backbone(config("model=internvl3", *SMALL[1:])).encoder
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    frame = np.zeros((1, 112, 168, 3), np.uint8) if most != 4 else np.zeros((1, 112, 112, 3), np.uint8)
    encoder.image_kwargs = {"crop_to_patches": True, "min_patches": 1, "max_patches": most}
    cut = encoder.encode([chat], [frame])
    encoder.image_kwargs = {"crop_to_patches": False}
    whole = encoder.encode([chat], [frame])
    token = encoder.processor.image_token_id
    counts = [int((batch["input_ids"] == token).sum()) for batch in (cut, whole)]
    assert cut["pixel_values"].shape[0] == tiles
    assert counts[0] == tiles * counts[1] > 0


@pytest.mark.parametrize(
    ("cuda", "bf16", "expected"),
    [(False, False, torch.bfloat16), (True, True, torch.bfloat16), (True, False, torch.float16)],
)
def test_4_bit_layers_compute_in_what_the_card_has(cuda, bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    assert four_bit_dtype() == expected


@pytest.mark.parametrize(("name", "fits"), [("roadbuddy", False), ("roadbuddy_24gb", True)])
def test_the_variant_for_24_gb_fits_by_the_predictor_at_its_most_frames(name, fits, config, cache):
    cfg = config(f"experiment={name}", "data.root=FOLDER")
    size = footprint.footprint(cfg["model"], cache / "twins", None)
    most = cfg["data"]["support_num_frames"][1]
    assert (footprint.memory_gb(size, cfg, most, True)["total"] < 24) == fits
    assert cfg["data"]["batch_size"] * cfg["trainer"]["accumulate_grad_batches"] == 16


def test_a_published_adapter_is_merged_into_its_base_and_scores_as_it_did(config, tmp_path, capsys):
    """As PEFT publishes it: a folder with an adapter that names its base."""
    import peft

    cfg = config(*SMALL, "model.dtype=float32", "peft=lora", "peft.dropout=0.0")
    twin = build_backbone({**cfg, "peft": {**cfg["peft"], "method": "frozen"}})
    base = tmp_path / "base"
    twin.net.save_pretrained(base)
    from dashvlm.backbones.processors import save_processor

    save_processor(twin.encoder.processor, base)
    torch.manual_seed(1)
    net = peft.get_peft_model(
        twin.net, peft.LoraConfig(r=4, target_modules=r".*text_model.*q_proj", init_lora_weights=False)
    )
    net.save_pretrained(tmp_path / "adapter")
    settings_ = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**settings_, "base_model_name_or_path": str(base)})
    )
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    frames = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    inputs = twin.encoder.encode([chat], [frames])
    with torch.no_grad():
        expected = net.eval()(**inputs).logits
    words = [*SMALL, "model.dtype=float32", f"model.checkpoint={tmp_path / 'adapter'}"]
    mine = build_module(config(*words, "peft=lora"), for_training=False).eval()  # adapters of ours on top of theirs
    with torch.no_grad():
        found = mine.backbone.net(**inputs).logits
    assert torch.allclose(found, expected, atol=1e-4)
    with pytest.raises(CheckpointError, match="4-bit"):
        build_module(config(*words, "peft=qlora"), for_training=False)
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**settings_, "base_model_name_or_path": None})
    )
    with pytest.raises(CheckpointError, match="names no base model"):
        build_module(config(*words), for_training=False)
    named = config(*words, f"+model.loader_options.base={base}")
    assert torch.allclose(
        build_module(named, for_training=False).eval().backbone.net(**inputs).logits, expected, atol=1e-4
    )
    from dashvlm import inspect as verb

    verb.inspect_model({**named, "memory_gb": 24})
    assert "adapter targets by role" in capsys.readouterr().out
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    broken = {k.replace("layers.0", "layers.9"): v for k, v in load_file(weights).items()}
    save_file(broken, weights)
    with pytest.raises(CheckpointError, match="does not fit its base"):
        build_module(named, for_training=False)
    weights.unlink()
    with pytest.raises(CheckpointError, match="has no adapter_model"):
        build_module(named, for_training=False)
    lost = {**settings_, "base_model_name_or_path": "/lost"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(lost))
    with pytest.raises(CheckpointError, match=r"the base of the adapter .* is not here"):
        build_module(config(*words), for_training=False)


@pytest.fixture
def hub(tmp_path):
    """The hub's data set ``me/clips`` over HTTP: its address, and what was asked."""
    files = tmp_path / "served"
    for name in ("train.csv", "videos/00001.mp4"):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(name.encode() * 100)
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body=True):
            asked.append(self.path)
            place = self.path.split("?")[0]
            files_here = [p for p in sorted(files.rglob("*")) if p.is_file()]
            if "/tree/" in place:
                tree = [{"type": "file", "path": p.relative_to(files).as_posix(), "size": p.stat().st_size,
                         "oid": hashlib.sha1(p.read_bytes()).hexdigest()} for p in files_here]  # fmt: skip
                content, code = json.dumps(tree).encode(), 200
            elif place.startswith("/api/datasets/me/clips"):
                known = [{"rfilename": p.relative_to(files).as_posix()} for p in files_here]
                content, code = json.dumps({"id": "me/clips", "sha": "a" * 40, "siblings": known}).encode(), 200
            else:
                path = files / place.partition(f"/resolve/{'a' * 40}/")[2]
                code = 200 if path.is_file() else 404
                content = path.read_bytes() if code == 200 else b"{}"
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_a_data_set_of_the_hub_is_a_root(hub, tmp_path):
    address, asked = hub
    code = "import sys; from pathlib import Path; from dashvlm.config.overrides import from_hub; " \
        "print(from_hub(sys.argv[1], Path(sys.argv[2])))"  # fmt: skip
    known = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}

    def fetch(root, **more):
        words = [sys.executable, "-c", code, root, str(tmp_path / "kept")]
        return subprocess.run(words, capture_output=True, text=True, env={**known, **more}, cwd=ROOT, timeout=120)

    done = fetch("hf://datasets/me/clips@v1")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert folder == tmp_path / "kept" / "me--clips--v1"
    assert (folder / "videos" / "00001.mp4").read_bytes() == b"videos/00001.mp4" * 100
    assert not (folder / "videos" / "00001.mp4").is_symlink()  # videos must lie below data.root
    assert any("revision/v1" in path for path in asked)
    again = fetch("hf://datasets/me/clips@v1", HF_HUB_OFFLINE="1")
    assert Path(again.stdout.splitlines()[-1]) == folder
    assert "cannot be downloaded" in fetch("hf://datasets/me/none").stderr
    assert "is no data set of the hub" in fetch("hf://me/clips").stderr


def test_a_root_on_the_hub_becomes_a_folder_when_a_configuration_is_made(config, monkeypatch, tmp_path):
    from dashvlm.config import overrides

    monkeypatch.setattr(overrides, "from_hub", lambda root, folder: tmp_path / root[-5:])
    made = config(*SMALL[:3], "data=nexar", "data.root=hf://datasets/me/clips")
    assert made["data"]["root"] == str(tmp_path / "clips")
