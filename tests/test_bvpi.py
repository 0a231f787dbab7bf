"""BVPI: the builder gives the published rows back, the tables the published numbers, and bad files are named."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dashvlm.data.clip import Clip, Observation, Sample
from dashvlm.data.formats import bvpi, bvpi_build
from dashvlm.data.frames import FrameStore
from dashvlm.data.items import SampleDataset
from dashvlm.data.manifest import build_manifest
from dashvlm.data.synthetic.street import caption, draw_streets, render
from dashvlm.engine.build import build_module
from dashvlm.engine.prepare import prepare_data
from dashvlm.engine.run import run
from dashvlm.errors import ConfigError, DataError
from dashvlm.reproductions.recompute import against_published, recompute
from dashvlm.reproductions.studies import load_study
from dashvlm.tasks.caption import CaptionTask, parts_of
from dashvlm.tasks.caption.navigation import contradicts_itself, field_rows, mentions, omissions, side_rows
from dashvlm.tasks.evaluation import evaluate, evaluations
from dashvlm.text.navigation import Truth, parse_fields, relation, response, segment, sides_of, stated_sides

from .conftest import REAL

BVPI = REAL / "bvpi"
PUBLISHED = BVPI / "published_openflamingo"
real = pytest.mark.skipif(not BVPI.exists(), reason="the real BVPI files are not part of the project")
WORLD = [
    "data=synthetic", "data.options.num_drives=24", "task=caption", "data.batch_size=4", "trainer.accelerator=cpu",
    "model.checkpoint=tiny", "objective.max_new_tokens=24",
]  # fmt: skip

# -- text ---------------------------------------------------------------------------------------


def test_relations_follow_from_positions():
    expected = {
        ("center", "left"): "left_of", ("center", "right"): "right_of", ("left", "center"): "right_of",
        ("left", "right"): "right_of", ("right", "center"): "left_of", ("right", "left"): "left_of",
        ("left", "left"): "unknown", ("unknown", "left"): "unknown", ("left", "unknown"): "unknown",
        ("unknown", "front"): "crossing_front", ("center", "front"): "crossing_front",
    }  # fmt: skip
    assert {pair: relation(*pair) for pair in expected} == expected


def test_phrases_count_objects_and_join_sides():
    truth = Truth(
        "left",
        "front",
        {"person": ("left", "left"), "obstacle": ("center",), "car": ("left", "center", "right")},
        {"traffic_light": ("right",)},
    )
    assert response(truth, "A path.") == (
        "Sidewalk: left. Road: front. RoadVsSidewalk: crossing_front. Nearby: an obstacle close on the center; "
        "2 people close on the left; 3 cars close across the left, center, and right. Far: a traffic light farther "
        "away on the right. Context: A path."
    )
    assert "Nearby: no important close objects visible. Context: x" in response(Truth("left", "left"), "x")
    assert sides_of("Left-Left, Center / right") == ("left", "left", "center", "right")
    assert sides_of("Outside") == sides_of(None) == sides_of("nan") == ()


@given(
    st.builds(
        Truth,
        st.sampled_from(["left", "center", "right", "unknown"]),
        st.sampled_from(["left", "right", "front", "unknown"]),
        st.dictionaries(
            st.sampled_from(["person", "car", "traffic_sign"]),
            st.lists(st.sampled_from(["left", "center", "right"]), min_size=1, max_size=4).map(tuple),
            max_size=3,
        ),
    )
)
def test_what_is_written_is_read_back(truth):
    text = response(truth, "The sidewalk is fine.")
    assert parse_fields(text) == truth.fields
    found = bvpi.truth_of_text(text)
    assert {k: set(v) for k, v in found.near.items()} == {k: set(v) for k, v in truth.near.items()}
    assert not contradicts_itself(text)


def test_parts_are_dropped_whole_and_differently_in_each_pass():
    truth = Truth("center", "left", {"person": ("left",)}, {"car": ("right",)})
    text = response(truth, "Road: is a word here. A path.")
    assert [label for label, _ in parts_of(text)] == ["Sidewalk", "Road", "RoadVsSidewalk", "Nearby", "Far", "Context"]
    assert " ".join(part for _, part in parts_of(text)) == text
    clip = Clip(
        "c", "c.png", "g", "train", None, None, None, 1.0, 1.0, {"navigation": truth.to_dict(), "caption": "A path."}
    )
    sample = Sample("c@0", clip, 0.0, 1.0, (0.0,), 0)
    task = CaptionTask("caption", text_dropout=0.5)
    texts = [task.training_answer(sample, draw) for draw in range(40)]
    assert len(set(texts)) > 5
    assert all("RoadVs:" not in t and "Context: A path." in t for t in texts)
    assert task.training_answer(sample, 3) == task.training_answer(sample, 3)
    kept = np.mean(["Sidewalk: center." in t for t in texts])
    assert 0.2 < kept < 0.8
    assert task.answer(sample) == response(truth, "A path.")


# -- safety metrics -----------------------------------------------------------------------------

NEAR = {"person": ("left",), "obstacle": ("center", "right")}


def test_a_blank_before_the_colon_changes_nothing():
    """34 of 333 published texts of SmolVLM2 write ``Sidewalk :``; the published script reads them."""
    text = (
        "Sidewalk : left. Road\t: right . RoadVsSidewalk : unknown. Nearby : a car close on the left. Far : a person."
    )
    assert parse_fields(text) == {"sidewalk_pos": "left", "road_pos": "right", "road_vs_sidewalk": "unknown"}
    assert mentions(text, "car")
    assert not mentions(text, "person")


def test_mentions_are_whole_words_of_the_nearby_segment():
    text = "Nearby: a manhole; 2 cones close on the left. Far: a car. Context: carried by a woman, blocked."
    assert segment(text, "Far") == "a car."
    assert mentions(text, "obstacle")
    assert not mentions(text, "person")
    assert mentions(text, "person", "full_text")
    assert not mentions(text, "car")
    assert mentions(text, "car", "full_text")
    assert mentions("Nearby: a manhole.", "person", "published_nearby")
    assert not mentions("a person", "person")
    assert mentions("a person", "person", "published")
    assert mentions("Nearby: pedestrians.", "person")
    assert not mentions("Nearby: a signature.", "traffic_sign")


def test_omissions_and_denials_and_sides():
    told = "Nearby: a person close on the left; 2 obstacles close on the center and right."
    assert omissions(told, NEAR) == {"person": "told", "obstacle": "told"}
    assert side_rows(told, NEAR) == {"person": True, "obstacle": True}
    assert side_rows("Nearby: a person close on the right.", NEAR) == {"person": False}
    assert omissions("Nearby: no important close objects visible.", NEAR) == {"person": "denied", "obstacle": "denied"}
    assert omissions("Sidewalk: left.", NEAR) == {"person": "omitted", "obstacle": "omitted"}
    assert omissions("Nearby: a car.", {"traffic_sign": ("left",)}) == {}
    assert stated_sides("a person close on the centre", ["person"]) == {"center"}
    assert omissions("Nearby: no people or cars nearby.", {"person": ("left",)}) == {"person": "denied"}
    assert omissions("Nearby: no cars, a person on the left.", {"person": ("left",)}) == {"person": "told"}
    assert mentions("Nearby: two men on the left.", "person")
    plural = "Nearby: two pedestrians close on the left; vehicles on the right."
    assert side_rows(plural, {"person": ("left", "left"), "car": ("right",)}) == {"person": True, "car": True}
    assert parse_fields("Sidewalk: left or right. Road: left/center/right/front.") == {}


def test_missing_fields_are_wrong_even_where_the_truth_is_unknown():
    truths = [Truth("unknown", "unknown").fields, Truth("left", "right").fields]
    rows = field_rows(["", "Sidewalk: left. Road: right. RoadVsSidewalk: left_of."], truths)
    assert rows["sidewalk_pos"]["present"].tolist() == [False, True]
    assert rows["sidewalk_pos"]["right"].tolist() == [False, True]
    assert rows["road_vs_sidewalk"]["right"].tolist() == [False, False]
    assert rows["road_vs_sidewalk_derived"]["right"].tolist() == [False, True]


# -- the real files -----------------------------------------------------------------------------


@real
@pytest.mark.parametrize(("split", "count"), [("test", 333), ("val", 317)])
def test_the_builder_gives_the_published_rows_back(split, count):
    made = [bvpi_build.sft_row(i) for i in bvpi_build.joined(*bvpi_build.csv_files(BVPI)) if i["split"] == split]
    shipped = [json.loads(line) for line in (BVPI / f"bvpi_sft_{split}.jsonl").read_text().splitlines()]
    assert len(shipped) == count
    assert made == shipped


@real
def test_the_builder_gives_the_published_pairs_back_and_chosen_ends_with_rejected(tmp_path):
    made = {i["image"]: bvpi_build.dpo_row(i) for i in bvpi_build.joined(*bvpi_build.csv_files(BVPI))}
    shipped = [json.loads(line) for line in (BVPI / "bvpi_dpo_train_head300.jsonl").read_text().splitlines()]
    assert [made[s["image"]] for s in shipped] == shipped
    assert all(s["chosen"].endswith(s["rejected"]) for s in shipped)
    assert bvpi_build.write_rows(BVPI, tmp_path) == {
        "bvpi_sft_train.jsonl": 2581, "bvpi_dpo_train.jsonl": 2581, "bvpi_sft_val.jsonl": 317,
        "bvpi_dpo_val.jsonl": 317, "bvpi_sft_test.jsonl": 333,
    }  # fmt: skip


def again(name, *files, **options):
    """Compute a study's published rows again from files."""
    return recompute(load_study(name), [Path(f) for f in files], options)


