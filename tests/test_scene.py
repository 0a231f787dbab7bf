"""Scene description: normalised words, cleaning that never invents, real annotations, metrics, pictures as clips."""

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import f1_score

from dashvlm.data.clip import Observation
from dashvlm.data.formats import bdd100k
from dashvlm.data.frames import FrameStore
from dashvlm.data.manifest import build_manifest
from dashvlm.data.pictures import confined_files, size_of
from dashvlm.data.readers import decode
from dashvlm.data.samples import build_samples
from dashvlm.data.sampling import dense_times, endpoint_times, support_count, support_times
from dashvlm.data.synthetic.language import annotation, parameters
from dashvlm.data.synthetic.scene import draw_scenes
from dashvlm.data.video import index_video
from dashvlm.engine.build import build_module
from dashvlm.engine.prepare import check_data, prepare_data
from dashvlm.engine.run import run
from dashvlm.errors import ConfigError, DataError, VideoError
from dashvlm.metrics import functional as F
from dashvlm.tasks.evaluation import evaluate, evaluations
from dashvlm.tasks.scene import SceneTask
from dashvlm.text.scene_schema import FIELDS, SCHEMA, normalise, validate
from dashvlm.text.scene_text import compose, read_annotation

from .conftest import REAL

WORLD = [
    "data=synthetic", "data.options.num_drives=12", "data.options.duration_s=4.0", "data.options.fps=5",
    "data.num_frames=2", "data.batch_size=4", "task=scene", "trainer.accelerator=cpu", "model.checkpoint=tiny",
    "model=qwen3_vl", "objective.max_new_tokens=24",
]  # fmt: skip
BDD = REAL / "bdd100k"
GOOD = {
    "road_type": "urban", "lane_count": "3", "ego_lane_position": "left", "traffic_light_state": "red",
    "pedestrian_on_road": "yes", "closest_vehicle_distance": "medium", "ego_vehicle_speed": "moderate",
    "road_curvature": "straight", "weather": "clear", "visibility": "good", "traffic_density": "medium",
    "risk_factor": "medium",
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("road_type", "Urban Street", "urban"),
        ("road_type", "urban highway", "highway"),
        ("road_type", "multi-lane", "other"),
        ("lane_count", 4, "4"),
        ("lane_count", "4", "4"),
        ("lane_count", "Multiple lanes", "multiple"),
        ("lane_count", 99, "other"),
        ("ego_vehicle_speed", "30 mph", "moderate"),
        ("ego_vehicle_speed", "30 km/h", "slow"),
        ("ego_vehicle_speed", "0", "stopped"),
        ("ego_vehicle_speed", "60-70 mph", "fast"),
        ("ego_vehicle_speed", "slow to moderate", "slow"),
        ("pedestrian_on_road", "yes", "yes"),
        ("pedestrian_on_road", "none", "no"),
        ("pedestrian_on_road", False, "no"),
        ("pedestrian_on_road", True, "yes"),
        ("pedestrian_on_road", "some pedestrians near the entrance", "other"),
        ("risk_factor", "Moderate", "medium"),
        ("risk_factor", "Low risk", "low"),
        ("traffic_light_state", {"current_light": "red", "next_light": "green"}, "red"),
        ("traffic_light_state", {"left": "red", "middle": "green"}, "mixed"),
        ("traffic_light_state", "not_applicable", "none"),
        ("closest_vehicle_distance", {"front": "50 feet", "rear": "20 feet"}, "close"),
        ("closest_vehicle_distance", "50-100 meters", "far"),
        ("closest_vehicle_distance", "safe", "other"),
        ("weather", "Clear Night Sky, No Rain", "clear"),
        ("weather", "cold", "other"),
        ("visibility", "slightly reduced", "medium"),
        ("road_curvature", "Slight curve to the left", "slight_left"),
        ("weather", None, None),
        ("weather", "", None),
        ("traffic_light_state", "no traffic lights", "none"),
        ("traffic_light_state", "green, pedestrian light not visible", "green"),
        ("traffic_light_state", "red light not visible", "other"),
        ("traffic_light_state", {"state": "green", "visible": True}, "green"),
        ("pedestrian_on_road", "no pedestrians", "no"),
        ("pedestrian_on_road", "empty crosswalk", "other"),
        ("pedestrian_on_road", "pedestrian walking on the sidewalk", "no"),
        ("pedestrian_on_road", "yes, with no signal", "yes"),
        ("closest_vehicle_distance", "closest vehicle is far ahead", "far"),
        ("closest_vehicle_distance", "no vehicles nearby", "none"),
        ("closest_vehicle_distance", "less than 10 m", "close"),
        ("closest_vehicle_distance", "over 30 m", "far"),
        ("visibility", "highly reduced", "low"),
        ("weather", "no fog", "other"),
        ("road_type", "urban street with parking lane", "urban"),
        ("lane_count", "one way street", "other"),
        ("lane_count", "two way road, 4 lanes", "4"),
    ],
)
def test_words_are_normalised(field, value, word):
    assert normalise(field, value) == word


