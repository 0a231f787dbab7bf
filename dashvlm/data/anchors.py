"""Anchors over the whole length of a clip: what training draws, and the grid that a stream is scored on.

An anchor has the label of its own time: positive from the alert (or a window before the event) to the event,
negative before that and in clips without an event. What comes after the event is neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dashvlm.data.clip import Clip, Sample
from dashvlm.data.samples import Options, last_time
from dashvlm.data.sampling import Times, anchored_times, fit_history, required_history_s, stable_uniform

STREAM: Mapping[str, Any] = {
    "window_s": 2.0, "per_clip": 4, "positive_share": 0.5, "stride_s": 0.5, "refractory_s": 5.0,
}  # fmt: skip
"""``data.stream`` of runs that were made before it."""


def positive_window(clip: Clip, window_s: float) -> tuple[float, float] | None:
    """The seconds in which an alarm is right: from the alert, or ``window_s`` before the event, to the event.

    Returns:
        Start and end in seconds, or None for a clip without the time of an event.
    """
    if clip.event_time_s is None:
        return None
    alert = clip.alert_time_s
    return (alert if alert is not None else max(clip.event_time_s - window_s, 0.0)), clip.event_time_s


def label_at(clip: Clip, time_s: float, window_s: float) -> int | None:
    """The label of a moment: 1 in the positive window, 0 before it or without an event, None behind it or unknown.

    Example:
        >>> clip = Clip("a", "a.mp4", "a", "train", 1, 10.0, None, 20.0, 10.0)
        >>> [label_at(clip, t, 2.0) for t in (7.9, 8.0, 10.0, 10.1)]
        [0, 1, 1, None]
    """
    if clip.label == 0:
        return 0
    window = positive_window(clip, window_s)
    if window is None or time_s > window[1]:
        return None
    return int(time_s >= window[0])


def stream_interval_s(options: Options) -> float:
    """Seconds between the frames of a sample that can end anywhere in a clip."""
    return float(options["frame_interval_s"] if options["sampling"] == "anchored" else 1 / options["sample_fps"])


def sample_at(clip: Clip, anchor_s: float, options: Options, label: int | None) -> Sample | None:
    """The sample that ends at a time, with the label of that time; None where ``data.short_history`` leaves it out.

    A grid is ours and no error of the data's: ``short_history=error`` leaves out as ``skip`` does.
    """
    policy = "pad_oldest" if options["short_history"] == "pad_oldest" else "skip"
    times = anchored_times(anchor_s, int(options["num_frames"]), stream_interval_s(options))
    fitted = fit_history(times, policy)  # type: ignore[arg-type]
    if fitted is None:
        return None
    shown = np.minimum(fitted[0], last_time(clip))
    asked = clip if clip.label == label else replace(clip, label=label)
    return Sample(f"{clip.clip_id}@t{anchor_s:.3f}", asked, 0.0, anchor_s, tuple(shown.tolist()), fitted[1])


def stream_samples(clips: Sequence[Clip], options: Options) -> list[Sample]:
    """A sample every ``data.stream.stride_s`` of each clip, clip by clip, oldest first.

    A clip that cannot be read has one sample, which fails.
    """
    stride, window = float(options["stream"]["stride_s"]), float(options["stream"]["window_s"])
    found = []
    for clip in clips:
        if "failed" in clip.extra:  # its event, if it has one, is missed
            label = 1 if positive_window(clip, window) is not None else clip.label
            none = (0.0,) * int(options["num_frames"])
            found.append(Sample(f"{clip.clip_id}@t0.000", replace(clip, label=label), 0.0, 0.0, none, 0))
            continue
        for time_s in np.arange(0.0, last_time(clip) + 1e-9, stride).round(6).tolist():
            sample = sample_at(clip, time_s, options, label_at(clip, time_s, window))
            found += [sample] if sample is not None else []
    return found


def drawn_samples(clips: Sequence[Clip], options: Options) -> tuple[list[Sample], list[Clip]]:
    """The anchors of training and validation: ``data.stream.per_clip`` a clip, functions of the data and the seed.

    Of a clip with an event, ``positive_share`` of the anchors lie in its positive window and the others before it.
    With ``negative_reference=matched`` a clip without one draws its anchors from the positive ones of the others
    (of the same split, as far as it is long enough), so that the time in the clip tells as little as it can.

    Returns:
        Samples in the order of the clips, and the clips that have none: their history is too short, or the time of
        their event is not known.
    """
    plan = options["stream"]
    count, window_s, seed = int(plan["per_clip"]), float(plan["window_s"]), int(options["sampling_seed"])
    pad = options["short_history"] == "pad_oldest"
    first = 0.0 if pad else required_history_s(int(options["num_frames"]), stream_interval_s(options))
    chosen: dict[str, list[float]] = {}
    pool: list[float] = []
    for clip in clips:
        window = positive_window(clip, window_s)
        if window is not None and clip.label == 1:
            inside = round(count * float(plan["positive_share"]))
            spans = [(max(window[0], first), window[1])] * inside
            spans += [(first, window[0] - 1e-3)] * (count - inside)
            chosen[clip.clip_id] = _draw(clip, spans, seed)
            pool += [t for t in chosen[clip.clip_id] if t >= window[0]]
    pool.sort()
    samples: list[Sample] = []
    left: list[Clip] = []
    for clip in clips:
        if clip.label == 0:
            fits = [t for t in pool if first <= t <= last_time(clip)]
            if options["negative_reference"] == "matched" and fits:
                draws = [stable_uniform(seed, "stream", clip.clip_id, str(i)) for i in range(count)]
                chosen[clip.clip_id] = [fits[int(d * len(fits))] for d in draws]
            else:
                chosen[clip.clip_id] = _draw(clip, [(first, last_time(clip))] * count, seed)
        times = chosen.get(clip.clip_id, []) if "failed" not in clip.extra else []
        made = [sample_at(clip, t, options, label_at(clip, t, window_s)) for t in sorted(times)]
        known = list({s.sample_id: s for s in made if s is not None}.values())
        samples += known
        left += [] if known else [clip]
    return samples, left


def labelled_moments(clips: Sequence[Clip], options: Options) -> NDArray[np.float64]:
    """Time, place in the clip (0 to 1) and label of the moments of a stream, [N, 3]; no video is opened."""
    stride, window = float(options["stream"]["stride_s"]), float(options["stream"]["window_s"])
    rows = []
    for clip in clips:
        if "failed" not in clip.extra:
            end = last_time(clip)
            times = np.arange(0.0, end + 1e-9, stride).tolist()
            rows += [(t, t / max(end, 1e-9), y) for t in times if (y := label_at(clip, t, window)) is not None]
    return np.array(rows, np.float64).reshape(-1, 3)


def stream_times(clips: Sequence[Clip], grid: Sequence[Mapping[str, Any]], scanned: bool) -> dict[str, Times]:
    """The distinct times that the anchors of a whole sweep ask of each clip, ascending.

    Args:
        clips: of one split.
        grid: the sampling options of each point of the sweep.
        scanned: whether the grid over the whole clip is scored too.
    """
    times: dict[str, set[float]] = {c.clip_id: set() for c in clips}
    for options in grid:
        samples = drawn_samples(clips, options)[0] if options.get("anchors") == "stream" else []
        samples = [*samples, *(stream_samples(clips, options) if scanned else [])]
        for sample in samples:
            times[sample.clip.clip_id].update(sample.times_s)
    return {clip_id: np.array(sorted(found)) for clip_id, found in times.items()}


def _draw(clip: Clip, spans: Sequence[tuple[float, float]], seed: int) -> list[float]:
    """A time in each span that is not empty, a function of the seed, the clip and the place only."""
    found = []
    for number, (low, high) in enumerate(spans):
        if high >= low:
            drawn = low + (high - low) * stable_uniform(seed, "stream", clip.clip_id, str(number))
            found.append(min(max(round(drawn, 3), low), high))
    return found
