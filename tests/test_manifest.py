"""Importers, quarantine, splits: bad rows are counted with a reason, groups stay together."""

import json
import shutil

import pytest

from dashvlm.data.clip import SPLITS
from dashvlm.data.formats import jsonl, nexar
from dashvlm.data.frames import FrameStore
from dashvlm.data.manifest import build_manifest, leakage_report
from dashvlm.errors import ConfigError, DataError
from dashvlm.shortcuts.card import anchor_auc, dataset_card
from dashvlm.tasks.crash import CrashTask

FRACTIONS = {"train": 0.5, "val": 0.25, "test": 0.25}
OPTIONS = {
    "sampling": "anchored", "num_frames": 3, "frame_interval_s": 0.5, "horizon_s": 0.5, "reference": "event",
    "negative_reference": "matched", "short_history": "pad_oldest", "sampling_seed": 0, "split_seed": 0,
}  # fmt: skip


@pytest.fixture
def nexar_folder(tmp_path, counter_video):
    """Sixteen clips of 5 s in eight recordings, in the Nexar layout."""
    video, _ = counter_video("nexar", num_frames=100)
    root = tmp_path / "nexar"
    (root / "videos").mkdir(parents=True)
    lines = ["id,time_of_event,time_of_alert,target,group"]
    for number in range(16):
        shutil.copy(video, root / "videos" / f"{number:05d}.mp4")
        event = "4.0,3.0,1" if number % 2 else ",,0"
        lines.append(f"{number},{event},r{number // 2}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


def manifest(root, rows, tmp_path, **changes):
    options = {"splits": FRACTIONS, "seed": 0, "max_bad_fraction": 1.0} | changes
    return build_manifest("x", rows, root, FrameStore(tmp_path / "store"), **options)


def test_nexar_splits_by_group_and_balances(nexar_folder, tmp_path):
    made = manifest(nexar_folder, nexar.rows(nexar_folder, {}), tmp_path)
    report = leakage_report(made, 0)
    assert report["clips"] == {"train": 8, "val": 4, "test": 4}
    assert report["positives"] == {"train": 4, "val": 2, "test": 2}
    assert report["groups_in_several_splits"] == []
    assert report["row_split_would_share"] > 0
    assert made.table().shape == (16, 9)
    again = manifest(nexar_folder, reversed(list(nexar.rows(nexar_folder, {}))), tmp_path)
    assert {c.clip_id: c.split for c in made.clips} == {c.clip_id: c.split for c in again.clips}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3,nan,nan,1,r", "positive clip without time_of_event|duplicate"),
        ("20,-2,,1,r", "negative time"),
        ("20,00:12,,1,r", "not a number of seconds"),
        ("20,999,,1,r", "no such video|clip ends at"),
        ("1,999,,1,r", "duplicate|clip ends at"),
        ("20,inf,,1,r", "not finite"),
        ("20,4,abc,1,r", "alert time"),
        ("20,4,,maybe,r", "neither 0 nor 1"),
        ("abc,4,,1,r", "id is not a number"),
        ("5,4,,1,r", "duplicate id"),
    ],
)
def test_bad_rows_are_quarantined_with_their_reason(nexar_folder, tmp_path, line, reason):
    import re

    with (nexar_folder / "train.csv").open("a") as file:
        file.write(line + "\n")
    shutil.copy(nexar_folder / "videos" / "00000.mp4", nexar_folder / "videos" / "00020.mp4")
    made = manifest(nexar_folder, nexar.rows(nexar_folder, {}), tmp_path)
    assert len(made.clips) + len(made.quarantine) == 17
    assert any(re.search(reason, q.reason) for q in made.quarantine)


def test_too_many_bad_rows_stop_with_the_first_reasons(nexar_folder, tmp_path):
    with (nexar_folder / "train.csv").open("a") as file:
        file.write("77,xx,,1,r\n")
    with pytest.raises(DataError, match="1 of 17 rows are unusable"):
        manifest(nexar_folder, nexar.rows(nexar_folder, {}), tmp_path, max_bad_fraction=0.02)