@given(
    st.sampled_from(list(FIELDS)),
    st.one_of(
        st.text(max_size=40),
        st.integers(),
        st.booleans(),
        st.floats(),
        st.none(),
        st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3),
    ),
)
def test_any_value_becomes_a_word_of_the_vocabulary_or_nothing(field, value):
    word = normalise(field, value)
    assert word is None or word in FIELDS[field]


def test_the_schema_is_one_that_a_json_schema_validator_takes():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(GOOD, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**GOOD, "weather": "frogs"}, SCHEMA)


def test_repairs_do_not_invent():
    whole = compose({"description": "A road.", "risk": "Low."}, GOOD)
    assert read_annotation(whole).strict
    cases = {
        whole.replace('"moderate"', "30 mph"): (True, "unquoted 30 mph"),
        whole.replace('"medium"\n}', '"medium",\n}'): (True, "trailing comma"),
        whole.replace('"yes"', "True"): (True, "Python literal"),
        whole.replace('"urban"', "urban"): (True, "unquoted urban"),
        whole.replace('  "weather": "clear",\n', ""): (False, None),
        whole[: whole.index('"visibility"')]: (False, None),
        "I see a road.": (False, None),
    }
    for text, (usable, repair) in cases.items():
        found = read_annotation(text)
        assert found.usable == usable, text
        assert not found.strict
        assert set(found.fields.items()) <= set(GOOD.items())
        if repair:
            assert repair in found.repairs
        else:
            assert found.problems
    assert "cut off" in " ".join(read_annotation(whole[: whole.index('"visibility"')]).problems)
    assert read_annotation(whole.replace("A road.", "A road in this footage.")).problems == (
        "description mentions 'footage'",
    )
    cut = read_annotation(whole.replace("Low.", "Low. The vehicle should"))
    assert cut.sections["risk"] == "Low."
    assert "risk is cut off" in cut.problems
    twice = read_annotation(whole.replace('"weather"', '"lane_count": "4",\n  "weather"'))
    assert twice.fields["lane_count"] == "3"
    assert not twice.strict


def test_endless_blanks_and_deep_nesting_are_read_in_time():
    started = time.perf_counter()
    assert not read_annotation("\n" + " " * 20_000 + "Scene").usable
    assert not read_annotation('{"weather": ' + "[" * 3000 + "]" * 3000 + "}").usable
    assert time.perf_counter() - started < 5


@given(st.text(max_size=300))
def test_any_text_can_be_read(text):
    found = read_annotation(text)
    assert found.usable or found.problems


@pytest.mark.skipif(not BDD.exists(), reason="the real annotations are not part of the project")
def test_all_real_annotations_are_valid_after_normalisation_and_the_shard_is_repaired():
    main = {
        r["video_id"]: read_annotation(r["QA"]["a"])
        for r in json.loads((BDD / "BDD_instruct_train_main.json").read_text())
    }
    assert sum(a.usable for a in main.values()) == len(main) == 400
    assert all(validate(a.fields) == [] for a in main.values())
    assert Counter(a.fields["risk_factor"] for a in main.values()) == {"medium": 279, "low": 116, "high": 5}
    assert sum(any("cut off" in p for p in a.problems) for a in main.values()) == 17
    shard = {
        r["video_id"]: read_annotation(r["QA"]["a"]) for r in json.loads((BDD / "BDD_instruct_train1.json").read_text())
    }
    broken = [v for v, a in shard.items() if not a.strict]
    assert broken == ["00beeb02-ba0790aa.mov"]
    # Mended by rule, it says what was mended by hand in the released file.
    assert shard[broken[0]].fields == main[broken[0]].fields
    assert {"unquoted 30 mph", "unquoted 50 feet"} <= set(shard[broken[0]].repairs)


