"""Videos as dashcams, cutters and other programs leave them, each frame with its number burnt in."""

import itertools
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from dashvlm.data.synthetic.encode import counter_frame

FRAMES, GOP = 66, 12
SECOND = 90_000
CUT = 25  # the frame that a cut file is meant to begin with; the key frame before it is 24
ENCODERS = {
    "h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9", "mpeg2": "mpeg2video",
    "mpeg4": "mpeg4", "mjpeg": "mjpeg",
}  # fmt: skip
CONTAINERS = {
    "mp4": ("h264", "hevc", "av1", "mpeg4", "mjpeg"),
    "mov": ("h264", "hevc", "mjpeg"),
    "fragmented.mp4": ("h264", "hevc", "av1"),
    "mkv": ("h264", "hevc", "av1", "vp9", "mpeg2", "mpeg4", "mjpeg"),
    "webm": ("vp9", "av1"),
    "ts": ("h264", "hevc", "mpeg2"),
    "avi": ("h264", "mpeg4", "mjpeg"),
    "mpg": ("mpeg2",),
    "flv": ("h264",),
}
EXTRAS = ("plain", "cut", "audio", "two streams", "turned", "open groups")
FIXED_RATE = ("avi", "mpg", "ts", "flv")


@dataclass(frozen=True)
class Kind:
    """One file of the matrix."""

    container: str
    codec: str
    b_frames: int
    rate: str  # frames a second, or "variable"
    extra: str

    @property
    def name(self):
        return f"{self.codec}_b{self.b_frames}_{self.rate}_{self.extra}".replace(" ", "_").replace("/", "-")


def matrix():
    """All kinds of files that the containers and encoders allow."""
    found = []
    for container, codecs in CONTAINERS.items():
        for number, (codec, extra, b_frames) in enumerate(itertools.product(codecs, EXTRAS, (0, 2))):
            if b_frames and codec in ("av1", "vp9", "mjpeg"):
                continue
            if extra == "turned" and container not in ("mp4", "mov", "mkv"):
                continue
            if extra == "open groups" and codec not in ("h264", "hevc"):
                continue
            if extra == "cut" and codec == "av1":  # PyAV cannot copy its packets
                continue
            if extra == "two streams" and container in ("mpg", "flv"):
                continue
            rates = ["30", "30000/1001", "25"]
            if container not in FIXED_RATE and codec not in ("mpeg2", "mpeg4", "mjpeg"):
                rates.append("variable")
            found.append(Kind(container, codec, b_frames, rates[number % len(rates)], extra))
            found.append(Kind(container, codec, b_frames, rates[(number + 1) % len(rates)], extra))
    return found


def write(folder, kind):
    """Write a file; return its path, the numbers that its frames show, and their times from the first one."""
    step = SECOND / Fraction(30 if kind.rate == "variable" else kind.rate)
    stamps = [round(i * step) for i in range(FRAMES)]
    if kind.rate == "variable":
        jitter = np.random.default_rng(3).uniform(0.5, 1.4, FRAMES)
        stamps = [round(float(t)) for t in np.cumsum(jitter) * float(step)]
        stamps = [t - stamps[0] for t in stamps]
    path = folder / f"{kind.name}.{kind.container}"
    whole = path.with_name(f"whole_{path.name}") if kind.extra == "cut" else path
    encode(whole, kind, stamps)
    numbers = list(range(FRAMES))
    if kind.extra == "cut":
        cut_by_copying(whole, path, stamps[CUT])
        edits = path.suffix in (".mp4", ".mov")  # the others have no edit lists: they begin with a key frame
        numbers = list(range(CUT if edits or kind.codec == "mjpeg" else CUT - CUT % GOP, FRAMES))
    times = np.array([stamps[n] - stamps[numbers[0]] for n in numbers]) / SECOND
    return path, numbers, times


