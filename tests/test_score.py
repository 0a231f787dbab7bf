# ruff: noqa: E501
"""Predictions that others wrote, scored as a run of ours is: right values, and nothing lost without a word."""

import json

import numpy as np
import pandas as pd
import pytest

from dashvlm.errors import DataError
from dashvlm.tables.records import common_key, read_records
from tests.conftest import REAL

BVPI, NEXAR = REAL / "bvpi", REAL / "nexar" / "llama32_val_results.csv"
PUBLISHED = BVPI / "published_openflamingo"
real = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published files")
LABELS = {"00001": 1, "00002": 1, "00003": 1, "00010": 0, "00011": 0, "00012": 0}
SCORES = {"00001": 0.9, "00002": 0.8, "00003": 0.2, "00010": 0.7, "00011": 0.1, "00012": 0.3}


@pytest.fixture
def train_csv(tmp_path):
    """Nexar's table, videos not at hand."""
    path = tmp_path / "train.csv"
    lines = [f"{n},{19.5 if y else ''},{18.0 if y else ''},{y}" for n, y in LABELS.items()]
    path.write_text("id,time_of_event,time_of_alert,target\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def scored(dashvlm, tmp_path):
    """Score a file: ``scored(*words) -> (result.json, rows, what was printed)``."""

    def call(*words):
        done = dashvlm("score", *words)
        folder = max((tmp_path / "runs").glob("score-*"), key=lambda p: p.stat().st_mtime_ns)
        result = json.loads((folder / "result.json").read_text())
        return result, pd.read_parquet(folder / "predictions.parquet"), done.stdout

    return call


def value(result, name):
    return result["metrics"][name]["value"]


# -- crash ---------------------------------------------------------------------------------------


def submission(form, path):
    rows = [{"id": k, "score": v} for k, v in SCORES.items()]
    if form == "csv":
        path.write_text("id,score\n" + "".join(f"{r['id']},{r['score']}\n" for r in rows))
    elif form == "semicolon":
        path.write_text("id;score;note\n" + "".join(f"{r['id']};{r['score']};a, b\n" for r in rows))
    elif form == "json":
        path.write_text(json.dumps(rows, indent=3))
    elif form == "mapping":
        path.write_text(json.dumps(SCORES))
    elif form == "jsonl":
        path.write_text("\n".join(json.dumps({"video": f"train/{r['id']}.mp4", "prob": r["score"]}) for r in rows))
    elif form == "numbers":
        path.write_text("id,prediction\n" + "".join(f"{int(r['id'])}.0,{r['score']}\n" for r in rows))
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("form", "name"),
    [("csv", "s.csv"), ("semicolon", "s.csv"), ("json", "s.json"), ("mapping", "s.json"), ("jsonl", "s.jsonl"),
     ("jsonl", "lines.json"), ("numbers", "s.csv"), ("parquet", "s.parquet")],
)  # fmt: skip
def test_a_submission_in_any_form_gives_the_numbers_counted_by_hand(scored, train_csv, tmp_path, form, name):
    result, rows, _ = scored(
        "task=crash", f"predictions={submission(form, tmp_path / name)}", f"truth={train_csv}", "published=null"
    )
    assert value(result, "roc_auc") == pytest.approx(7 / 9)  # of nine pairs two are the wrong way round
    assert value(result, "accuracy") == pytest.approx(4 / 6)
    assert value(result, "ap") == pytest.approx((1 + 1 + 3 / 5) / 3)
    assert result["baselines"]["majority_accuracy"]["value"] == 0.5
    assert result["counts"]["failed_rows"] == 0
    assert "parse_rate" not in result["metrics"]  # there is no text
    assert len(rows) == 6


