"""Studies: every command composes, tables are not stale, smoke forms run, published numbers come back."""

import functools
import json
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dashvlm.config.find import study_names
from dashvlm.errors import DataError
from dashvlm.report.compare import best_of, compare, over_seeds, shared_rows
from dashvlm.report.comparisons import _seeds
from dashvlm.report.tables import COSTS
from dashvlm.reproductions.nexar import corrected_scores, published_scores, read_responses
from dashvlm.reproductions.recompute import recompute
from dashvlm.reproductions.studies import (
    Study,
    agrees,
    load_study,
    read_table,
    result_line,
    unexplained,
    write_results,
)
from dashvlm.reproductions.study_runs import _only_seeds, run_results
from dashvlm.reproductions.study_tables import grids, latex, markdown, overview, stale
from dashvlm.sweep import make_plan
from dashvlm.tasks.binary import SCORES

from .conftest import REAL, ROOT

STUDIES = ROOT / "experiments"
NAMES = study_names()


def test_all_tables_of_the_five_systems_are_here():
    assert set(NAMES) >= {
        "nexar_models", "nexar_frames", "nexar_grpo", "crash_risk", "roadbuddy", "bdd_scene", "bvpi_captions",
        "bvpi_fields", "bvpi_objects", "leakage_audit",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_table_is_stale(name):
    assert stale(load_study(name), []) == []


@functools.cache
def planned(*words):
    return make_plan(words).configs


def at(config, key):
    return functools.reduce(lambda node, part: node[part], key.split("."), config)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_composes_and_settings_are_what_their_source_says(name):
    """A settings table that the runs do not follow is worse than none."""
    study = load_study(name)
    for form in ("full", "smoke"):
        configs = planned(*(w for w in study.words(form) if w != "-m"))
        assert configs
        assert all(c["study"] == f"{study.owner}/{form}" for c in configs)
    for setting in study.spec["hyperparameters"]:
        key, wanted, only = setting["key"], setting["value"], setting.get("with", "")
        if key == "peft":
            assert study.spec["axes"]["peft"] == wanted.split(", ")
            continue
        said = [w for w in study.words("full") if w != "-m" and w.split("=")[0] != only.split("=")[0]]
        found = []
        for config in planned(*said, *([only] if only else [])):
            if at(config, key) not in found:
                found.append(at(config, key))
        assert found in ([wanted], wanted), f"{name}: {key} is {found}; {setting['says']}"


LONG = ("bdd_scene", "leakage_audit", "nexar_frames", "roadbuddy")
"""Studies whose smallest form takes long; the others take the same path by default."""
OWNERS = sorted({load_study(name).owner for name in NAMES})


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner",
    [
        pytest.param(o, marks=[pytest.mark.exhaustive] * (o in LONG) + [pytest.mark.long] * (o != "nexar_models"))
        for o in OWNERS
    ],
)
def test_every_smoke_form_runs_and_freezes(dashvlm, tmp_path, owner):
    dashvlm("train", *load_study(owner).words("smoke"))
    root = tmp_path / "studies"
    shutil.copytree(STUDIES, root)
    for study in (load_study(name) for name in NAMES):
        if study.owner != owner:
            continue
        path = root / study.name / "results.csv"
        path.write_text("".join(x for x in path.read_text().splitlines(True) if not x.startswith("smoke,")))
        where = [f"study={study.name}", f"studies_dir={root}"]
        dashvlm("report", *where, "freeze=true")
        made, frozen = (
            {(r["row"], r["metric"]) for r in read_table(s, "results") if r["form"] == "smoke"}
            for s in (load_study(study.name, root), study)
        )
        assert made == frozen
        assert frozen
        dashvlm("report", *where, "check=true")
    if owner != "nexar_models":
        return
    path = next((tmp_path / "runs").glob("*/result.json"))
    numbers = json.loads(path.read_text())
    numbers["metrics"]["accuracy"]["value"] += 0.001
    path.write_text(json.dumps(numbers))
    changed = dashvlm("report", *where, "check=true", check=False)
    assert changed.returncode == 2
    assert "does not follow from its predictions" in changed.stderr