@real
def test_published_fields_and_objects_are_reproduced_with_their_counts():
    file = PUBLISHED / "bvpi_flamingo_inference_results.jsonl"
    (fields,) = again("bvpi_fields", file)
    _, _, lines = against_published(load_study("bvpi_fields"), fields)
    assert [line[-1] for line in lines] == ["reproduced"] * 6
    shown = {row[0]: row[1:] for row in fields.details[0][2]}
    assert shown["sidewalk_pos"] == ["333/333", "167/333 = 0.502", "center 196/333 = 0.589"]
    assert shown["road_pos"][1] == "145/333 = 0.435"
    assert shown["road_vs_sidewalk"][1] == "136/333 = 0.408"
    assert shown["road_vs_sidewalk_derived"][1] == "153/333 = 0.459"
    assert fields.corrected["accuracy_road_pos_known"].value == pytest.approx(94 / 224)
    (objects,) = again("bvpi_objects", file)
    counts = {row[0]: row[2] for row in objects.details[0][2]}
    assert counts == {
        "person": "24 / 18 / 35",
        "car": "5 / 4 / 324",
        "bicycle": "7 / 7 / 15",
        "obstacle": "50 / 31 / 188",
        "traffic_sign": "16 / 25 / 55",
        "traffic_light": "1 / 9 / 1",
    }
    _, _, lines = against_published(load_study("bvpi_objects"), objects)
    assert [line[-1] for line in lines] == ["reproduced"] * 12
    assert objects.corrected["precision_car"].value == pytest.approx(3 / 327)  # in the Nearby segment, whole words
    assert any("225 of 333" in n for n in fields.notes)
    assert any("not above always saying 'center' (0.589)" in n for n in fields.notes)


