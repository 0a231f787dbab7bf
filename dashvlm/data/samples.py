"""From clips to samples: which times of each clip a sweep point looks at, and what is feasible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dashvlm.data.clip import Clip, Sample, Split
from dashvlm.data.sampling import (
    Times,
    anchored_times,
    dense_times,
    endpoint_times,
    fit_history,
    fps_times,
    is_feasible,
    reference_times,
    stable_uniform,
    support_count,
    support_times,
    uniform_times,
)
from dashvlm.errors import DataError

Options = Mapping[str, Any]
"""The sampling part of the ``data`` group: ``sampling, num_frames, frame_interval_s, sample_fps,
horizon_s, reference, negative_reference, short_history, sampling_seed, support_frames, support_window_s,
support_num_frames``."""


def build_samples(
    clips: Sequence[Clip], options: Options, horizons: Iterable[float] | None = None
) -> tuple[list[Sample], list[Clip]]:
    """Decide the frame times of every clip.

    Args:
        clips: of one split.
        options: see :data:`Options`.
        horizons: seconds before the reference time; ``data.horizon_s`` if None. More than one
            only makes sense for anchored sampling of clips with event times.

    Returns:
        Samples, horizon by horizon in the order of the clips, and the clips that
        ``short_history=skip`` left out.

    Raises:
        DataError: if ``short_history=error`` and a clip has too little history.
    """
    references = references_of(clips, options)
    chosen = list(horizons) if horizons is not None else [float(options["horizon_s"])]
    samples, skipped = [], []
    for horizon in chosen:
        for clip in clips:
            reference = references[clip.clip_id]
            unusable = str(clip.extra.get("failed", ""))
            if not unusable and options["sampling"] == "anchored" and reference < horizon:
                unusable = f"the anchor, {horizon:g} s before {reference:g} s, lies before the clip"
                if options["short_history"] == "error":
                    raise DataError(f"clip {clip.clip_id}: {unusable}", do="lower data.horizon_s")
            if unusable and clip.split == "train":
                skipped.append(clip)
                continue
            if unusable:  # a row that is scored as failed needs no times, only its place
                clip = replace(clip, extra={**clip.extra, "failed": unusable})
                fitted: tuple[Times, int] | None = np.zeros(int(options["num_frames"])), 0
            else:
                fitted = _fitted(clip, reference - horizon, options)
            if fitted is None:
                skipped.append(clip)
                continue
            times, padded = fitted
            sample_id = f"{clip.clip_id}@{horizon:g}"
            samples.append(Sample(sample_id, clip, horizon, reference, tuple(float(t) for t in times), padded))
    return samples, skipped


def _fitted(clip: Clip, anchor_s: float, options: Options) -> tuple[Times, int] | None:
    try:
        return _times(clip, anchor_s, options)
    except DataError as error:
        raise DataError(f"clip {clip.clip_id}: {error.what}", error.got, error.do) from None


def references_of(clips: Sequence[Clip], options: Options) -> dict[str, float]:
    """Give every clip the time its horizon is counted from (see :func:`reference_times`).

    A negative's draw uses the positives of the same split only.
    """
    if options["reference"] == "clip_end":
        return {c.clip_id: last_time(c) for c in clips}
    # A clip that was cut before its event, if there is one, ends at the anchor.
    cut = {c.clip_id: last_time(c) + float(options["horizon_s"]) for c in clips if c.extra.get("anchor") == "clip_end"}
    events = {c.clip_id: (c.event_time_s, last_time(c)) for c in clips if c.clip_id not in cut}
    return reference_times(events, int(options["sampling_seed"]), options["negative_reference"]) | cut


def sees_support(clip: Clip, options: Options) -> bool:
    """Whether a clip is looked at around its annotated moments (``data.support_frames``)."""
    wanted = options.get("support_frames", "never")
    return bool(clip.extra.get("support_frames")) and (
        wanted == "always" or (wanted == "train_only" and clip.split == "train")
    )


def with_demos(samples: Sequence[Sample], pool: Sequence[Sample], share: float, least: int, most: int) -> list[Sample]:
    """Give a share of samples solved examples of other groups, the same ones in every run.

    Args:
        samples: of one split.
        pool: training samples with known targets.
        share: of the samples that get them.
        least: smallest number of examples.
        most: largest number; above 32 is outside what OpenFlamingo was trained with.

    Raises:
        DataError: if there are too few training samples of other groups.
    """
    if share <= 0 or most <= 0:
        return list(samples)
    out = []
    members: dict[str, list[int]] = {}  # group -> places in the pool, ascending
    for place, candidate in enumerate(pool):
        members.setdefault(candidate.clip.group, []).append(place)
    for sample in samples:
        if stable_uniform(0, "shots", sample.sample_id) >= share:
            out.append(sample)
            continue
        own = members.get(sample.clip.group, [])
        others = len(pool) - len(own)
        count = least + int(stable_uniform(1, "shots", sample.sample_id) * (most - least + 1))
        if others < count:
            raise DataError(
                f"{count} demonstrations are wanted, {others} training samples of other groups are there",
                do="lower data.shots.most and data.shots.eval",
            )
        rng = np.random.default_rng(int(stable_uniform(2, "shots", sample.sample_id) * 2**32))
        picked = rng.choice(others, count, replace=False)
        out.append(replace(sample, demos=tuple(pool[_skipping(own, int(i))] for i in picked)))
    return out


def _skipping(left_out: Sequence[int], number: int) -> int:
    """The place of the ``number``-th entry of a list when some places, ascending, are left out.

    Example:
        >>> [_skipping([0, 2], n) for n in range(3)]
        [1, 3, 4]
    """
    for place in left_out:
        number += place <= number
    return number


def balanced_part(samples: Sequence[Sample], count: int) -> list[Sample]:
    """So many samples, the same ones in every run: labels and groups take turns, so none of either is missed.

    Args:
        samples: of one split.
        count: how many; with fewer samples all are kept.

    Returns:
        Samples in the order they came in.
    """
    turns: dict[tuple[str, str], int] = {}  # label, group -> samples taken
    order = sorted(range(len(samples)), key=lambda i: stable_uniform(0, "val_limit", samples[i].sample_id))
    ranked: dict[str, list[tuple[int, float, int]]] = {}
    for place in order:
        clip = samples[place].clip
        own = str(clip.label), clip.group
        turns[own] = turns.get(own, -1) + 1
        ranked.setdefault(own[0], []).append((turns[own], stable_uniform(1, "val_limit", clip.group), place))
    for number, found in enumerate(ranked.values()):  # a group with both labels gives one of them first
        ranked_by = 1 - 2 * (number % 2)
        found[:] = [(turn, ranked_by * group, place) for turn, group, place in found]
    lines = [[place for *_, place in sorted(found)] for _, found in sorted(ranked.items())]
    mixed = [line[turn] for turn in range(max(map(len, lines), default=0)) for line in lines if turn < len(line)]
    return [samples[place] for place in sorted(mixed[:count])]


def sampling_skew(samples: Mapping[Split, Sequence[Sample]], options: Options) -> dict[str, float]:
    """Share of each split's samples that are looked at around annotated moments."""
    return {
        split: sum(sees_support(s.clip, options) for s in found) / len(found)
        for split, found in samples.items()
        if found
    }


