"""``predict input=``: new videos, pictures and questions without answers, for every task; nothing is lost."""

import json
from pathlib import Path

import pandas as pd
import pytest

from dashvlm.data.formats.inputs import read_inputs
from dashvlm.errors import DataError

from .conftest import SMALL_WORLD, in_this_process


def trained(cache, folder, *words):
    """A run of two steps, and the clips of its world."""
    in_this_process(cache, folder)("train", "model=smolvlm2", "model.checkpoint=tiny", "trainer=cpu", *words,
                                   "trainer.max_steps=2", "objective.max_new_tokens=4")  # fmt: skip
    (run,) = (p.parent for p in folder.glob("*/result.json"))
    return run, pd.read_parquet(run / "predictions.parquet")["path"].tolist()


def lines_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_folder_of_videos_gets_its_risk_over_time(dashvlm, finished_run, tmp_path):
    paths = pd.read_parquet(finished_run / "predictions.parquet")["path"].unique()
    clips = tmp_path / "clips"
    (clips / "deep").mkdir(parents=True)
    for name, path in zip(("a.mp4", "deep/b.mp4"), paths, strict=False):
        (clips / name).write_bytes(Path(path).read_bytes())
    (clips / "broken.mp4").write_bytes(b"no video")
    (clips / "notes.txt").write_text("not asked for")
    out = tmp_path / "out"
    done = dashvlm("predict", f"run={finished_run}", f"input={clips}", "stride_s=1", f"output={out}")
    rows = lines_of(out)
    assert [r["id"] for r in rows] == ["a.mp4", "broken.mp4", "deep/b.mp4"]
    assert [r["status"] for r in rows] == ["scored", "failed", "scored"]
    assert rows[1]["problem"]
    assert [t for t, _ in rows[0]["risk"]] == [0.0, 1.0, 2.0, 3.0]
    assert rows[0]["highest_risk"] == max(r for _, r in rows[0]["risk"])
    table = pd.read_csv(out / "predictions.csv")
    assert len(table) == 4 + 1 + 4
    assert "2 scored, 1 failed" in done.stdout
    # Typed again it answers nothing anew; cut off in the middle it goes on.
    before = (out / "predictions.jsonl").read_text()
    again = dashvlm("predict", f"run={finished_run}", f"input={clips}", "stride_s=1", f"output={out}")
    assert "3 inputs, 2 answered before" in again.stdout  # what failed is tried again
    (out / "predictions.jsonl").write_text(before.splitlines()[0] + "\n" + before.splitlines()[1][:20])
    resumed = dashvlm("predict", f"run={finished_run}", f"input={clips}", "stride_s=1", f"output={out}")
    assert "3 inputs, 1 answered before" in resumed.stdout
    assert (out / "predictions.jsonl").read_text() == before
    changed = dashvlm("predict", f"run={finished_run}", f"input={clips}", "stride_s=2", f"output={out}")
    assert "3 inputs, 0 answered before" in changed.stdout


def test_an_answer_holds_for_its_file_only(dashvlm, finished_run, tmp_path):
    paths = sorted(pd.read_parquet(finished_run / "predictions.parquet")["path"].unique())
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    words = [f"run={finished_run}", f"input={clips}", "stride_s=2", f"output={out}"]
    (clips / "a.mp4").write_bytes(Path(paths[0]).read_bytes())
    (clips / "b.mp4").write_bytes(b"no video")
    dashvlm("predict", *words)
    first = lines_of(out)
    (clips / "a.mp4").write_bytes(Path(paths[1]).read_bytes())  # another video of the same name
    (clips / "b.mp4").write_bytes(Path(paths[0]).read_bytes())  # mended
    dashvlm("predict", *words)
    second = lines_of(out)
    assert [r["status"] for r in first] == ["scored", "failed"]
    assert [r["status"] for r in second] == ["scored", "scored"]
    assert second[1]["risk"] == first[0]["risk"]
    assert second[0]["risk"] != first[0]["risk"]