@pytest.mark.skipif(not BDD.exists(), reason="the real annotations are not part of the project")
def test_the_real_card_needs_no_videos(dashvlm, tmp_path):
    done = dashvlm("inspect", "data=bdd100k", f"data.root={BDD}")
    card = json.loads((tmp_path / "runs" / "inspect-bdd100k" / "card.json").read_text())
    assert sum(r["valid after normalisation"] for r in card["tables"]["annotations"]) == 400
    assert [r["groups"] for r in card["splits"] if r["split"] == "all"] == [258]
    assert {r["videos"] for r in card["splits"]} == {"not computable"}
    assert card["leakage"]["row_split_would_share"] > 0.2
    assert "no video of the 400 rows is there" in done.stdout
    done = dashvlm("inspect", "data=bdd100k", f"data.root={BDD}", "data.options.file=BDD_instruct_train1.json")
    assert "unquoted 30 mph" in done.stdout


# -- pictures as clips --------------------------------------------------------------------------


def picture(path, value, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)


def test_a_folder_a_list_and_one_picture_are_clips(tmp_path):
    for number in (0, 1, 2, 10):
        picture(tmp_path / "v" / f"frame_{number}.png", 10 * number)
    index = index_video(tmp_path / "v")
    assert index.times_s.tolist() == [0, 1, 2, 3]
    frames = decode(tmp_path / "v", index, [0, 3, 2])
    assert frames[:, 0, 0, 0].tolist() == [0, 100, 20]  # natural order: 2 before 10
    store = FrameStore(tmp_path / "store", size=(8, 8))
    stored, times = store.frames(tmp_path / "v", [0.0, 3.0])
    assert stored.shape == (2, 8, 8, 3)
    assert times.tolist() == [0, 3]
    picture(tmp_path / "v" / "frame_10.png", 77)  # another picture is another entry
    assert store.frames(tmp_path / "v", [3.0])[0][0, 0, 0, 0] == 77
    one = tmp_path / "v" / "frame_1.png"
    assert store.frames(one, [0.0])[0].shape == (1, 8, 8, 3)
    (tmp_path / "v" / "frame_1.png").write_bytes(b"not a picture")
    with pytest.raises(VideoError, match="not a readable picture"):
        decode(tmp_path / "v", index, [1])
    for name in ("x.png\n/etc/passwd", "a\x00b", "y" * 2000):
        with pytest.raises(DataError, match="leads out of the data root"):
            confined_files(tmp_path, name)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "0.png").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="leads out of the data root"):
        confined_files(tmp_path, "links")
    assert size_of(Path("")) == 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="without pictures"):
        index_video(tmp_path / "empty")


def rows_of(root, tmp_path, **options):
    return build_manifest(
        "bdd100k", bdd100k.rows(root, options), root, FrameStore(tmp_path / "store"),
        {"train": 0.5, "val": 0.25, "test": 0.25}, 0, max_bad_fraction=1.0,
    )  # fmt: skip