def test_clips_without_prediction_are_failed_rows_and_named(scored, train_csv, tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("id,score\n1,0.9\n2,0.8\n10,0.7\n11,\n99,0.5\n")
    result, rows, out = scored("task=crash", f"predictions={path}", f"truth={train_csv}")
    assert "2 of 6 clips have no prediction and count as failed: 00003, 00012" in " ".join(out.split())
    assert "1 predictions are of clips that the truth does not have: 99" in " ".join(out.split())
    assert result["counts"]["failed_rows"] == 3  # one has no score
    assert value(result, "accuracy") == pytest.approx(2 / 6)  # 1 and 2; 10 is wrong, the others failed
    assert value(result, "roc_auc") == pytest.approx(2 / 9)  # a failed row is the worst there is
    named = rows.set_index("clip_id")["problem"]
    assert named["00003"] == "no prediction"
    assert "no number" in named["00011"]


@pytest.mark.parametrize("truth", ["csv", "json", "parquet", "folder"])
def test_answers_have_no_score_and_the_numbers_that_need_one_are_absent(scored, train_csv, tmp_path, truth):
    place = train_csv
    if truth == "json":
        place = tmp_path / "t.json"
        place.write_text(json.dumps({"clips": [{"file_name": f"{k}.mp4", "label": v} for k, v in LABELS.items()]}))
    elif truth == "parquet":
        place = tmp_path / "t.parquet"
        pd.DataFrame({"clip_id": list(LABELS), "y_true": list(LABELS.values())}).to_parquet(place)
    elif truth == "folder":
        place = tmp_path
    path = tmp_path / "answers.jsonl"
    said = ["Yes.", "<answer>No</answer>", "It depends", "yes", "No", "No, the road is clear"]
    path.write_text("\n".join(json.dumps({"id": k, "response": t}) for k, t in zip(LABELS, said, strict=True)))
    result, _, out = scored("task=crash", f"predictions={path}", f"truth={place}")
    assert result["evaluation"] == "answers"
    assert value(result, "accuracy") == pytest.approx(3 / 6)
    assert value(result, "recall") == pytest.approx(1 / 3)
    assert value(result, "precision") == pytest.approx(1 / 2)
    assert value(result, "specificity") == pytest.approx(2 / 3)
    assert value(result, "balanced_accuracy") == pytest.approx(1 / 2)
    assert value(result, "f1") == pytest.approx(2 / 5)
    assert value(result, "parse_rate") == pytest.approx(5 / 6)
    assert value(result, "accuracy_of_parsed") == pytest.approx(3 / 5)
    assert result["confusion"] == {"tn": 2, "fp": 1, "fn": 1, "tp": 1, "no_answer_0": 0, "no_answer_1": 1}
    assert not {"roc_auc", "ap", "brier"} & set(result["metrics"])
    assert "absent: ROC AUC" in out


def test_labels_scores_and_texts_may_stand_together_and_columns_be_named(scored, train_csv, tmp_path):
    path = tmp_path / "both.csv"
    lines = [f'{k},{v},"{"Yes" if v > 0.5 else "hm"}"' for k, v in SCORES.items()]
    path.write_text("clip,p,words\n" + "\n".join(lines))
    names = ["columns.id=clip", "columns.score=p", "columns.text=words"]
    result, _, _ = scored("task=crash", f"predictions={path}", f"truth={train_csv}", *names)
    assert value(result, "roc_auc") == pytest.approx(7 / 9)
    assert value(result, "parse_rate") == pytest.approx(3 / 6)
    path.write_text("id,label\n" + "\n".join(f"{k},{int(v > 0.5)}" for k, v in SCORES.items()))
    own = tmp_path / "truth.csv"
    own.write_text("id,target,group\n" + "\n".join(f"{k},{v},drive{i // 2}" for i, (k, v) in enumerate(LABELS.items())))
    result, _, _ = scored("task=crash", f"predictions={path}", f"truth={own}", "columns.answer=label")
    assert value(result, "accuracy") == pytest.approx(4 / 6)
    assert result["counts"]["groups"] == 3


def test_several_horizons_give_the_challenges_mean(scored, train_csv, tmp_path):
    path = tmp_path / "h.csv"
    lines = [f"{k},{h},{min(1.0, v + (0.3 if h == 0.5 else 0))}" for k, v in SCORES.items() for h in (0.5, 1.0)]
    path.write_text("id,horizon_s,score\n" + "\n".join(lines))
    result, rows, _ = scored("task=crash", f"predictions={path}", f"truth={train_csv}", "horizon_s=1.0")
    assert value(result, "ap@1s") == pytest.approx((1 + 1 + 3 / 5) / 3)
    assert value(result, "map_horizons") == pytest.approx((value(result, "ap@1s") + value(result, "ap@0.5s")) / 2)
    assert value(result, "roc_auc") == pytest.approx(7 / 9)
    assert rows["primary"].sum() == 6
    result, rows, _ = scored("task=crash", f"predictions={path}", f"truth={train_csv}")
    assert set(rows.loc[rows["primary"], "horizon_s"]) == {0.5}  # the smallest, unless another is asked for


def test_scores_that_are_no_probabilities_are_ranked_and_nothing_else(scored, train_csv, tmp_path):
    path = tmp_path / "logits.csv"
    logits = {k: 10 * v - 7 for k, v in SCORES.items()}
    path.write_text("id,score\n" + "".join(f"{k},{v}\n" for k, v in logits.items() if k != "00003"))
    result, rows, out = scored("task=crash", f"predictions={path}", f"truth={train_csv}")
    assert value(result, "roc_auc") == pytest.approx(6 / 9)  # the missing positive is below all
    assert set(result["metrics"]) == {"roc_auc", "ap"}
    assert not [n for n in result["baselines"] if "accuracy" in n]
    assert result["confusion"] == {}
    assert "no probabilities" in out
    assert rows.set_index("clip_id").loc["00001", "raw_score"] == pytest.approx(2.0)
    path.write_text("id,score\n" + "".join(f"{k},{v}\n" for k, v in logits.items() if k != "00012"))
    result, _, _ = scored("task=crash", f"predictions={path}", f"truth={train_csv}")
    assert value(result, "roc_auc") == pytest.approx(5 / 9)  # the missing negative is above all, the best one too


@pytest.mark.parametrize(
    ("content", "words", "told"),
    [
        ("id,score\n1,0.9\n1,0.8\n", [], "two different predictions of 1"),
        ("id,score\nx,0.9\n", [], "no prediction is of a clip of the truth"),
        ("id,score\n", [], "has no rows"),
        ("", [], "has no rows|is empty"),
        ("name_of_it,score\n1,0.9\n", [], "no column with the clip's name"),
        ("id,what\n1,0.9\n", [], "nothing to score"),
        ("id,score\n1,0.9\n", ["columns.score=p"], "no column p"),
        ("id,score\n1,0.9\n", ["truth=nowhere.csv"], "no file, no folder and no dataset"),
        ("id,score\n1,0.9\n", ["split=val"], "has no val clips"),
        ("id,score\n1,0.9\n", ["horizon_s=3"], "horizon_s=3"),
        ("id,response\n1,Yes\n", ["clean=harder"], "no cleaning rule"),
        ("id,score\n1,0.9\n", ["published=nexar"], "study=nexar is unknown"),
    ],
)
def test_what_cannot_be_scored_says_what_got_do(dashvlm, train_csv, tmp_path, content, words, told):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    place = [] if any(w.startswith("truth=") for w in words) else [f"truth={train_csv}"]
    done = dashvlm("score", "task=crash", f"predictions={path}", *place, *words, check=False)
    assert done.returncode == 2, done.stdout
    assert any(t in done.stderr for t in told.split("|")), done.stderr
    assert "Traceback" not in done.stderr


def test_a_runs_own_rows_give_its_own_numbers(scored, tmp_path, dashvlm):
    from tests.conftest import SMALL

    dashvlm("train", *SMALL, "trainer.max_steps=1")
    run = next(p.parent for p in (tmp_path / "runs").glob("*/result.json"))
    known = json.loads((run / "result.json").read_text())
    result, _, _ = scored("task=crash", f"predictions={run / 'predictions.parquet'}")
    for name, estimate in known["metrics"].items():
        assert value(result, name) == pytest.approx(estimate["value"]), name
    # ... and so do its scores alone, held against its own labels.
    rows = pd.read_parquet(run / "predictions.parquet")
    first = rows[rows["primary"]]
    first[["clip_id", "score"]].to_csv(tmp_path / "s.csv", index=False)
    first[["clip_id", "target", "group"]].to_csv(tmp_path / "t.csv", index=False)
    result, _, _ = scored("task=crash", f"predictions={tmp_path / 's.csv'}", f"truth={tmp_path / 't.csv'}")
    assert result["metrics"]["roc_auc"]["value"] == pytest.approx(known["metrics"]["roc_auc"]["value"])


@pytest.mark.parametrize(
    ("cells", "right"),
    [
        (["0,9", "0,8", "0,2", "0,7", "0,1", "0,3"], 7 / 9),
        (["90%", "80%", "20%", "70%", "10%", "30%"], 7 / 9),
        ([f"[{1 - s:.1f} {s}]" for s in SCORES.values()], 7 / 9),
        ([f"tensor({s}, device='cuda:0')" for s in SCORES.values()], 7 / 9),
        ([str(1.0000001 if s == 0.9 else s) for s in SCORES.values()], 7 / 9),
    ],
    ids=["comma", "per cent", "pair", "tensor", "float32"],
)
def test_numbers_are_read_as_programs_print_them(scored, train_csv, tmp_path, cells, right):
    path = tmp_path / "s.csv"
    path.write_text("id,score\n" + "".join(f'{k},"{c}"\n' for k, c in zip(LABELS, cells, strict=True)))
    result, _, _ = scored("task=crash", f"predictions={path}", f"truth={train_csv}")
    assert value(result, "roc_auc") == pytest.approx(right)
    assert value(result, "accuracy") == pytest.approx(4 / 6)  # they are probabilities


@pytest.mark.parametrize(
    ("yes", "no"), [("POSITIVE", "NEGATIVE"), ("crash", "normal"), ("True", "False"), ("Answer: Yes", "Answer: No"),
                    ("<think>No car, yes?</think> Yes", "<think>Yes?</think>No"), ("LABEL_1", "LABEL_0")],
)  # fmt: skip
def test_answers_are_read_in_the_words_that_programs_use(scored, train_csv, tmp_path, yes, no):
    path = tmp_path / "s.jsonl"
    rows = [{"id": k, "prediction": yes if s > 0.5 else no} for k, s in SCORES.items()]
    path.write_text("\n".join(map(json.dumps, rows)))
    result, _, _ = scored("task=crash", f"predictions={path}", f"truth={train_csv}")
    assert value(result, "accuracy") == pytest.approx(4 / 6)
    assert value(result, "parse_rate") == 1.0


def test_a_score_of_how_sure_an_answer_is_becomes_the_probability_of_yes(scored, train_csv, tmp_path):
    path = tmp_path / "pipeline.json"
    rows = [
        {"id": k, "label": "POSITIVE" if s > 0.5 else "NEGATIVE", "score": max(s, 1 - s)} for k, s in SCORES.items()
    ]
    path.write_text(json.dumps(rows))
    result, _, out = scored("task=crash", f"predictions={path}", f"truth={train_csv}")
    assert value(result, "roc_auc") == pytest.approx(7 / 9)
    assert "were turned round" in out


def test_answers_by_a_high_threshold_are_no_sign_of_confidence(scored, train_csv, tmp_path):
    """All scores above a half, and a threshold of 0.85 gives the answers: they are probabilities of yes."""
    path = tmp_path / "p.csv"
    path.write_text("id,score,pred\n" + "".join(f"{k},{0.5 + v / 2},{int(v > 0.75)}\n" for k, v in SCORES.items()))
    result, _, out = scored("task=crash", f"predictions={path}", f"truth={train_csv}")
    assert value(result, "roc_auc") == pytest.approx(7 / 9)
    assert "turned round" not in out
    path.write_text("id,p_yes,pred\n" + "".join(f"{k},{0.5 + v / 2},0\n" for k, v in SCORES.items()))
    result, _, out = scored("task=crash", f"predictions={path}", f"truth={train_csv}")
    assert value(result, "roc_auc") == pytest.approx(7 / 9)  # the column says whose probability it is


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,answer\nq1,A\nq2,B\n", ["task=mcq"]),  # a submission is no truth about itself
        ('[{"image": "a.jpg", "response": "foo"}, {"image": "b.jpg", "response": "bar"}]', ["task=caption"]),
        ("id,score\n1,0.4\n2,0.6\n", ["task=crash"]),
    ],
)
def test_one_column_is_not_prediction_and_truth(dashvlm, tmp_path, content, words):
    path = tmp_path / ("p.csv" if content.startswith("id") else "p.json")
    path.write_text(content)
    done = dashvlm("score", *words, f"predictions={path}", check=False)
    assert done.returncode == 2
    assert "give truth=FILE" in done.stderr


