"""A task that can be asked at any moment, asked over the whole of a user's video."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dashvlm.data.anchors import stream_interval_s, stream_samples
from dashvlm.data.clip import Clip, FrameArray
from dashvlm.data.datamodule import ClipDataModule
from dashvlm.data.frames import FrameStore
from dashvlm.data.stretches import MOST_ANCHORS
from dashvlm.data.synthetic.encode import write_video
from dashvlm.engine.fit import build_trainer
from dashvlm.engine.load import build_store
from dashvlm.engine.scoring import predict_rows
from dashvlm.engine.streams import said
from dashvlm.errors import ConfigError
from dashvlm.metrics.functional import THRESHOLD
from dashvlm.training.module import VLMModule

SMALLEST = 480
"""Lines of a drawn video: below that nobody can read what is written in it."""
LIGHT, DARK, MARK, ALARM = (255, 255, 255, 255), (0, 0, 0, 150), (255, 140, 40, 255), (255, 160, 160, 255)


def risk_over_time(
    config: Mapping[str, Any],
    module: VLMModule,
    video: Path,
    stride_s: float,
    progress: Callable[[int, int], Any] = lambda done, of: None,
) -> list[dict[str, Any]]:
    """Score a video every ``stride_s`` with the sampling that the run was trained with.

    Frames are decoded for some anchors at a time and not kept.

    Args:
        config: of the run.
        module: its model.
        video: the file.
        stride_s: seconds between anchors.
        progress: told how many anchors of how many are done.

    Returns:
        Rows with ``time_s, risk, oldest_frame_s, repeated_frames, stale_s, note``; the risk is nan where frames
        cannot be read, and ``note`` says where the model was asked what it was not trained on.

    Raises:
        ConfigError: if the run looks at whole clips.
        VideoError: if no anchor of the video can be read.
    """
    options, store = config["data"], build_store(config)
    if options["sampling"] not in ("anchored", "fps"):
        raise ConfigError(
            f"a run that looks at whole clips (data.sampling={options['sampling']}) has no sliding anchor",
            do="use a run with data.sampling=anchored or fps",
        )
    index = store.index(video)
    clip = Clip(video.stem, str(video), video.stem, "test", None, None, None, index.duration_s, index.fps)
    stream = {**options["stream"], "stride_s": stride_s}
    samples = stream_samples([clip], {**options, "stream": stream, "short_history": "pad_oldest"})
    here = {**config, "trainer": {**config["trainer"], "progress": False}}
    loaders = ClipDataModule({}, store, module.collate, {**options, "num_workers": 0}, int(config["seed"]))
    loaders.trainer, loaders.kept = build_trainer(here, logger=False, enable_checkpointing=False), False
    rows: list[dict[str, Any]] = []
    for first in range(0, len(samples), MOST_ANCHORS):
        part = samples[first : first + MOST_ANCHORS]
        for sample, row in zip(part, predict_rows(module, loaders, part, "stream"), strict=True):
            found = said(sample, row)
            rows.append(
                {"time_s": sample.reference_s, "risk": found["score"], "oldest_frame_s": sample.times_s[0],
                 "repeated_frames": sample.num_padded, "stale_s": found["stale_s"]}
            )  # fmt: skip
        progress(len(rows), len(samples))
    if all(row["risk"] != row["risk"] for row in rows):
        store.decoded(video, samples[-1].times_s)  # says what is wrong with the file
    return [{**row, "note": _note(row)} for row in rows]


def _note(row: Mapping[str, Any]) -> str:
    if row["risk"] != row["risk"]:
        return "unreadable"
    said_of = {"repeats its oldest frame": row["repeated_frames"], "frames from before a gap": row["stale_s"]}
    return ", ".join(note for note, amount in said_of.items() if amount)


def warnings_of(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of a risk over time must know of the run and of the video."""
    options, out = config["data"], []
    if options.get("anchors", "event") == "event":
        out.append(
            f"trained at single moments only ({options['horizon_s']:g} s before events, and alike in other clips): "
            "what it says of the rest of a drive was never trained; data.anchors=stream trains for it"
        )
    notes = {note: sum(row["note"] == note for row in rows) for note in dict.fromkeys(r["note"] for r in rows) if note}
    out += [f"{count} of {len(rows)} anchors: {note} (shaded)" for note, count in notes.items()]
    needed = (int(options["num_frames"]) - 1) * stream_interval_s(options)
    if rows and rows[-1]["time_s"] < needed:
        out.append(f"the video is shorter than the {needed:g} s that the run looks back")
    return out