@real
def test_another_models_file_needs_configuration_only(tmp_path):
    """Chat echo, another key, missing headers, a missing row: the layout of the SmolVLM2 files."""
    rows = [json.loads(x) for x in (PUBLISHED / "bvpi_flamingo_inference_results.jsonl").read_text().splitlines()]
    made = []
    for number, row in enumerate(rows[:-1]):
        text = row["prediction"] if number % 10 else row["prediction"].split("Nearby:")[1]
        made.append({"image_path": row["image"], "response": f"User:<row_1_col_1> {row['prompt']}\nAssistant: {text}"})
    folder = tmp_path / "SMOL_BVPI"
    folder.mkdir()
    path = folder / "inference.jsonl"
    path.write_text("\n".join(map(json.dumps, made)))
    options = {
        "annotations": str(BVPI / "annotations_with_obj_pos.csv"),
        "captions": str(BVPI / "complete_captions_sensation.csv"),
    }
    (fields,) = again("bvpi_fields", path, **options)
    assert any("'response', cleaning rule 'chat' changed 332 of 332" in n for n in fields.notes)
    assert any("1 pictures of the test split have no prediction" in n for n in fields.notes)
    assert fields.published["presence_sidewalk_pos"] == pytest.approx(298 / 333)
    assert fields.row == ""  # a file's name makes it no published one
    shown = [title for title, _, _ in again("bvpi_objects", path, **options)[0].details]
    assert [t.split(", ")[1].split(":")[0] for t in shown] == ["published", "published_nearby", "nearby", "full_text"]
    with pytest.raises(DataError, match="no references"):
        again("bvpi_captions", path, **options)
    with pytest.raises(ConfigError, match="not in the published table"):
        again("bvpi_fields", path, **options, row="gpt")
    with pytest.raises(DataError, match="need a text and a picture"):
        again("bvpi_fields", path, **options, text_key="nope")
    assert len(again("bvpi_fields", path, PUBLISHED / "bvpi_flamingo_inference_results.jsonl", **options)) == 2