def feasibility(clips: Sequence[Clip], options: Options, points: Iterable[tuple[int, float]]) -> list[dict[str, Any]]:
    """Count for each (num_frames, frame_interval_s) the clips with enough history.

    Returns:
        Rows with ``num_frames, frame_interval_s, needs_s, feasible, clips``.
    """
    references = references_of(clips, options)
    anchors = [references[c.clip_id] - float(options["horizon_s"]) for c in clips]
    return [
        {
            "num_frames": n,
            "frame_interval_s": dt,
            "needs_s": (n - 1) * dt,
            "feasible": sum(is_feasible(a, n, dt) for a in anchors),
            "clips": len(clips),
        }
        for n, dt in points
    ]


def union_of_times(clips: Sequence[Clip], grid: Sequence[Options], horizons: Sequence[float]) -> dict[str, Times]:
    """Collect the distinct times that a whole sweep will ask of each clip, ascending.

    Points of the grid that are infeasible for a clip under ``error`` contribute nothing here;
    the job they belong to reports them.
    """
    times: dict[str, set[float]] = {c.clip_id: set() for c in clips}
    for options in grid:
        lenient = {**options, "short_history": "pad_oldest"}
        references = references_of(clips, lenient)
        for horizon in {*horizons, float(options["horizon_s"])}:
            for clip in clips:
                try:
                    fitted = _times(clip, references[clip.clip_id] - horizon, lenient)
                except DataError:
                    continue
                if fitted is not None:
                    times[clip.clip_id].update(fitted[0].tolist())
    return {clip_id: np.array(sorted(found)) for clip_id, found in times.items()}


def _times(clip: Clip, anchor_s: float, options: Options) -> tuple[Times, int] | None:
    kind, num_frames = options["sampling"], int(options["num_frames"])
    if sees_support(clip, options):
        moments = clip.extra["support_frames"]
        bounds = options.get("support_num_frames")
        count = support_count(len(moments), bounds) if bounds else num_frames
        times = support_times(clip.duration_s, moments, count, float(options.get("support_window_s", 0.5)))
    elif kind == "uniform":
        times = uniform_times(clip.duration_s, num_frames)
    elif kind == "endpoints":
        times = endpoint_times(last_time(clip), num_frames)
    elif kind == "dense":
        times = dense_times(clip.duration_s, float(options["sample_fps"]), num_frames)
    elif kind == "fps":
        times = fps_times(clip.duration_s, float(options["sample_fps"]), num_frames)
    elif kind == "anchored":
        times = anchored_times(anchor_s, num_frames, float(options["frame_interval_s"]))
    else:
        raise DataError("unknown data.sampling", got=str(kind), do="use anchored, uniform, endpoints, fps or dense")
    fitted = fit_history(times, options["short_history"])
    if fitted is None:
        return None
    # The last frame is shown until one period after its time: a time in there means that frame.
    return np.minimum(fitted[0], last_time(clip)), fitted[1]


def last_time(clip: Clip) -> float:
    """Presentation time of the clip's last frame, in seconds."""
    return max(clip.duration_s - 1.0 / clip.fps, 0.0)
