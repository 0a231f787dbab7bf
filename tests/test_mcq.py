"""Multiple choice: the challenge's files, letters from one pass, a parser that never guesses, the submission."""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dashvlm.backbones.tiny import twin_folder
from dashvlm.backbones.twin_files import twin_of
from dashvlm.config.imports import resolve
from dashvlm.data.clip import Clip, Observation, Sample
from dashvlm.data.formats import roadbuddy
from dashvlm.data.frames import FrameStore
from dashvlm.data.items import SampleDataset
from dashvlm.data.manifest import build_manifest, leakage_report
from dashvlm.data.samples import build_samples
from dashvlm.data.synthetic.language import questions
from dashvlm.data.synthetic.scene import draw_scenes
from dashvlm.engine.build import build_module
from dashvlm.engine.prepare import prepare_data
from dashvlm.engine.run import run
from dashvlm.errors import ConfigError, DataError
from dashvlm.tasks.base import observe
from dashvlm.tasks.evaluation import evaluate, evaluations
from dashvlm.tasks.mcq import LETTERS, MCQTask, language_of
from dashvlm.text.parsing import parse_letter

from .conftest import FAMILIES

WORLD = [
    "data=synthetic", "data.options.num_drives=24", "data.options.duration_s=4.0", "data.options.fps=5",
    "data.num_frames=2", "data.batch_size=4", "task=mcq", "trainer.accelerator=cpu", "model.checkpoint=tiny",
]  # fmt: skip

# -- the parser ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I am not sure",
        "Tôi không biết",
        "The correct answer is a green light",
        "A or B",
        "a",
        "b)",
        "Answer: A car",
        "Because the car turns",
        "A. yes B. no",
        "Answer: B\nAnswer: C",
        "the answer is not B",
        "E",
        "Answer: Z",
        "Cannot tell",
        "Đáp án không phải A",
        "ABCD",
        "Option B is incorrect.",
        "Đáp án B sai.",
        "Không chọn B.",
        "I would not choose B.",
        "Answer B-road",
    ],
)
def test_what_is_no_letter_gives_nothing(text):
    assert parse_letter(text, 4)[0] is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("(c)".upper(), "C"), ("D.", "D"), ("B. Đúng", "B"), ("**A**", "A"), ("Đáp án: C", "C"),
     ("đáp án là D vì có biển cấm", "D"), ("<answer>B</answer>", "B"), ("The answer is C.", "C"),
     ("The correct answer is a green light so C.", "C"), ("a car is ahead, answer: D", "D"), ("Vậy B", "B"),
     (unicodedata.normalize("NFD", "Đáp án: C"), "C"), ("The answer is A because the light is red", "A"),
     ("Đáp án A đúng", "A"), ("Option B is wrong, so A.", "A"), ("Answer: B. Not C", "B"),
     ("A. Because B is farther", "A")],
)  # fmt: skip
def test_letters_are_read(text, letter):
    assert parse_letter(text, 4) == (LETTERS.index(letter), "parsed")


def test_a_letter_outside_the_choices_gives_nothing():
    for text in ("C", "Answer: D", "so C.", "C. perhaps"):
        assert parse_letter(text, 2) == (None, "unparsed")


@given(st.text(max_size=120), st.integers(2, 4))
def test_any_text_gives_a_letter_only_if_it_has_that_capital(text, count):
    value, status = parse_letter(text, count)
    assert (value is None) == (status != "parsed")
    if value is not None:
        assert value < count
        assert LETTERS[value] in unicodedata.normalize("NFC", text)


@given(
    st.sampled_from(["{} because of a car", "Answer: {}", "đáp án là {}", "so {}.", "{}"]), st.sampled_from("EFGHXYZ")
)
def test_foreign_letters_are_never_answers(template, letter):
    assert parse_letter(template.format(letter), 4)[0] is None


# -- the challenge's files ----------------------------------------------------------------------


def item(number, video="a1_100_clip_001_0000_0010_Y.mp4", **changes):
    return {
        "id": f"train_{number:04d}",
        "question": "Đèn màu gì?",
        "choices": ["A. Đỏ", "B. Xanh", "C. Vàng", "D. Tắt"],
        "answer": "B. Xanh",
        "support_frames": [2.0],
        "video_path": f"train/videos/{video}",
        "_unused_": "x",
        **changes,
    }


