# ruff: noqa: E501  a wrong row is easier to read in one line
"""Tables and folders that others made: every row is used, or named with a reason; nothing ends in a traceback."""

import json
import shutil
import unicodedata

import pandas as pd
import pytest

from dashvlm.config.cli import with_quotes
from dashvlm.config.overrides import check_words
from dashvlm.data.formats import bdd100k, bvpi, jsonl, nexar, roadbuddy
from dashvlm.data.frames import FrameStore
from dashvlm.data.manifest import build_manifest, leakage_report
from dashvlm.data.pictures import confined_files
from dashvlm.data.samples import build_samples
from dashvlm.data.textfiles import csv_rows, json_lines, read_text, strict_json
from dashvlm.errors import ConfigError, DataError
from dashvlm.labels.label_file import read_labels
from dashvlm.labels.pairs import read_pairs
from dashvlm.shortcuts.card import NONE, dataset_card
from dashvlm.tasks.crash import CrashTask

from .conftest import ROOT

CASES = ROOT.parent / "shared" / "cases"
OPTIONS = {
    "sampling": "anchored", "num_frames": 3, "frame_interval_s": 0.5, "horizon_s": 0.5, "reference": "event",
    "negative_reference": "matched", "short_history": "pad_oldest", "sampling_seed": 0, "split_seed": 0,
}  # fmt: skip
HEAD = "id,time_of_event,time_of_alert,target\n"


@pytest.fixture
def clip(counter_video):
    return counter_video("rows", num_frames=100)[0]  # 5 s


def manifest(root, rows, tmp_path, **changes):
    options = {"splits": {"train": 0.6, "val": 0.2, "test": 0.2}, "seed": 0, "max_bad_fraction": 1.0} | changes
    return build_manifest("x", rows, root, FrameStore(tmp_path / "store"), **options)


def named(made, how_many=1):
    """Rows that are not silently used: quarantined, marked as failed, or noted as irregular."""
    marked = [c for c in made.clips if {"failed", "irregular"} & set(c.extra)]
    reasons = [q.reason for q in made.quarantine] + [str(c.extra.get("failed") or c.extra["irregular"]) for c in marked]
    assert len(reasons) == how_many, (reasons, made.clips)
    assert all(reasons)
    return " ".join(reasons)


# -- Nexar --------------------------------------------------------------------------------------------

WRONG_NEXAR = {
    "1,,,1": "without time_of_event", "1,,,True": "without time_of_event", "1,,,yes": "without time_of_event",
    "1,nan,,1.0": "without time_of_event", "1,,,": "no target", "1,2.0,1.0,": "no target", "1,,,maybe": "neither 0 nor 1",
    "1,,,2": "neither 0 nor 1", "1,,,-1": "neither 0 nor 1", "1,,,0.5": "neither 0 nor 1", "x1,,,0": "not a number",
    ",,,0": "not a number", "1.5,,,0": "not a number", "-1,,,0": "not a number", "1,2.0,3.0,1": "alert at 3 s comes after",
    "1,2.0,,0": "labelled negative, but with an event", "1,-2,,1": "negative time", "1,00:02,,1": "not a number of seconds",
    "1,inf,,1": "not finite", "1,1e999,,1": "not finite", "1,99,,1": "event at 99 s", "1,2.0,-1,1": "alert time: negative",
    "1,2.0,x,1": "alert time: not a number", "1,2.0,1.0": "3 cells", "1,2.0,1.0,1,more": "5 cells", "1": "1 cells",
    "1,2;0,,1": "not a number of seconds", "0,2.0,1.0,1": "duplicate id", "00,2.0,1.0,1": "duplicate id",
    "7,2.0,1.0,1": "no such video", "1,2.0,1.0,１0": "neither 0 nor 1", "1\x00,2.0,,1": "NUL|not a number|cannot be read",
}  # fmt: skip


def nexar_root(tmp_path, clip, *lines, head=HEAD):
    root = tmp_path / "nexar"
    (root / "train").mkdir(parents=True, exist_ok=True)
    for number in (0, 1):
        shutil.copy(clip, root / "train" / f"{number:05d}.mp4")
    (root / "train.csv").write_text(head + "".join(f"{x}\n" for x in ("0,,,0", *lines)))
    return root


