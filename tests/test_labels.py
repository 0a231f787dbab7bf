"""Labels from a teacher over real HTTP: nothing paid twice, nothing lost, no key anywhere; leak probes."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from dashvlm.endpoint.client import Teacher
from dashvlm.errors import ConfigError, DataError, TeacherError
from dashvlm.labels.label_file import Label, read_labels, states_outcome
from dashvlm.shortcuts.leaks import probe_labels

from .conftest import REAL, ROOT, SMALL_WORLD

CANARY = "sk-canary-4f1d9c0b7a"
DAD = REAL / "dad_mini"
real_data = pytest.mark.skipif(not DAD.is_dir(), reason="no real clips here")


class Endpoint:
    def __init__(self, folder, plan=(), stores=True):
        self.folder = folder
        folder.mkdir()
        words = [sys.executable, str(ROOT / "tests" / "teacher_server.py"), str(folder), json.dumps(list(plan))]
        self.process = subprocess.Popen(words + ([] if stores else ["no-store"]))
        while not (folder / "port").exists():
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{(folder / 'port').read_text()}/v1"

    def paid(self):
        path = self.folder / "paid.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def endpoint(tmp_path):
    started = []

    def make(plan=(), stores=True):
        started.append(Endpoint(tmp_path / f"endpoint{len(started)}", plan, stores))
        return started[-1]

    yield make
    for one in started:
        one.process.kill()
        one.process.wait()


def options(url, **changed):
    return {
        "model": "gpt-4o", "base_url": url, "max_tokens": 100, "temperature": 0.0, "detail": "low", "concurrency": 3,
        "timeout_s": 0.8,
        "settle_s": 1.5, "retries": 4, "max_backoff_s": 0.1, "usd_per_million_in": 2.5, "usd_per_million_out": 10.0,
        "image_tokens": {"base": 85, "tile": 170}, "cap_usd": 1.0, "store": True, **changed,
    }  # fmt: skip


def ask(url, folder, monkeypatch, count=3, key=CANARY, **changed):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    teacher = Teacher(options(url, **changed), folder, folder.with_suffix(".spent"))
    frames = np.zeros((2, 32, 48, 3), np.uint8)
    chats = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"clip {i}?"}, {"type": "image"}]}]
        for i in range(count)
    ]
    requests = [teacher.request(chat, lambda: frames) for chat in chats]
    return teacher, requests, teacher.ask(requests, (32, 48))


@pytest.mark.parametrize(
    ("plan", "paid", "recovered"),
    [([429], 1, 0), ([500, 503], 1, 0), (["drop"], 1, 0), (["half"], 1, 1), (["timeout"], 1, 1), (["drip"], 1, 1),
     (["timeout", "half"], 1, 1), ([429, 500, "half"], 1, 1)],
    ids=str,
)  # fmt: skip
def test_whatever_goes_wrong_an_answer_is_paid_for_once(endpoint, tmp_path, monkeypatch, plan, paid, recovered):
    server = endpoint(plan)
    teacher, _, replies = ask(server.url, tmp_path / "cache", monkeypatch, count=1)
    assert "<answer>" in replies[0].text
    assert len(server.paid()) == paid
    assert teacher.tally.recovered == recovered
    booked = [json.loads(line) for line in (tmp_path / "cache.spent").read_text().splitlines()]
    assert [b["usd"] for b in booked if b["what"] == "answer"] == [pytest.approx(replies[0].cost_usd)]
    again, _, same = ask(server.url, tmp_path / "cache", monkeypatch, count=1)
    assert same[0].text == replies[0].text
    assert same[0].cached
    assert again.tally.spent_usd == pytest.approx(teacher.tally.spent_usd)  # the ledger remembers
    assert again.tally.paid == 0
    assert len(server.paid()) == paid


def test_an_endpoint_that_stores_nothing_is_asked_again_and_that_is_counted(endpoint, tmp_path, monkeypatch):
    server = endpoint(["half"], stores=False)
    teacher, _, replies = ask(server.url, tmp_path / "cache", monkeypatch, count=1)
    assert replies[0] is not None
    assert len(server.paid()) == 2
    assert teacher.tally.retries == 1


def test_equal_requests_are_paid_for_once(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    for stores in (True, False):
        server = endpoint(stores=stores)
        teacher = Teacher(options(server.url), tmp_path / f"cache{stores}")
        chat = [{"role": "user", "content": [{"type": "text", "text": "the same?"}]}]
        replies = teacher.ask(
            [teacher.request(chat, lambda: np.zeros((0, 32, 48, 3), np.uint8)) for _ in range(6)], (32, 48)
        )
        assert len({r.text for r in replies}) == 1
        assert len(server.paid()) == 1
        assert (teacher.tally.paid, teacher.tally.cached) == (1, 5)


def test_an_answer_behind_a_504_is_found_and_lost_calls_count_towards_the_cap(endpoint, tmp_path, monkeypatch):
    server = endpoint(["late 504"])
    teacher, _, replies = ask(server.url, tmp_path / "cache", monkeypatch, count=1, max_backoff_s=0.4)
    assert replies[0] is not None
    assert len(server.paid()) == 1
    assert teacher.tally.recovered == 1
    forgetful = endpoint(["timeout"] * 9, stores=False)
    teacher, requests, replies = ask(
        forgetful.url, tmp_path / "other", monkeypatch, count=1, cap_usd=0.004, retries=8, store=False
    )
    assert replies == [None]
    assert teacher.tally.capped
    most = teacher.estimate(requests[0], (32, 48))
    time.sleep(1.5)
    assert len(forgetful.paid()) <= 0.004 / most + 1
    assert Teacher(options(forgetful.url), tmp_path / "other", tmp_path / "other.spent").tally.spent_usd > 0.002


@pytest.mark.parametrize(
    "body", ["[]", "null", '"ok"', '{"choices": [null]}', '{"error": "no"}', '{"choices": [{"message": "x"}]}']
)
def test_a_body_of_another_shape_is_no_answer(endpoint, tmp_path, monkeypatch, body):
    server = endpoint([f"body {body}"])
    _, _, replies = ask(server.url, tmp_path / "cache", monkeypatch, count=2)
    assert all(r is not None for r in replies)


def test_short_words_are_no_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "local")
    assert Teacher(options("http://localhost:1/v1"), tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    for bad in ({"base_url": "http://me:word@host/v1"}, {"model": CANARY}):
        with pytest.raises(ConfigError, match="credentials"):
            Teacher({**options("http://localhost:1/v1"), **bad}, tmp_path)


def test_retry_after_is_honoured(endpoint, tmp_path, monkeypatch):
    server = endpoint([429])
    started = time.monotonic()
    ask(server.url, tmp_path / "cache", monkeypatch, count=1, max_backoff_s=0.0)
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(("trouble", "status"), [("refusal", True), ("empty", False)])
def test_refusals_and_empty_answers_are_paid_for_and_kept(endpoint, tmp_path, monkeypatch, trouble, status):
    server = endpoint([trouble])
    teacher, _, replies = ask(server.url, tmp_path / "cache", monkeypatch, count=1)
    assert replies[0].text == ""
    assert replies[0].refused is status
    assert teacher.tally.spent_usd > 0
    ask(server.url, tmp_path / "cache", monkeypatch, count=1)
    assert len(server.paid()) == 1


def test_the_cap_holds(endpoint, tmp_path, monkeypatch):
    server = endpoint()
    one = 0.0015
    teacher, requests, replies = ask(
        server.url, tmp_path / "cache", monkeypatch, count=30, cap_usd=5.5 * one, concurrency=3
    )
    assert len(server.paid()) == teacher.tally.paid
    assert teacher.tally.capped
    assert 0 < sum(r is not None for r in replies) < 30
    assert teacher.tally.spent_usd <= 5.5 * one
    assert teacher.estimate(requests[0], (32, 48)) >= max(r.cost_usd for r in replies if r)


@pytest.mark.parametrize("plan", [["quota"], []], ids=["no quota", "wrong key"])
def test_what_no_retry_can_mend_stops_at_once_and_shows_no_key(endpoint, tmp_path, monkeypatch, plan):
    server = endpoint(plan)
    with pytest.raises(TeacherError) as caught:
        ask(server.url, tmp_path / "cache", monkeypatch, key=CANARY if plan else "wrong")
    assert CANARY not in str(caught.value)
    assert "OPENAI_API_KEY" in str(caught.value)
    assert not server.paid()


def test_no_key_is_one_clear_error(dashvlm, tmp_path):
    done = dashvlm("label", "task=crash", *SMALL_WORLD, check=False, env={"OPENAI_API_KEY": ""})
    assert done.returncode == 2
    assert "OPENAI_API_KEY is not set" in done.stderr
    assert "Traceback" not in done.stderr


def everything_written(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


@real_data
@pytest.mark.long
def test_killed_five_times_then_one_paid_call_a_clip_and_mode_and_sft_trains_on_it(dashvlm, endpoint, tmp_path, cache):
    server = endpoint([429, "half", 500, "timeout"])
    mine = tmp_path / "cache"
    words = [
        sys.executable, "-m", "dashvlm.label", "teacher=openai", "data=nexar", f"data.root={DAD}", "task=crash",
        "data.num_frames=3", "data.frame_interval_s=0.2", "data.frame_size=[90,160]", "label_in_prompt=both",
        f"teacher.base_url={server.url}", "teacher.timeout_s=2", "teacher.settle_s=2",
        "teacher.max_backoff_s=0.2", "teacher.concurrency=2",
        f"paths.output_dir={tmp_path / 'runs'}", f"paths.cache_dir={mine}", f"output={tmp_path / 'labels'}",
    ]  # fmt: skip
    environment = {**os.environ, "OPENAI_API_KEY": CANARY}
    labels, kills = tmp_path / "labels" / "labels.jsonl", 0
    rng = random.Random(0)
    deadline = time.time() + 240
    while kills < 5 and time.time() < deadline:
        before = len(server.paid())
        child = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(server.paid()) < before + rng.randint(2, 6) and child.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills == 5
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    paid = server.paid()
    assert len(paid) == 40
    assert len({line["key"] for line in paid}) == 40
    assert [line["mode"] for line in paid].count("told") == 20
    found = read_labels(labels)
    assert len(found.labels) == 40
    assert not found.dropped
    assert {label.status for label in found.labels} == {"labelled"}
    assert all(x.answer == x.label for x in found.labels if x.mode == "told")
    assert {x.num_frames for x in found.labels} == {3}
    assert "told and blind" in done.stdout
    words = [
        "model=smolvlm2", "model.checkpoint=tiny", "objective=sft", "task=crash", "data=nexar", f"data.root={DAD}",
        f"data.labels={labels}", "data.num_frames=3", "data.frame_interval_s=0.2", "data.frame_size=[90,160]",
        "data.batch_size=2", "data.num_workers=0", "trainer.max_steps=2", "trainer.accelerator=cpu",
        "objective.max_new_tokens=8",
    ]  # fmt: skip
    dashvlm("train", *words, env={"OPENAI_API_KEY": CANARY})
    (run,) = (tmp_path / "runs").glob("crash-*/result.json")
    assert "reasoned_roc_auc" in json.loads(run.read_text())["metrics"]
    for path, raw in everything_written(tmp_path):
        assert CANARY.encode() not in raw, path


def test_a_torn_line_is_cut_off_and_asked_again(dashvlm, endpoint, tmp_path):
    server = endpoint(["prose", "refusal"])
    words = [
        "task=crash", *SMALL_WORLD, "data.limit=4", "label_in_prompt=blind", f"teacher.base_url={server.url}",
        f"output={tmp_path / 'out'}", "splits=[train]", "teacher.concurrency=1",
    ]  # fmt: skip
    first = dashvlm("label", *words, env={"OPENAI_API_KEY": CANARY})
    path = tmp_path / "out" / "labels.jsonl"
    lines = path.read_text().splitlines()
    assert sorted(json.loads(line)["status"] for line in lines)[-2:] == ["refused", "unparsed"]
    assert "in form" in first.stderr
    path.write_text("\n".join(lines)[:-40])
    paid = len(server.paid())
    dashvlm("label", *words, env={"OPENAI_API_KEY": CANARY})
    assert path.read_text().splitlines()[:-1] == lines[:-1]
    assert len(read_labels(path).labels) == len(lines)
    assert len(server.paid()) == paid  # it was in the cache


@pytest.mark.parametrize("word", ["label_in_prompt=tolld", "splits=[tarin]", "teacher.concurrency=0", "splits=[]"])
def test_wrong_words_cost_nothing(dashvlm, word):
    done = dashvlm("label", "task=crash", *SMALL_WORLD, word, check=False, env={"OPENAI_API_KEY": CANARY})
    assert done.returncode == 2
    assert word.split("=")[0] in done.stderr


def test_dry_run_prices_and_asks_nothing(dashvlm, endpoint):
    server = endpoint()
    words = ["task=crash", *SMALL_WORLD, "dry_run=true", f"teacher.base_url={server.url}"]
    done = dashvlm("label", *words, env={"OPENAI_API_KEY": CANARY})
    assert "cost at most $" in done.stdout
    assert not server.paid()
    dashvlm("label", *words, env={"OPENAI_API_KEY": ""})  # a price needs no key
    assert "above the cap" not in done.stdout
    done = dashvlm("label", *words, "teacher.cap_usd=0.001", env={"OPENAI_API_KEY": ""})
    told = re.search(r"above the cap: at worst the money ends after (\d+) of (\d+) answers; teacher.cap_usd=([\d.]+)",
                     " ".join(done.stdout.split()))  # fmt: skip
    assert int(told.group(1)) < int(told.group(2))
    assert float(told.group(3)) >= float(re.search(r"cost at most \$([\d.]+)", done.stdout).group(1)) - 0.005


def test_scenes_are_annotated_cleaned_and_taught(dashvlm, endpoint, tmp_path):
    server = endpoint()
    words = ["task=scene", *SMALL_WORLD]
    dashvlm("label", *words, f"teacher.base_url={server.url}", f"output={tmp_path / 'out'}", "label_in_prompt=blind",
            env={"OPENAI_API_KEY": CANARY})  # fmt: skip
    labels = tmp_path / "out" / "labels.jsonl"
    assert {x.status for x in read_labels(labels).labels} == {"labelled"}
    dashvlm("inspect", *words, f"data.labels={labels}", "data.label_options.replace_annotations=true")
    card = json.loads((tmp_path / "runs" / "inspect-synthetic" / "card.json").read_text())
    fields = {r["parameter"]: r["majority"] for r in card["tables"]["parameters after normalisation"]}
    assert fields["road_type"] == "urban"
    assert fields["risk_factor"] == "medium"


def test_a_teacher_stands_in_the_table_of_models(dashvlm, endpoint, tmp_path):
    server = endpoint()
    words = [
        "model=openai", *SMALL_WORLD, "task=crash", f"model.loader_options.base_url={server.url}",
        f"model.loader_options.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    dashvlm("evaluate", *words, env={"OPENAI_API_KEY": CANARY})
    (folder,) = (tmp_path / "runs").glob("eval-crash-openai-*")
    rows = pd.read_parquet(folder / "predictions.parquet")
    assert rows["score"].between(0, 1).all()
    assert rows["score"].nunique() == 2
    assert (rows["status"] == "parsed").all()
    assert len(server.paid()) == len(rows)  # one call gives text and score
    dashvlm("evaluate", *words, "data.num_workers=1", env={"OPENAI_API_KEY": CANARY})  # requests from a worker
    assert len(server.paid()) == len(rows)
    for path, raw in everything_written(tmp_path):
        assert CANARY.encode() not in raw, path


# -- what gives the class away ------------------------------------------------------------------


def made(texts, labels, frames=None):
    return [
        Label(f"c{i}", "told", "labelled", t, t, y, y, None if frames is None else frames[i])
        for i, (t, y) in enumerate(zip(texts, labels, strict=True))
    ]


def clean_texts(rng, count):
    """Rationales that differ between the classes in their finding only."""
    nouns, roads = ["truck", "van", "car", "bus", "sedan"], ["wet", "dry", "narrow", "wide"]
    labels = rng.integers(0, 2, count)
    texts = []
    for y in labels:
        body = [f"A {rng.choice(nouns)} is ahead on a {rng.choice(roads)} road." for _ in range(rng.integers(2, 6))]
        texts.append(" ".join([*body, "A collision is imminent." if y else "A collision is unlikely."]))
    return texts, labels.tolist()


def test_clean_files_pass_at_the_stated_rate():
    alarms = 0
    for seed in range(20):
        texts, labels = clean_texts(np.random.default_rng(seed), 150)
        alarms += any(p.leaks for p in probe_labels(made(texts, labels, [5] * len(texts)), seed))
    assert alarms <= 3  # 5 % each: more than 3 of 20 happen once in sixty


@pytest.mark.parametrize("leak", ["length", "frames", "sent", "phrasing", "words"])
def test_each_planted_leak_is_found(leak):
    texts, labels = clean_texts(np.random.default_rng(1), 200)
    frames = [5] * len(texts)
    for i, y in enumerate(labels):
        if leak == "length" and y:
            texts[i] += " A road is ahead on a dry road." * 4
        if leak == "frames":
            texts[i] += " The image shows it." if not y else " The images show it."
        if leak == "sent" and not y:
            frames[i] = 1
        if leak == "phrasing" and y:
            texts[i] = texts[i].replace(" is ahead", " which is ahead; however, it has been ahead")
        if leak == "words" and y:
            texts[i] = texts[i].replace("ahead", "looming")
    probes = {p.name: p for p in probe_labels(made(texts, labels, frames))}
    assert probes["frames" if leak == "sent" else leak].leaks, probes


@pytest.mark.skipif(not (REAL / "nexar").is_dir(), reason="no published labels here")
def test_the_published_rationales_give_the_class_away():
    file = read_labels(REAL / "nexar" / "gpt4o_cot.csv")
    assert len(file.labels) == 1500
    assert sum(file.dropped.values()) == 7
    assert sum(x.label for x in file.labels) == 750
    probes = {p.name: p for p in probe_labels(file.labels)}
    assert probes["frames"].auc.low > 0.99  # one picture for negatives, five for positives
    assert all(p.leaks for p in probes.values())
    assert sum(states_outcome(x.reasoning) is not None for x in file.labels) > 30


def test_rationales_that_repeat_the_outcome_are_listed_and_dropped(config, tmp_path):
    from dashvlm.engine.load import build_store, load_manifest

    assert states_outcome("There was no collision.") == "There was no collision"
    assert states_outcome("The SUV may collide if it does not brake.") is None
    cfg = config("task=crash", *SMALL_WORLD)
    clips = load_manifest(cfg, build_store(cfg)).clips
    path = tmp_path / "labels.jsonl"
    texts = ["The gap closes.", "It brakes late, which resulted in a collision.", "The gap closes.", ""]
    answers = [1, 1, 0, None]
    lines = [
        Label(c.clip_id, "told", "labelled" if t else "refused", t, t, a, c.label).line()
        for c, t, a in zip([c for c in clips if c.label == 1], texts, answers, strict=False)
    ]
    path.write_text("".join(lines))
    for drop, kept in ((False, 2), (True, 1)):
        changed = {**cfg["data"], "labels": str(path), "label_options": {"mode": None, "drop_stating_outcome": drop}}
        found = load_manifest({**cfg, "data": changed}, build_store(cfg)).clips
        mine = [c for c in found if c.clip_id in {x.clip_id for x in read_labels(path).labels}]
        usable = [c for c in mine if "rationale_problem" not in c.extra]
        assert len(usable) == kept
        assert {str(c.extra.get("rationale_problem")) for c in mine} >= {
            "the teacher's answer is refused", "the teacher's answer is not the dataset's"
        }  # fmt: skip


def test_foreign_label_files_are_read_or_refused(tmp_path):
    path = tmp_path / "cot.csv"
    with path.open("w", encoding="cp1252", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "label", "response"], ["7", "1.0", "The car’s gap"], ["id", "label", "response"]])
        writer.writerows([["7", "0", "again"], ["8", "maybe", "x"], ["9", "0", ""]])
    found = read_labels(path)
    assert [(x.clip_id, x.label, x.reasoning) for x in found.labels] == [("00007", 1, "The car’s gap")]
    assert sum(found.dropped.values()) == 4
    (tmp_path / "bad.csv").write_text("id,text\n1,2\n")
    (tmp_path / "bad.jsonl").write_text('{"clip_id": 1}\n[1]\nnonsense\n')
    for name in ("bad.csv", "bad.jsonl", "absent.jsonl"):
        with pytest.raises(DataError):
            read_labels(tmp_path / name)


def test_labels_of_another_dataset_are_an_error(config, tmp_path):
    from dashvlm.engine.load import build_store, load_manifest

    path = tmp_path / "labels.jsonl"
    path.write_text(Label("elsewhere", "told", "labelled", "x", "x", 1, 1).line())
    cfg = config("task=crash", *SMALL_WORLD)
    with pytest.raises(DataError, match="not one of its 1 clips"):
        load_manifest({**cfg, "data": {**cfg["data"], "labels": str(path)}}, build_store(cfg))
    asked = {**cfg["data"], "labels": str(path), "label_options": {"mode": "blind", "drop_stating_outcome": False}}
    with pytest.raises(ConfigError, match="mode=blind"):
        load_manifest({**cfg, "data": asked}, build_store(cfg))