@pytest.fixture
def challenge(tmp_path, counter_video):
    """Eight videos of four recordings with odd rows among the questions."""
    source, _ = counter_video("roadbuddy", num_frames=100)  # 5 s
    root = tmp_path / "traffic"
    (root / "train" / "videos").mkdir(parents=True)
    (root / "public_test" / "videos").mkdir(parents=True)
    rows = []
    for n in range(8):
        name = f"v{n}_{100 + n // 2}_clip_00{n}_0000_0005_Y.mp4"
        shutil.copy(source, root / "train" / "videos" / name)
        rows += [item(2 * n, name), item(2 * n + 1, name, question="Có biển cấm không?", answer="A. Đúng",
                                         choices=["A. Đúng", "B. Sai"])]  # fmt: skip
    first = "v0_100_clip_000_0000_0005_Y.mp4"
    rows += [
        item(90, first, support_frames=[4.17, 2.38]),
        item(91, first, support_frames=[9.0, 99]),
        item(92, first, choices=["A. Đỏ", "B. Xanh", "C. Vàng", "C. Tắt"], answer="C. Tắt"),
        item(
            93,
            first,
            question=unicodedata.normalize("NFD", "Đèn màu gì?"),
            answer=unicodedata.normalize("NFD", "B. Xanh"),
        ),
        item(94, first, choices=[f"{c}. x" for c in "AABBBCCD"], answer="D. x"),
        item(95, first, answer="E. Tím"),
        item(96, first, choices="A. Đỏ"),
        item(97, first, answer="A. Đỏ"),
        item(98, "../../../etc/passwd"),
    ]
    (root / "train" / "train.json").write_text(json.dumps({"__count__": len(rows), "data": rows}, ensure_ascii=False))
    shutil.copy(source, root / "public_test" / "videos" / "t_200_x.mp4")
    test = [{"id": f"testa_{n:04d}", "question": "Đèn màu gì?", "choices": ["A. Đỏ", "B. Xanh"],
             "video_path": "public_test/videos/t_200_x.mp4"} for n in range(4)]  # fmt: skip
    test += [{**test[0], "id": "testa_0009", "video_path": "public_test/videos/no.mp4"}]
    test += [{**test[0], "id": "testa_0010", "choices": ["A. Đỏ"] * 8}]
    test += [{**test[0], "id": "testa_0011", "choices": ["B. Xanh", "A. Đỏ"]}]
    (root / "public_test" / "public_test.json").write_text(json.dumps({"__count__": 7, "data": test}))
    return root


def load(root, tmp_path, **options):
    return build_manifest(
        "roadbuddy", roadbuddy.rows(root, options), root, FrameStore(tmp_path / "store"),
        {"train": 0.5, "val": 0.25, "test": 0.25}, 0, max_bad_fraction=1.0,
    )  # fmt: skip


def test_odd_rows_are_mended_by_rule_or_named(challenge, tmp_path):
    made = load(challenge, tmp_path)
    clips = {c.clip_id: c for c in made.clips}
    assert clips["train_0090"].extra["support_frames"] == [2.38, 4.17]
    assert "unsorted" in clips["train_0090"].extra["irregular"][0]
    assert clips["train_0092"].extra["answer"] == 3
    assert "numbered by place" in clips["train_0092"].extra["irregular"][0]
    assert clips["train_0093"].extra["question"] == "Đèn màu gì?" == clips["train_0000"].extra["question"]
    assert clips["train_0093"].extra["answer"] == 1
    reasons = {q.clip_id: q.reason for q in made.quarantine}
    reasons |= {c.clip_id: c.extra["failed"] for c in made.clips if "failed" in c.extra}
    assert "8 choices" in reasons["train_0094"]
    assert "none of the choices" in reasons["train_0095"]
    assert "not a list" in reasons["train_0096"]
    assert "leads out of the data root" in reasons["train_0098"]
    assert len(made.clips) + len(made.quarantine) == 25