def test_what_cannot_be_read_at_all_is_no_result(dashvlm, train_csv, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"id": k, "scores": [0.1, 0.2, 0.7]} for k in LABELS]))  # a score a frame
    done = dashvlm("score", "task=crash", f"predictions={path}", f"truth={train_csv}", check=False)
    assert done.returncode == 2
    assert "list of 3 numbers" in done.stderr


def test_classes_are_no_scores_and_unreadable_answers_are_shown(dashvlm, scored, train_csv, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,prediction\n" + "".join(f"{k},{1 if v > 0.5 else -1}\n" for k, v in SCORES.items()))
    done = dashvlm("score", "task=crash", f"predictions={path}", f"truth={train_csv}", check=False)
    assert done.returncode == 2
    assert "the scores are classes" in done.stderr
    path.write_text("id,response\n" + "".join(f"{k},There is a car ahead\n" for k in SCORES))
    result, _, out = scored("task=crash", f"predictions={path}", f"truth={train_csv}")
    assert value(result, "parse_rate") == 0.0
    assert "for example 'There is a car ahead'" in " ".join(out.split())


def test_one_horizon_a_clip_is_scored_together_and_the_id_that_meets_is_taken(scored, train_csv, tmp_path):
    path = tmp_path / "p.csv"
    lines = [f"{i},{k}.mp4,{0.5 * (1 + i % 3)},{v}" for i, (k, v) in enumerate(SCORES.items())]
    path.write_text("id,video,horizon_s,score\n" + "\n".join(lines))
    result, _, out = scored("task=crash", f"predictions={path}", f"truth={train_csv}")
    assert value(result, "roc_auc") == pytest.approx(7 / 9)
    assert result["counts"]["failed_rows"] == 0
    assert "map_horizons" not in result["metrics"]
    assert "id from 'video'" in out


# -- multiple choice -----------------------------------------------------------------------------

QUESTIONS = [
    {"id": "q1", "question": "Màu gì?", "choices": ["A. Đỏ", "B. Xanh"], "answer": "A. Đỏ", "video_path": "v/r1_x.mp4"},
    {"id": "q2", "question": "Được rẽ?", "choices": ["A. Có", "B. Không"], "answer": "B", "video_path": "v/r1_y.mp4"},
    {"id": "q3", "question": "Mấy xe?", "choices": ["A. 1", "B. 2", "C. 3", "D. 4"], "answer": "D. 4",
     "video_path": "v/r2.mp4"},
    {"id": "q4", "question": "Biển gì?", "choices": ["B. Cấm", "C. Dừng"], "answer": "B. Cấm",
     "video_path": "v/r3.mp4"},
]  # fmt: skip


@pytest.fixture
def train_json(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"__count__": 4, "data": QUESTIONS}, ensure_ascii=False))
    return path