def test_questions_get_letters_with_probabilities(cache, tmp_path):
    run, paths = trained(cache, tmp_path / "runs", *SMALL_WORLD, "task=mcq")
    choices = (["A. a car", "B. a bus"], ["a car", "a bus", "a tree", "a dog"], "no list")
    asked = {"video_path": "a.mp4", "question": "What is ahead?"}
    rows = [{**asked, "id": f"q{n}", "choices": c} for n, c in enumerate(choices)]
    rows.append({"id": "q3", "question": "Where?"})
    (tmp_path / "a.mp4").write_bytes(Path(paths[0]).read_bytes())
    (tmp_path / "rows.json").write_text(json.dumps({"data": rows}))
    in_this_process(cache, tmp_path / "runs")("predict", f"run={run}", f"input={tmp_path / 'rows.json'}",
                                              f"output={tmp_path / 'out'}")  # fmt: skip
    found = lines_of(tmp_path / "out")
    assert [r["id"] for r in found] == ["q0", "q1", "q2", "q3"]
    assert set(found[0]["probabilities"]) == {"A", "B"}
    assert sum(found[1]["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert found[0]["option"] in ("a car", "a bus")
    assert found[1]["answer"] == max(found[1]["probabilities"], key=found[1]["probabilities"].get)
    assert [r["status"] for r in found[2:]] == ["failed", "failed"]
    assert found[2]["problem"] == "choices are not a list of texts"
    with pytest.raises(AssertionError, match="needs a question for each input"):
        in_this_process(cache, tmp_path / "runs")("predict", f"run={run}", f"input={tmp_path / 'a.mp4'}")
    table = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("id")
    assert table.loc["q1", "p_D"] == pytest.approx(found[1]["probabilities"]["D"])


@pytest.mark.parametrize(
    ("task", "suffix"), [pytest.param("scene", ".mp4", marks=pytest.mark.long), ("caption", ".png")]
)
def test_texts_come_with_their_fields(cache, tmp_path, task, suffix):
    run, paths = trained(cache, tmp_path / "runs", *SMALL_WORLD, f"task={task}", "data.num_frames=1")
    for n in range(2):
        (tmp_path / f"x{n}{suffix}").write_bytes(Path(paths[n]).read_bytes())
    in_this_process(cache, tmp_path / "runs")("predict", f"run={run}", f"input={tmp_path}/x*{suffix}",
                                              f"output={tmp_path / 'out'}")  # fmt: skip
    found = lines_of(tmp_path / "out")
    assert [r["id"] for r in found] == [f"x0{suffix}", f"x1{suffix}"]
    assert all(isinstance(r["text"], str) and r["status"] in ("parsed", "unparsed", "refused") for r in found)
    assert all((r["fields"] is None) == (r["status"] != "parsed") for r in found)


def test_inputs_are_found_by_file_folder_pattern_and_table(tmp_path):
    for name in ("b.jpg", "a.mp4", "c.txt", "._a.mp4"):
        (tmp_path / name).write_bytes(b"x")
    ids = lambda given: [row["clip_id"] for row in read_inputs(given)[1]]  # noqa: E731
    assert ids(str(tmp_path)) == ["a.mp4", "b.jpg"]
    assert ids(str(tmp_path / "b.jpg")) == ["b.jpg"]
    assert ids(f"{tmp_path}/*.mp4") == ["a.mp4"]
    (tmp_path / "t.csv").write_text("file_name,question,A,B\na.mp4,Why?,x,y\n")
    root, rows = read_inputs(str(tmp_path / "t.csv"))
    assert root == tmp_path
    assert rows[0] | {"group": ""} == {"clip_id": "t.csv:2", "video": "a.mp4", "group": "", "split": "test",
                                       "choices": ["x", "y"], "question": "Why?"}  # fmt: skip
    (tmp_path / "t.jsonl").write_text('{"image": "b.jpg"}\n[1]\n{"question": "?"}\nnot json\n')
    problems = [row.get("problem") for row in read_inputs(str(tmp_path / "t.jsonl"))[1]]
    assert problems[0] is None
    assert all(problems[1:])
    for nothing in ("nowhere.mp4", str(tmp_path / "*.avi")):
        with pytest.raises(DataError, match="nothing to predict"):
            read_inputs(nothing)


def test_the_verb_says_what_it_needs(dashvlm, finished_run):
    for words in ([], ["video=a.mp4", "input=b"]):
        done = dashvlm("predict", f"run={finished_run}", *words, check=False)
        assert done.returncode == 2
        assert "either input or video" in done.stderr
    done = dashvlm("predict", f"run={finished_run}", "input=nowhere", check=False)
    assert done.returncode == 2
    assert "nothing to predict" in done.stderr