def test_splits_are_by_recording_and_a_row_split_would_leak(challenge, tmp_path):
    made = load(challenge, tmp_path)
    by_group = {}
    for clip in made.clips:
        by_group.setdefault(clip.group, set()).add(clip.split)
    assert set(by_group) - {"passwd"} == {"100", "101", "102", "103"}
    assert all(len(s) == 1 for s in by_group.values())
    report = leakage_report(made, 0)
    assert report["row_split_would_share"] > 0.5
    assert report["row_split_would_share_video"] > 0
    videos = {c.group for c in load(challenge, tmp_path, group_by="video").clips}
    assert len(videos - {"passwd"}) == 8


def test_an_incomplete_file_and_a_missing_one_are_named(challenge, tmp_path):
    path = challenge / "train" / "train.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "__count__": 99}))
    with pytest.raises(DataError, match="incomplete"):
        load(challenge, tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"train.json is missing"):
        load(challenge, tmp_path)


def test_support_windows_in_training_only(challenge, tmp_path):
    options = {
        "sampling": "uniform",
        "num_frames": 5,
        "reference": "clip_end",
        "horizon_s": 0.0,
        "short_history": "error",
        "sampling_seed": 0,
        "negative_reference": "matched",
        "support_frames": "train_only",
        "support_num_frames": [4, 6],
    }
    clips = load(challenge, tmp_path).clips
    late = next(c for c in clips if c.clip_id == "train_0091")
    for clip in clips:
        if "failed" in clip.extra:
            continue
        (sample,), _ = build_samples([clip], options)
        assert all(0 <= t <= clip.duration_s for t in sample.times_s)
        assert list(sample.times_s) == sorted(sample.times_s)
        if clip.split == "train":
            assert len(sample.times_s) == 4
            moments = [min(t, clip.duration_s) for t in clip.extra["support_frames"]]
            assert sample.times_s[0] >= moments[0] - 0.5 - 1e-9
            assert sample.times_s[-1] <= moments[-1] + 0.5 + 1e-9
        else:
            assert sample.times_s == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5])
    (sample,), _ = build_samples([late], {**options, "support_frames": "always"})
    assert min(sample.times_s) >= 4.5 - 1e-9


def test_the_census_counts_letters_conflicts_and_late_moments(challenge, tmp_path):
    task = MCQTask("full")
    tables = task.dataset_tables(load(challenge, tmp_path).clips)
    letters = tables["letters and choices"]
    assert sum(r["questions"] for r in letters) == 22
    assert sum(r["A"] + r["B"] + r["C"] + r["D"] for r in letters) == 22
    facts = {r["what"]: r["number"] for r in tables["questions"]}
    assert facts["support moments past the clip's end (clamped)"] == 1
    odd = next(v for k, v in tables.items() if "irregular" in k)
    assert any("different answers" in r["what"] for r in odd)


def test_the_public_test_gets_a_letter_for_every_id(challenge, config, tmp_path, caplog):
    words = ["model=internvl3", "model.checkpoint=tiny", "task=mcq", "data=roadbuddy", f"data.root={challenge}",
             "data.frame_size=[56,56]", "data.num_workers=0", "trainer.accelerator=cpu", "trainer.max_steps=2",
             "data.num_frames=2", "data.batch_size=4", "data.max_bad_fraction=1.0"]  # fmt: skip
    from dashvlm.engine.results import write_results
    from dashvlm.engine.scoring import score

    (tmp_path / "run").mkdir()
    result = run(config(*words), tmp_path / "run")
    assert result["counts"]["failed_rows"] == 0
    assert any("around annotated moments are train 100%" in a for a in result["alarms"])
    cfg = config(*words, "data.options.file=public_test", "peft=frozen")
    data = prepare_data(cfg, train=False)
    module = build_module(cfg, for_training=False).eval()
    rows = score(cfg, data, module)
    found = write_results(cfg, data, rows, tmp_path, module)
    lines = pd.read_csv(tmp_path / "submission.csv")
    assert list(lines.columns) == ["id", "answer"]
    assert list(lines["id"]) == [f"testa_{n:04d}" for n in (0, 1, 2, 3, 9, 10, 11)]
    assert set(lines["answer"]) <= {"A", "B"}
    told = next(a for a in found["alarms"] if "2 of 7 rows had no answer and say A" in a)
    assert "testa_0009" in told
    assert "8 choices" in told
    # Letters are the file's own, wherever they stand.
    last = rows.iloc[-1]
    assert lines["answer"].iloc[-1] == "BA"[int(np.argmax(last["scores"]))]
    assert found["counts"]["unlabelled_rows"] == 7
    assert sum(found["answers"].values()) == 7
    slow = evaluate(rows.assign(latency_s=40.0), evaluations()["choice"])
    assert slow["counts"]["over_latency_limit"] == 7


