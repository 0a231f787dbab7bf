"""Videos that others made: right frames at right times with every reader, or a refusal by name."""

import csv
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms

from dashvlm.data import guard
from dashvlm.data.frames import FrameStore
from dashvlm.data.guard import Limits, guarded
from dashvlm.data.h264 import PictureNumbers, _Bits
from dashvlm.data.index import _continued
from dashvlm.data.readers import READERS, decode
from dashvlm.data.sampling import nearest_frames, staleness_s
from dashvlm.data.synthetic.encode import read_counter, set_rotation
from dashvlm.data.video import index_video
from dashvlm.errors import DataError, VideoError

from .conftest import ROOT
from .foreign_videos import CONTAINERS, FRAMES, GOP, SECOND, Kind, encode, matrix, moving_texture, write

CASES = ROOT.parent / "shared" / "cases"
PLAIN = [round(i * SECOND / 30) for i in range(FRAMES)]


def readers():
    """Those that are installed; torchcodec also needs FFmpeg's libraries."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return [r for r in READERS if r != "torchcodec"]
    return list(READERS)


def shown(path, reader="pyav"):
    index = index_video(path)
    return [read_counter(f) for f in decode(path, index, range(len(index.times_s)), reader)]


def check(folder, kind):
    """(number of frames that show another number, why the file was refused) for every frame and reader."""
    path, numbers, times = write(folder, kind)
    try:
        index = index_video(path)
        if len(index.times_s) != len(numbers) or np.abs(index.times_s - times).max() > 0.0021:
            return len(numbers), None
        wrong = 0
        for reader in readers():
            frames = decode(path, index, range(len(numbers)), reader)
            wrong += sum(read_counter(f) != n for f, n in zip(frames, numbers, strict=True))
            back = numbers[::-7]  # any order, one by one
            one = [read_counter(decode(path, index, [n - numbers[0]], reader)[0]) for n in back[:3]]
            wrong += sum(a != b for a, b in zip(one, back, strict=False))
        return wrong, None
    except VideoError as error:
        return 0, str(error)
    finally:
        path.unlink()


def run_matrix(folder, kinds):
    results = {kind: check(folder, kind) for kind in kinds}
    assert {kind: wrong for kind, (wrong, _) in results.items() if wrong} == {}
    assert [kind for kind, (_, refused) in results.items() if refused is not None] == []


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_third_file_of_the_matrix_shows_its_frames(container, tmp_path):
    assert len(matrix()) >= 200
    run_matrix(tmp_path, [kind for kind in matrix()[::3] if kind.container == container])


@pytest.mark.exhaustive
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_file_of_the_matrix_shows_its_frames(container, tmp_path):
    run_matrix(tmp_path, [kind for kind in matrix() if kind.container == container])


# -- the kinds of the cases, made here; where the case's own file is present it is read too ------------


def case(name):
    path = CASES / name
    if not path.exists():
        pytest.skip("the case files are not part of the project")
    return path


@pytest.mark.parametrize(
    ("name", "first", "count", "seconds"),
    [
        ("cutbase.mp4", 99, 201, 6.7),
        ("cutlong.mp4", 99, 201, 6.7),
        ("bframes_h264.avi", 0, 300, 10.0),
        ("no_bframes.avi", 0, 300, 10.0),
        ("bframes_h264.ts", 0, 300, 10.0),
        ("mpeg2.mpg", 0, 300, 10.0),
        ("concatenated.ts", 0, 300, 10.0),
        ("twocam.mp4", 0, 300, 10.0),
        ("raw.h264", 0, 300, 10.0),
        ("power_cut.mp4", 0, 160, 160 / 30),
    ],
)
def test_the_cases_show_their_frames_with_every_reader(name, first, count, seconds):
    path = case(name)
    index = index_video(path)
    assert index.duration_s == pytest.approx(seconds, abs=1e-3)
    assert np.abs(index.times_s - np.arange(count) / 30).max() < 1e-3
    for reader in readers():
        assert shown(path, reader) == list(range(first, first + count))


def test_a_short_cut_begins_at_its_first_shown_frame():
    numbers = shown(case("cutshort.mp4"))
    assert numbers[0] == 99
    assert len(numbers) == 32


def test_two_streams_are_counted_and_the_default_one_is_read(tmp_path):
    path, numbers, _ = write(tmp_path, Kind("mp4", "h264", 2, "30", "two streams"))
    index = index_video(path)
    assert (index.streams, index.width, index.height) == (2, 160, 96)
    assert shown(path) == numbers


def test_a_joined_transport_stream_goes_on_where_its_clock_starts_again(tmp_path):
    path, _, _ = write(tmp_path, Kind("ts", "h264", 0, "30", "plain"))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(path.read_bytes() * 2)
    index = index_video(joined)
    assert np.abs(index.times_s - np.arange(2 * FRAMES) / 30).max() < 1e-3
    assert shown(joined) == [*range(FRAMES), *range(FRAMES)]


def test_repeated_time_stamps_are_refused(tmp_path):
    with pytest.raises(VideoError, match="time stamps repeat or run backwards"):
        _continued(tmp_path / "x.ts", np.array([0.0, 0.1, 0.1, 0.2]), True)


@pytest.mark.parametrize("rate", [25, None])
def test_a_raw_stream_has_the_rate_that_it_states(rate, tmp_path):
    path, content = tmp_path / "raw.h264", moving_texture(96, 160)
    # H.264 may leave the rate out; MPEG-4's elementary stream always has one.
    options = {"bf": "2", "preset": "veryfast"}
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        packets = []
        for number in range(30):
            packets += stream.encode(av.VideoFrame.from_ndarray(content(number), format="rgb24"))
        packets += stream.encode()
        for packet in packets:
            container.mux(packet)
    if rate is None:
        path.write_bytes(without_timing(path.read_bytes()))
        with pytest.raises(VideoError, match="a raw stream carries no times"):
            index_video(path)
        return
    index = index_video(path)
    assert len(index.times_s) == 30
    assert index.fps == pytest.approx(25)


def without_timing(stream):
    """Take the optional part (VUI), which states the rate, off the parameter set of an H.264 stream."""
    start = re.search(rb"\x00\x00\x01[\x67\x27\x47]", stream).end()
    end = stream.index(b"\x00\x00\x01", start)
    unit = stream[start:end].rstrip(b"\x00").replace(b"\x00\x00\x03", b"\x00\x00")
    bits = _Bits(unit)
    fields = read_parameter_set(bits)
    kept = "".join(str(b) for b in fields) + "0" + "1"  # no VUI, the stop bit
    kept += "0" * (-len(kept) % 8)
    return stream[:start] + int(kept, 2).to_bytes(len(kept) // 8, "big") + stream[end:]


def read_parameter_set(bits):
    """The bits of x264's parameter set (7.3.2.1.1) up to the flag that says whether a VUI follows."""
    total, start = bits.value, bits.left
    profile = bits.read(8)
    bits.read(16)
    bits.exponential()
    if profile in (100, 110, 122, 244):
        for _ in range(3):
            bits.exponential()
        bits.read(2)
    bits.exponential()
    if bits.exponential() == 0:
        bits.exponential()
    bits.exponential()
    bits.read(1)
    bits.exponential(), bits.exponential()
    if not bits.read(1):
        bits.read(1)
    bits.read(1)
    if bits.read(1):
        for _ in range(4):
            bits.exponential()
    used = start - bits.left
    return [total >> (start - 1 - i) & 1 for i in range(used)]


