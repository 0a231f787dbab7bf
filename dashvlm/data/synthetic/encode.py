"""Frames to H.264 files: the synthetic world, and clips with a burnt-in counter for time tests."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from dashvlm.data.clip import FrameArray
from dashvlm.data.synthetic.drives import LongScene
from dashvlm.data.synthetic.render import Renderer
from dashvlm.data.synthetic.scene import Scene

TICKS = 90_000
COUNTER_BITS = 12


def write_video(
    path: Path,
    frames: Iterable[FrameArray],
    times_s: Sequence[float],
    gop: int = 30,
    b_frames: int = 2,
    crf: int = 18,
    reproducible: bool = False,
) -> None:
    """Encode frames [H, W, 3] shown at the given times to an H.264 file, replacing it atomically.

    Args:
        path: target, with a container's suffix.
        frames: uint8 RGB, even height and width.
        times_s: presentation time of each, ascending, in seconds.
        gop: largest distance of key frames.
        b_frames: number of consecutive B-frames.
        crf: quality, lower is better.
        reproducible: the same bytes each time. x264's vector code reads memory that it has not written: of 20 small
            clips 13 came out in several versions. Its plain code does not, at several times the cost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
    with av.open(str(temporary), "w") as container:
        stream = None
        for frame, time_s in zip(frames, times_s, strict=True):
            if stream is None:
                options = {
                    "g": str(gop),
                    "bf": str(b_frames),
                    "crf": str(crf),
                    "preset": "veryfast",
                    # Key frames at fixed places: where a scene cut is seen depends on what happens.
                    "sc_threshold": "0",
                }
                if reproducible:
                    options["x264-params"] = "asm=0"
                rate = round(len(times_s) / max(times_s[-1] - times_s[0], 0.1)) or 1
                stream = container.add_stream("libx264", rate=rate, options=options)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                # Encoder threads change neither the picture nor the speed of small clips.
                stream.thread_count = 1
                stream.codec_context.time_base = Fraction(1, TICKS)
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = round(time_s * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode())
    temporary.replace(path)


def write_scene(path: Path, scene: Scene | LongScene, width: int, height: int, fps: float) -> None:
    """Render a scene to a file at a constant frame rate."""
    times = [i / fps for i in range(round(scene.duration_s * fps))]
    renderer = Renderer(scene, width, height)
    write_video(path, (renderer.frame(t) for t in times), times, reproducible=True)


def counter_frame(number: int, height: int = 96, width: int = 160) -> FrameArray:
    """Draw a frame that carries its number as bars, black for 0 and white for 1.

    The top left corner is white, so that a missed rotation does not read as another number.
    """
    frame = np.full((height, width, 3), 40, np.uint8)
    bar = width // (COUNTER_BITS + 2)
    for bit in range(COUNTER_BITS):
        frame[height // 4 : height // 2, (bit + 1) * bar : (bit + 2) * bar] = 255 * (number >> bit & 1)
    frame[: height // 8, : width // 8] = 255
    return frame


def read_counter(frame: FrameArray) -> int | None:
    """Read the number of a :func:`counter_frame` back; None if the frame is not upright."""
    height, width = frame.shape[:2]
    if width < height or frame[: height // 10, : width // 10].mean() < 128:
        return None
    bar = width // (COUNTER_BITS + 2)
    band = frame[height * 5 // 16 : height * 7 // 16].mean(axis=(0, 2))
    bits = [band[(b + 1) * bar + bar // 4 : (b + 2) * bar - bar // 4].mean() > 128 for b in range(COUNTER_BITS)]
    return sum(1 << b for b, on in enumerate(bits) if on)


def set_rotation(path: Path, degrees: int) -> None:
    """Write a display rotation (0, 90, 180, 270 degrees clockwise) into an MP4's track header.

    ISO/IEC 14496-12: the matrix is nine 32-bit numbers after 40 bytes of a version 0 ``tkhd``.
    """
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 0x10000
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 0x40000000)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = matrix
    path.write_bytes(bytes(data))