def encode(path, kind, stamps, size=(160, 96), content=None):
    """Encode frames at these times, in units of 1/90000 s."""
    options = {"g": str(GOP), "bf": str(kind.b_frames), "sc_threshold": "0"}
    if kind.codec == "h264":
        options |= {"preset": "veryfast", "crf": "18", "x264-params": f"open-gop={int(kind.extra == 'open groups')}"}
    if kind.codec == "hevc":
        closed = f"open-gop={int(kind.extra == 'open groups')}:bframes={kind.b_frames}:keyint={GOP}:min-keyint={GOP}"
        options = {"preset": "ultrafast", "x265-params": f"log-level=none:pools=1:frame-threads=1:{closed}:scenecut=0"}
    if kind.codec == "av1":
        options = {"preset": "12", "g": str(GOP), "svtav1-params": "lp=1"}
    if kind.codec == "vp9":
        options = {"g": str(GOP), "cpu-used": "8", "deadline": "realtime", "lag-in-frames": "0"}
    muxing = {"movflags": "frag_keyframe+empty_moov"} if kind.container == "fragmented.mp4" else {}
    turned = kind.extra == "turned"
    content = content or (lambda i: counter_frame(i, size[1], size[0]))
    rate = Fraction(30 if kind.rate == "variable" else kind.rate)
    with av.open(str(path), "w", options=muxing, format="vob" if kind.container == "mpg" else None) as container:
        streams = []
        if kind.extra == "two streams":  # a small rear picture first, the front marked as the default
            streams.append(_video(container, kind, rate, {**options}, (80, 48)))
            streams[0].disposition = av.stream.Disposition(0)
        main = _video(container, kind, rate, options, size[::-1] if turned else size)
        main.disposition = av.stream.Disposition.default
        streams.append(main)
        if turned:
            main.set_display_rotation(-90)
        sound = None
        if kind.extra == "audio":
            sound = container.add_stream("mp2" if kind.container in ("mpg", "avi", "ts") else
                                         "libopus" if kind.container == "webm" else "aac", rate=48000)  # fmt: skip
        for number, stamp in enumerate(stamps):
            for stream in streams:
                picture = content(number) if stream is main else counter_frame(4000 - number, 48, 80)
                picture = np.ascontiguousarray(np.rot90(picture)) if turned else picture
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = stamp, Fraction(1, SECOND)
                container.mux(stream.encode(frame))
            if sound is not None:
                _beep(container, sound, number)
        for stream in (*streams, *([sound] if sound is not None else [])):
            container.mux(stream.encode(None))


def _video(container, kind, rate, options, size):
    stream = container.add_stream(ENCODERS[kind.codec], rate=rate, options=options)
    stream.width, stream.height = size
    stream.pix_fmt = "yuvj420p" if kind.codec == "mjpeg" else "yuv420p"
    stream.thread_count = 1
    if kind.codec not in ("mpeg2", "mpeg4", "mjpeg") and kind.container not in ("avi",):
        stream.codec_context.time_base = Fraction(1, SECOND)
    return stream


def _beep(container, sound, number):
    size = sound.codec_context.frame_size or 960
    layout = sound.codec_context.layout.name
    shape = (2 if layout == "stereo" else 1, size)
    kind = sound.codec_context.format.name
    data = np.zeros(
        shape if kind.endswith("p") else (1, shape[0] * size), np.float32 if kind.startswith("flt") else np.int16
    )
    frame = av.AudioFrame.from_ndarray(data, format=kind, layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = 48000, (number + 4) * size, Fraction(1, 48000)
    container.mux(sound.encode(frame))


def cut_by_copying(source, target, start):
    """What ``ffmpeg -ss START -c copy`` does: packets from the key frame before, with times from ``start``."""
    with av.open(str(source)) as old:
        stream = next(s for s in old.streams.video)
        offset = round(start / SECOND / float(stream.time_base)) + (stream.start_time or 0)
        packets = [p for p in old.demux(stream) if p.size]
        order = [
            i for i, p in enumerate(packets) if p.is_keyframe and (p.pts if p.pts is not None else p.dts) <= offset
        ]
        muxing = {} if target.suffix in (".mp4", ".mov") else {"avoid_negative_ts": "make_zero"}
        form = "vob" if target.suffix == ".mpg" else None
        with av.open(str(target), "w", options=muxing, format=form) as new:
            copy = new.add_stream_from_template(stream)
            for packet in packets[order[-1] :]:
                packet.pts = None if packet.pts is None else packet.pts - offset
                packet.dts = None if packet.dts is None else packet.dts - offset
                packet.stream = copy
                new.mux(packet)


def moving_texture(height=192, width=320):
    """A function from a frame's number to a picture in which any damage shows."""
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(0, 255, (24, 160, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))

    def frame(number):
        picture = np.roll(wide, -3 * number, axis=1)[:height, :width].copy()
        place = (5 * number) % (width - 40)
        picture[80:120, place : place + 40] = 255 - picture[80:120, place : place + 40]
        return picture

    return frame