def test_the_card_shows_letters_irregular_rows_and_what_a_row_split_shares(challenge, dashvlm):
    done = dashvlm("inspect", "data=roadbuddy", f"data.root={challenge}")
    for part in ("letters and choices", "irregular rows", "numbered by place", "8 choices", "the very video of"):
        assert part in done.stdout, part


# -- prompts ------------------------------------------------------------------------------------


def test_the_prompt_follows_the_questions_language_and_never_sees_the_answer():
    task = MCQTask("full")
    texts = {}
    for question in ("Đèn màu gì?", "Which colour?"):
        seen = Observation((1.0, 2.0), question, ("x", "y", "z"))
        texts[question] = "".join(p.get("text", "") for p in task.messages(seen)[0]["content"])
    assert "Câu hỏi: Đèn màu gì?\nA. x\nB. y\nC. z\n" in texts["Đèn màu gì?"]
    assert "Question: Which colour?\nA. x\nB. y\nC. z\n" in texts["Which colour?"]
    assert "1.0 s ago" in texts["Which colour?"]
    single = task.messages(Observation((1.0,), "Which colour?", ("x", "y")))
    assert "This is a picture" in single[0]["content"][1]["text"]
    assert language_of(unicodedata.normalize("NFD", "Đèn màu gì?")) == "vi"
    extra = {"question": "Q?", "choices": ["x", "y"]}
    clip, other = (Clip("q", "v.mp4", "g", "test", None, None, None, 5.0, 10.0, {**extra, "answer": n}) for n in (0, 1))
    one, two = (Sample("q@0", c, 0.0, 5.0, (1.0,), 0) for c in (clip, other))
    assert task.messages(observe(one, (1.0,))) == task.messages(observe(two, (1.0,)))
    assert (task.answer(one), task.answer(two)) == ("A", "B")


def test_a_choice_without_a_question_is_refused():
    with pytest.raises(ConfigError, match="needs clips with questions"):
        MCQTask("full").messages(Observation((1.0,)))


# -- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_over_all_letters_equals_one_pass_a_letter(config, cache, family):
    spec = config(f"model={family}", "model.checkpoint=tiny", "data=synthetic")["model"]
    load_model = resolve("backbone", spec["_target_"])
    backbone = load_model(
        str(twin_folder(twin_of(spec), cache / "twins")), twin_of(spec)["image_kwargs"], spec["roles"], "float32"
    )
    backbone.eval()
    task, rng = MCQTask("full"), np.random.default_rng(0)
    asked = [("Đèn màu gì?", ("đỏ", "xanh", "vàng", "tắt")), ("Is it night?", ("Yes", "No"))]
    chats = [task.messages(Observation((0.0, 1.0), q, c)) for q, c in asked]
    frames = [rng.integers(0, 255, (2, 64, 64, 3), dtype=np.uint8) for _ in asked]
    with torch.no_grad():
        at_once = backbone.score(backbone.encoder.encode(chats, frames), LETTERS)
        apart = []
        for letter in LETTERS:
            values, mask = backbone.answer_logprobs(backbone.encoder.encode(chats, frames, [letter] * 2))
            assert mask[:, 0].all()
            apart.append(values[:, 0])
        reference = torch.stack(apart, 1).log_softmax(-1)
    assert (at_once - reference).abs().max() < 1e-5


def module_and_batch(config, *words):
    cfg = config(*WORLD, "model=internvl3", *words)
    data, module = prepare_data(cfg), build_module(cfg).eval()
    dataset = SampleDataset(data.samples["test"], data.store)
    items = [dataset[i] for i in range(min(len(dataset), 12))]
    with torch.no_grad():
        return items, module, module.collate("predict")(items)