@pytest.mark.parametrize(("line", "reason"), WRONG_NEXAR.items(), ids=range(len(WRONG_NEXAR)))
def test_wrong_rows_of_nexar_are_named(line, reason, tmp_path, clip):
    root = nexar_root(tmp_path, clip, line)
    try:
        found = named(manifest(root, nexar.rows(root, {}), tmp_path, require_videos=True))
    except DataError as error:
        found = str(error)
    assert any(part in found for part in reason.split("|")), found


def test_true_and_yes_are_one(tmp_path, clip):
    root = nexar_root(tmp_path, clip, "1,2.0,1.0,True")
    assert [c.label for c in manifest(root, nexar.rows(root, {}), tmp_path).clips] == [0, 1]


def test_the_hubs_folders_have_labels_times_and_slices(tmp_path, clip):
    root = tmp_path / "hub"
    for part, kind, event in (
        ("train", "positive", "2.5,2.0"),
        ("train", "negative", ","),
        ("test-public", "positive", "3,1"),
    ):
        folder = root / part / kind
        folder.mkdir(parents=True)
        lines = ["file_name,time_of_event,time_of_alert,light_conditions,weather,scene"]
        for number in range(6 if part == "train" else 2):
            name = f"{kind[0]}{number:04d}.mp4"
            shutil.copy(clip, folder / name)
            lines.append(f"{name},{event},Night,Rain,Urban")
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    made = manifest(root, nexar.rows(root, {}), tmp_path)
    assert len(made.clips) == 14
    assert not made.quarantine
    positive = next(c for c in made.clips if c.clip_id == "p0000")
    assert (positive.label, positive.event_time_s, positive.alert_time_s) == (1, 2.5, 2.0)
    assert positive.extra["slices"] == {"light_conditions": "Night", "weather": "Rain", "scene": "Urban"}
    assert {c.split for c in made.clips if c.clip_id.startswith("test-public/")} == {"test"}
    # The same bytes lie in all splits here, and that is said.
    assert leakage_report(made, 0)["files_in_several_splits"]


def test_kaggles_test_ends_at_its_last_frame_and_is_submitted(tmp_path, clip):
    root = nexar_root(tmp_path, clip, "1,2.0,1.0,1")
    (root / "test").mkdir()
    shutil.copy(clip, root / "test" / "00007.mp4")
    (root / "test.csv").write_text("id\n7\nseven\n")
    made = manifest(root, nexar.rows(root, {"file": "test"}), tmp_path)
    assert "id is not a number" in named(made)
    samples, _ = build_samples(made.split("test"), OPTIONS, [0.5])
    assert samples[0].times_s == pytest.approx((3.95, 4.45, 4.95))
    task = CrashTask("crash_yes_no")
    assert task.columns(samples[0]) == {"submission_id": "7"}
    rows = pd.DataFrame(
        {"primary": [True, True], "submission_id": ["7", "8"], "score": [0.25, None], "clip_id": ["7", "8"]}
    )
    notes = task.write(rows, tmp_path)
    assert (tmp_path / "submission.csv").read_text() == "id,score\n7,0.25\n8,0.5\n"
    assert "1 of 2 rows had no score" in notes[0]
    assert task.write(rows.drop(columns="submission_id"), tmp_path) == []


# -- JSON lines ---------------------------------------------------------------------------------------