@pytest.mark.parametrize(("share", "suffix"), [(0.6, "mp4"), (0.35, "mp4"), (0.6, "mkv"), (0.6, "ts"), (0.6, "avi")])
def test_a_file_cut_in_the_middle_is_usable_up_to_its_last_whole_frame(share, suffix, tmp_path):
    path = tmp_path / f"whole.{suffix}"
    encode(path, Kind(suffix, "h264", 0, "30", "plain"), PLAIN, (320, 192), moving_texture())
    if suffix == "mp4":  # the index in front, as for streaming
        fast = tmp_path / "fast.mp4"
        with av.open(str(path)) as old, av.open(str(fast), "w", options={"movflags": "faststart"}) as new:
            copy = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.size:
                    packet.stream = copy
                    new.mux(packet)
        path = fast
    sound = decode(path, index_video(path), range(FRAMES))
    raw = path.read_bytes()
    end = int(share * len(raw))
    with av.open(str(path)) as container:
        whole = [p.size and p.pos is not None and p.pos + p.size <= end for p in container.demux(video=0)][:FRAMES]
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(raw[:end])
    index = index_video(cut)
    frames = decode(cut, index, range(len(index.times_s)))
    assert (frames == sound[: len(frames)]).all()
    # A transport stream does not say where its pictures end: the last one may be a part.
    assert sum(whole) - 2 * (suffix in ("ts", "mkv")) <= len(frames) <= sum(whole)


