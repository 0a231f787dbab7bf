"""Which times of a clip to look at. Pure functions of numbers; knows no files.

Contract: the times run oldest to newest, there are exactly as many as asked for, and positives
and negatives go through the same function.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dashvlm.errors import DataError

ShortHistory = Literal["error", "pad_oldest", "skip"]
Times = NDArray[np.float64]


def anchored_times(anchor_s: float, num_frames: int, frame_interval_s: float) -> Times:
    """Return ``num_frames`` times ending at the anchor, ``frame_interval_s`` apart.

    Times before the start of the clip are negative; see :func:`fit_history`.

    Args:
        anchor_s: the newest time, in seconds.
        num_frames: how many times, at least 1.
        frame_interval_s: distance between neighbours in seconds, above 0.

    Raises:
        DataError: if an argument is out of range.

    Example:
        >>> anchored_times(4.0, 3, 0.5).tolist()
        [3.0, 3.5, 4.0]
    """
    _check_num_frames(num_frames)
    if not frame_interval_s > 0:
        raise DataError(
            "data.frame_interval_s must be above 0",
            got=f"{frame_interval_s}",
            do="use for example 0.5",
        )
    # Anchor minus multiples, not a running sum: grid points that share a time share it bit for bit.
    return anchor_s - frame_interval_s * np.arange(num_frames - 1, -1, -1, dtype=np.float64)


def required_history_s(num_frames: int, frame_interval_s: float) -> float:
    """Seconds of video before the anchor that a sweep point needs (20 x 1.5 s needs 28.5 s)."""
    return (num_frames - 1) * frame_interval_s


def is_feasible(anchor_s: float, num_frames: int, frame_interval_s: float) -> bool:
    """Whether a clip has enough history before the anchor for a sweep point."""
    return anchor_s >= 0 and anchor_s - required_history_s(num_frames, frame_interval_s) >= -1e-6


def fit_history(times: Times, policy: ShortHistory) -> tuple[Times, int] | None:
    """Apply the explicit policy for a history that is too short.

    Args:
        times: ascending times, possibly negative.
        policy: ``error`` raises, ``skip`` returns None, ``pad_oldest`` repeats the oldest time
            that exists.

    Returns:
        The times, all at least 0, and how many of them are repeats; or None for ``skip``.

    Raises:
        DataError: under ``error``, or if even the anchor lies before the clip.

    Example:
        >>> times, padded = fit_history(np.array([-0.5, 0.5, 1.5]), "pad_oldest")
        >>> times.tolist(), padded
        ([0.5, 0.5, 1.5], 1)
    """
    times = np.where((times < 0) & (times > -1e-6), 0.0, times)
    short = int((times < 0).sum())
    if not short:
        return times, 0
    if policy == "skip":
        return None
    if policy == "error" or short == len(times):
        raise DataError(
            f"history too short: {short} of {len(times)} frame times lie before the clip",
            got=f"oldest {times[0]:.2f} s, anchor {times[-1]:.2f} s",
            do="lower data.num_frames, data.frame_interval_s or data.horizon_s, or set "
            "data.short_history=pad_oldest (repeats the oldest frame, counted)",
        )
    return np.where(times < 0, times[short], times), short


def uniform_times(duration_s: float, num_frames: int) -> Times:
    """Return the midpoints of ``num_frames`` equal segments of the clip.

    Example:
        >>> uniform_times(8.0, 4).tolist()
        [1.0, 3.0, 5.0, 7.0]
    """
    _check_num_frames(num_frames)
    return np.asarray((np.arange(num_frames) + 0.5) * (duration_s / num_frames), np.float64)


def fps_times(duration_s: float, sample_fps: float, num_frames: int) -> Times:
    """Return the newest ``num_frames`` times of a regular grid of ``sample_fps`` from 0.

    Times before the clip are negative when the clip has fewer; see :func:`fit_history`.

    Example:
        >>> fps_times(2.0, 2.0, 3).tolist()
        [0.5, 1.0, 1.5]
    """
    _check_num_frames(num_frames)
    newest = max(int(np.ceil(duration_s * sample_fps - 1e-9)) - 1, 0) / sample_fps
    return anchored_times(newest, num_frames, 1.0 / sample_fps)


def endpoint_times(last_s: float, num_frames: int) -> Times:
    """Return evenly spaced times that include the first frame and the last, which lies at ``last_s``.

    Example:
        >>> endpoint_times(6.0, 4).tolist(), endpoint_times(6.0, 1).tolist()
        ([0.0, 2.0, 4.0, 6.0], [6.0])
    """
    _check_num_frames(num_frames)
    return np.linspace(0.0, last_s, num_frames) if num_frames > 1 else np.array([last_s])


def dense_times(duration_s: float, sample_fps: float, num_frames: int) -> Times:
    """Return a grid of ``sample_fps`` over the whole clip, thinned evenly where it has more than ``num_frames``.

    A shorter grid is filled up in front with negative times; see :func:`fit_history`.

    Example:
        >>> dense_times(4.0, 2.0, 4).tolist(), dense_times(1.0, 2.0, 3).tolist()
        ([0.0, 1.0, 2.5, 3.5], [-0.5, 0.0, 0.5])
    """
    _check_num_frames(num_frames)
    count = max(int(np.ceil(duration_s * sample_fps - 1e-9)), 1)
    if count <= num_frames:
        return fps_times(duration_s, sample_fps, num_frames)
    return np.asarray(np.floor(np.linspace(0, count - 1, num_frames) + 0.5) / sample_fps, np.float64)


def support_times(duration_s: float, support_s: Sequence[float], num_frames: int, context_s: float = 0.5) -> Times:
    """Return midpoints of ``num_frames`` equal segments of the window around annotated moments.

    The window reaches from ``context_s`` before the first moment to ``context_s`` after the last
    and is clamped to the clip: the project this comes from (huynhtuandat05december/demo, RoadBuddy)
    ran past the end, which reversed the frames. Moments may be unsorted.

    Args:
        duration_s: of the clip.
        support_s: annotated moments in seconds, at least one.
        num_frames: how many times.
        context_s: on either side.

    Example:
        >>> support_times(10.0, [4.0, 3.0], 4).tolist()
        [2.75, 3.25, 3.75, 4.25]
        >>> support_times(10.0, [12.0], 2).tolist()
        [9.625, 9.875]
    """
    _check_num_frames(num_frames)
    # Moments past the end mean the end; the window keeps at least the context before it.
    low, high = (min(float(t), duration_s) for t in (min(support_s), max(support_s)))
    start, end = max(low - context_s, 0.0), min(high + context_s, duration_s)
    return start + uniform_times(end - start, num_frames)


def support_count(num_moments: int, bounds: Sequence[int]) -> int:
    """Return the RoadBuddy project's number of frames: two a moment, within ``bounds``.

    Example:
        >>> [support_count(n, (4, 6)) for n in (1, 2, 3, 9)]
        [4, 4, 6, 6]
    """
    return int(min(max(2 * num_moments, bounds[0]), bounds[1]))


def reference_times(
    events: Mapping[str, tuple[float | None, float]], seed: int, negatives: str = "matched"
) -> dict[str, float]:
    """Give every clip the time that its horizon is counted back from.

    A clip with an event has the event time. A clip without one draws from the event times of the
    others that it is long enough for, so that the anchor's time tells nothing about the class.
    The draw depends on the seed and the clip's id only, not on the order or the sweep point.

    Args:
        events: clip_id -> (event time or None, duration), in seconds.
        seed: draws differ between seeds.
        negatives: ``matched``, or ``clip_end`` as published for the Nexar baseline
            (frankafan/dashcam-collisions), which gives the class away through the time.

    Returns:
        clip_id -> reference time in seconds.
    """
    pool = np.sort([event for event, _ in events.values() if event is not None])
    out: dict[str, float] = {}
    for clip_id, (event, duration) in events.items():
        if event is not None:
            out[clip_id] = float(event)
        elif negatives == "clip_end":
            out[clip_id] = duration
        else:
            draw = stable_uniform(seed, "reference", clip_id)
            fits = pool[pool <= duration]
            out[clip_id] = float(fits[int(draw * len(fits))]) if len(fits) else duration * (0.5 + 0.5 * draw)
    return out


def nearest_frames(
    frame_times: Times, requested: Sequence[float] | Times, damaged_after: Sequence[int] | NDArray[np.int64] = ()
) -> NDArray[np.int64]:
    """Return the number of the frame shown at each requested time.

    That is the nearest frame if it is at most half a usual period later, else the last one before: a time that
    falls into a gap never sees what comes after the gap.

    Args:
        frame_times: ascending, in seconds.
        requested: times in seconds, in any order.
        damaged_after: numbers of frames after which frames are missing because the file is damaged.

    Raises:
        DataError: if a time lies outside of the clip or where the file is damaged.

    Example:
        >>> nearest_frames(np.array([0.0, 0.1, 0.2, 3.0]), [0.04, 0.06, 2.9]).tolist()
        [0, 1, 2]
    """
    wanted = np.asarray(requested, dtype=np.float64)
    half = usual_period(frame_times) / 2 + 1e-6
    before = np.searchsorted(frame_times, wanted, "right") - 1
    after = np.minimum(before + 1, len(frame_times) - 1)
    before = before.clip(min=0)
    late, early = frame_times[after] - wanted, wanted - frame_times[before]
    index = np.where((late >= 0) & (late <= half) & (late < np.abs(early)), after, before).astype(np.int64)
    outside = (wanted < frame_times[0] - half) | (wanted > frame_times[-1] + half)
    if outside.any():
        raise DataError(
            f"no frame within half a frame period of {wanted[outside][0]:.3f} s",
            got=f"the clip's frames run from {frame_times[0]:.3f} to {frame_times[-1]:.3f} s",
            do="choose times inside the clip",
        )
    damaged = np.isin(index, np.asarray(damaged_after, np.int64)) & (wanted - frame_times[index] > half)
    if damaged.any():
        raise DataError(
            f"the file is damaged at {wanted[damaged][0]:.3f} s",
            got=f"the last sound frame before it is at {frame_times[index[damaged][0]]:.3f} s",
            do="replace the file",
        )
    return index


def staleness_s(shown: Sequence[float] | Times, requested: Sequence[float] | Times, period_s: float) -> float:
    """Return how old the oldest-looking of a sample's frames is at the time it stands for, in seconds.

    0 where every frame is within half a usual period of the time asked for; more where times fall into gaps.

    Example:
        >>> staleness_s([2.0, 2.9], [2.0, 5.0], 0.1), staleness_s([2.0], [2.04], 0.1)
        (2.1, 0.0)
    """
    age = float(np.max(np.asarray(requested, np.float64) - np.asarray(shown, np.float64)))
    return age if age > period_s / 2 + 1e-6 else 0.0


def usual_period(frame_times: Times) -> float:
    """Return the median distance of neighbouring frames in seconds; 1 for a single frame.

    Example:
        >>> usual_period(np.array([0.0, 0.1, 0.2, 3.0, 3.1])).__round__(6), usual_period(np.array([0.0]))
        (0.1, 1.0)
    """
    apart = np.diff(frame_times)
    apart = apart[apart > 0]  # a repeated picture has the time of the one before
    return max(float(np.median(apart)), 1e-6) if len(apart) else 1.0


def stable_uniform(seed: int, *names: str) -> float:
    """Return a number in [0, 1) that depends on the seed and the names only."""
    digest = hashlib.sha256("\x00".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _check_num_frames(num_frames: int) -> None:
    if num_frames < 1:
        raise DataError("data.num_frames must be at least 1", got=f"{num_frames}", do="use 5")