def test_annotations_with_extracted_frames_and_prompt_completion_rows(tmp_path):
    text = compose({"description": "A road.", "risk": "Low."}, GOOD)
    rows = []
    for drive in range(6):
        for part in range(2):
            name = f"{drive:08x}-{part:08x}"
            rows.append({"video_id": f"{name}.mov", "QA": {"q": "?", "a": text}})
            for number in range(12):
                picture(tmp_path / "frames" / name / f"{number}.jpg", 20 * number)
    rows += [{"video_id": "0000000a-1.mov", "QA": {"q": "?"}}, {"QA": {}}, rows[0]]
    (tmp_path / "all.json").write_text(json.dumps(rows))
    made = rows_of(tmp_path, tmp_path)
    assert len(made.clips) == 12
    assert len({c.group for c in made.clips}) == 6
    assert sorted(q.reason.split(";")[0] for q in made.quarantine) == ["duplicate id", "no answer in QA", "no video_id"]
    options = {
        "sampling": "endpoints",
        "num_frames": 8,
        "reference": "clip_end",
        "horizon_s": 0.0,
        "short_history": "error",
        "sampling_seed": 0,
        "negative_reference": "matched",
    }
    (sample,), _ = build_samples(made.clips[:1], options)
    assert len(sample.times_s) == 8
    assert sample.times_s[-1] == 11.0
    lines = [
        {"images": [f"frames/{i:08x}-00000000/{n}.jpg" for n in (0, 5, 11)],
         "prompt": [{"role": "user", "content": [{"type": "text", "text": "Describe."}]}],
         "completion": [{"role": "assistant", "content": text}]}
        for i in range(4)
    ]  # fmt: skip
    (tmp_path / "sft.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"images": "x.txt"}\n')
    with pytest.raises(DataError, match="more than one file"):
        rows_of(tmp_path, tmp_path)
    made = rows_of(tmp_path, tmp_path, file="sft.jsonl")
    assert len(made.clips) == 4
    assert made.clips[0].extra["question"] == "Describe."
    assert made.clips[0].duration_s == 3.0
    assert made.clips[0].group == "00000000"


def test_times_of_the_new_policies():
    assert endpoint_times(6.0, 4).tolist() == [0, 2, 4, 6]
    assert dense_times(4.0, 2.0, 4).tolist() == [0.0, 1.0, 2.5, 3.5]
    assert dense_times(1.0, 2.0, 3).tolist() == [-0.5, 0.0, 0.5]
    assert support_times(10.0, [4.0, 3.0], 4).tolist() == [2.75, 3.25, 3.75, 4.25]
    assert support_times(10.0, [11.0, 12.0], 4).min() >= 9.5
    assert (np.diff(support_times(10.0, [11.0, 12.0], 4)) > 0).all()
    assert [support_count(n, (4, 6)) for n in (1, 2, 3, 9)] == [4, 4, 6, 6]


@given(st.floats(0.5, 60), st.lists(st.floats(0, 90), min_size=1, max_size=5), st.integers(1, 12))
def test_support_windows_stay_inside_the_clip_and_run_forwards(duration, moments, count):
    times = support_times(duration, moments, count)
    assert len(times) == count
    assert times.min() >= 0
    assert times.max() <= duration
    assert (np.diff(times) > 0).all()


# -- numbers ------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=40))
def test_macro_f1_is_scikit_learns_over_the_classes_that_occur(pairs):
    y, s = (np.array(v) for v in zip(*pairs, strict=True))
    theirs = f1_score(y, s, labels=np.unique(y), average="macro", zero_division=0)
    assert float(F.macro_f1(y, s)) == pytest.approx(theirs)


def scene_table(answers, targets):
    n = len(targets)
    read = [
        json.dumps({"fields": a, "strict": len(a) == 12, "sections": {"description": "a road"}})
        if a is not None
        else None
        for a in answers
    ]
    return pd.DataFrame(
        {
            "group": [f"g{i // 2}" for i in range(n)],
            "primary": True,
            "target": [json.dumps(t) for t in targets],
            "answer": read,
            "status": ["parsed" if a is not None else "unparsed" for a in answers],
            "pixels_off_answer": None,
            "reference": json.dumps({"description": "A road."}),
        }
    )


def test_scene_numbers_by_hand():
    targets = [{**GOOD, "risk_factor": r} for r in ("low", "medium") * 20]
    perfect = evaluate(scene_table(targets, targets), evaluations()["scene"])
    assert perfect["metrics"]["field_accuracy"]["value"] == 1.0
    assert perfect["metrics"]["risk_macro_f1"]["value"] == 1.0
    assert perfect["metrics"]["description_rouge_l"]["value"] == pytest.approx(1.0)
    assert perfect["baselines"]["majority_field_accuracy"]["value"] == pytest.approx((11 + 0.5) / 12)
    assert perfect["alarms"] == []
    same = evaluate(scene_table([GOOD] * 40, targets), evaluations()["scene"])
    assert same["metrics"]["above_majority"]["value"] == pytest.approx(0.0)
    assert any("same parameters" in a for a in same["alarms"])
    half = evaluate(scene_table([t if i % 2 else None for i, t in enumerate(targets)], targets), evaluations()["scene"])
    assert half["metrics"]["field_accuracy"]["value"] == pytest.approx(0.5)
    assert half["metrics"]["parse_rate"]["value"] == pytest.approx(0.5)
    partial = evaluate(scene_table([{"weather": "clear"}] * 40, targets), evaluations()["scene"])
    assert partial["metrics"]["key_completeness"]["value"] == pytest.approx(1 / 12)
    assert partial["metrics"]["json_valid"]["value"] == 0


# -- the whole path -----------------------------------------------------------------------------


def test_synthetic_annotations_are_valid_and_say_the_truth():
    for scene in draw_scenes(60, 0, 0.5, 9.0):
        found = read_annotation(annotation(scene))
        assert found.strict
        assert not found.problems
        assert dict(found.fields) == parameters(scene)
        assert found.fields["weather"] == scene.drive.weather


def test_the_task_teaches_the_canonical_text_and_asks_without_the_answer():
    task = SceneTask("scene", sections=["parameters"])
    text = task.messages(Observation((0.0, 1.0), "their instruction"))[0]["content"][-1]["text"]
    assert "their instruction" not in text
    assert "their instruction" in str(
        SceneTask("scene", use_clip_question=True).messages(Observation((0.0,), "their instruction"))
    )
    with pytest.raises(ConfigError, match=r"task.sections"):
        SceneTask("scene", sections=["risk"])
    assert task.parse("no idea", Observation((0.0,)))[0] is None
    assert task.parse(None, Observation((0.0,))) == (None, "failed")


@pytest.mark.slow
def test_a_scene_run_ends_with_its_numbers_and_constrained_decoding_is_always_valid(config, tmp_path):
    pytest.importorskip("xgrammar", reason="constrained decoding needs xgrammar (extra: constrained)")
    cfg = config(*WORLD, "trainer.max_steps=2", "objective.constrained=true", "objective.max_new_tokens=260")
    (tmp_path / "run").mkdir()
    result = run(cfg, tmp_path / "run")
    rows = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    held = [json.loads(t) for t in rows["constrained_text"]]
    assert all(validate(h) == [] for h in held)
    assert rows["constrained_answer"].map(lambda a: json.loads(a)["strict"]).all()
    assert "constrained_field_accuracy" in result["metrics"]
    assert result["metrics"]["json_valid"]["value"] < 1  # two steps teach no JSON; the two are apart
    assert (tmp_path / "run" / "plots" / "fields.png").exists()
    again = evaluate(rows, evaluations()["scene"], int(cfg["seed"]))
    assert again["metrics"]["field_accuracy"]["value"] == pytest.approx(result["metrics"]["field_accuracy"]["value"])


def test_answers_are_masked_exactly(config):
    cfg = config(*WORLD)
    data, module = prepare_data(cfg), build_module(cfg)
    from dashvlm.data.items import SampleDataset

    samples = data.samples["train"][:3]
    dataset = SampleDataset(samples, data.store)
    batch = module.collate("train")([dataset[i] for i in range(3)])
    for row, sample in zip(batch["inputs"]["labels"], samples, strict=True):
        assert module.backbone.encoder.decode(row[row != -100][None])[0] == module.task.answer(sample)
    seen = module.collate("predict")([dataset[i] for i in range(3)])
    assert "labels" not in seen["inputs"]


def test_unusable_annotations_are_quarantined_in_training(config, tmp_path):
    for drive in range(8):
        picture(tmp_path / "frames" / f"{drive:08x}-0" / "0.png", 10)
    good = compose({}, GOOD)
    rows = [{"video_id": f"{d:08x}-0.mov", "QA": {"q": "?", "a": good if d else good[:60]}} for d in range(8)]
    (tmp_path / "main.json").write_text(json.dumps(rows))
    words = ["task=scene", "data=bdd100k", f"data.root={tmp_path}", "data.splits={train: 1.0, val: 0.0, test: 0.0}"]
    with pytest.raises(DataError, match="1 of 8 training annotations are unusable"):
        prepare_data(config(*words, "model.checkpoint=tiny"))
    cfg = config(*words, "model.checkpoint=tiny", "data.max_bad_fraction=0.2", "data.frame_size=null")
    data = prepare_data(cfg)
    assert [q.clip_id for q in data.manifest.quarantine] == ["00000000-0"]
    assert check_data(cfg)[0]["samples"] == 7