def test_damaged_videos_are_quarantined_in_train_and_failed_in_test(nexar_folder, tmp_path):
    made = manifest(nexar_folder, nexar.rows(nexar_folder, {}), tmp_path)
    victims = [made.split("train")[0], made.split("test")[0]]
    for victim in victims:
        open(victim.path, "wb").close()
    again = manifest(nexar_folder, nexar.rows(nexar_folder, {}), tmp_path)
    assert [q.clip_id for q in again.quarantine] == [victims[0].clip_id]
    assert "empty file" in again.quarantine[0].reason
    failed = {c.clip_id: c for c in again.split("test")}[victims[1].clip_id]
    assert "empty file" in failed.extra["failed"]


def test_missing_files_say_what_was_expected_where(tmp_path):
    with pytest.raises(DataError, match=r"train\.csv") as error:
        list(nexar.rows(tmp_path, {}))
    assert "data=synthetic" in error.value.do
    with pytest.raises(DataError, match="write_jsonl"):
        list(jsonl.rows(tmp_path, {}))


def test_row_split_and_straddling_groups_are_refused(nexar_folder, tmp_path):
    with pytest.raises(ConfigError, match="force_row_split"):
        manifest(nexar_folder, [], tmp_path, split_by="row")
    rows = [{**r, "split": SPLITS[i % 2]} for i, r in enumerate(nexar.rows(nexar_folder, {}))]
    with pytest.raises(DataError, match="groups have clips in more than one split"):
        manifest(nexar_folder, rows, tmp_path)
    forced = manifest(nexar_folder, rows, tmp_path, force_row_split=True)
    assert len(leakage_report(forced, 0)["groups_in_several_splits"]) == 8


