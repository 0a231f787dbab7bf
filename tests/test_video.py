"""Time: the number burnt into a frame is the number that was asked for."""

import numpy as np
import pytest

from dashvlm.data.frames import FrameStore
from dashvlm.data.pictures import confined_files
from dashvlm.data.readers import READERS, decode
from dashvlm.data.sampling import anchored_times, nearest_frames
from dashvlm.data.synthetic.encode import read_counter
from dashvlm.data.video import index_video
from dashvlm.errors import DataError, VideoError

from .conftest import REAL

KINDS = {
    "plain": {},
    "b_frames": {"b_frames": 5, "gop": 250},
    "variable": {"variable": True},
    "rotated90": {"rotation": 90},
    "rotated180": {"rotation": 180},
    "rotated270": {"rotation": 270, "variable": True},
}
GRID = [(n, dt) for n in (5, 10, 15, 20) for dt in (0.1, 0.2, 0.3)]


@pytest.fixture(params=READERS)
def reader(request):
    if request.param == "torchcodec":
        try:
            import torchcodec.decoders  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:
            pytest.skip(f"torchcodec needs FFmpeg's libraries: {str(error).splitlines()[0]}")
    return request.param


def test_every_reader_shows_the_frame_that_was_asked_for(counter_video, reader, tmp_path):
    triples = mismatches = 0
    for kind, options in KINDS.items():
        path, times = counter_video(f"{kind}_{reader}", **options)
        index = index_video(path)
        assert np.abs(index.times_s - times).max() < 1e-4
        store = FrameStore(tmp_path / f"{kind}_{reader}", reader)
        for anchor in np.linspace(6.0, float(times[-1]) - 0.01, 5):
            for n, dt in GRID:
                wanted = anchored_times(anchor, n, dt)
                wanted = wanted[wanted >= 0]
                frames, true = store.frames(path, wanted)
                half = np.median(np.diff(times)) / 2 + 1e-6
                assert (true - wanted <= half).all()
                # The nearest of the frames that are at most half a usual period later.
                late = np.where(times[None] > wanted[:, None] + half, np.inf, times[None])
                expected = np.abs(late - wanted[:, None]).argmin(1)
                seen = [read_counter(f) for f in frames]
                triples += 1
                mismatches += seen != expected.tolist()
    assert mismatches == 0
    assert triples * len(READERS) >= 1000


def test_readers_agree_to_the_bit(counter_video, reader):
    path, _ = counter_video("agree", b_frames=3, variable=True)
    index = index_video(path)
    numbers = [3, 150, 7, 7, 42, 199, 0]
    assert (decode(path, index, numbers, reader) == decode(path, index, numbers, "pyav")).all()


@pytest.mark.skipif(not REAL.exists(), reason="the real clips are not part of the project")
def test_real_clips_decode_like_a_plain_forward_pass(reader):
    import av

    path = sorted((REAL / "dad_mini" / "full").glob("*.mp4"))[0]
    index = index_video(path)
    with av.open(str(path)) as container:
        plain = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(plain) == len(index.times_s)
    numbers = [0, 5, 33, 61, 62, 99]
    assert (decode(path, index, numbers, reader) == np.stack([plain[i] for i in numbers])).all()


def test_damaged_files_have_named_errors(counter_video, tmp_path):
    path, _ = counter_video("damage")
    raw = path.read_bytes()
    samples = {
        "empty": (b"", "empty file"),
        "html": (b"<html>" * 500, "not a readable video"),
        "random": (np.random.default_rng(0).bytes(20_000), "not a readable video"),
        "no_moov": (raw[: raw.index(b"moov")], "not a readable video"),
        "hls": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a readable video"),
        "concat": (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a readable video"),
    }
    for name, (content, message) in samples.items():
        bad = tmp_path / f"{name}.mp4"
        bad.write_bytes(content)
        with pytest.raises(VideoError, match=message):
            index_video(bad)
    with pytest.raises(VideoError, match="no such video file"):
        index_video(tmp_path / "absent.mp4")


def test_audio_only_and_frameless_files_have_named_errors(tmp_path):
    import av

    audio = tmp_path / "audio.mp4"
    with av.open(str(audio), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        index_video(audio)


def test_damaged_picture_data_never_passes_for_a_good_frame(counter_video, tmp_path):
    path, times = counter_video("holes")
    raw = bytearray(path.read_bytes())
    start = raw.index(b"mdat") + 8
    raw[start + 2000 : start + 9000] = bytes(7000)
    bad = tmp_path / "holes.mp4"
    bad.write_bytes(bytes(raw))
    index = index_video(bad)
    wrong = 0
    for number in range(0, len(times), 5):
        try:
            wrong += read_counter(decode(bad, index, [number])[0]) != number
        except VideoError:
            continue
    assert wrong == 0


def test_paths_stay_inside_the_root(tmp_path):
    root = tmp_path / "data"
    (tmp_path / "data_sibling").mkdir()
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "data_sibling")
    assert confined_files(root, "a/b.mp4") == (root / "a/b.mp4").resolve()
    for name in ("../data_sibling/x.mp4", "/etc/passwd", "link/x.mp4", "http://host/x.mp4"):
        with pytest.raises(DataError, match="leads out of the data root"):
            confined_files(root, name)


def test_nearest_frames_at_variable_rate(counter_video):
    _, times = counter_video("nearest", variable=True)
    assert nearest_frames(times, times).tolist() == list(range(len(times)))