def test_a_submission_of_letters_is_scored_as_it_is_written(scored, train_json, tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("id,answer\nq1,A\nq2,A\nq3,d\nq4,B\n")  # q4 has no A: its letters are B and C
    result, _, _ = scored("task=mcq", f"predictions={path}", f"truth={train_json}")
    assert value(result, "accuracy") == pytest.approx(3 / 4)
    assert value(result, "accuracy_2_choices") == pytest.approx(2 / 3)
    assert result["baselines"]["random_accuracy"]["value"] == pytest.approx((3 * 0.5 + 0.25) / 4)
    assert value(result, "parse_rate") == 1.0
    assert "log_loss" not in result["metrics"]  # letters have no probability


def test_a_plain_table_of_ids_and_letters_is_truth_enough(scored, tmp_path):
    truth, path = tmp_path / "truth.csv", tmp_path / "said.csv"
    truth.write_text("id,answer\nq1,A\nq2,B\nq3,D\nq4,A\n")
    path.write_text('id,prediction\nq1,"The answer is A."\nq2,The light is green\nq3,Đáp án: D\nq4,B. Cấm\n')
    result, rows, _ = scored("task=mcq", f"predictions={path}", f"truth={truth}")
    assert value(result, "accuracy") == pytest.approx(2 / 4)
    assert value(result, "parse_rate") == pytest.approx(3 / 4)
    assert result["baselines"]["majority_accuracy"]["value"] == pytest.approx(2 / 4)
    assert "random_accuracy" not in result["baselines"]  # how many choices there are is not known
    assert result["confusion"]["D"]["D"] == 1
    assert rows.set_index("clip_id").loc["q2", "status"] == "unparsed"


def test_probabilities_of_letters_are_scored_and_texts_of_options_are_answers(scored, train_json, tmp_path):
    path = tmp_path / "p.jsonl"
    shares = {"q1": [0.6, 0.4], "q2": [0.3, 0.7], "q3": [0.1, 0.2, 0.3, 0.4], "q4": [0.2, 0.8]}
    path.write_text("\n".join(json.dumps({"id": k, "scores": v}) for k, v in shares.items()))
    result, _, _ = scored("task=mcq", f"predictions={path}", f"truth={train_json}")
    assert value(result, "accuracy") == pytest.approx(3 / 4)
    assert value(result, "log_loss") == pytest.approx(-np.mean(np.log([0.6, 0.7, 0.4, 0.2])))
    path = tmp_path / "texts.csv"
    path.write_text("id,answer\nq1,Đỏ\nq2,không\nq3,3\nq4,\n")
    result, rows, _ = scored("task=mcq", f"predictions={path}", f"truth={train_json}")
    assert value(result, "accuracy") == pytest.approx(2 / 4)
    assert rows.set_index("clip_id").loc["q4", "problem"] == "an empty prediction"


PLAIN = "id,answer\nq1,A\nq2,B\n"


@pytest.mark.parametrize(
    ("name", "content", "right", "loss"),
    [
        ("gold.csv", "id,question,answer,prediction\nq1,x,A,C\nq2,x,B,C\n", 0.0, None),  # `answer` is the truth
        ("texts.csv", "id,A,B,C,D,prediction\nq1,50,60,70,80,A\nq2,50,60,70,80,B\n", 1.0, None),  # options, no scores
        ("short.csv", "id,A,B,C,D\nq1,0.7,0.2,0.1,\nq2,0.2,0.7,0.1,\n", 1.0, -np.log(0.7)),
        ("named.csv", "id,prob_A,prob_B\nq1,0.7,0.3\nq2,0.4,0.6\n", 1.0, -np.log([0.7, 0.6]).mean()),
        ("logs.json", '[{"id":"q1","scores":[-0.1,-3,-4]},{"id":"q2","scores":[-3,-0.1,-4]}]', 1.0, None),
        ("percent.json", '[{"id":"q1","scores":[60,40]},{"id":"q2","scores":[70,30]}]', 0.5, None),
        ("dict.json", '[{"id":"q1","probabilities":{"A":0.6,"B":0.4}},{"id":"q2","probabilities":{"A":0.3,"B":0.7}}]',
         1.0, -np.log([0.6, 0.7]).mean()),
        ("many.json", '[{"id":"q1","scores":[0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1]},{"id":"q2","answer":"B"}]', 0.5, None),
        ("boxed.jsonl", '{"id":"q1","response":"So \\\\boxed{A}."}\n{"id":"q2","response":"Answer: B because"}', 1.0, None),
    ],
)  # fmt: skip
def test_choices_as_programs_write_them(scored, tmp_path, name, content, right, loss):
    truth, path = tmp_path / "truth.csv", tmp_path / name
    truth.write_text(PLAIN)
    path.write_text(content)
    result, _, _ = scored("task=mcq", f"predictions={path}", f"truth={truth}")
    assert value(result, "accuracy") == pytest.approx(right)
    if loss is None:  # what is no probability has no log loss
        assert "log_loss" not in result["metrics"]
        assert result["unavailable"] == {"log loss": "no choice has a probability"}
    else:
        assert value(result, "log_loss") == pytest.approx(loss)


# -- scenes and captions -------------------------------------------------------------------------


def test_scenes_are_read_from_texts_objects_and_columns(scored, tmp_path):
    from dashvlm.data.formats import bdd100k
    from dashvlm.text.scene_schema import FIELDS, SCHEMA

    def fields(word):
        return {f: SCHEMA["properties"][f]["enum"][word % len(SCHEMA["properties"][f]["enum"])] for f in FIELDS}

    items = [{"video_id": f"abcdefg{i}-1.mp4", "QA": {"q": "Describe", "a": json.dumps(fields(i))}} for i in range(4)]
    truth = tmp_path / "scenes.json"
    truth.write_text(json.dumps(items))
    assert len(list(bdd100k.rows(tmp_path, {"file": "scenes.json"}))) == 4
    said = [fields(i) if i < 3 else {**fields(3), "weather": fields(2)["weather"]} for i in range(4)]
    right = (3 * 1 + np.mean([said[3][f] == fields(3)[f] for f in FIELDS])) / 4
    for name, rows in {
        "objects.jsonl": [{"video_id": f"abcdefg{i}-1", "prediction": s} for i, s in enumerate(said)],
        "texts.jsonl": [
            {"video_id": f"abcdefg{i}-1.mp4", "response": f"Here:\n{json.dumps(s)}"} for i, s in enumerate(said)
        ],
        "twice.jsonl": [
            {"video_id": f"abcdefg{i}-1.mp4", "response": json.dumps(json.dumps(s))} for i, s in enumerate(said)
        ],
        "nested.jsonl": [{"video_id": f"abcdefg{i}-1.mp4", "output": {"parameters": s}} for i, s in enumerate(said)],
        "columns.jsonl": [{"video_id": f"abcdefg{i}-1.mp4", **s} for i, s in enumerate(said)],
    }.items():
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)))
        result, _, _ = scored("task=scene", f"predictions={path}", f"truth={truth}")
        assert value(result, "field_accuracy") == pytest.approx(right), name
        assert value(result, "parse_rate") == 1.0