WRONG_JSONL = {
    "{": "not JSON", "[]": 'no "video"', "1": 'no "video"', "null": 'no "video"', '"a"': 'no "video"', "{}": 'no "video"',
    '{"video": 1, "label": 0}': 'no "video"', '{"video": "", "label": 0}': 'no "video"', '{"video": " ", "label": 0}': 'no "video"',
    '{"video": ["b.mp4"], "label": 0}': 'no "video"', '{"video": "b.mp4"}': "no label", '{"video": "b.mp4", "label": null}': "no label",
    '{"video": "b.mp4", "label": ""}': "no label", '{"video": "b.mp4", "label": "x"}': "neither 0 nor 1",
    '{"video": "b.mp4", "label": [1]}': "neither 0 nor 1", '{"video": "b.mp4", "label": {}}': "neither 0 nor 1",
    '{"video": "b.mp4", "label": NaN}': "NaN is no JSON value", '{"video": "b.mp4", "label": Infinity}': "Infinity is no JSON",
    '{"video": "b.mp4", "label": 1e999}': "too large", '{"video": "b.mp4", "label": 1, "label": 0}': "'label' is there twice",
    '{"video": "b.mp4", "label": 1, "text": 5}': "text is a int", '{"video": "b.mp4", "label": 1, "text": ["q"]}': "text is a list",
    '{"video": "b.mp4", "label": 1, "group": 5}': "group is a int", '{"video": "b.mp4", "label": 1, "id": []}': "id is a list",
    '{"video": "b.mp4", "label": 1, "text": "\\ud800"}': "half a character", '{"video": "../b.mp4", "label": 1}': "leads out",
    '{"video": "/etc/passwd", "label": 1}': "leads out", '{"video": "http://x/b.mp4", "label": 1}': "leads out",
    '{"video": "b\\u0000.mp4", "label": 1}': "leads out", '{"video": "nothing.mp4", "label": 1}': "no such video",
    '{"video": "a.mp4", "label": 1}': "duplicate id", '{"video": "b.mp4", "label": 0, "event_time": 2}': "labelled negative",
    '{"video": "b.mp4", "label": 1, "event_time": 2, "alert_time": 3}': "comes after",
    '{"video": "b.mp4", "label": 1, "event_time": 99}': "event at 99 s", '{"video": "b.mp4", "label": 1, "event_time": "x"}': "not a number",
    '{"video": "b.mp4", "label": 1, "event_time": [2]}': "not a number", '{"video": "b.mp4", "label": 1, "event_time": -1}': "negative",
    '{"video": "b.mp4", "label": 1, "alert_time": 2}': "without an event", '{"video": "' + "b" * 300 + '.mp4", "label": 1}': "",
    "[" * 5000: "nested too deep|not JSON", '{"video": "b.mp4", "label": ' + "9" * 5000 + "}": "not JSON",
}  # fmt: skip


def jsonl_root(tmp_path, clip, *lines):
    root = tmp_path / "jsonl"
    (root / "train").mkdir(parents=True, exist_ok=True)
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clip, root / "train" / name)
    text = "\n".join(('{"video": "a.mp4", "label": 0}', *lines)) + "\n"
    (root / "train.jsonl").write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(("line", "reason"), WRONG_JSONL.items(), ids=range(len(WRONG_JSONL)))