def test_mirrored_pictures_are_mirrored(tmp_path):
    path, _, _ = write(tmp_path, Kind("mp4", "h264", 0, "30", "plain"))
    upright = decode(path, index_video(path), [5])[0]
    one = 0x10000
    for name, (a, b, c, d), expected in (
        ("left and right", (-1, 0, 0, 1), upright[:, ::-1]),
        ("top and bottom", (1, 0, 0, -1), upright[::-1]),
        ("half a turn", (-1, 0, 0, -1), upright[::-1, ::-1]),
        ("a quarter clockwise", (0, 1, -1, 0), np.rot90(upright, -1)),
        ("a quarter back", (0, -1, 1, 0), np.rot90(upright)),
        ("the diagonal", (0, 1, 1, 0), upright.transpose(1, 0, 2)),
        ("the other diagonal", (0, -1, -1, 0), upright[::-1, ::-1].transpose(1, 0, 2)),
    ):
        data = bytearray(path.read_bytes())
        start = data.index(b"tkhd") + 4 + 40
        data[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000)
        turned = tmp_path / f"{name.replace(' ', '_')}.mp4"
        turned.write_bytes(data)
        index = index_video(turned)
        for reader in readers():
            frame = decode(turned, index, [5], reader)[0]
            assert (frame == expected).all(), (name, reader)
        assert (index.height, index.width) == expected.shape[:2]


def test_the_mirrored_case_is_mirrored():
    frame = decode(case("mirror.mp4"), index_video(case("mirror.mp4")), [7])[0]
    assert read_counter(np.ascontiguousarray(frame[:, ::-1])) == 7


def test_an_odd_angle_is_refused(tmp_path):
    path, _, _ = write(tmp_path, Kind("mp4", "h264", 0, "30", "plain"))
    set_rotation(path, 0)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = struct.pack(">9i", 46341, 46341, 0, -46341, 46341, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="other than right angles"):
        index_video(path)


# -- gaps: never the future -----------------------------------------------------------------------------


@pytest.fixture
def gap(tmp_path):
    """Frames 0 to 29 in the first second, then nothing until second 3."""
    path = tmp_path / "gap.mp4"
    stamps = [round((i if i < 30 else i + 60) * SECOND / 30) for i in range(FRAMES)]
    encode(path, Kind("mp4", "h264", 2, "30", "plain"), stamps)
    return path


@pytest.mark.parametrize("reader", readers())
def test_a_time_in_a_gap_sees_the_last_frame_before_it(gap, reader, tmp_path):
    store = FrameStore(tmp_path / "store", reader)
    frames, times = store.frames(gap, [0.9, 1.5, 2.9, 2.98, 2.99, 3.0])
    assert [read_counter(f) for f in frames] == [27, 29, 29, 29, 30, 30]
    assert times[1] == pytest.approx(29 / 30, abs=1e-4)
    assert store.index(gap).fps == pytest.approx(30)
    assert staleness_s(times, [0.9, 1.5, 2.9, 2.98, 2.99, 3.0], 1 / 30) == pytest.approx(2.98 - 29 / 30, abs=1e-4)


def test_the_case_with_a_gap_shows_nothing_of_the_future():
    path = case("gap_3s_to_6s.mp4")
    index = index_video(path)
    assert index.times_s[index.frames_at([5.0])][0] == pytest.approx(2.967, abs=1e-3)
    assert index.times_s[index.frames_at([6.0])][0] == pytest.approx(6.0, abs=1e-3)


def test_nearest_frames_are_never_later_than_half_a_usual_period():
    rng = np.random.default_rng(0)
    for _ in range(200):
        steps = rng.choice([0.1, 0.1, 0.1, 2.0, 0.05], 30)
        times = np.concatenate([[0.0], np.cumsum(steps)])
        wanted = rng.uniform(0, times[-1], 20)
        got = times[nearest_frames(times, wanted)]
        half = np.median(np.diff(times)) / 2 + 1e-6
        assert (got - wanted <= half).all()
        # Nothing that is allowed is nearer.
        allowed = np.where(times[None] - wanted[:, None] <= half, np.abs(times[None] - wanted[:, None]), np.inf)
        assert np.allclose(np.abs(got - wanted), allowed.min(1))
    with pytest.raises(DataError, match="no frame within half a frame period"):
        nearest_frames(np.array([0.0, 0.1, 0.2]), [0.26])
    assert nearest_frames(np.array([0.0, 0.1, 0.2]), [0.249]).tolist() == [2]
    assert nearest_frames(np.array([0.0, 0.5, 1.0]), [0.25, 0.75]).tolist() == [0, 1]  # the earlier of two as near


# -- pictures ----------------------------------------------------------------------------------------


def picture(path):
    return decode(path, index_video(path), [0])[0]