def test_letters_that_do_not_exist_have_no_probability(config):
    items, module, batch = module_and_batch(config)
    with torch.no_grad():
        scores = module.compute_scores(batch)
    counts = torch.tensor([len(i.sample.clip.extra["choices"]) for i in items])
    assert len(set(counts.tolist())) > 1
    assert torch.allclose(scores.sum(1), torch.ones(len(items)))
    for row, count in zip(scores, counts, strict=True):
        assert (row[count:] == 0).all()


def test_reordering_removes_a_preference_for_a_place(config, monkeypatch):
    items, module, batch = module_and_batch(config, "task.reorder=true")
    # A model that always likes the first letter must end undecided.
    logits = torch.tensor([5.0, 1.0, 0.0, -1.0])
    monkeypatch.setattr(
        module.backbone,
        "score",
        lambda inputs, c, before=None: logits.log_softmax(-1).repeat(len(inputs["input_ids"]), 1),
    )
    scores = module.compute_scores(batch)
    for row, i in zip(scores, items, strict=True):
        count = len(i.sample.clip.extra["choices"])
        assert torch.allclose(row[:count], torch.full((count,), 1 / count), atol=1e-6)


def test_reordered_scores_follow_the_option_not_the_place(config, monkeypatch):
    items, module, batch = module_and_batch(config, "task.reorder=true")
    # A model that knows the right text finds it wherever it stands.
    right = {i.sample.clip.extra["choices"][i.sample.clip.extra["answer"]] for i in items}
    tokenizer = module.backbone.encoder.tokenizer

    def knows(inputs, choices, before=None):
        out = []
        for ids in inputs["input_ids"]:
            lines = tokenizer.decode(ids).splitlines()
            row = [-9.0] * 4
            for line in lines:
                if line[1:3] == ". " and line[0] in LETTERS and line[3:] in right:
                    row[LETTERS.index(line[0])] = 0.0
            out.append(row)
        return torch.tensor(out).log_softmax(-1)

    monkeypatch.setattr(module.backbone, "score", knows)
    scores = module.compute_scores(batch)
    for row, i in zip(scores, items, strict=True):
        extra = i.sample.clip.extra
        good = [n for n, c in enumerate(extra["choices"]) if c in right]
        assert row[good].sum() > 0.99
        assert row[extra["answer"]] > 0.99 / len(good) - 1e-6


def test_options_can_be_scored_by_their_whole_text(config):
    items, module, batch = module_and_batch(config, "task.answer_with=text", "model.dtype=float32")
    with torch.no_grad():
        scores = module.compute_scores(batch)
        first = items[0].sample.clip.extra["choices"]
        chat = [module.task.messages(observe(items[0].sample, items[0].frame_times_s.tolist()))]
        alone = []
        for text in first:
            values, mask = module.backbone.answer_logprobs(
                module.backbone.encoder.encode(chat, [items[0].frames], [text])
            )
            alone.append(float(values.sum() / mask.sum()))
    expected = torch.tensor(alone).softmax(0)
    assert torch.allclose(scores[0][: len(first)], expected, atol=1e-5)
    assert module.task.parse(first[0].upper(), observe(items[0].sample, (0.0,)))[0] == 0


# -- numbers ------------------------------------------------------------------------------------


def table(target, scores, **more):
    n = len(target)
    base = {
        "clip_id": [f"q{i}" for i in range(n)], "group": [f"g{i // 2}" for i in range(n)], "primary": True,
        "target": pd.array(target, dtype="Int64"), "scores": scores,
        "num_choices": [4 if s is None else len(s) for s in scores],
        "status": None, "answer": pd.array([None] * n, dtype="Int64"), "latency_s": 0.1,
        "pixels_off_scores": [[0.4, 0.3, 0.2, 0.1]] * n, "text_only_answer": pd.array([0] * n, dtype="Int64"),
    }  # fmt: skip
    return pd.DataFrame(base | more)


def one_hot(said, count=4):
    return [[0.97 if i == s else 0.01 for i in range(count)] if s is not None else None for s in said]