@pytest.mark.parametrize("file", ["results.csv", "published.csv", "study.yaml", "table.md", "table.tex"])
def test_a_change_of_one_number_makes_a_table_stale(dashvlm, tmp_path, file):
    shutil.copytree(STUDIES / "nexar_models", tmp_path / "nexar_models")
    path = tmp_path / "nexar_models" / file
    text = path.read_text()
    old, new = next(
        p for p in (("0.54666", "0.55666"), ("0.5467", "0.5567"), ("seeds: [42", "seeds: [41")) if p[0] in text
    )
    path.write_text(text.replace(old, new, 1))
    done = dashvlm("report", "study=nexar_models", f"studies_dir={tmp_path}", "check=true", check=False)
    assert done.returncode == 2
    assert "stale" in done.stderr


def test_every_frozen_row_is_the_published_one_or_says_why_not():
    """A row recomputed from a wrong file would be wrong for good: nobody computes it again without the file."""
    rows = 0
    for study in map(load_study, NAMES):
        assert unexplained(study, read_table(study, "results")) == []
        rows += len({r["row"] for r in read_table(study, "results") if r["form"] == "recomputed"})
    assert rows >= 7


def test_the_page_on_published_numbers_counts_as_the_studies_do():
    _, _, body = overview([load_study(name) for name in NAMES])
    _, published, again, reproduced, _ = body[-1]
    text = " ".join((ROOT / "docs" / "published.md").read_text().split())
    assert f"Of {published} published numbers {again} are recomputed and {reproduced} of these reproduced" in text


def numbers(study, row, **changed):
    """A published row as if it were recomputed from a file, with some numbers changed."""
    lines = {x["column"]: float(x["value"]) for x in read_table(study, "published") if x["row"] == row}
    return [
        result_line("recomputed", row, column, {"value": changed.get(column, value), "low": None, "high": None}, 300,
                    "some.csv", "")
        for column, value in lines.items()
    ]  # fmt: skip


def test_a_row_is_frozen_only_from_numbers_that_are_its_own(tmp_path):
    for name in ("nexar_models", "bvpi_captions", "bvpi_fields", "bdd_scene"):
        shutil.copytree(STUDIES / name, tmp_path / name)
    study = load_study("nexar_models", tmp_path)
    before = (study.folder / "results.csv").read_bytes()
    for lines, said in [
        (numbers(study, "Qwen 2", accuracy=0.51), "4 of 5 numbers"),
        ([{**x, "row": "Qwen 3"} for x in numbers(study, "Qwen 2")], "no published row has these numbers"),
        ([result_line("recomputed", "Qwen 2", "new", {"value": 1, "low": None, "high": None}, 3, "a", "")], "0 of 0"),
    ]:
        with pytest.raises(DataError, match=said):
            write_results(study, lines)
        assert (study.folder / "results.csv").read_bytes() == before
    write_results(study, numbers(study, "Qwen 2"))
    assert {r["row"] for r in read_table(study, "results")} > {"Qwen 2", "LLaMA 3.2 Base", "smolvlm2"}
    claims = load_study("bdd_scene", tmp_path)
    mixed = numbers(study, "Qwen 2", accuracy=0.51)  # beside a row's own numbers, from another file
    with pytest.raises(DataError, match="4 of 5 numbers"):
        write_results(study, [*numbers(study, "Qwen 2"), *({**x, "run_id": "other.csv"} for x in mixed)])
    # A known difference is known by its value: another one is refused, also where the reason is only told.
    captions = load_study("bvpi_captions", tmp_path)
    with pytest.raises(DataError, match="2 of 3 numbers"):
        write_results(captions, numbers(captions, "smolvlm2", CIDEr=0.7))
    value = {"value": 0.004, "low": None, "high": None}
    other = result_line("recomputed", "4B, first README", "trainable_share", value, 0, "x", "")
    with pytest.raises(DataError, match="not trainable_share"):
        write_results(claims, [other])