def playable(video: Path, store: FrameStore, folder: Path) -> Path:
    """The video as a browser plays it, in a folder: a copy where it is H.264 in MP4, else written anew."""
    index = store.index(video)
    if index.codec == "h264" and video.suffix.lower() in (".mp4", ".m4v") and index.pts[0] == 0:
        target = folder / "video.mp4"
        if target.resolve() != video.resolve():
            shutil.copyfile(video, target)
        return target
    write_video(folder / "video.mp4", (f for _, f in _frames(video, store)), index.times_s.tolist())
    return folder / "video.mp4"


def draw_overlay(
    video: Path,
    store: FrameStore,
    rows: Sequence[Mapping[str, Any]],
    target: Path,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Write the video, at least 480 lines high, with time and risk so far along its lower edge.

    Args:
        video: the file.
        store: decodes it.
        rows: from :func:`risk_over_time`.
        target: file to write.
        marks: name -> time in seconds of what is known of the video, such as its event.
    """
    index, marks = store.index(video), marks or {}
    total = float(index.times_s[-1]) or 1.0
    write_video(
        target, (_drawn(f, now, rows, marks, total) for now, f in _frames(video, store)), index.times_s.tolist()
    )


def _drawn(
    frame: FrameArray, now: float, rows: Sequence[Mapping[str, Any]], marks: Mapping[str, float], total: float
) -> FrameArray:
    """A frame with time, risk so far, threshold and known moments."""
    image = Image.fromarray(frame)
    draw, (width, height) = ImageDraw.Draw(image, "RGBA"), image.size
    size, thin = max(height // 24, 16), max(height // 240, 2)
    font = ImageFont.load_default(size)
    top, tall = int(height * 0.74), int(height * 0.24)
    draw.rectangle((0, top, width, height), fill=DARK)

    def place(time_s: float, value: float) -> tuple[float, float]:
        return width * time_s / total, top + tall * (1 - value)

    draw.line((*place(0, THRESHOLD), *place(total, THRESHOLD)), fill=(255, 255, 255, 120), width=thin)
    for row, (name, moment) in enumerate(marks.items()):
        draw.line((*place(moment, 0), *place(moment, 1)), fill=(255, 80, 80, 255), width=thin + 1)
        at, side = place(moment, 1)[0], "ra" if moment > total / 2 else "la"  # towards the middle, none over another
        draw.text((at + (-8 if side == "ra" else 8), top + row * size), name, font=font, fill=ALARM, anchor=side)
    points = [place(r["time_s"], r["risk"]) for r in rows if r["time_s"] <= now + 1e-9 and r["risk"] == r["risk"]]
    risk = [r["risk"] for r in rows if r["time_s"] <= now + 1e-9 and r["risk"] == r["risk"]]
    if len(points) > 1:
        draw.line(points, fill=MARK, width=2 * thin, joint="curve")
    if points:
        (x, y), radius = points[-1], 3 * thin
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=MARK)
    draw.rectangle((0, 0, width, size * 1.6), fill=DARK)
    draw.text((10, size * 0.25), f"{now:.1f} s    risk " + (f"{risk[-1]:.2f}" if risk else "–"), font=font, fill=LIGHT)
    return np.asarray(image)


def _frames(video: Path, store: FrameStore) -> Iterator[tuple[float, FrameArray]]:
    """All frames with their times, of even size and at least :data:`SMALLEST` lines; few are in memory at once."""
    index, whole = store.index(video), dataclasses.replace(store, size=None)
    for first in range(0, len(index.times_s), 32):
        shown = index.times_s[first : first + 32]
        for now, frame in zip(shown.tolist(), whole.decoded(video, shown, index)[0], strict=True):
            height, width = frame.shape[:2]
            scale = max(SMALLEST / height, 1.0)
            size = round(width * scale / 2) * 2, round(height * scale / 2) * 2
            if size != (width, height):
                how = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.BICUBIC
                frame = np.asarray(Image.fromarray(frame).resize(size, how))
            yield now, frame