def test_jsonl_round_trip_and_bad_lines(tmp_path, counter_video):
    video, _ = counter_video("jsonl", num_frames=40)
    for split in SPLITS:
        for label in ("0", "1"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            shutil.copy(video, folder / f"{split}_{label}.mp4")
    assert jsonl.write_from_folders(tmp_path, "Crash?") == {"train": 2, "val": 2, "test": 2}
    with pytest.raises(DataError, match="exists already"):
        jsonl.write_from_folders(tmp_path, "Crash?")
    first = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    assert first == {"video": "train/0/train_0.mp4", "text": "Crash?", "label": 0}
    with (tmp_path / "val.jsonl").open("a") as file:
        file.write('{"video": "x.mp4", "label"\n[1]\n{"text": "no video"}\n\n')
        file.write('{"video": "../../etc/passwd", "text": "?", "label": 1}\n')
    made = manifest(tmp_path, jsonl.rows(tmp_path, {}), tmp_path)
    assert len(made.quarantine) == 3
    assert sum("failed" in c.extra for c in made.split("val")) == 1
    assert made.split("train")[0].extra["question"] == "Crash?"


def test_the_card_sees_duplicates_and_a_leaking_anchor(nexar_folder, tmp_path):
    made = manifest(nexar_folder, nexar.rows(nexar_folder, {}), tmp_path)
    card = dataset_card(made, OPTIONS, CrashTask("crash_yes_no"))
    assert len(card["duplicates"]) == 1
    assert len(card["duplicates"][0]) == 16
    assert len(card["feasibility"]) == 13
    assert card["anchor_auc"]["value"] == pytest.approx(0.5)
    leaky = anchor_auc(made.clips, {**OPTIONS, "negative_reference": "clip_end"})
    assert leaky.value == 1.0


def test_a_damaged_or_too_early_clip_is_a_failed_row_not_the_end(nexar_folder, tmp_path):
    from dashvlm.data.samples import build_samples

    made = manifest(nexar_folder, nexar.rows(nexar_folder, {}), tmp_path)
    negative = next(c for c in made.split("test") if c.label == 0)
    open(negative.path, "wb").close()
    again = manifest(nexar_folder, nexar.rows(nexar_folder, {}), tmp_path)
    for horizon in (0.5, 4.5):  # at 4.5 s before an event at 4.0 s there is no clip yet
        samples, skipped = build_samples(again.split("test"), OPTIONS, [horizon])
        assert len(samples) == len(made.split("test"))
        assert not skipped
        failed = [s.clip.clip_id for s in samples if "failed" in s.clip.extra]
        assert failed == [negative.clip_id] if horizon == 0.5 else len(failed) == len(samples)
    assert len(build_samples(again.split("train"), OPTIONS, [4.5])[1]) == len(again.split("train"))


def test_the_fingerprint_follows_labels_and_files_not_the_folder(nexar_folder, tmp_path):
    from dashvlm.data.manifest import fingerprint

    first = fingerprint(manifest(nexar_folder, nexar.rows(nexar_folder, {}), tmp_path))
    moved = tmp_path / "elsewhere"
    shutil.copytree(nexar_folder, moved)
    assert fingerprint(manifest(moved, nexar.rows(moved, {}), tmp_path)) == first
    text = (moved / "train.csv").read_text().replace("1,4.0,3.0,1,r0", "1,3.9,3.0,1,r0")
    (moved / "train.csv").write_text(text)
    assert fingerprint(manifest(moved, nexar.rows(moved, {}), tmp_path)) != first


# -- a file a split -------------------------------------------------------------------------------


def _named(root, importer, content, **options):
    from dashvlm.engine.load import rows_of

    for name, text in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    data = {"root": str(root), "importer": f"dashvlm.data.formats.{importer}.rows", "options": options}
    return [(row["clip_id"], row.get("split"), row.get("problem")) for row in rows_of(data)]


def test_each_dataset_reads_a_file_a_split(tmp_path):
    files = {"train": "first.json", "val": "second.json", "test": "third.json"}
    scene = {n: json.dumps([{"video_id": f"{n[0]}.mp4", "QA": {"q": "?", "a": "Fine."}}]) for n in files.values()}
    asked = {n: json.dumps({"data": [{"id": n[0], "question": "?", "choices": ["A. x", "B. y"], "answer": "A. x",
                                      "video_path": "a.mp4"}]}) for n in files.values()}  # fmt: skip
    lines = {f"{n[0]}.jsonl": json.dumps({"video": f"{n[0]}.mp4", "text": "?", "label": 1}) for n in files.values()}
    pairs = {f"{n[0]}.jsonl": json.dumps({"image": f"{n[0]}.jpg", "prompt": "p", "chosen": "Sidewalk: left.",
                                          "rejected": "x"}) for n in files.values()}  # fmt: skip
    tables = {f"{n[0]}.csv": f"id,time_of_event,time_of_alert,target\n{k},,,0\n" for k, n in enumerate(files.values())}
    (tmp_path / "nexar" / "train").mkdir(parents=True)
    for name, content, files_of, ids in (
        ("bdd100k", scene, files, "fst"), ("roadbuddy", asked, files, "fst"),
        ("jsonl", lines, {k: f"{v[0]}.jsonl" for k, v in files.items()}, None),
        ("bvpi", pairs, {k: f"{v[0]}.jsonl" for k, v in files.items()}, None),
        ("nexar", tables, {k: f"{v[0]}.csv" for k, v in files.items()}, None),
    ):  # fmt: skip
        found = _named(tmp_path / name, name, content, files=files_of)
        assert [s for _, s, _ in found] == ["train", "val", "test"], name
        assert [p for _, _, p in found] == [None] * 3, found
        assert ids is None or [i for i, _, _ in found] == list(ids)


@pytest.mark.parametrize(
    ("files", "said"),
    [({"training": "a.json"}, "a file a split"), ({"train": ["a.json"]}, "a file a split"),
     ("a.json", "a file a split"), ({"train": "nothing.json"}, "is not in")],
)  # fmt: skip
def test_a_file_a_split_is_named_right(tmp_path, files, said):
    with pytest.raises(DataError, match=said):
        _named(tmp_path, "bdd100k", {"a.json": "[]"}, files=files)
