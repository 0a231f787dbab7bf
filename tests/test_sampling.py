import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashvlm.data.sampling import (
    anchored_times,
    fit_history,
    fps_times,
    is_feasible,
    nearest_frames,
    reference_times,
    uniform_times,
)
from dashvlm.errors import DataError

counts = st.integers(1, 40)
intervals = st.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0])


@given(st.floats(0, 100), counts, intervals)
def test_anchored_times_are_exact_ordered_and_end_at_the_anchor(anchor, n, dt):
    times = anchored_times(anchor, n, dt)
    assert len(times) == n
    assert times[-1] == anchor
    assert np.allclose(np.diff(times), dt)


@given(st.floats(0.5, 100), counts, intervals)
def test_padding_keeps_the_count_and_never_leaves_the_clip(anchor, n, dt):
    times, padded = fit_history(anchored_times(anchor, n, dt), "pad_oldest")
    assert len(times) == n
    assert (times >= 0).all()
    assert (np.diff(times) >= 0).all()
    assert (padded == 0) == is_feasible(anchor, n, dt)
    assert len(np.unique(times)) == n - padded


def test_short_history_policies():
    times = anchored_times(1.0, 5, 0.5)
    assert fit_history(times, "skip") is None
    with pytest.raises(DataError, match="2 of 5 frame times lie before the clip"):
        fit_history(times, "error")
    with pytest.raises(DataError):
        fit_history(anchored_times(-1.0, 2, 0.5), "pad_oldest")


def test_grid_points_that_share_a_time_share_it_bit_for_bit():
    grid = [set(anchored_times(19.3, n, dt)) for n in (5, 10, 15, 20) for dt in (0.5, 1.0, 1.5)]
    assert sum(map(len, grid)) == 150
    assert len(set().union(*grid)) == 40


@given(st.floats(0.5, 60), counts)
def test_uniform_and_fps_have_the_exact_count(duration, n):
    times = uniform_times(duration, n)
    assert len(times) == n
    assert 0 < times[0] <= times[-1] < duration
    assert len(fps_times(duration, 2.0, n)) == n


def test_nearest_frames_refuses_a_time_without_frame():
    frames = np.arange(10) / 10
    assert nearest_frames(frames, [0.0, 0.349, 0.9]).tolist() == [0, 3, 9]
    with pytest.raises(DataError, match="no frame within half a frame period"):
        nearest_frames(frames, [1.2])


def test_negatives_draw_their_reference_from_the_positives_whatever_the_order():
    events = {f"p{i}": (10.0 + i, 40.0) for i in range(20)} | {f"n{i}": (None, 40.0) for i in range(400)}
    first = reference_times(events, seed=1)
    second = reference_times(dict(reversed(events.items())), seed=1)
    assert first == second
    drawn = np.array([first[f"n{i}"] for i in range(400)])
    assert set(drawn) <= {10.0 + i for i in range(20)}
    assert abs(drawn.mean() - 19.5) < 1.0
    assert reference_times(events, 1, "clip_end")["n0"] == 40.0


def test_a_short_negative_never_gets_a_time_past_its_end():
    assert reference_times({"p": (30.0, 40.0), "n": (None, 8.0)}, 0)["n"] <= 8.0


def test_anchors_lie_the_horizon_before_the_event_and_end_at_the_last_frame():
    from dashvlm.data.clip import Clip
    from dashvlm.data.samples import build_samples, union_of_times

    clip = Clip("a", "a.mp4", "a", "test", 1, 3.0, None, 4.0, 10.0)
    options = {
        "sampling": "anchored", "num_frames": 2, "frame_interval_s": 0.5, "horizon_s": 0.5, "reference": "event",
        "negative_reference": "matched", "short_history": "pad_oldest", "sampling_seed": 0,
    }  # fmt: skip
    assert build_samples([clip], options)[0][0].times_s == pytest.approx((2.0, 2.5))
    assert build_samples([clip], options, [1.0])[0][0].times_s == pytest.approx((1.5, 2.0))
    assert union_of_times([clip], [options], [1.0])["a"] == pytest.approx([1.5, 2.0, 2.5])
    last = {**options, "reference": "clip_end", "horizon_s": 0.0}
    assert build_samples([clip], last)[0][0].times_s == pytest.approx((3.4, 3.9))  # the last frame is at 3.9 s