def test_rows_that_were_not_found_now_stay_and_a_number_changed_by_hand_is_seen(tmp_path):
    shutil.copytree(STUDIES / "nexar_models", tmp_path / "nexar_models")
    study = load_study("nexar_models", tmp_path)
    smoke = [r for r in read_table(study, "results") if r["form"] == "smoke" and r["row"] == "smolvlm2"]
    write_results(study, smoke)
    assert read_table(study, "results") == read_table(load_study("nexar_models"), "results")
    path = study.folder / "results.csv"
    line = "corrected,LLaMA 3.2 Base,accuracy,0."
    path.write_text(path.read_text().replace(line + "07", line + "67"))
    (study.folder / "table.md").write_text(markdown(study))
    (study.folder / "table.tex").write_text(latex(study))
    assert stale(study, []) == ["LLaMA 3.2 Base accuracy: its line was changed by hand"]
    with pytest.raises(DataError, match="was changed by hand"):
        write_results(study, smoke)


@pytest.mark.skipif(not (REAL / "bvpi").is_dir(), reason="no published predictions here")
def test_predictions_of_another_table_are_not_frozen(dashvlm, tmp_path):
    shutil.copytree(STUDIES / "bvpi_fields", tmp_path / "bvpi_fields")
    before = (tmp_path / "bvpi_fields" / "results.csv").read_bytes()
    folder = REAL / "bvpi" / "published_openflamingo"
    words = ["report", "study=bvpi_fields", f"studies_dir={tmp_path}", "freeze=true"]
    file = f"predictions={folder / 'inference_results_openflamingo_test.json'}"
    for said in (words, words[:3], [*words[:3], "check=true"]):  # neither frozen nor shown as if they were
        wrong = dashvlm(*said, file, check=False)
        assert wrong.returncode == 2
        assert "is none of the published files" in wrong.stderr
    assert "dashvlm.score task=caption" in dashvlm(*words[:3], file, check=False).stderr
    wrong = dashvlm(*words[:3], file, "row=openflamingo", check=False)
    assert "is not the published file of openflamingo" in wrong.stderr
    assert "none of the published ones" in wrong.stderr
    assert "FLAM_BVPI/flamingo_inference_results.jsonl" in wrong.stderr
    own = dashvlm(*words[:3], file, "row=none", check=False)
    assert "dashvlm.score task=caption" in own.stderr
    csvs = [f"annotations={REAL / 'bvpi' / 'annotations_with_obj_pos.csv'}"]
    csvs += [f"captions={REAL / 'bvpi' / 'complete_captions_sensation.csv'}"]
    lines = (folder / "bvpi_flamingo_inference_results.jsonl").read_text().splitlines()
    changed = tmp_path / "FLAM" / "bvpi_flamingo_inference_results.jsonl"
    changed.parent.mkdir()
    item = json.loads(lines[0])
    other = json.dumps({**item, "prediction": item["prediction"].replace("Sidewalk: right", "Sidewalk: left", 1)})
    changed.write_text("\n".join([other, *lines[1:]]))  # one word of one text: another file, whatever its name is
    wrong = dashvlm(*words[:3], f"predictions={changed}", *csvs, check=False)
    assert "is none of the published files" in wrong.stderr
    saved = tmp_path / "saved again.json"  # other order, indents and name: the same rows
    saved.write_text(json.dumps([json.loads(x) for x in reversed(lines)], indent=4))
    shown = dashvlm(*words[:3], f"predictions={saved}", "row=openflamingo", *csvs)
    assert shown.stdout.count("reproduced") >= 6
    assert (tmp_path / "bvpi_fields" / "results.csv").read_bytes() == before
    dashvlm(*words, f"predictions={folder / 'bvpi_flamingo_inference_results.jsonl'}")
    assert stale(load_study("bvpi_fields", tmp_path), []) == []


def test_what_dimensions_decide_is_counted_again():
    (first, later) = recompute(load_study("bdd_scene"), [], {})
    assert later.published["trainable_million"] == pytest.approx(34.865152)  # 1.64 % as published
    assert later.published["trainable_share"] == pytest.approx(0.0164, abs=5e-5)
    assert first.published["trainable_share"] == pytest.approx(0.00266, abs=5e-6)  # 0.5 % was published


