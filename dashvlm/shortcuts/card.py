"""The dataset card: what is in a dataset, what is wrong with it, and what a sweep can ask of it."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dashvlm.data.clip import SPLITS, Clip, Sample
from dashvlm.data.frames import FrameStore
from dashvlm.data.manifest import Manifest, leakage_report, same_contents
from dashvlm.data.samples import feasibility, references_of
from dashvlm.errors import DataError
from dashvlm.metrics.functional import roc_auc
from dashvlm.metrics.intervals import Estimate, estimate, group_weights

GRID = [(n, dt) for n in (5, 10, 15, 20) for dt in (0.5, 1.0, 1.5)]
"""The published Nexar sweep (frankafan/dashcam-collisions): 12 points."""
NONE = "not computable"
"""Stands where a number needs videos that are not there."""


def dataset_card(manifest: Manifest, options: Mapping[str, Any], task: Any) -> dict[str, Any]:
    """Describe a dataset.

    Args:
        manifest: the dataset.
        options: the ``data`` group.
        task: adds its own tables (:meth:`dashvlm.tasks.base.Task.dataset_tables`).

    Returns:
        ``splits`` (a row for each split and one for all), ``videos`` (clips whose video can be read),
        ``several_streams`` (clips whose file holds more than one), ``tables`` (title -> rows, the task's),
        ``numbers`` (durations, frame rates), ``problems`` (rows), ``duplicates``, ``feasibility`` (the configured
        point and the published 12), ``leakage``, ``anchor_auc``.
    """
    clips = manifest.clips
    leak = leakage_report(manifest, int(options["split_seed"]))
    rows = [
        {
            "split": split,
            "clips": leak["clips"][split],
            "groups": leak["groups"][split],
            "videos": len({c.path for c in manifest.split(split) if c.path and "failed" not in c.extra}) or NONE,
        }
        | (
            {"positives": leak["positives"][split], "unlabelled": sum(c.label is None for c in manifest.split(split))}
            if len(task.choices) == 2
            else {}
        )
        for split in SPLITS
    ]
    usable = [c for c in clips if "failed" not in c.extra]
    rows.append({"split": "all", **{key: _total([r[key] for r in rows]) for key in rows[0] if key != "split"}})
    asked = int(options["num_frames"]), float(options["frame_interval_s"])
    points = list(dict.fromkeys([asked, *GRID]))
    several = sum("video_streams" in c.extra for c in usable)
    return {
        "name": manifest.name,
        "videos": len(usable),
        "several_streams": several,
        "splits": rows,
        "tables": task.dataset_tables(clips),
        "numbers": {
            "duration_s": _spread([c.duration_s for c in usable]),
            "fps": _spread([c.fps for c in usable]),
            "event_time_s": _spread([c.event_time_s for c in usable if c.event_time_s is not None]),
        },
        "problems": [vars(q) for q in manifest.quarantine]
        + [
            {
                "clip_id": c.clip_id,
                "split": c.split,
                "reason": f"scored as failed: {c.extra['failed']}",
            }
            for c in clips
            if "failed" in c.extra
        ],
        "duplicates": [[f"{c.split}/{c.clip_id}" for c in same] for same in same_contents(usable)],
        "feasibility": feasibility(usable, options, points) if options["sampling"] == "anchored" and usable else [],
        "leakage": leak,
        "anchor_auc": vars(anchor_auc(usable, options)),
    }


def _total(counts: Sequence[Any]) -> Any:
    known = [n for n in counts if n != NONE]
    return sum(known) if known else NONE


def anchor_auc(clips: Sequence[Clip], options: Mapping[str, Any]) -> Estimate:
    """ROC AUC of the anchor's time alone, larger of both directions; near 0.5 means it tells nothing."""
    labelled = [c for c in clips if c.label is not None]
    if len({c.label for c in labelled}) < 2 or options["sampling"] != "anchored":
        return Estimate(float("nan"), float("nan"), float("nan"))
    times = references_of(labelled, options)
    score = np.array([times[c.clip_id] for c in labelled])
    score = (score - score.min()) / max(float(np.ptp(score)), 1e-9)
    target = np.array([float(c.label or 0) for c in labelled])
    if float(roc_auc(target, score)) < 0.5:
        score = 1.0 - score
    weights = group_weights([c.group for c in labelled], 1000, 0)
    return estimate(float(roc_auc(target, score)), roc_auc(target, score, weights))


def contact_sheet(samples: Sequence[Sample], store: FrameStore, task: Any, path: Path, count: int = 6) -> None:
    """Draw the frames of some samples as they are handed to the model, with the prompt.

    Args:
        samples: a mix of classes is picked from them.
        store: where frames come from.
        task: builds the prompt from the observation.
        path: the PNG file.
        count: number of samples.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from dashvlm.tasks.base import observe

    shown = []
    for sample in _mixed(samples, task, count):
        try:
            shown.append((sample, *store.frames(Path(sample.clip.path), sample.times_s)))
        except DataError:
            continue
    if not shown:
        return
    columns = max(len(f) for _, f, _ in shown)
    aspect = shown[0][1].shape[1] / shown[0][1].shape[2]
    figure, axes = plt.subplots(
        len(shown),
        columns,
        figsize=(1.7 * columns, (1.7 * aspect + 0.5) * len(shown) + 0.5),
        squeeze=False,
    )
    for line, (sample, frames, times) in zip(axes, shown, strict=True):
        for place, axis in enumerate(line):
            axis.axis("off")
            if place < len(frames):
                axis.imshow(frames[place])
                axis.set_title(f"{times[place]:.3f} s", fontsize=7, pad=2)
        padded = f", {sample.num_padded} repeated" if sample.num_padded else ""
        line[0].text(
            0, -0.05, f"{sample.sample_id}, {_label(sample, task)}group {sample.clip.group}{padded}",
            transform=line[0].transAxes, fontsize=7, va="top",
        )  # fmt: skip
    chat = task.messages(observe(shown[0][0], shown[0][2].tolist()))
    prompt = "".join(p.get("text", "[frame]") for p in chat[0]["content"])
    figure.suptitle(
        f"frames as handed to the processor, {shown[0][1].shape[2]}x{shown[0][1].shape[1]} pixels",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    figure.text(
        0.01, 0.0, "prompt of the first row: " + " ⏎ ".join(prompt.splitlines()), fontsize=6.5, va="top", wrap=True
    )
    figure.subplots_adjust(left=0.01, right=0.99, top=0.94, bottom=0.05, wspace=0.04, hspace=0.45)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def _mixed(samples: Sequence[Sample], task: Any, count: int) -> list[Sample]:
    """Pick samples of all targets in turn."""
    by_target: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        target = task.target(sample)
        by_target[str(target) if isinstance(target, int) else ""].append(sample)
    turns = itertools.zip_longest(*(by_target[k] for k in sorted(by_target, reverse=True)))
    picked = [s for turn in itertools.islice(turns, count) for s in turn if s is not None]
    return picked[:count]


def _label(sample: Sample, task: Any) -> str:
    target = task.target(sample)
    return f"right: {task.choices[target]}, " if isinstance(target, int) else "" if target is None else "annotated, "


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    common = Counter(np.round(values, 2).tolist()).most_common(1)[0]
    return {
        "min": float(low),
        "median": float(middle),
        "max": float(high),
        "most_common": float(common[0]),
    }