@real
def test_files_of_different_splits_are_flagged(tmp_path):
    rows = [json.loads(x) for x in (BVPI / "bvpi_sft_val.jsonl").read_text().splitlines()]
    path = tmp_path / "flamingo_val.jsonl"
    path.write_text(
        "\n".join(json.dumps({"image": r["image"], "prediction": r["response"], "target": r["response"]}) for r in rows)
    )
    files = [str(path), str(PUBLISHED / "bvpi_flamingo_inference_results.jsonl")]
    options = {
        "annotations": str(BVPI / "annotations_with_obj_pos.csv"),
        "captions": str(BVPI / "complete_captions_sensation.csv"),
    }
    perfect, _ = again("bvpi_fields", *files, **options)
    assert any("different splits and must not be compared" in n for n in perfect.notes)
    assert perfect.row == ""
    assert perfect.published["accuracy_road_vs_sidewalk"] == 1.0


@real
def test_the_report_verb_prints_and_writes_the_table(dashvlm, tmp_path):
    done = dashvlm("report", "study=bvpi_objects", f"predictions={PUBLISHED / 'bvpi_flamingo_inference_results.jsonl'}")
    assert "50 / 31 / 188" in done.stdout
    assert (tmp_path / "runs" / "bvpi_objects.md").exists()
    done = dashvlm("report", "study=bvpi_objects", "predictions=/nowhere.json", check=False)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    done = dashvlm("report", "study=bvpi_captions")  # without predictions the study as it is frozen
    assert "Published, recomputed, corrected" in done.stdout


@real
def test_the_real_card_counts_contradictions(dashvlm, tmp_path):
    dashvlm("inspect", "data=bvpi", f"data.root={BVPI}")
    card = json.loads((tmp_path / "runs" / "inspect-bvpi" / "card.json").read_text())
    rows = {r["split"]: r for r in card["tables"]["captions and annotations"]}
    assert (rows["train"]["captions"], rows["val"]["captions"], rows["test"]["captions"]) == (2581, 317, 333)
    assert rows["train"]["caption contradicts annotation"] > 600


# -- importers ----------------------------------------------------------------------------------