def test_wrong_lines_of_json_are_named(line, reason, tmp_path, clip):
    root = jsonl_root(tmp_path, clip, line)
    found = named(manifest(root, jsonl.rows(root, {}), tmp_path))
    assert any(part in found for part in reason.split("|")), found


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_separators_of_unicode_inside_a_text_are_no_line_ends(mark, tmp_path, clip):
    line = json.dumps({"video": "b.mp4", "label": 1, "text": f"one{mark}two"}, ensure_ascii=False)
    root = jsonl_root(tmp_path, clip, line)
    made = manifest(root, jsonl.rows(root, {}), tmp_path)
    assert [c.extra.get("question") for c in made.clips] == [None, f"one{mark}two"]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"clip_id": "a", "chosen": f"x{mark}y", "rejected": "z"}, ensure_ascii=False) + "\n")
    assert read_pairs(pairs) == {"a": (f"x{mark}y", "z")}
    labels = tmp_path / "labels.jsonl"
    label = {"clip_id": "a", "mode": "blind", "status": "labelled", "text": f"x{mark}y"}
    labels.write_text(json.dumps(label, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_labels(labels).labels[0].text == f"x{mark}y"
    sft = tmp_path / "bvpi_sft_test.jsonl"
    row = {"image": "a.jpg", "prompt": "p", "response": f"Sidewalk: left{mark}."}
    sft.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [r["extra"]["response"] for r in bvpi.rows(tmp_path, {"file": sft.name})] == [f"Sidewalk: left{mark}."]
    scene = tmp_path / "rows.jsonl"
    row = {"images": ["a.jpg"], "prompt": "p", "completion": f"one{mark}two"}
    scene.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [r["extra"]["annotation"] for r in bdd100k.rows(tmp_path, {"file": scene.name})] == [f"one{mark}two"]


def test_event_times_of_json_lines_are_used_or_refused(tmp_path, clip):
    root = jsonl_root(tmp_path, clip, '{"video": "b.mp4", "label": 1, "event_time": 2.5}')
    options = {"event_time": "use", "reference": "clip_end"}
    with pytest.raises(DataError, match=r"which data\.reference=clip_end would not use"):
        manifest(root, jsonl.rows(root, options), tmp_path)
    made = manifest(root, jsonl.rows(root, options | {"reference": "event"}), tmp_path)
    assert [c.event_time_s for c in made.clips] == [None, 2.5]
    made = manifest(root, jsonl.rows(root, options | {"event_time": "ignore"}), tmp_path)
    assert [c.event_time_s for c in made.clips] == [None, None]


# -- RoadBuddy, BDD100K, BVPI --------------------------------------------------------------------------

GOOD_QUESTION = {
    "id": "q", "question": "Đèn màu gì?", "choices": ["A. Đỏ", "B. Xanh"], "answer": "B. Xanh", "support_frames": [1.0],
    "video_path": "v.mp4",
}  # fmt: skip
WRONG_QUESTIONS = [
    ({"id": None}, "no id"), ({"id": ""}, "no id"), ({"question": ""}, "no question"), ({"question": 5}, "no question"),
    ({"question": None}, "no question"), ({"choices": None}, "not a list of texts"), ({"choices": []}, "0 choices"),
    ({"choices": ["A. x"]}, "1 choices"), ({"choices": ["A. x", None]}, "not a list of texts"), ({"choices": "A. x"}, "not a list"),
    ({"choices": ["A. ", "B. Xanh"]}, "option without text"), ({"choices": ["A. 1", "B. 2", "C. 3", "D. 4", "E. 5"]}, "5 choices"),
    ({"answer": None}, "no answer"), ({"answer": ""}, "no answer"), ({"answer": 1}, "is a int"), ({"answer": ["a", "b"]}, "is a list"),
    ({"answer": "C"}, "none of the choices"), ({"answer": "2"}, "none of the choices"), ({"answer": "A. Xanh"}, "none of the choices"),
    ({"answer": "Tím"}, "none of the choices"), ({"choices": ["A. x", "B. x"], "answer": "x"}, "fits 2 choices"),
    ({"video_path": None}, "no video_path"), ({"video_path": 7}, "no video_path"), ({"video_path": "../../v.mp4"}, "leads out"),
    ({"video_path": "w.mp4"}, "no such video"), ({"support_frames": [1.0, "x"]}, "1 support times"),
    ({"support_frames": [2000]}, "past the end"), ({"support_frames": [2.0, 1.0]}, "unsorted"),
    ({"choices": ["B. Đỏ", "A. Xanh"], "answer": "A"}, "letters B,A"),
]  # fmt: skip


def questions_root(tmp_path, clip, *items):
    root = tmp_path / "roadbuddy"
    (root / "train").mkdir(parents=True, exist_ok=True)
    shutil.copy(clip, root / "v.mp4")
    (root / "train" / "train.json").write_text(json.dumps({"data": list(items)}, ensure_ascii=False), encoding="utf-8")
    return root


@pytest.mark.parametrize(("change", "reason"), WRONG_QUESTIONS, ids=range(len(WRONG_QUESTIONS)))
def test_wrong_questions_are_named(change, reason, tmp_path, clip):
    root = questions_root(tmp_path, clip, {**GOOD_QUESTION, "id": "good"}, {**GOOD_QUESTION, **change})
    assert reason in named(manifest(root, roadbuddy.rows(root, {}), tmp_path))


@pytest.mark.parametrize("answer", ["Xanh", "B", "b", "B)", "(B)", "(b)", "B.", "B:", "(B) Xanh", "B. Xanh", "B.Xanh", " b.  xanh ",
                                    "B. Xanh.", "xanh", ["B. Xanh"], "B. Xanh\u200b", "Ｂ．Xanh", unicodedata.normalize("NFD", "Xanh")])  # fmt: skip
@pytest.mark.parametrize(
    "choices",
    [["Đỏ", "Xanh", "Vàng"], ["A. Đỏ", "B. Xanh", "C. Vàng"], ["(A) Đỏ", "(B) Xanh"], ["a) Đỏ", "b) Xanh"],
     ["A: Đỏ", "B: Xanh"], {"A": "Đỏ", "B": "Xanh"}, ["Ａ．Đỏ", "Ｂ．Xanh"], ["A.&nbsp;Đỏ", "B.&nbsp;Xanh"], ["1. Đỏ", "2. Xanh"]],
)  # fmt: skip
def test_every_spelling_of_a_letter_is_the_second_choice(choices, answer, tmp_path):
    item = {**GOOD_QUESTION, "choices": choices, "answer": answer}
    row = roadbuddy._row(item, 0, False, tmp_path / "train.json", tmp_path, "source")
    assert row.get("problem") is None
    assert row["choices"][:2] == ["Đỏ", "Xanh"]
    assert row["extra"]["answer"] == 1


def test_numbers_before_choices_are_their_letters(tmp_path):
    item = {**GOOD_QUESTION, "choices": ["1. Đỏ", "2. Xanh"], "answer": "2. Xanh"}
    row = roadbuddy._row(item, 0, False, tmp_path / "train.json", tmp_path, "source")
    assert row["extra"]["answer"] == 1
    wrong = {**item, "answer": "1. Xanh"}  # number and text disagree
    assert "none of the choices" in roadbuddy._row(wrong, 0, False, tmp_path / "t.json", tmp_path, "source")["problem"]


def test_words_that_look_like_letters_and_numbers_stay():
    assert roadbuddy.options_of(["A. x", "y"]) == (["A. x", "y"], [None, None])  # half of them is not enough
    assert roadbuddy.options_of(["A. x", "B. y", "z"]) == (["x", "y", "z"], ["A", "B", None])
    assert roadbuddy.options_of(["U. turn", "T. junction"]) == (["U. turn", "T. junction"], [None, None])
    assert roadbuddy.options_of(["1.5 m", "2.5 m"]) == (["1.5 m", "2.5 m"], [None, None])
    assert roadbuddy.options_of(["A. &lt;50", "B. &gt;50"]) == (["<50", ">50"], ["A", "B"])


def test_the_case_of_letters(tmp_path):
    path = CASES / "roadbuddy_letters.json"
    if not path.exists():
        pytest.skip("the case files are not part of the project")
    (tmp_path / "train.json").write_bytes(path.read_bytes())
    rows = {r["clip_id"]: r for r in roadbuddy.rows(tmp_path, {})}
    other = {"train_0012": 0, "train_0013": 2, "train_0022": 0}
    named_rows = {f"train_00{n}" for n in (14, 15, 18, 19, 23, 28)}
    assert {name for name, row in rows.items() if "problem" in row} == named_rows
    for name in set(rows) - named_rows:
        assert rows[name]["extra"]["answer"] == other.get(name, 1), name


@pytest.mark.parametrize(
    ("item", "reason"),
    [(None, "no video_id"), ([], "no video_id"), ({}, "no video_id"), ({"video_id": 5}, "no video_id"),
     ({"video_id": "v"}, "no answer"), ({"video_id": "v", "QA": []}, "no answer"), ({"video_id": "v", "QA": {"a": 5}}, "no answer"),
     ({"video_id": "v", "QA": {"a": " "}}, "no answer"), ({"video_id": "../v", "QA": {"a": "x"}}, "leads out"),
     ({"video_id": "w", "QA": {"a": "x"}}, "no such video")],
)  # fmt: skip
def test_wrong_scenes_are_named(item, reason, tmp_path, clip):
    root = tmp_path / "bdd"
    (root / "videos" / "train").mkdir(parents=True)
    shutil.copy(clip, root / "videos" / "train" / "good.MOV")
    good = {"video_id": "good", "QA": {"q": "?", "a": "{}"}}
    (root / "rows.json").write_text(json.dumps([good, item]))
    (root / "._rows.json").write_bytes(b"\x00\x05\x16\x07")
    made = manifest(root, bdd100k.rows(root, {}), tmp_path)
    assert reason in named(made)
    assert next(c for c in made.clips if c.clip_id == "good").duration_s == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [("x", "not JSON"), ("[]", "no image"), ("{}", "no image"), ('{"image": 5, "response": "x"}', "no image"),
     ('{"image": "b.jpg", "response": 5}', "no image"), ('{"image": "b.jpg"}', "no image"), ('{"image": "b.jpg", "response": NaN}', "NaN"),
     ('{"image": "b.jpg", "image": "c.jpg", "response": "x"}', "twice")],
)  # fmt: skip
def test_wrong_captions_are_named(line, reason, tmp_path):
    (tmp_path / "sft_train.jsonl").write_text(f'{{"image": "a.jpg", "response": "x"}}\n{line}\n')
    rows = list(bvpi.rows(tmp_path, {"file": "sft_train.jsonl"}))
    assert reason in rows[1]["problem"]
    assert "problem" not in rows[0]


# -- files --------------------------------------------------------------------------------------------


def nexar_table(tmp_path, raw):
    (tmp_path / "train").mkdir(exist_ok=True)
    (tmp_path / "train.csv").write_bytes(raw)
    return list(nexar.rows(tmp_path, {}))


GOOD = (HEAD + "0,,,0\n1,2.0,1.0,1\n").encode()


@pytest.mark.parametrize(
    "raw",
    [GOOD, b"\xef\xbb\xbf" + GOOD, GOOD.replace(b"\n", b"\r\n"), GOOD.replace(b",", b";"), GOOD.replace(b",", b"\t"),
     GOOD.decode().encode("utf-16"), GOOD.decode().encode("utf-16-le"), GOOD.decode().encode("utf-16-be"), GOOD + b"\n\n",
     GOOD.replace(b"0,,,0", b'"0","","","0"'), GOOD.replace(b"id,", b"id ,")],
    ids=range(11),
)  # fmt: skip
def test_tables_of_spreadsheets_are_read(raw, tmp_path):
    assert [(r["clip_id"], r["label"]) for r in nexar_table(tmp_path, raw)] == [("00000", "0"), ("00001", "1")]


@pytest.mark.parametrize(
    ("raw", "what"),
    [(b"", "is empty"), (b"\n\n", "is empty"), (b"id,target\n1,1\n", "columns are missing"), (HEAD.encode() + b'1,"2.0,1.0,1\n', "line"),
     (HEAD.encode() + b'1,2.0,1.0,"1"x\n2,,,0\n', "cannot be read from line 2"), (HEAD.replace("target", "target,target").encode(), "twice"),
     ((HEAD + "1,,,caf\u00e9\n").encode("cp1252"), "is not UTF-8"), (b"PK\x03\x04" + b"\x80" * 50, "is not UTF-8"),
     (HEAD.encode() + b'1,,,0\n2,,,"0\n' + b"".join(b"%d,,,0\n" % i for i in range(3, 40)) + b'40,,,0"\n41,,,0\n', "holds other rows")],
    ids=range(9),
)  # fmt: skip
def test_tables_that_cannot_be_read_whole_are_refused(raw, what, tmp_path):
    with pytest.raises(DataError, match=what) as found:
        nexar_table(tmp_path, raw)
    assert "\n  do:" in str(found.value)


@pytest.mark.parametrize(
    ("name", "rows"), [("open_quote_train.csv", None), ("true_without_event_train.csv", 0), ("utf16_train.csv", None)]
)
def test_the_cases_of_tables(name, rows, tmp_path):
    path = CASES / name
    if not path.exists():
        pytest.skip("the case files are not part of the project")
    if name.startswith("open"):
        with pytest.raises(DataError, match=r"cannot be read from line|holds other rows"):
            nexar_table(tmp_path, path.read_bytes())
        return
    found = nexar_table(tmp_path, path.read_bytes())
    if rows == 0:
        without = [r for r in found if r["label"] == "True" and not r["event_time_s"]]
        assert without
        assert all("without time_of_event" in r["problem"] for r in without)
    else:
        assert found
        assert not any("problem" in r for r in found)


def test_an_open_quote_that_another_quote_closes_is_found(tmp_path):
    lines = [
        HEAD.strip() + ",note",
        '1,,,0,"wet road',
        *(f"{i},,,0,ok" for i in range(2, 30)),
        '30,,,0,dry"',
        "31,,,0,ok",
    ]
    with pytest.raises(DataError, match="holds other rows"):
        nexar_table(tmp_path, "\n".join(lines).encode())


def test_texts_with_line_breaks_are_texts(tmp_path):
    (tmp_path / "t.csv").write_text('image,score\n"a, b\nc.jpg",1\n')
    assert [r for _, r in csv_rows(tmp_path / "t.csv", ("image", "score"), lambda c: "." in c["image"])] == [
        {"image": "a, b\nc.jpg", "score": "1"}
    ]


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', "NaN", "[Infinity]", "-Infinity", "1e400", '"\\udc00"', "[" * 100_000, "", "{]"]
)
def test_strict_json_refuses(text):
    with pytest.raises(ValueError):  # noqa: PT011  every reason has its own words
        strict_json(text)


