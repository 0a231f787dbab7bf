"""A dataset made ready for a run: manifest, decoded frames, and the samples of each split."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dashvlm.data.anchors import drawn_samples, stream_times
from dashvlm.data.clip import SPLITS, Clip, Sample, Split
from dashvlm.data.datamodule import decode_once
from dashvlm.data.encoded import EncodedStore
from dashvlm.data.frames import FrameStore
from dashvlm.data.items import SampleDataset
from dashvlm.data.manifest import Manifest, Quarantined, limited
from dashvlm.data.samples import build_samples, union_of_times, with_demos
from dashvlm.data.sampling import Times
from dashvlm.engine.load import build_store, load_manifest
from dashvlm.errors import DataError
from dashvlm.tasks.base import Task, make_task, observe

log = logging.getLogger(__name__)
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Data:
    """A dataset made ready: manifest, frame store, and the samples of each split."""

    manifest: Manifest
    store: FrameStore
    samples: dict[Split, list[Sample]]
    skipped: list[Clip]
    asked: Split | None = None
    moments: tuple[Sample, ...] = ()
    """Anchors of the scored split drawn as those of training are (``data.anchors=stream``), for the audit."""
    times: Mapping[str, Times] = field(default_factory=dict)
    """Clip -> the times that the sweep looks at; without those that only a scan of the whole clip does."""
    encoded: EncodedStore | None = None
    """What the model makes of the frames, where that is kept."""

    @property
    def test_split(self) -> Split:
        """The split that results come from: the one asked for, else test, or val where there is no test split."""
        return self.asked or ("test" if self.samples["test"] else "val")


def prepare_data(cfg: Config, train: bool = True, split: Split | None = None) -> Data:
    """Manifest, decoded frames and samples.

    Frames are decoded for the whole sweep that this run belongs to (``sweep.grid``).

    Args:
        cfg: the configuration.
        train: whether the training and validation splits are needed.
        split: the split to be scored; None takes test, or val where there is no test split.
    """
    store, task = build_store(cfg), make_task(cfg)
    manifest = load_manifest(cfg, store)
    options = cfg["data"]
    if options["limit"]:
        manifest = limited(manifest, int(options["limit"]))
    manifest = Manifest(manifest.name, tuple(task.prepared(manifest.clips)), manifest.quarantine)
    taught = train and cfg["objective"]["name"] == "sft" and cfg["peft"]["method"] != "frozen"
    if taught or not task.answer_prefix:  # rationales are needed where they are taught
        manifest = _teachable(manifest, task, float(options["max_bad_fraction"]))
    grid = [
        options,
        *({**options, **point} for point in (cfg.get("sweep") or {}).get("grid") or []),
    ]
    eval_horizons = _horizons(options)
    shots = options["shots"]
    train = train or int(shots["eval"]) > 0  # demonstrations are training samples
    wanted = [c for c in manifest.clips if train or c.split == (split or "test")]
    if not train and not wanted and split is None:
        wanted = manifest.split("val")
    times: dict[str, Times] = {}
    scans: dict[str, Times] = {}
    for part in SPLITS:
        clips = [c for c in wanted if c.split == part]
        scored = part == (split or ("test" if manifest.split("test") else "val"))
        horizons = eval_horizons if scored else [float(options["horizon_s"])]
        times |= union_of_times(clips, grid, horizons)
        for clip_id, more in stream_times(clips, grid, False).items():
            times[clip_id] = np.union1d(times[clip_id], more)
        if scored and cfg["task"].get("stream"):
            whole = stream_times(clips, grid, True)
            scans |= {clip_id: np.union1d(times[clip_id], more) for clip_id, more in whole.items()}
    failed, bad = decode_once(wanted, times | scans, store, float(options["max_bad_fraction"]))
    gone = {q.clip_id for q in bad}
    manifest = Manifest(
        manifest.name,
        tuple(_mark(c, failed) for c in manifest.clips if c.clip_id not in gone),
        (*manifest.quarantine, *bad),
    )
    samples: dict[Split, list[Sample]] = {"train": [], "val": [], "test": []}
    skipped: list[Clip] = []
    drawn, moments = options.get("anchors") == "stream", tuple[Sample, ...]()
    for part in SPLITS:
        if train or part in (split, "val", "test"):
            clips = manifest.split(part)
            found, left = (drawn_samples if drawn and part == "train" else build_samples)(clips, options)
            if drawn and part != "train":  # what is scored at single anchors loses no clip by it
                anchors = drawn_samples(clips, options)[0]
                found = anchors if part == "val" else found
                if part == (split or ("test" if manifest.split("test") else "val")):
                    moments = tuple(anchors)
            # Training learns from labelled clips only; the others are scored, not taught.
            samples[part] = [s for s in found if part != "train" or task.target(s) is not None]
            missing = len(found) - len(samples[part])
            if missing and missing == len(found):
                raise DataError(
                    f"none of the {missing} training rows has what task={task.name} is taught with",
                    got=f"data={manifest.name}, first {found[0].clip.clip_id}",
                    do="choose the task that the data are for; `python -m dashvlm.inspect data=...` shows them",
                )
            if missing:
                log.warning("%d of %d training rows have no answer for task=%s and are left out",
                            missing, len(found), task.name)  # fmt: skip
            skipped += left
    pool = samples["train"]
    samples["train"] = with_demos(pool, pool, float(shots["share"]), int(shots["least"]), int(shots["most"]))
    samples["val"] = with_demos(samples["val"], pool, 1.0, int(shots["eval"]), int(shots["eval"]))
    for clip in skipped:
        log.info("clip %s skipped: history too short for this sweep point", clip.clip_id)
    why = "history too short (data.short_history=skip)"
    why += " or no known time of its event (data.anchors=stream)" * drawn
    quarantine = tuple(Quarantined(c.clip_id, c.split, why) for c in skipped)
    manifest = Manifest(manifest.name, manifest.clips, (*manifest.quarantine, *quarantine))
    return Data(manifest, store, samples, skipped, split, moments, times)


def _teachable(manifest: Manifest, task: Task, max_bad_fraction: float) -> Manifest:
    """Quarantine training clips whose annotation the task cannot use."""
    found = [(c, task.problem(c)) for c in manifest.split("train")]
    bad = [Quarantined(c.clip_id, "train", why) for c, why in found if why]
    if len(bad) > max_bad_fraction * max(len(found), 1):
        raise DataError(
            f"{len(bad)} of {len(found)} training annotations are unusable, more than "
            f"data.max_bad_fraction={max_bad_fraction:g} allows",
            got="; ".join(f"{q.clip_id}: {q.reason}" for q in bad[:3]),
            do=f"mend them or raise data.max_bad_fraction; `python -m dashvlm.inspect data={manifest.name}` lists them",
        )
    gone = {q.clip_id for q in bad}
    return Manifest(
        manifest.name, tuple(c for c in manifest.clips if c.clip_id not in gone), (*manifest.quarantine, *bad)
    )


def check_data(cfg: Config) -> list[dict[str, Any]]:
    """Load everything but the model: decode all frames, build all prompts and answers.

    Returns:
        A row a split: samples, frames a sample, repeated and unreadable ones, and the first answer.
    """
    data, task = prepare_data(cfg), make_task(cfg)
    rows = []
    for split, samples in data.samples.items():
        items = SampleDataset(samples, data.store)
        shapes, failed, answers = set(), 0, []
        for number, sample in enumerate(samples):
            item = items[number]
            if item.frames is None or item.frame_times_s is None:
                failed += 1
                continue
            shapes.add(item.frames.shape)
            task.messages(observe(sample, item.frame_times_s.tolist()))
            if task.target(sample) is not None:
                answers.append(task.answer(sample))
        rows.append(
            {
                "split": split, "samples": len(samples), "answered": len(answers), "unreadable": failed,
                "with repeated frames": sum(s.num_padded > 0 for s in samples),
                "frames": ", ".join("x".join(map(str, s)) for s in sorted(shapes)),
                "first answer": " ".join(answers[0].split())[:60] if answers else "–",
            }
        )  # fmt: skip
    return rows


def evaluation_samples(cfg: Config, data: Data) -> list[Sample]:
    """Samples of the test split at the training horizon first, then at the other horizons."""
    clips = data.manifest.split(data.test_split)
    skipped = {c.clip_id for c in data.skipped}
    clips = [c for c in clips if c.clip_id not in skipped]
    horizons = _horizons(cfg["data"])
    samples: list[Sample] = []
    for horizon in horizons:
        lenient = {**cfg["data"], "short_history": "pad_oldest"} if horizon != horizons[0] else cfg["data"]
        try:
            samples += build_samples(clips, lenient, [horizon])[0]
        except DataError as error:
            if horizon == horizons[0]:
                raise
            log.info("no scores at horizon %g s: %s", horizon, error.what)
    count = int(cfg["data"]["shots"]["eval"])
    pool = [replace(s, demos=()) for s in data.samples["train"]]
    return with_demos(samples, pool, 1.0, count, count)


def _horizons(options: Config) -> list[float]:
    """The training horizon first, then the other horizons that scores are wanted at."""
    first = float(options["horizon_s"])
    if options["sampling"] != "anchored" or options["reference"] != "event":
        return [first]
    return list(dict.fromkeys([first, *(float(h) for h in options["eval_horizons_s"] or ())]))


def _mark(clip: Clip, failed: Mapping[str, str]) -> Clip:
    if clip.clip_id not in failed:
        return clip
    return replace(clip, extra={**clip.extra, "failed": failed[clip.clip_id]})
