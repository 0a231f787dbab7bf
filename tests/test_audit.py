"""The shortcut audit: every planted leak is found by name, clean data passes at the stated rate."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dashvlm.data.clip import SPLITS
from dashvlm.data.readers import decode
from dashvlm.data.samples import build_samples
from dashvlm.data.synthetic.encode import write_video
from dashvlm.data.video import index_video
from dashvlm.engine.load import build_store, load_manifest
from dashvlm.shortcuts.audit import LEVEL, audit, near_duplicates
from dashvlm.tasks.base import make_task

WORLD = ["data=synthetic", "data.options.num_drives=40", "data.options.duration_s=2.5", "data.options.fps=4",
         "data.num_frames=2", "data.frame_interval_s=0.4"]  # fmt: skip


def samples_of(config, *words, seed=0):
    cfg = config(*WORLD, f"data.options.seed={seed}", *words)
    store = build_store(cfg)
    manifest = load_manifest(cfg, store)
    options = {**cfg["data"], "short_history": "pad_oldest"}
    return {s: build_samples(manifest.split(s), options)[0] for s in SPLITS}, make_task(cfg), store


def failed(samples, task, store):
    return {r.name for r in audit(samples, task.kind_of, store) if r.fails}


@pytest.fixture(scope="module")
def world(config):
    return samples_of(config, "task=crash", "data.options.num_drives=120")


class Facts:
    """A store whose indices say what a test wants of some files."""

    def __init__(self, store, changed):
        self.store, self.changed = store, changed

    def index(self, path):
        found = self.store.index(path)
        return replace(found, **self.changed.get(str(path), {}))


def planted(samples, change):
    """Change every sample by its label, with a few exceptions, as real leaks have."""
    rng = np.random.default_rng(0)
    out = {}
    for split, found in samples.items():
        out[split] = [change(s, s.clip.label if rng.random() < 0.9 else 1 - s.clip.label) for s in found]
    return out


def clip(sample, **changed):
    return replace(sample, clip=replace(sample.clip, **changed))


LEAKS = {
    "anchor": lambda s, y: replace(
        s, times_s=tuple(t + 2.0 * y for t in s.times_s), clip=replace(s.clip, duration_s=9.0)
    ),
    "last_frame": lambda s, y: clip(s, duration_s=s.times_s[-1] + (0.2 if y else 1.5)),
    "frame_count": lambda s, y: replace(s, num_padded=0 if y else 1),
    "duration": lambda s, y: clip(s, duration_s=3.0 + 0.2 * y),
    "resolution": lambda s, y: clip(s, fps=30.0 if y else 29.97),
    "folder": None,
    "file_name": None,
    "file_size": None,
    "encoding": None,
    "bitrate": None,
    "row_order": None,
    "question": lambda s, y: clip(s, extra={**s.clip.extra, "question": "Does it crash now?" if y else "Is all well?"}),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_every_planted_leak_is_found_by_name(world, tmp_path, leak):
    samples, task, store = world
    if leak == "row_order":
        samples = {k: sorted(v, key=lambda s: -s.clip.label) for k, v in samples.items()}
    elif leak == "encoding":
        changed = {s.clip.path: {"keyframes": np.arange(1 + 4 * s.clip.label)} for v in samples.values() for s in v}
        store = Facts(store, changed)
    elif leak in ("folder", "file_name", "file_size", "bitrate"):

        def moved(sample, y):
            name = f"{'crash' if y else 'normal'}_{sample.clip.clip_id}" if leak == "file_name" else sample.clip.clip_id
            target = tmp_path / ("positive" if y and leak == "folder" else "rest") / f"{name}.mp4"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(sample.clip.path, target)
            if leak in ("file_size", "bitrate") and y:
                with target.open("ab") as file:  # players ignore what comes behind the last box
                    file.write(b"\0" * 4000)
            return clip(sample, path=str(target))

        samples = planted(samples, moved)
    else:
        samples = planted(samples, LEAKS[leak])
    assert leak in failed(samples, task, store)


@pytest.mark.parametrize(
    ("worlds", "most"), [pytest.param(6, 2, marks=pytest.mark.long), pytest.param(20, 3, marks=pytest.mark.exhaustive)]
)
def test_clean_worlds_pass_at_the_stated_rate(config, worlds, most):
    alarms = []
    for seed in range(worlds):
        samples, task, store = samples_of(config, "task=crash", "data.options.num_drives=32", seed=seed)
        alarms.append(sorted(failed(samples, task, store)))
    wrong = sum(bool(a) for a in alarms)
    assert wrong <= most, alarms  # at 5 % each, more than 3 of 20 happen once in sixty, more than 2 of 6 once in 450
    assert LEVEL == 0.05


@pytest.mark.parametrize("task", ["mcq", "scene", "caption"])
def test_other_tasks_are_audited_and_pass(config, task):
    samples, made, store = samples_of(config, f"task={task}")
    found = audit(samples, made.kind_of, store)
    assert len(found) == 12
    assert not [r.name for r in found if r.fails]


def test_small_or_one_sided_data_are_not_audited(world):
    samples, task, store = world
    assert audit({**samples, "test": samples["test"][:5]}, task.kind_of, store) == []
    ones = [s for s in samples["test"] if s.clip.label == 1]
    assert audit({**samples, "test": ones}, task.kind_of, store) == []


def test_near_duplicates_across_splits_are_found_after_reencoding(world, tmp_path):
    samples, _, store = world
    assert near_duplicates(samples, store) == []
    source = samples["train"][3]
    index = index_video(Path(source.clip.path))
    frames = decode(Path(source.clip.path), index, range(len(index.times_s)))
    write_video(tmp_path / "copy.mp4", iter(frames), index.times_s.tolist(), crf=22)
    copied = replace(
        source, clip=replace(source.clip, clip_id="copy", path=str(tmp_path / "copy.mp4"), group="other", split="test")
    )
    found = near_duplicates({**samples, "test": [*samples["test"], copied]}, store)
    assert found[0][:2] == ("copy", source.clip.clip_id)
    assert {pair[0] for pair in found} == {"copy"}


def test_the_verb_fails_by_name_and_passes_clean_data(dashvlm, tmp_path):
    world = [w for w in WORLD if "=" in w]
    done = dashvlm("inspect", *world, "task=crash", "audit=true")
    assert "near-duplicates across splits: none" in done.stdout
    found = json.loads((tmp_path / "runs" / "inspect-synthetic" / "audit.json").read_text())
    assert len(found["readers"]) == 12
    leaking = dashvlm("inspect", *world, "task=crash", "audit=true", "data.negative_reference=clip_end", check=False)
    assert leaking.returncode == 2
    assert "the shortcut audit fails" in leaking.stderr
    assert "last_frame" in leaking.stderr
    assert "Traceback" not in leaking.stderr