HEADER = (
    "image,status,sidewalk_pos,road_pos,Object_present,Object_present_outside,m_bicycle,m_car,m_person,m_traffic_sign,"
    "traffic_light,m_obstacle,m_grass,m_plants,m_trees,m_bicycle_outside,m_car_outside,m_person_outside,"
    "m_traffic_sign_outside,traffic_light_outside,m_obstacle_outside,m_grass_outside,m_plants_outside,m_trees_outside"
)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "bvpi"
    nothing = ["not present"] * 18
    lines = [HEADER]
    captions = ["image_path,target,split"]
    for number in range(12):
        objects = list(nothing)
        objects[2] = "Left-Center" if number % 2 else "not present"
        lines.append(",".join([f"{100 + number * 5:04d}.jpg", "done", "Center", "Left", "Yes", "No", *objects]))
        split = "train" if number < 8 else "val" if number < 10 else "test"
        captions.append(
            f"{split}/{100 + number * 5:04d}.jpg,"
            f'"The sidewalk is centered, a road on the {"left" if number else "right"}.",{split}'
        )
        path = root / split / f"{100 + number * 5:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 20 * number, np.uint8)).save(path)
    lines.append(",".join(["0100.jpg", "done", "Left", "Left", "No", "No", *nothing]))
    lines.append(",".join(["ne", "Center", "No", "not present", "x", *nothing]))
    captions += ["train/none.jpg,,train", "train/unannotated.jpg,A street.,train"]
    (root / "x_annotations.csv").write_text("\n".join(lines) + "\n")
    (root / "x_captions.csv").write_text("\n".join(captions) + "\n")
    return root


def load(root, tmp_path, **options):
    return build_manifest("bvpi", bvpi.rows(root, options), root, FrameStore(tmp_path / "store"),
                          {"train": 0.5, "val": 0.25, "test": 0.25}, 0, max_bad_fraction=1.0)  # fmt: skip


def test_duplicates_and_shifted_rows_are_named(folder, tmp_path):
    truths, notes = bvpi_build.read_annotations(folder / "x_annotations.csv")
    assert truths["0100.jpg"].sidewalk == "center"
    assert len(notes) == 2
    assert "annotated twice" in notes[0]
    assert "shifted" in notes[1]
    made = load(folder, tmp_path)
    assert len(made.clips) == 12
    reasons = {q.clip_id: q.reason for q in made.quarantine}
    assert reasons["train/none.jpg"] == "no caption"
    assert "no such file" in reasons["train/unannotated.jpg"]
    (folder / "x_annotations.csv").write_text("image,status\n")
    with pytest.raises(DataError, match="columns are missing"):
        load(folder, tmp_path)


def test_planned_filters_and_mixes_are_options_for_training_rows_only(folder, tmp_path):
    consistent = load(folder, tmp_path, consistent_only=True)
    assert (
        "the caption has the road on the right"
        in {q.clip_id: q.reason for q in consistent.quarantine}["train/0100.jpg"]
    )
    (folder / "clip.csv").write_text(
        "image,score\n" + "".join(f"{100 + n * 5:04d}.jpg,{0.2 + 0.02 * n}\n" for n in range(12))
    )
    kept = load(folder, tmp_path, clip_scores="clip.csv", min_clip_score=0.28)
    assert len(kept.split("train")) == 4
    assert len(kept.split("test")) == 2
    mixed = load(folder, tmp_path, caption_share=0.7, annotations_share=0.5)
    train = mixed.split("train")
    assert any(c.extra.get("style") == "caption" for c in train)
    told = [c for c in train if c.extra.get("annotation_in_prompt")]
    assert told
    assert '"sidewalk_pos": "Center"' in told[0].extra["question"]
    assert not any("question" in c.extra for c in mixed.split("val") + mixed.split("test"))
    blocks = load(folder, tmp_path, group_by="block", block_size=25)
    by_group = {}
    for clip in blocks.clips:
        by_group.setdefault(clip.group, set()).add(clip.split)
    assert len(set(by_group) - {"unannotated"}) == 3
    assert all(len(splits) == 1 for splits in by_group.values())
    told = load(folder, tmp_path, group_by="block", block_size=5, annotations_share=1.0, caption_share=1.0)
    assert {c.split for c in told.clips if c.extra.get("annotation_in_prompt") or c.extra.get("style")} == {"train"}