def test_text_in_other_encodings_is_read_when_it_is_named(tmp_path):
    (tmp_path / "t.txt").write_bytes("café".encode("cp1252"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_text(tmp_path / "t.txt")
    assert read_text(tmp_path / "t.txt", "cp1252") == "café"
    with pytest.raises(DataError, match="KLINGON"):
        read_text(tmp_path / "t.txt", "klingon")
    assert next(json_lines(tmp_path / "t.txt", "cp1252"))[2].startswith("not JSON")


# -- names and folders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "asked"),
    [("A.MP4", "a.mp4"), ("a.mp4", "A.MP4"), (unicodedata.normalize("NFD", "phố.mp4"), unicodedata.normalize("NFC", "phố.mp4")),
     (unicodedata.normalize("NFC", "phố.mp4"), unicodedata.normalize("NFD", "phố.mp4")), ("clip (1) #2, é=.mp4", "clip (1) #2, é=.mp4")],
)  # fmt: skip
def test_names_in_another_case_or_form_are_found(stored, asked, tmp_path):
    (tmp_path / stored).write_bytes(b"x")
    assert confined_files(tmp_path, asked).read_bytes() == b"x"


def test_two_names_that_differ_in_case_are_not_mixed_up(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"small")
    (tmp_path / "A.mp4").write_bytes(b"big")
    assert confined_files(tmp_path, "A.mp4").read_bytes() == b"big"
    assert not confined_files(tmp_path, "A.MP4").exists()


def test_a_snapshot_of_the_hub_is_read_through_its_links(tmp_path, clip):
    cache = tmp_path / "datasets--x--y"
    (cache / "blobs").mkdir(parents=True)
    shutil.copy(clip, cache / "blobs" / "0123abcd")
    root = cache / "snapshots" / "rev"
    (root / "train").mkdir(parents=True)
    (root / "train" / "a.mp4").symlink_to("../../../blobs/0123abcd")
    (root / "train.jsonl").write_text('{"video": "a.mp4", "label": 0}\n{"video": "b.mp4", "label": 1}\n')
    (tmp_path / "secret.mp4").write_bytes(clip.read_bytes())
    (root / "train" / "b.mp4").symlink_to("../../../../secret.mp4")
    for data_root in (root, tmp_path / "link"):
        if data_root != root:
            data_root.symlink_to(root)
        made = manifest(data_root, jsonl.rows(data_root, {}), tmp_path)
        assert [c.duration_s for c in made.clips] == [pytest.approx(5.0)]
        assert "leads out of the data root" in named(made)


def test_files_of_the_finder_are_nobodys_clips(tmp_path, clip):
    for label in ("0", "1"):
        (tmp_path / "train" / label).mkdir(parents=True)
        shutil.copy(clip, tmp_path / "train" / label / f"c{label}.MP4")
        (tmp_path / "train" / label / f"._c{label}.MP4").write_bytes(b"\x00\x05\x16\x07")
    assert jsonl.write_from_folders(tmp_path, "?") == {"train": 2}
    assert not manifest(tmp_path, jsonl.rows(tmp_path, {}), tmp_path).quarantine


@pytest.mark.parametrize(
    "name", ["My clips", "clips (1)", "a=b", "a,b", "#1", "phố", "it's", "[2024] x", "a{b}", "50%", "a;b", "a&b", "ünï"]
)
def test_names_on_the_command_line_are_taken_as_they_are(name, tmp_path):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for folder in (tmp_path / name, tmp_path / "absent" / name):
        if "absent" not in str(folder):
            folder.mkdir()
        elif name[0] in "[{'\"":  # begins like Hydra's grammar: only what exists is taken for a name
            continue
        word = f"data.root={folder}"
        quoted = with_quotes([word])
        check_words(quoted)
        assert str(OverridesParser.create().parse_override(quoted[0]).value()) == str(folder)


def test_words_that_cannot_be_read_show_the_quoting(tmp_path):
    with pytest.raises(ConfigError, match="quote the value twice") as found:
        check_words(["task.question=Is it (really) so?"])
    assert "'task.question='\"'\"'Is it (really) so?'\"'\"''" in str(found.value)
    assert with_quotes(["data.root=a,b", "-m"]) == ["data.root=a,b", "-m"]
    assert with_quotes(["data.num_frames=5,10", "model.checkpoint=500M"]) == [
        "data.num_frames=5,10",
        "model.checkpoint=500M",
    ]


# -- the card -----------------------------------------------------------------------------------------


def test_the_card_says_what_it_cannot_compute(tmp_path):
    rows = [
        {"clip_id": str(i), "video": f"{i}.mp4", "label": i % 2, "event_time_s": 2.0 if i % 2 else None}
        for i in range(8)
    ]
    made = manifest(tmp_path, rows, tmp_path, require_videos=False)
    card = dataset_card(made, OPTIONS, CrashTask("crash_yes_no"))
    assert {r["videos"] for r in card["splits"]} == {NONE}
    assert card["splits"][-1]["split"] == "all"
    assert card["splits"][-1]["clips"] == 8
    assert card["splits"][-1]["positives"] == 4
    assert card["videos"] == 0
    assert card["leakage"]["row_split_would_share_video"] is None
    assert card["anchor_auc"]["value"] != card["anchor_auc"]["value"]


def test_leakage_is_computed_over_the_splits_that_exist(tmp_path, clip):
    root = tmp_path / "d"
    root.mkdir()
    for number in range(6):
        shutil.copy(clip, root / f"{number}.mp4")
    rows = [
        {"clip_id": str(i), "video": f"{i}.mp4", "label": i % 2, "split": "val" if i > 3 else "train", "group": f"g{i}"}
        for i in range(6)
    ]
    report = leakage_report(manifest(root, rows, tmp_path), 0)
    assert report["row_split_would_share"] == 0.0  # not None: validation stands for the missing test split
    assert report["files_in_several_splits"] == [
        "train/0.mp4 = train/1.mp4 = train/2.mp4 = train/3.mp4 = val/4.mp4 = val/5.mp4"
    ]
    only = leakage_report(manifest(root, [{**r, "split": "train"} for r in rows], tmp_path), 0)
    assert only["row_split_would_share"] is None
    assert only["files_in_several_splits"] == []


def test_one_file_in_two_splits_is_named(tmp_path, clip):
    shutil.copy(clip, tmp_path / "a.mp4")
    rows = [{"clip_id": s, "video": "a.mp4", "label": 0, "split": s, "group": s} for s in ("train", "test")]
    report = leakage_report(manifest(tmp_path, rows, tmp_path), 0)
    assert report["files_in_several_splits"] == ["test/a.mp4 = train/a.mp4"]


def test_a_row_of_any_type_is_named_and_no_traceback(tmp_path):
    values = [None, 5, 1.5, [], {}, True, float("nan"), b"x", object()]
    rows = [{"clip_id": f"{key}{i}", "video": "x.mp4", key: v}
            for key in ("video", "label", "event_time_s", "group", "extra") for i, v in enumerate(values)]  # fmt: skip
    rows.append({"clip_id": "good", "video": "x.mp4"})
    made = manifest(tmp_path, rows, tmp_path, require_videos=False)
    assert len(made.clips) + len(made.quarantine) == len(rows)


# -- what a reviewer broke ----------------------------------------------------------------------------


def test_expressions_and_encodings_that_are_none_are_errors_of_the_configuration(tmp_path, clip):
    root = jsonl_root(tmp_path, clip, '{"video": "b.mp4", "label": 1}')
    with pytest.raises(ConfigError, match="no regular expression"):
        list(jsonl.rows(root, {"group_regex": "("}))
    groups = [r["group"] for r in jsonl.rows(root, {"group_regex": r"(?:(rec\d+)_)?b"})]
    assert groups == ["a", "b"]  # a group that took no part is no name
    assert read_text(root / "train.jsonl", 1252)  # as YAML reads encoding=1252


def test_a_video_path_that_no_file_can_have_is_named(tmp_path, clip):
    item = {**GOOD_QUESTION, "video_path": "a" * 300 + ".mp4"}
    root = questions_root(tmp_path, clip, {**GOOD_QUESTION, "id": "good"}, item)
    assert named(manifest(root, roadbuddy.rows(root, {}), tmp_path))


def test_backslashes_and_quotes_survive_hydras_grammar():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for name in ("a b\\", "a\\'b c", "it's (1)", "a\\\\ b"):
        (word,) = with_quotes([f"data.root={name}"])
        assert OverridesParser.create().parse_override(word).value() == name


def test_a_file_that_may_not_be_read_has_a_name_all_the_same(tmp_path, clip, monkeypatch):
    from dashvlm.safety import checksums as content

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(content, "_ends", refused)
    assert content.content_of(clip)[2] == ""