def test_pictures_are_shown_as_a_viewer_shows_them(tmp_path):
    ramp = np.linspace(3000, 60000, 320).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (8, 1))).save(tmp_path / "deep.png")
    grey = picture(tmp_path / "deep.png")
    assert (grey[0, 0, 0], grey[0, -1, 0]) == (12, 234)
    assert (np.diff(grey[0, :, 0].astype(int)) >= 0).all()
    Image.fromarray(np.full((8, 8, 3), (200, 40, 90), np.uint8)).quantize(4).save(tmp_path / "palette.png")
    assert np.abs(picture(tmp_path / "palette.png")[0, 0].astype(int) - (200, 40, 90)).max() <= 2
    clear = np.zeros((8, 8, 4), np.uint8)
    Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
    assert (picture(tmp_path / "clear.png") == 255).all()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "ink.jpg")
    assert np.abs(picture(tmp_path / "ink.jpg")[0, 0].astype(int) - (255, 0, 0)).max() <= 3
    tall = Image.fromarray(np.tile(np.arange(16, dtype=np.uint8)[:, None, None] * 10, (1, 8, 3)))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    tall.save(tmp_path / "turned.png", exif=exif)
    assert picture(tmp_path / "turned.png").shape == (8, 16, 3)
    assert picture(tmp_path / "turned.png")[0, 0, 0] == 150
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "odd.jpg", icc_profile=profile)  # not for inks
    assert picture(tmp_path / "odd.jpg").shape == (8, 8, 3)


def test_the_deep_case_is_a_ramp():
    grey = picture(case("gray16.png"))
    assert (grey.min(), grey.max()) == (12, 234)