def test_captions_find_their_references_and_all_pictures_of_the_split_count(scored, tmp_path):
    captions = tmp_path / "captions.csv"
    lines = [f"testing/images/p{i}.jpg,A wide path with a tree on side {i}.,test" for i in range(4)]
    lines += ["training/images/t1.jpg,The path is clear.,train", "training/images/t2.jpg,The path is clear.,train"]
    captions.write_text("image_path,target,split\n" + "\n".join(lines) + "\n")
    path = tmp_path / "inference_results_openflamingo_test.json"  # a published file's name makes it none
    path.write_text(
        json.dumps([{"image": f"p{i}.jpg", "caption": f"A wide path with a tree on side {i}."} for i in (0, 1)])
    )
    result, _, out = scored("task=caption", f"predictions={path}", f"truth={captions}", "columns.text=caption")
    assert result["split"] == "test"
    assert result["counts"]["test_clips"] == 4
    assert "2 of 4 clips have no prediction" in out
    assert value(result, "ROUGE-L") == pytest.approx(0.5)  # two are right word for word, two are empty
    assert result["baselines"]["usual_avg_prediction_length"]["value"] == 4.0  # "The path is clear."


@real
def test_the_studies_numbers_come_from_the_published_files(scored):
    """Held against results.csv, which was frozen from the same files by their studies."""

    def frozen(study, row, form="corrected"):
        table = pd.read_csv(f"experiments/{study}/results.csv")
        return table[(table["form"] == form) & (table["row"] == row)].set_index("metric")

    result, _, out = scored("task=crash", f"predictions={NEXAR}", "published=nexar_models")
    known = frozen("nexar_models", "LLaMA 3.2 Base")
    assert {"accuracy", "precision", "recall", "parse_rate", "accuracy_of_parsed"} == set(known.index)
    for name, line in known.iterrows():
        for part in ("value", "low", "high"):
            assert result["metrics"][name][part] == pytest.approx(line[part]), (name, part)
    assert out.count("reproduced") == 5
    free = PUBLISHED / "inference_results_openflamingo_test.json"
    result, _, _ = scored("task=caption", f"predictions={free}", f"truth={BVPI}")
    for form, prefix in (("corrected", ""), ("constant", "usual_")):
        for name, line in frozen("bvpi_captions", "openflamingo", form).iterrows():
            held = result["baselines" if prefix else "metrics"][f"{prefix}{name}"]
            assert held["value"] == pytest.approx(line["value"], abs=1e-9), name
            assert (held["low"] is None) == np.isnan(line["low"])
            if held["low"] is not None:
                assert held["low"] == pytest.approx(line["low"])
    written = PUBLISHED / "bvpi_flamingo_inference_results.jsonl"
    result, _, _ = scored("task=caption", f"predictions={written}", f"truth={BVPI}")
    for name, line in frozen("bvpi_fields", "openflamingo").iterrows():
        assert value(result, name) == pytest.approx(line["value"]), name
    objects = {(o["object"], o["scope"]): o for o in result["objects"]}
    for name, line in frozen("bvpi_objects", "openflamingo").iterrows():
        part, thing = name.split("_", 1)
        assert objects[thing, "nearby"][part]["value"] == pytest.approx(line["value"]), name
        assert objects[thing, "nearby"][part]["low"] == pytest.approx(line["low"])


# -- files ---------------------------------------------------------------------------------------


def test_ids_meet_by_the_strictest_way_that_works():
    assert common_key(["a/1.mp4", "b/1.mp4"], ["a/1.mp4", "b/1.mp4"])("a/1.mp4") == "a/1.mp4"
    assert common_key(["1", "2"], ["00001", "00002"])("00002") == "2"
    assert common_key(["x/1.mp4", "y/1.mp4"], ["1"])("x/1.mp4") == "x/1.mp4"  # they would fall together


def test_unreadable_records_are_named_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": 1, "score": NaN}\n{"id": 2\n[3]\n{"id": 4, "score": 0.5}\n')
    found = read_records(path)
    assert [r["id"] for r in found.rows] == [1, 4]
    assert found.rows[0]["score"] is None
    assert len(found.notes) == 2
    path = tmp_path / "two.json"
    path.write_text('{"a": [{"id": 1}], "b": [{"id": 2}]}')
    with pytest.raises(DataError, match="several lists"):
        read_records(path)
    path = tmp_path / "p.csv"
    path.write_text("id,score\n1,0.5\n2,0.5,7\n")
    assert read_records(path).notes == ["line 3 has 3 cells, the header has 2"]