@pytest.mark.parametrize(
    ("value", "tolerance", "inside", "outside"),
    [
        ("0.0933", "0.00005", [0.09333333, 0.09325], [0.09336, 0.0932]),
        ("0.57", "cut 0.01", [0.57, 0.5714, 0.57999], [0.58, 0.5699]),
        ("4 to 6", "", [4, 5, 6], [3.9, 6.1]),
        ("< 16", "", [3], [16, 16.1]),
    ],
)
def test_a_published_number_agrees_with_what_it_was_rounded_from(value, tolerance, inside, outside):
    line = {"value": value, "tolerance": tolerance}
    assert all(agrees(line, v) for v in inside)
    assert not any(agrees(line, v) for v in outside)


@pytest.mark.skipif(not (REAL / "nexar").is_dir(), reason="no published responses here")
def test_the_published_nexar_row_comes_back_exactly(dashvlm, tmp_path):
    path = REAL / "nexar" / "llama32_val_results.csv"
    done = dashvlm("report", "study=nexar_models", f"predictions={path}")
    for word in (
        "0.5467",
        "0.0933",
        "0.171",
        "0.107",
        "5 of 5 reproduced",
        "echoed prompt: 300 of 300",
        "constant score",
        "No 300",
    ):
        assert word in done.stdout
    found = read_responses(path)
    values = published_scores(found)
    assert {k: round(v, 6) for k, v in values.items()} == {
        "accuracy": 0.546667, "precision": 1.0, "recall": 0.093333, "f1": 0.170732, "roc_auc": 0.5
    }  # fmt: skip
    fair, constant, counts = corrected_scores(found)
    assert constant["accuracy_of_parsed"].value == 0.75  # always Yes is right more often than the model
    assert counts == {"precision": 14, "recall": 150, "accuracy_of_parsed": 32}
    assert round(fair["parse_rate"].value * 300) == 32
    assert round(fair["accuracy_of_parsed"].value, 3) == 0.688
    from sklearn.metrics import precision_recall_fscore_support

    said = [int("<answer>" in t and "Yes" in t.rsplit("<answer>", 1)[1]) for t in found.whole]
    theirs = precision_recall_fscore_support(found.target, said, average="binary")
    assert [round(x, 6) for x in theirs[:3]] == [round(values[k], 6) for k in ("precision", "recall", "f1")]


def test_notes_say_only_what_is_counted_in_the_file_at_hand(dashvlm, tmp_path):
    """A made file: two answers, one of them behind an echoed prompt."""
    path = tmp_path / "val_results.csv"
    rows = ['1,1,"user\nIs there an immediate threat?\nassistant\n<answer>Yes</answer>"', '2,0,"I see a road"']
    path.write_text("id,target,response\n" + "\n".join(rows) + "\n")
    done = dashvlm("report", "study=nexar_models", f"predictions={path}", check=False)
    said = " ".join(done.stdout.split())
    assert "echoed prompt: 1 of 2 responses" in said
    assert "1 of 2 answers hold none, which makes the 1 of them right" in said
    for told in ("temperature", "128 tokens", "GPT-4o", "300"):
        assert told not in said
    assert "is none of the published files" in done.stderr
    assert "dashvlm.score task=crash" in done.stderr