def test_files_of_the_finder_are_nobodys_frames(tmp_path):
    for name in ("1.png", "2.png", "._1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
        (tmp_path / "plain.png").replace(tmp_path / name)
    assert len(index_video(tmp_path).times_s) == 2


@pytest.mark.parametrize(
    ("matrix_name", "codec", "pixels"), [(1, "h264", "yuv420p"), (5, "h264", "yuv420p"), (1, "hevc", "yuv420p10le")]
)
def test_colours_are_converted_by_the_matrix_that_the_stream_names(matrix_name, codec, pixels, tmp_path):
    colour = np.full((96, 160, 3), (200, 40, 90), np.uint8)
    path = tmp_path / "colour.mp4"
    options = {"x265-params": "log-level=none"} if codec == "hevc" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265" if codec == "hevc" else "libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix_name, 1
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(colour, format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=matrix_name, dst_color_range=1)
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    index = index_video(path)
    for reader in readers():
        assert np.abs(decode(path, index, [1], reader)[0, 50, 80].astype(int) - (200, 40, 90)).max() <= 4


# -- damage ------------------------------------------------------------------------------------------

# What can be told by the decoder: with FFmpeg single wrong bits inside compressed pictures often cannot, see
# docs/videos.md, where the shares are; these kinds of damage always can.
TOLD = {
    ("mp4", "h264"): ("zeros", "packets", "truncated", "big hole"),
    ("mkv", "h264"): ("zeros", "packets", "truncated"),
    ("ts", "h264"): ("zeros", "packets", "truncated", "big hole"),
    ("avi", "h264"): ("zeros", "packets", "truncated", "big hole"),
    ("mp4", "hevc"): ("zeros", "packets", "truncated", "big hole"),
    ("ts", "hevc"): ("zeros", "packets", "truncated"),
    ("mp4", "av1"): ("zeros", "truncated", "big hole", "bit", "bytes"),
    ("webm", "av1"): ("zeros", "bit"),
    ("webm", "vp9"): ("zeros", "truncated"),
    ("ts", "mpeg2"): ("zeros", "packets", "truncated", "big hole"),
    ("mpg", "mpeg2"): ("big hole",),
    ("mp4", "mpeg4"): ("zeros", "truncated", "big hole"),
    ("avi", "mpeg4"): ("zeros", "truncated", "big hole"),
}
DAMAGED_FRAMES = 60


def damage(path, how, seed, target):
    """Write a damaged copy."""
    raw, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    place = int(rng.integers(int(0.05 * len(raw)), int(0.93 * len(raw))))
    if how == "bit":
        raw[place] ^= 1 << int(rng.integers(8))
    elif how == "bytes":
        raw[place : place + 64] = rng.bytes(64)
    elif how == "zeros":
        raw[place : place + 200] = bytes(len(raw[place : place + 200]))
    elif how == "big hole":
        raw[place : place + 4096] = bytes(len(raw[place : place + 4096]))
    elif how == "truncated":
        raw = raw[:place]
    elif path.suffix == ".ts":  # lost packets of the transport, which numbers them by 16: so many would leave no trace
        place = place // 188 * 188
        del raw[place : place + 188 * int(rng.integers(1, 16))]
    else:  # lost pictures
        with av.open(str(path)) as old, av.open(str(target), "w") as new:
            copy = new.add_stream_from_template(old.streams.video[0])
            packets = [p for p in old.demux(video=0) if p.size]
            first = int(rng.integers(3, len(packets) - 5))
            for packet in packets[:first] + packets[first + int(rng.integers(1, 4)) :]:
                packet.stream = copy
                new.mux(packet)
        return
    target.write_bytes(bytes(raw))


def accepted(path):
    """Frame number by time -> picture, of all frames that are not refused; None for a file that is."""
    try:
        index = index_video(path)
    except VideoError:
        return None
    found = {}

    def read(numbers):
        try:
            frames = decode(path, index, numbers)
        except VideoError:
            half = len(numbers) // 2
            for part in (numbers[:half], numbers[half:]) if half else ():
                read(part)
            return
        found.update({round(float(index.times_s[n]) * 30): f for n, f in zip(numbers, frames, strict=True)})

    read(list(range(len(index.times_s))))
    return found


def wrong_frames(folder, container, codec, hows, seeds):
    path = folder / f"sound.{container}"
    kind = Kind(container, codec, 0 if codec in ("av1",) or container == "avi" else 2, "30", "plain")
    encode(path, kind, PLAIN[:DAMAGED_FRAMES], (320, 192), moving_texture())
    sound = accepted(path)
    assert sorted(sound) == list(range(DAMAGED_FRAMES))
    wrong, kept, files = {}, 0, 0
    for how in hows:
        for seed in range(seeds):
            copy = folder / f"damaged.{container}"
            damage(path, how, seed, copy)
            found = accepted(copy) or {}
            files, kept = files + 1, kept + len(found)
            bad = [n for n, frame in found.items() if n not in sound or (frame != sound[n]).any()]
            if bad:
                wrong[how, seed] = bad
    return wrong, kept, files


@pytest.mark.parametrize(("container", "codec"), TOLD)
def test_frames_that_damage_touched_are_refused(container, codec, tmp_path):
    wrong, kept, _ = wrong_frames(tmp_path, container, codec, TOLD[container, codec], 2)
    assert wrong == {}
    assert kept > 0 or container == "mpg"  # refusing everything would pass too


@pytest.mark.exhaustive
@pytest.mark.parametrize(("container", "codec"), TOLD)
def test_frames_that_damage_touched_are_refused_many_times(container, codec, tmp_path):
    wrong, _, files = wrong_frames(tmp_path, container, codec, TOLD[container, codec], 12)
    assert wrong == {}
    assert files >= 12


@pytest.mark.parametrize("how", ["zeros", "big hole", "packets"])
def test_damage_at_the_start_moves_no_times(how, tmp_path):
    path, copy = tmp_path / "sound.ts", tmp_path / "damaged.ts"
    encode(path, Kind("ts", "mpeg2", 2, "30", "plain"), PLAIN[:DAMAGED_FRAMES], (320, 192), moving_texture())
    sound = accepted(path)
    damage(path, how, 34, copy)  # within the first group of pictures
    found = accepted(copy)
    if found is not None:  # where the first time is lost with the damage, the file is refused
        assert all((frame == sound[n]).all() for n, frame in found.items())


def test_the_damaged_case_gives_no_frame_that_differs():
    sound, damaged = case("damaged_h264_original.mp4"), case("damaged_h264.mp4")
    index, other = index_video(sound), index_video(damaged)
    refused = 0
    for number in range(0, len(other.times_s), 3):
        try:
            frame = decode(damaged, other, [number])[0]
        except VideoError:
            refused += 1
            continue
        assert (frame == decode(sound, index, [number])[0]).all()
    assert 0 < refused < 20


def test_damage_is_named_where_a_whole_file_is_read_in_order(tmp_path):
    path = tmp_path / "sound.ts"
    encode(path, Kind("ts", "h264", 2, "30", "plain"), PLAIN, (320, 192), moving_texture())
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 188 // 2 * 188] + raw[(len(raw) // 188 // 2 + 20) * 188 :])
    index = index_video(path)
    assert len(index.damaged_after)
    hole = index.times_s[index.damaged_after[0]]
    with pytest.raises(DataError, match="the file is damaged at"):
        index.frames_at([hole + 0.1])
    assert index.frames_at([hole]).tolist() == [index.damaged_after[0]]


# -- files that would stop a run ----------------------------------------------------------------------


SLEEPER = """
import time
class DECORDError(Exception): pass
class VideoReader:
    def __init__(self, *a, **k): time.sleep(600)
"""


def test_pipes_sparse_files_and_sleeping_readers_end_within_the_limit(tmp_path, monkeypatch):
    path, _, _ = write(tmp_path, Kind("mp4", "h264", 0, "30", "plain"))
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("/dev/zero")
    with (tmp_path / "sparse.mp4").open("wb") as file:
        file.write(path.read_bytes()[:40])
        file.truncate(10_000_000_000)
    store = FrameStore(tmp_path / "store", limits=Limits(5.0, 2.0))
    started = time.monotonic()
    for name in ("pipe.mp4", "link.mp4", "sparse.mp4"):
        with pytest.raises(VideoError):
            store.index(tmp_path / name)
    assert time.monotonic() - started < 15
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "decord.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", str(shim))
    monkeypatch.setattr("dashvlm.data.guard._take", guard._Process)
    slow = FrameStore(tmp_path / "store", "decord", limits=Limits(2.0, 2.0))
    started = time.monotonic()
    with pytest.raises(VideoError, match=r"took longer than data.decode_timeout_s=2"):
        slow.fill(path, [0.0])
    assert time.monotonic() - started < 6
    assert read_counter(store.frames(path, [0.1])[0][0]) == 3


