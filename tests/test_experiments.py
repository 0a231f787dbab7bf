"""Every experiment of the five projects, on small data in files of the projects' own layouts, ends with its table."""

import csv
import json
import shutil

import pytest

from dashvlm.data.formats.bvpi_build import NEAR
from dashvlm.engine.load import build_store, load_manifest

from .conftest import ROOT, in_this_process

NAMES = sorted(p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml") if not p.stem.endswith("_demo"))
WORLD = ["data=synthetic", "data.options.num_drives=10", "data.options.duration_s=4.0", "data.options.fps=5"]
SHORT = [
    "model.checkpoint=tiny", "trainer.accelerator=cpu", "trainer.max_steps=2",
    "data.num_workers=0", "data.limit=6", "data.max_bad_fraction=0.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def layouts(config, tmp_path_factory):
    """Folders of the five data sets as their projects have them, from the synthetic world."""
    root = tmp_path_factory.mktemp("layouts")

    def clips(task, *words):
        cfg = config("model=smolvlm2", "model.checkpoint=tiny", f"task={task}", *WORLD, *words)
        return load_manifest(cfg, build_store(cfg)).clips

    crash = sorted(clips("crash"), key=lambda c: c.clip_id)
    nexar(root / "nexar", crash)
    labelled(root / "freeway", crash)
    labelled(root / "road", [c for c in crash if c.group != crash[0].group])
    bdd(root / "bdd", clips("scene"))
    buddy(root / "buddy", clips("mcq"))
    bvpi(root / "bvpi", clips("caption"))
    return root


def nexar(root, clips):
    (root / "train").mkdir(parents=True)
    with (root / "train.csv").open("w") as table, (root / "labels.csv").open("w") as labels:
        table.write("id,time_of_event,time_of_alert,target,group\n")
        labels.write("id,label,response\n")
        for n, clip in enumerate(clips, 1):
            shutil.copy(clip.path, root / "train" / f"{n:05d}.mp4")
            event = "" if clip.event_time_s is None else f"{clip.event_time_s:g}"
            table.write(f"{n},{event},,{clip.label},{clip.group}\n")
            labels.write(f'{n},{clip.label},"The lead car is {"close" if clip.label else "far"}."\n')


def labelled(root, clips):
    for split in ("train", "val", "test"):
        (root / split).mkdir(parents=True)
        lines = []
        for clip in (c for c in clips if c.split == split):
            shutil.copy(clip.path, root / split / f"{clip.clip_id}.mp4")
            text = "Is a vehicle collision likely to happen within 1 to 2 seconds?(0: No, 1: Yes)"
            lines.append(json.dumps({"video": f"{clip.clip_id}.mp4", "text": text, "label": clip.label}))
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def bdd(root, clips):
    (root / "videos").mkdir(parents=True)
    rows = []
    for n, clip in enumerate(clips):
        name = f"{n // 2:08x}-{n:08x}.mov"
        shutil.copy(clip.path, root / "videos" / name)
        rows.append(
            {"video_id": name, "QA": {"q": "Describe the drive in three sections.", "a": clip.extra["annotation"]}}
        )
    (root / "BDD_instruct_train_main.json").write_text(json.dumps(rows))


def buddy(root, clips):
    (root / "train" / "videos").mkdir(parents=True)
    rows = []
    for n, clip in enumerate(clips):
        name = f"{n:08x}_{clip.group}_clip_{n}.mp4"
        shutil.copy(clip.path, root / "train" / "videos" / name)
        choices = [f"{letter}. {text}" for letter, text in zip("ABCD", clip.extra["choices"], strict=False)]
        rows.append({
            "id": f"train_{n:04d}", "question": clip.extra["question"], "choices": choices,
            "answer": choices[clip.extra["answer"]], "support_frames": [1.5], "video_path": f"train/videos/{name}",
        })  # fmt: skip
    (root / "train" / "train.json").write_text(json.dumps({"__count__": len(rows), "data": rows}))


def bvpi(root, clips):
    columns = ["image", "status", "sidewalk_pos", "road_pos", "Object_present", "Object_present_outside"]
    kinds = [*NEAR.values(), "m_grass", "m_plants", "m_trees"]
    (root / "images").mkdir(parents=True)
    with (root / "complete_captions.csv").open("w", newline="") as one, (root / "annotations.csv").open("w") as two:
        captions, annotations = csv.writer(one), csv.writer(two)
        captions.writerow(["image_path", "target", "split"])
        annotations.writerow([*columns, *kinds, *(f"{k}_outside" for k in kinds)])
        for n, clip in enumerate(clips):
            shutil.copy(clip.path, root / "images" / f"{n:04d}.png")
            captions.writerow([f"images/{n:04d}.png", clip.extra["caption"], clip.split])
            truth = clip.extra["navigation"]
            cells = [
                "-".join(side.capitalize() for side in truth[part].get(name, ())) or "not present"
                for part in ("near", "far") for name in (*NEAR, "grass", "plants", "trees")
            ]  # fmt: skip
            place = [truth["sidewalk_pos"].capitalize(), truth["road_pos"].capitalize()]
            annotations.writerow([f"{n:04d}.png", "done", *place, "Yes", "Yes", *cells])


def words_of(name, layouts):
    """The folder of an experiment's data, and what it needs besides."""
    if name.startswith("nexar"):
        labels = [f"data.labels={layouts / 'nexar' / 'labels.csv'}"] if name in ("nexar_reasoning", "nexar_sft") else []
        return [f"data.root={layouts / 'nexar'}", *labels]
    folder = {"crash": "freeway", "roadb": "buddy", "bdd_s": "bdd", "bvpi_": "bvpi"}[name[:5]]
    return [f"data.root={layouts / folder}"]


def short(name):
    """Two steps, and short texts where any are written."""
    return SHORT if name.startswith("crash_risk") else [*SHORT, "objective.max_new_tokens=6"]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_runs_on_files_of_its_project_and_ends_with_its_table(name, layouts, cache, tmp_path):
    call = in_this_process(cache, tmp_path)
    start = []
    if name == "bvpi_dpo":  # it starts from the run of bvpi_smolvlm2, which has the same adapter
        call("train", "experiment=bvpi_smolvlm2", *words_of(name, layouts), *short(name), output=tmp_path / "start")
        (run,) = (tmp_path / "start").glob("caption-*")
        start = [f"start_from={run}"]
    done = call("train", f"experiment={name}", *words_of(name, layouts), *short(name), *start)
    (run,) = tmp_path.glob("*/result.json")
    result = json.loads(run.read_text())
    assert result["status"] == "done"
    assert result["metrics"]
    assert result["quarantined"] == 0
    if not name.endswith("_base"):
        assert result["steps"] == 2
    assert "written: " in done.stdout
    report = call("report", output=tmp_path)
    assert run.parent.name in report.stdout


@pytest.mark.long
def test_both_folders_of_the_crash_risk_project_are_a_sweep(layouts, cache, tmp_path):
    call = in_this_process(cache, tmp_path)
    roots = f"data.root={layouts / 'freeway'},{layouts / 'road'}"
    call("train", "experiment=crash_risk", "-m", roots, "trainer.max_epochs=1", *SHORT)
    found = [json.loads(p.read_text()) for p in tmp_path.glob("crash-*/result.json")]
    assert {r["split"] for r in found} == {"test"}
    assert len(found) == 2