def test_a_file_whose_numbers_are_known_to_differ_prints_its_table_and_says_so(dashvlm, tmp_path):
    for name in ("bvpi_captions", "bvpi_fields"):  # whose runs are those of the first
        shutil.copytree(STUDIES / name, tmp_path / name)
    path = tmp_path / "whatever.json"
    texts = [("A path with trees.", "A path with trees on it."), ("A road.", "The road is wide."), ("A car.", "A car.")]
    items = [{"image_path": f"testing/images/{i}.jpg", "target": a, "prediction": b} for i, (a, b) in enumerate(texts)]
    path.write_text(json.dumps(items))
    study = load_study("bvpi_captions", tmp_path)
    (found,) = [f for f in recompute(study, [path], {}) if f.n]
    assert found.row == ""
    if "CIDEr" not in found.published:
        pytest.skip("without Java there is no CIDEr")
    known = study.folder / "study.yaml"
    text = known.read_text().replace("32e3340d8ac104bf", found.digest)
    known.write_text(
        re.sub(r"differs: \{CIDEr: [\d.]+\}", f"differs: {{CIDEr: {found.published['CIDEr']:.12g}}}", text)
    )
    words = ["report", "study=bvpi_captions", f"studies_dir={tmp_path}"]
    done = dashvlm(*words, f"predictions={path}", "row=smolvlm2")
    assert "CIDEr: known to differ from the published row" in " ".join(done.stdout.split())
    assert "not reproduced" in done.stdout
    both = dashvlm(*words, f"predictions=[{path},{path}]")  # each of several files finds its row
    assert both.stdout.count("row smolvlm2") == 2
    wrong = dashvlm(*words, f"predictions={path}", "row=openflamingo", check=False)
    assert "it is that of smolvlm2" in " ".join(wrong.stderr.split())


def test_bad_response_files_are_errors(tmp_path):
    for text in ("id,response\n1,x\n", "id,target,response\n", "id,target,response\n1,maybe,x\n"):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(DataError):
            read_responses(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"id,target,response\n1,1,\xff\xfe\n")
    with pytest.raises(DataError):
        read_responses(tmp_path / "b.csv")


# -- comparisons --------------------------------------------------------------------------------


def table(scores, target, groups=None, padded=0):
    n = len(target)
    return pd.DataFrame(
        {"clip_id": [f"c{i}" for i in range(n)], "group": groups or [f"g{i // 2}" for i in range(n)], "primary": True,
         "target": target, "score": scores, "num_padded": padded}
    )  # fmt: skip


def test_a_better_run_is_clear_and_equal_runs_are_not():
    import numpy as np

    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 200).tolist()
    good = [min(max(0.8 * y + 0.6 * rng.random() - 0.2, 0.0), 1.0) for y in target]
    poor = rng.random(200).tolist()
    found = compare(table(poor, target), table(good, target), SCORES)
    assert found.samples == 200
    assert found.difference.low > 0.2
    assert found.p_mcnemar < 1e-6
    same = compare(table(poor, target), table(poor, target), SCORES)
    assert (same.difference.value, same.p_mcnemar, same.only_first) == (0.0, 1.0, 0)
    from scipy.stats import binomtest

    right = [SCORES.right(t) for t in (table(poor, target), table(good, target))]
    b, c = int(((right[0] == 1) & (right[1] == 0)).sum()), int(((right[1] == 1) & (right[0] == 0)).sum())
    assert found.p_mcnemar == pytest.approx(binomtest(b, b + c).pvalue)


def test_the_best_of_noise_is_called_chance():
    import numpy as np

    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 100).tolist()
    runs = {f"run{i}": table(rng.random(100).tolist(), target) for i in range(12)}
    _, value, share, optimism = best_of(runs, SCORES)
    assert value.value > 0.5
    assert share < 0.7
    assert optimism > 0.02
    runs["clear"] = table([float(y) for y in target], target)
    name, _, share, optimism = best_of(runs, SCORES)
    assert (name, share) == ("clear", 1.0)
    assert optimism == pytest.approx(0.0, abs=1e-9)


def test_ties_are_shared_and_seeds_are_grouped_by_what_they_are_of():
    target = [0, 1] * 20
    runs = {n: table([0.2, 0.8] * 20, target) for n in ("a", "b")}
    assert best_of(runs, SCORES)[2] == pytest.approx(0.5)
    rows = [
        {"run_id": f"{model}{seed}", "status": "done", "evaluation": "binary", "seed": seed, "model.name": model,
         f"model.{model}_key": "x", "roc_auc": 0.5 + seed / 10}
        for model in ("one", "two")
        for seed in (1, 2, 3)
    ]  # fmt: skip
    notes = _seeds(pd.DataFrame(rows), "roc_auc")  # the two models have keys that the other one lacks
    assert len(notes) == 2
    assert notes[0].startswith("seeds 1, 2, 3 of model one: roc_auc 0.700 [")
    assert "0.600 to 0.800" in notes[0]