def test_choice_numbers_by_hand():
    target = [0, 1, 2, 3] * 10
    said = [0, 1, 2, 0] * 10
    found = evaluate(table(target, one_hot(said)), evaluations()["choice"])
    values = {k: v["value"] for k, v in found["metrics"].items()}
    assert values["accuracy"] == pytest.approx(0.75)
    assert values["accuracy_D"] == 0.0
    assert found["confusion"]["D"] == {"A": 10, "B": 0, "C": 0, "D": 0, "none": 0}
    assert found["answers"] == {"A": 20, "B": 10, "C": 10, "D": 0, "none": 0}
    assert found["baselines"]["random_accuracy"]["value"] == 0.25
    assert found["baselines"]["always_a_accuracy"]["value"] == 0.25
    assert found["metrics"]["above_majority"]["low"] > 0
    assert found["alarms"] == []


def test_choice_alarms():
    target = [0, 1, 2, 3] * 10
    assert any(
        "every answer is A" in a for a in evaluate(table(target, one_hot([0] * 40)), evaluations()["choice"])["alarms"]
    )
    failed = evaluate(table(target, one_hot([None, *[0, 1, 2, 3] * 9, 0, 1, 2])), evaluations()["choice"])
    assert failed["counts"]["failed_rows"] == 1
    assert any("1 rows could not be computed" in a for a in failed["alarms"])
    assert any(
        "longer than 30 s" in a
        for a in evaluate(table(target, one_hot(target), latency_s=31.0), evaluations()["choice"])["alarms"]
    )
    leaky = evaluate(table(target, one_hot(target), pixels_off_scores=one_hot(target)), evaluations()["choice"])
    assert any("shortcut" in a for a in leaky["alarms"])


# -- the synthetic world ------------------------------------------------------------------------


def test_synthetic_questions_tell_nothing_by_text():
    asked = [q for s in draw_scenes(2000, 0, 0.5, 9.0) for q in questions(s, 0)]
    assert {q.language for q in asked} == {"vi", "en"}
    assert {len(q.choices) for q in asked} == {2, 3, 4}
    for count in (3, 4):
        places = np.bincount([q.answer for q in asked if len(q.choices) == count])
        assert places.max() / places.sum() < 1 / count + 0.03
    for key in {q.key for q in asked}:
        right = [q.choices[q.answer] for q in asked if q.key == key and q.language == "en"]
        shares = pd.Series(right).value_counts(normalize=True)
        assert shares.max() - shares.min() < 0.12, shares
    assert all(0 < t < 9 for q in asked for t in q.support_s)


def test_questions_about_one_video_share_its_frames(config):
    cfg = config(*WORLD, "model=internvl3", "data.support_frames=never")
    data = prepare_data(cfg)
    samples = [s for split in data.samples.values() for s in split]
    files = {data.store._entries.path(data.store.key(Path(s.clip.path))) for s in samples}
    assert len(samples) > 1.5 * len(files)


@pytest.mark.slow
@pytest.mark.long
def test_a_finished_run_is_scored_again_with_its_own_task_and_settings(dashvlm, tmp_path):
    words = [*WORLD, "model=internvl3", "trainer.max_steps=2", "data.shots.eval=1", "data.shots.least=1"]
    dashvlm("train", *words)
    folder = next((tmp_path / "runs").glob("mcq-*"))
    done = dashvlm("evaluate", f"run={folder}", "data=synthetic")
    again = next((tmp_path / "runs").glob("eval-*"))
    one, two = (pd.read_parquet(f / "predictions.parquet") for f in (folder, again))
    assert list(one["sample_id"]) == list(two["sample_id"])
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(one["scores"], two["scores"], strict=True))
    assert "sampling=uniform" in done.stdout
    done = dashvlm("predict", f"run={folder}", "video=x.mp4", check=False)
    assert done.returncode == 2
    done = dashvlm("report")
    assert "runs of mcq" in done.stdout


def test_plots_need_no_texts_of_choices(tmp_path):
    """Another task with choices may use the evaluation without naming them."""
    from dashvlm.data.frames import FrameStore
    from dashvlm.tasks.mcq.plots import draw

    target = [0, 1, 2, 3] * 5
    rows = table(target, one_hot([0] * 20)).drop(columns=["question", "choices"], errors="ignore")
    rows = rows.assign(path="absent.mp4", frame_times_s=[[0.0]] * 20)
    made = draw(rows, evaluate(rows, evaluations()["choice"]), tmp_path, FrameStore(tmp_path / "store"))
    assert set(made) == {"confusion", "accuracy"}
    assert all(path.is_file() for path in made.values())