def test_lines_and_the_annotation_form_are_read(folder, tmp_path):
    item = {
        "image": "train/0100.jpg",
        "target": "A path.",
        "truth": Truth("left", "front", {"person": ("left",)}),
        "split": "train",
    }
    (folder / "bvpi_sft_train.jsonl").write_text(json.dumps(bvpi_build.sft_row(item)) + "\n{bad\n")
    made = load(folder, tmp_path, file="bvpi_sft_train.jsonl")
    assert made.clips[0].extra["navigation"]["near"] == {"person": ["left"]}
    assert made.clips[0].extra["caption"] == "A path."
    two = response(Truth("left", "front", {"person": ("left", "left")}), "A path.")
    assert bvpi.truth_of_text(two).near == {"person": ("left", "left")}
    sample = Sample("c@0", made.clips[0], 0.0, 1.0, (0.0,), 0)
    assert CaptionTask("caption").answer(sample) == bvpi_build.sft_row(item)["response"]
    assert CaptionTask("caption", style="caption").target(sample) == {}
    assert "not JSON" in made.quarantine[0].reason
    (folder / "bvpi_dpo_train.jsonl").write_text(json.dumps(bvpi_build.dpo_row(item)) + "\n")
    pair = load(folder, tmp_path, file="bvpi_dpo_train.jsonl").clips[0].extra
    assert pair["chosen"].endswith(pair["rejected"])
    form = {
        "image": "train/0105.jpg",
        "sidewalk_pos": "Center",
        "road_pos": "Left",
        "object_present": "Yes",
        "objects_on_sidewalk": {"obstacle": ["Left", "Right"], "car": "not present", "person": "Center"},
        "object_present_outside": "No",
        "caption": "A path.",
        "split": "train",
    }
    (folder / "form.json").write_text(
        json.dumps([form, {**form, "image": "train/0110.jpg", "object_present": "No"}, {"image": "z"}])
    )
    made = load(folder, tmp_path, file="form.json")
    assert made.clips[0].extra["navigation"]["near"] == {"obstacle": ["left", "right"], "person": ["center"]}
    assert made.clips[1].extra["navigation"]["near"] == {}
    assert "missing sidewalk_pos" in made.quarantine[0].reason


# -- the whole path -----------------------------------------------------------------------------


def test_synthetic_streets_show_what_their_annotation_says():
    streets = list(draw_streets(60, 0))
    assert {s.truth.sidewalk for s in streets} == {"left", "center", "right"}
    assert {s.truth.road for s in streets} >= {"left", "right", "front", "unknown"}
    for street in streets:
        assert bvpi.truth_of_text(response(street.truth, caption(street))).sidewalk == street.truth.sidewalk
    for side, column in (("left", 13), ("center", 32), ("right", 51)):
        plain = [render(s, 64, 64) for s in streets if s.truth.sidewalk == side and not s.truth.near]
        assert np.mean([p[60, column].mean() for p in plain]) > 150  # the bright way is where it should be


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smolvlm2", "openflamingo"])
def test_a_caption_run_ends_with_presence_accuracy_objects_omissions_and_captions(config, tmp_path, model):
    words = [f"model={model}", "trainer.max_steps=2", "+objective.generation.num_beams=2"]
    words += ["objective.prefix='Sidewalk:'", "task.text_dropout=0.25"]
    if model == "openflamingo":
        words += [
            "peft=gates",
            "objective.gate_penalty=0.1",
            "model.loader_options.gate_init=0.6",
            "+optim.lr_scale={/attn_gate: 50}",
        ]
    cfg = config(*WORLD, *words)
    result = run(cfg, tmp_path)
    for name in ("accuracy_sidewalk_pos", "presence_road_pos", "unsafe_omission", "BLEU-4", "CIDEr", "object_recall"):
        assert name in result["metrics"], name
    assert result["forced_prefix"] == ["Sidewalk:"]
    assert any("made to begin with 'Sidewalk:'" in a for a in result["alarms"])
    rows = pd.read_parquet(tmp_path / "predictions.parquet")
    assert rows["text"].str.startswith("Sidewalk:").all()
    assert (rows["prefix"] == "Sidewalk:").all()
    again = evaluate(rows, evaluations()["caption"], int(cfg["seed"]))
    assert again["metrics"]["unsafe_omission"]["value"] == result["metrics"]["unsafe_omission"]["value"]
    assert (tmp_path / "plots" / "fields.png").exists()