def test_a_decoder_that_needs_too_much_memory_or_dies_is_an_error_of_the_clip(tmp_path):
    path, _, _ = write(tmp_path, Kind("mp4", "h264", 0, "30", "plain"))
    store = FrameStore(tmp_path / "store", size=(8000, 8000), limits=Limits(20.0, 0.5))
    with pytest.raises(VideoError, match=r"needs more memory than data.decode_memory_gb"):
        store.fill(path, [0.0, 0.5, 1.0])
    with pytest.raises(VideoError, match="decoder's process died"):
        guarded(Limits(5.0), path, "data.guard", "os._exit", 3)


def test_nothing_of_the_decoder_outlives_its_parent(tmp_path):
    script = (
        "from dashvlm.data.guard import *; from pathlib import Path; import os\n"
        "guarded(Limits(), Path('x'), 'data.pictures', 'stored_path', Path('/'), 'tmp')\n"
        "from dashvlm.data import guard; print(guard._idle.queue[0].process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    helper = int(done.stdout)
    for _ in range(50):
        if not Path(f"/proc/{helper}").exists() or "Z" in Path(f"/proc/{helper}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {helper} is still there")


# -- the store ----------------------------------------------------------------------------------------


def test_entries_of_the_store_are_bound_to_their_clip(tmp_path):
    one, _, _ = write(tmp_path, Kind("mp4", "h264", 0, "30", "plain"))
    two, _, _ = write(tmp_path, Kind("mov", "h264", 0, "25", "cut"))
    store = FrameStore(tmp_path / "store")
    good = store.frames(one, [0.5])[0], store.frames(two, [0.5])[0]
    entries = [store._entries.path(store.key(p)) for p in (one, two)]
    held = [e.read_bytes() for e in entries]
    entries[0].write_bytes(held[1])  # swapped
    assert (store.frames(one, [0.5])[0] == good[0]).all()
    changed = bytearray(held[1])
    place = changed.index(b'"times_s": [0.0, ') + 17
    changed[place : place + 4] = b"9999"  # edited
    entries[1].write_bytes(changed)
    assert (store.frames(two, [0.5])[0] == good[1]).all()
    secret = tmp_path / "secret"
    secret.write_bytes(held[0])
    entries[0].unlink()
    entries[0].symlink_to(secret)  # a link
    entries[1].unlink()
    os.mkfifo(entries[1])  # a pipe
    entries[1].with_suffix(".lock").unlink()
    os.mkfifo(entries[1].with_suffix(".lock"))
    assert (store.frames(one, [0.5])[0] == good[0]).all()
    assert (store.frames(two, [0.5])[0] == good[1]).all()
    assert secret.read_bytes() == held[0]
    assert not entries[0].is_symlink()


def test_a_video_replaced_by_one_of_equal_size_and_time_is_read_anew(tmp_path):
    path, _, _ = write(tmp_path, Kind("mp4", "h264", 0, "30", "plain"))
    store = FrameStore(tmp_path / "store")
    stat = path.stat()
    before = store.key(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    (tmp_path / "new.mp4").write_bytes(raw)
    (tmp_path / "new.mp4").replace(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.key(path) != before


# -- a whole run ------------------------------------------------------------------------------------------

PARTLY = """
import time
class DECORDError(Exception): pass
class VideoReader:
    def __init__(self, path, **k):
        if "slow" in path:
            time.sleep(600)
        raise DECORDError("not here")
"""


def test_bad_files_end_in_the_ledger_while_the_rest_trains(fresh_dashvlm, tmp_path):
    root = tmp_path / "clips"
    for split in ("train", "val", "test"):
        (root / split).mkdir(parents=True)
    stamps = [round((i if i < 30 else i + 60) * SECOND / 30) for i in range(FRAMES)]  # a gap from 1 s to 3 s
    lines = {split: [] for split in ("train", "val", "test")}
    for number in range(10):
        split = "train" if number < 6 else "val" if number < 8 else "test"
        path = root / split / f"c{number}.mp4"
        encode(path, Kind("mp4", "h264", 2, "30", "plain"), stamps if number == 9 else PLAIN, content=_shifted(number))
        lines[split].append({"video": path.name, "label": number % 2})
    shutil.copy(root / "train" / "c0.mp4", root / "train" / "slow.mp4")
    os.mkfifo(root / "train" / "pipe.mp4")
    with (root / "train" / "sparse.mp4").open("wb") as file:
        file.write((root / "train" / "c0.mp4").read_bytes()[:40])
        file.truncate(10_000_000_000)
    lines["train"] += [{"video": f"{name}.mp4", "label": 0} for name in ("pipe", "sparse", "slow")]
    lines["test"].append({"video": "absent.mp4", "label": 1})
    for split, found in lines.items():
        (root / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / "decord.py").write_text(PARTLY)
    started = time.monotonic()
    done = fresh_dashvlm(
        "train", "model=smolvlm2", "model.checkpoint=tiny", "task=crash", "data=jsonl", f"data.root={root}",
        "data.num_frames=3", "data.frame_interval_s=0.8", "data.frame_size=[64,64]", "data.batch_size=2",
        "trainer.max_steps=2", "trainer.accelerator=cpu", "data.max_bad_fraction=0.5", "data.decode_timeout_s=4",
        "data.reader=decord", "data.num_workers=0", env={"PYTHONPATH": str(tmp_path / "shim")},
    )  # fmt: skip
    assert time.monotonic() - started < 90
    run = next((tmp_path / "runs").glob("crash-*"))
    ledger = {row["clip_id"]: row["reason"] for row in csv.DictReader((run / "quarantine.csv").read_text().split("\n"))}
    assert sorted(ledger) == ["train/pipe", "train/slow", "train/sparse"]
    assert "no regular file" in ledger["train/pipe"]
    assert "not a readable video" in ledger["train/sparse"]
    assert "took longer than data.decode_timeout_s=4" in ledger["train/slow"]
    rows = pd.read_parquet(run / "predictions.parquet").set_index("clip_id")
    assert rows.loc["test/absent", "problem"]
    # The oldest of three times, 0.8 s apart and ending at the last frame, falls into the gap.
    assert rows.loc["test/c9", "stale_s"] == pytest.approx(125 / 30 - 1.6 - 29 / 30, abs=1e-3)
    assert rows.loc["test/c8", "stale_s"] == 0
    result = json.loads((run / "result.json").read_text())
    assert result["stale"] == 1
    assert any("1 of 3 samples show frames older than asked, up to 1.6 s" in alarm for alarm in result["alarms"])
    assert "Traceback" not in done.stdout + done.stderr


def _shifted(number):
    """Pictures of one clip's own."""
    content = moving_texture(96, 160)
    return lambda i: content(i + 100 * number)


# -- what a reviewer broke ----------------------------------------------------------------------------


def test_an_unknown_codec_and_a_short_header_are_errors_of_the_file(tmp_path):
    path, _, _ = write(tmp_path, Kind("mp4", "h264", 0, "30", "plain"))
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"avc1", b"xqz1"))
    with pytest.raises(VideoError, match="no decoder for its video"):
        index_video(path)
    place = raw.index(b"avcC") - 4
    size = int.from_bytes(raw[place : place + 4], "big")
    for length in (1, 3, 5):  # an avcC box that is too short, the rest of its place free space
        rest = size - 8 - length
        box = (8 + length).to_bytes(4, "big") + b"avcC" + b"\x01\x64\x00\x0a\xff"[:length]
        path.write_bytes(
            raw[:place]
            + box
            + rest.to_bytes(4, "big")
            + b"free"
            + raw[place + 16 + length : place + size]
            + raw[place + size :]
        )
        try:
            index = index_video(path)
            assert len(decode(path, index, [0])) == 1
        except VideoError as error:
            assert str(path) in str(error)  # noqa: PT017  either is right, a traceback is not


def test_a_broken_tag_of_exif_costs_no_picture(tmp_path, monkeypatch):
    from PIL import ImageOps

    def broken(image):
        raise TypeError("write_string() takes 2 positional arguments")

    tall = Image.fromarray(np.tile(np.arange(16, dtype=np.uint8)[:, None, None] * 10, (1, 8, 3)))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        tall.save(tmp_path / "p.png", exif=exif)
        expected = picture(tmp_path / "p.png")
        with monkeypatch.context() as patched:
            patched.setattr(ImageOps, "exif_transpose", broken)
            assert (picture(tmp_path / "p.png") == expected).all(), orientation


def test_waiting_for_the_lock_is_no_time_of_decoding(tmp_path):
    import fcntl
    import threading

    path, _, _ = write(tmp_path, Kind("mp4", "h264", 0, "30", "plain"))
    store = FrameStore(tmp_path / "store", limits=Limits(1.5, 2.0))
    lock = store._entries.path(store.key(path)).with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = []
        thread = threading.Thread(target=lambda: done.append(store.frames(path, [0.5])))
        thread.start()
        time.sleep(2.5)
        assert not done
    thread.join(20)
    assert read_counter(done[0][0][0]) == 15


@pytest.mark.parametrize(
    ("container", "codec", "b_frames"),
    [
        ("webm", "vp9", 0),
        ("mp4", "mpeg4", 2),
        ("mkv", "h264", 2),
        ("avi", "h264", 2),
        ("avi", "h264", 0),
        ("avi", "mpeg4", 0),
    ],
)
def test_pictures_that_the_camera_skipped_move_nothing(container, codec, b_frames, tmp_path):
    path = tmp_path / f"skip.{container}"
    stamps = [round((i if i < 20 else i + 15) * SECOND / 30) for i in range(FRAMES)]  # half a second without frames
    encode(path, Kind(container, codec, b_frames, "30", "plain"), stamps)
    index = index_video(path)
    assert shown(path) == list(range(FRAMES))
    assert not len(index.damaged_after)
    assert np.abs(index.times_s - np.array(stamps) / SECOND).max() < 2e-3
    assert index.frames_at([20 / 30, 34.4 / 30, 35 / 30]).tolist() == [19, 19, 20]  # never the future


@pytest.mark.parametrize("container", ["ts", "mkv", "mp4"])
def test_a_cut_before_open_groups_loses_its_leading_pictures_only(container, tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg to cut")
    path, _, _ = write(tmp_path, Kind("ts", "h264", 2, "30", "open groups"))
    cut = tmp_path / f"cut.{container}"
    subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-ss", "1.0", "-c", "copy", cut], check=True)
    found = shown(cut)
    assert found == list(range(found[0], FRAMES))
    assert len(found) >= FRAMES - 30 - GOP


def test_units_padded_to_whole_words_are_no_damage(tmp_path):
    path, _, _ = write(tmp_path, Kind("ts", "h264", 0, "30", "plain"))
    with av.open(str(path)) as old:
        packets = [bytes(p) for p in old.demux(video=0) if p.size]
    raw = tmp_path / "padded.h264"
    raw.write_bytes(b"".join(p + bytes(-len(p) % 4) for p in packets))
    padded = tmp_path / "padded.ts"
    with av.open(str(raw)) as old, av.open(str(padded), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            packet.pts = packet.dts = number * 40_000
            packet.stream = copy
            new.mux(packet)
    assert shown(padded) == list(range(FRAMES))


def test_picture_numbers_tell_each_lost_reference_and_nothing_else(tmp_path):
    path, _, _ = write(tmp_path, Kind("mp4", "h264", 2, "30", "plain"))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [(bytes(p), p.is_keyframe) for p in container.demux(stream) if p.size][:GOP]
        extra = stream.codec_context.extradata
    numbers = PictureNumbers(extra)
    assert not any(numbers.misses(data) for data, _ in packets)
    references = [any(unit[0] & 31 == 1 and unit[0] >> 5 & 3 for unit in numbers._units(data)) for data, _ in packets]
    assert 2 < sum(references) < GOP - 1
    for lost in range(1, GOP):
        numbers = PictureNumbers(extra)
        told = [numbers.misses(data) for i, (data, _) in enumerate(packets) if i != lost]
        assert any(told) == (references[lost] and lost + 1 < GOP), lost
