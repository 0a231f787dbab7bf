"""The store gives the frames that direct decoding gives, whatever happens to its files."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from dashvlm.data.frames import FrameStore
from dashvlm.data.readers import decode
from dashvlm.data.synthetic.encode import read_counter
from dashvlm.data.video import index_video, resize


def test_union_is_decoded_once_and_equals_direct_decoding(counter_video, tmp_path, monkeypatch):
    path, times = counter_video("union")
    store = FrameStore(tmp_path)
    store.fill(path, times[10:60])
    calls = []
    monkeypatch.setattr("dashvlm.data.frames.decode", lambda *a, **k: calls.append(a) or decode(*a, **k))
    for first in (10, 20, 30):
        frames, true = store.frames(path, times[first : first + 20 : 2])
        direct = decode(path, index_video(path), range(first, first + 20, 2))
        assert (frames == direct).all()
        assert np.allclose(true, times[first : first + 20 : 2], atol=1e-4)
    assert not calls
    store.frames(path, times[70:72])
    assert len(calls) == 1
    assert list(calls[0][2]) == [70, 71]


def test_resized_frames_equal_resizing_after_direct_decoding(counter_video, tmp_path):
    path, times = counter_video("resized")
    frames, _ = FrameStore(tmp_path, size=(48, 64)).frames(path, times[:3])
    assert (frames == resize(decode(path, index_video(path), [0, 1, 2]), (48, 64))).all()


def test_a_flipped_bit_is_noticed_and_mended(counter_video, tmp_path):
    path, times = counter_video("flip")
    store = FrameStore(tmp_path)
    good, _ = store.frames(path, times[:5])
    file = next(tmp_path.glob("*/*.frames"))
    raw = bytearray(file.read_bytes())
    raw[-100] ^= 1
    file.write_bytes(bytes(raw))
    assert (store.frames(path, times[:5])[0] == good).all()
    assert (store.frames(path, times[:5])[0] == good).all()
    file.write_bytes(bytes(raw[: len(raw) // 2]))
    assert (store.frames(path, times[:5])[0] == good).all()
    file.write_bytes(b"nonsense")
    assert (store.frames(path, times[:5])[0] == good).all()


def test_the_store_stays_within_its_bound(counter_video, tmp_path):
    videos = [counter_video(f"bound{i}", num_frames=40)[0] for i in range(6)]
    frame_bytes = 96 * 160 * 3
    store = FrameStore(tmp_path, max_gb=2.5 * 20 * frame_bytes / 1e9)
    for video in videos:
        frames, _ = store.frames(video, np.arange(20) / 20)
        assert [read_counter(f) for f in frames] == list(range(20))
    assert sum(f.stat().st_size for f in tmp_path.glob("*/*.frames")) <= 2.5 * 20 * frame_bytes * 1.1


def test_a_store_with_room_is_not_looked_through_for_each_clip(counter_video, tmp_path, monkeypatch):
    path, times = counter_video("room")
    store, seen, look = FrameStore(tmp_path / "store", max_gb=1.0), [], Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: seen.append(pattern) or look(self, pattern))
    for number in range(40):
        shutil.copy(path, tmp_path / f"{number}.mp4")
        store.fill(tmp_path / f"{number}.mp4", times[:1])
    assert len(list(look(tmp_path, "store/*/*.frames"))) == 40
    assert len(seen) <= 2
    FrameStore(tmp_path / "store", max_gb=1e-6).fill(path, times[:1])  # another bound counts for itself
    assert len(list(look(tmp_path, "store/*/*.frames"))) == 1


def test_another_reader_or_size_or_file_is_another_entry(counter_video, tmp_path):
    path, times = counter_video("key")
    FrameStore(tmp_path).frames(path, times[:2])
    FrameStore(tmp_path, size=(48, 80)).frames(path, times[:2])
    assert len(list(tmp_path.glob("*/*.frames"))) == 2
    os.utime(path, (time.time() + 5, time.time() + 5))
    FrameStore(tmp_path).frames(path, times[:2])
    assert len(list(tmp_path.glob("*/*.frames"))) == 3


def _hammer(folder, path, times, seed, queue):
    rng, store, bad = np.random.default_rng(seed), FrameStore(folder), 0
    for _ in range(60):
        numbers = np.sort(rng.choice(len(times), 4, replace=False))
        frames, _ = store.frames(path, np.asarray(times)[numbers])
        bad += [read_counter(f) for f in frames] != numbers.tolist()
    queue.put(bad)


def test_processes_share_the_store_even_when_one_is_killed(counter_video, tmp_path):
    path, times = counter_video("shared")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_hammer, args=(tmp_path, path, times, s, queue)) for s in range(4)]
    for worker in workers:
        worker.start()
    while not list(tmp_path.glob("*/*.frames")):
        time.sleep(0.02)
    os.kill(workers[0].pid, signal.SIGKILL)
    bad = [queue.get(timeout=120) for _ in workers[1:]]
    for worker in workers:
        worker.join()
    assert bad == [0, 0, 0]


def test_a_full_disk_costs_time_only(counter_video, tmp_path, monkeypatch):
    path, times = counter_video("full")
    store = FrameStore(tmp_path)

    def no_space(self, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dashvlm.data.entries.Entries.write", no_space)
    frames, _ = store.frames(path, times[:3])
    assert [read_counter(f) for f in frames] == [0, 1, 2]
    with pytest.raises(OSError, match="No space"):
        store.fill(path, times[:3])