def test_the_gate_penalty_and_rate_reach_the_gates_only(config):
    cfg = config(
        *WORLD,
        "model=openflamingo",
        "peft=gates",
        "+optim.lr_scale={/attn_gate: 50}",
        "objective.gate_penalty=2.0",
        "model.loader_options.gate_init=0.75",
    )
    module = build_module(cfg)
    gates = [p for n, p in module.named_parameters() if n.endswith("attn_gate.weight")]
    data = prepare_data(cfg)
    dataset = SampleDataset(data.samples["train"], data.store)
    batch = module.collate("train")([dataset[0], dataset[1]])
    with_penalty = float(module.compute_loss(batch))
    module.options["gate_penalty"] = 0.0
    assert with_penalty - float(module.compute_loss(batch)) == pytest.approx(2.0 * 0.25 * len(gates), abs=1e-4)
    from dashvlm.training.optim import parameter_groups

    groups = parameter_groups(module.named_parameters(), lambda n: "x", cfg["optim"])
    fast = [g for g in groups if g["lr"] > cfg["optim"]["lr"]]
    assert sum(len(g["params"]) for g in fast) == len(gates)
    smol = build_module(config(*WORLD, "model=smolvlm2", "objective.gate_penalty=1.0"))
    with pytest.raises(ConfigError, match="attention gates"):
        smol.compute_loss(smol.collate("train")([dataset[0]]))


@pytest.mark.parametrize("model", ["smolvlm2", "openflamingo", "qwen3_vl"])
def test_a_forced_prefix_continues_like_a_written_answer(config, model):
    module = build_module(config(*WORLD, f"model={model}"))
    encoder = module.backbone.encoder
    chat = CaptionTask("caption").messages(Observation((0.0,)))
    frame = np.full((1, 64, 64, 3), 90, np.uint8)
    begun = encoder.encode([chat], [frame], prefix="Sidewalk:")["input_ids"][0]
    taught = encoder.encode([chat], [frame], ["Sidewalk: left."])
    plain = encoder.encode([chat], [frame])["input_ids"][0]
    assert len(begun) > len(plain)
    assert encoder.tokenizer.decode(taught["input_ids"][0]).startswith(encoder.tokenizer.decode(begun))


def test_the_builder_is_reached_by_inspect(folder, dashvlm, tmp_path):
    done = dashvlm("inspect", "data=bvpi", f"data.root={folder}", "write_jsonl=true")
    assert "bvpi_sft_train.jsonl: " in done.stdout
    assert list((tmp_path / "runs" / "inspect-bvpi").glob("bvpi_dpo_*.jsonl"))


@pytest.mark.parametrize("model", ["openflamingo", "smolvlm2"])
def test_demonstrations_are_solved_examples_of_other_groups(config, model):
    cfg = config(
        *WORLD, f"model={model}", "data.shots.share=0.5", "data.shots.least=2", "data.shots.most=3", "data.shots.eval=2"
    )
    data, module = prepare_data(cfg), build_module(cfg)
    shown = [s for s in data.samples["train"] if s.demos]
    assert 0.2 < len(shown) / len(data.samples["train"]) < 0.8
    assert {len(s.demos) for s in shown} == {2, 3}
    for sample in [*shown, *data.samples["val"]]:
        assert all(d.clip.split == "train" and d.clip.group != sample.clip.group for d in sample.demos)
    assert all(len(s.demos) == 2 for s in data.samples["val"])
    dataset = SampleDataset(shown[:2], data.store)
    batch = module.collate("train")([dataset[0], dataset[1]])
    for row, ids, sample in zip(batch["inputs"]["labels"], batch["inputs"]["input_ids"], shown[:2], strict=True):
        assert module.backbone.encoder.decode(row[row != -100][None])[0] == module.task.answer(sample)
        text = module.backbone.encoder.tokenizer.decode(ids)
        assert all(module.task.answer(d) in text for d in sample.demos)
    assert np.isfinite(float(module.compute_loss(batch)))
    with pytest.raises(DataError, match="demonstrations are wanted"):
        prepare_data(config(*WORLD, f"model={model}", "data.shots.eval=32"))