@pytest.mark.long
def test_rows_of_real_runs_say_what_they_cost(dashvlm, tmp_path):
    """As if the study's full form were its smoke form."""
    known = load_study("nexar_grpo")
    shutil.copytree(known.folder, tmp_path / "study")
    study = Study(known.name, tmp_path / "study", {**known.spec, **known.spec["smoke"], "seeds": [42]})
    dashvlm("train", *study.words("full"))
    found = run_results(study, tmp_path / "runs")
    costs = {r["metric"]: float(r["value"]) for r in found if r["metric"] in COSTS}
    (folder,) = (p.parent for p in (tmp_path / "runs").glob("*/result.json"))
    result = json.loads((folder / "result.json").read_text())
    assert costs["seconds"] == pytest.approx(result["seconds"]["all"])
    assert costs["trainable"] == result["parameters"][-1]["trainable"] > 0
    assert costs["latency"] == pytest.approx(result["latency_s"])
    assert "gpu_hours" not in costs  # there is none
    write_results(study, found)
    (title, header, _), *_ = grids(study)
    assert title.startswith("Ours, full")
    assert {"trainable", "s/sample", "seconds"} <= set(header)
    with pytest.raises(DataError, match="has other settings"):  # a twin under a real model's name
        run_results(known, tmp_path / "runs")


@pytest.mark.long
def test_a_run_with_other_settings_is_no_row_and_runs_that_are_no_seeds_are_not_averaged(dashvlm, tmp_path):
    study = load_study("nexar_grpo")
    dashvlm("train", *study.words("smoke"), "optim.lr=1e-3")
    with pytest.raises(DataError, match=r"got: optim\.lr=0\.001"):
        run_results(study, tmp_path / "runs")
    runs = [{"identity": {"seed": 1, "a": i}, "folder": tmp_path / str(i)} for i in (1, 2)]
    with pytest.raises(DataError, match="differ in a"):
        _only_seeds("row", runs)
    _only_seeds("row", [{"identity": {"seed": i, "a": 1}, "folder": tmp_path} for i in (1, 2)])


def test_common_support_and_seeds():
    long, short = table([0.1, 0.9, 0.2, 0.8], [0, 1, 0, 1]), table([0.9, 0.1, 0.2, 0.8], [0, 1, 0, 1])
    long["num_padded"] = [1, 1, 0, 0]
    assert [len(t) for t in shared_rows([long, short], unpadded=True)] == [2, 2]
    found = over_seeds([0.7, 0.8, 0.9])
    assert found.value == pytest.approx(0.8)
    assert found.high - found.value == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)


@pytest.mark.slow
def test_runs_are_compared_in_one_command(dashvlm, tmp_path):
    from .conftest import SMALL

    dashvlm("train", *SMALL, "-m", "seed=1,2", "trainer.max_steps=2")
    runs = sorted(p.parent for p in (tmp_path / "runs").glob("*/result.json"))
    done = dashvlm("report", f"compare=[{runs[0]},{runs[1]}]")
    assert "McNemar" in done.stdout
    done = dashvlm("report")
    assert "best of 2 runs by roc_auc" in done.stdout or "all 2 runs have the same roc_auc" in done.stdout
    assert "seeds 1, 2 of" in done.stdout
    assert r"\toprule" in (tmp_path / "runs" / "report.tex").read_text()
    wrong = dashvlm("report", f"compare=[{runs[0]}]", check=False)
    assert wrong.returncode == 2


def test_commands_are_printed_as_they_are_run(dashvlm):
    done = dashvlm("report", "study=nexar_frames", "command=full")
    words = shlex.split(done.stdout.strip())
    assert words[:3] == ["python", "-m", "dashvlm.train"]
    assert "data.num_frames=5,10,15,20" in words
    assert markdown(load_study("nexar_frames")) == Path(STUDIES / "nexar_frames" / "table.md").read_text()
