"""A task that can be asked at any moment, asked over the whole of a video."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from dashvlm.data.clip import Clip, Sample
from dashvlm.data.datamodule import Item
from dashvlm.data.sampling import anchored_times, fit_history, staleness_s
from dashvlm.data.synthetic.encode import write_video
from dashvlm.engine.load import build_store
from dashvlm.errors import ConfigError


def risk_over_time(
    config: dict[str, Any], module: Any, video: Path, anchors: Sequence[float] | Any
) -> list[dict[str, Any]]:
    """Score a video at each anchor with the sampling the run was trained with.

    Returns:
        Rows with ``time_s, risk, oldest_frame_s, repeated_frames, stale_s``.
    """
    options, store = config["data"], build_store(config)
    if options["sampling"] not in ("anchored", "fps"):
        raise ConfigError(
            f"a run that looks at whole clips (data.sampling={options['sampling']}) has no sliding anchor",
            do="use a run with data.sampling=anchored or fps",
        )
    index = store.index(video)
    clip = Clip(video.stem, str(video), video.stem, "test", None, None, None, index.duration_s, index.fps)
    interval = float(options["frame_interval_s"] if options["sampling"] == "anchored" else 1 / options["sample_fps"])
    items: list[Item] = []
    for number, anchor in enumerate(anchors):
        fitted = fit_history(anchored_times(float(anchor), int(options["num_frames"]), interval), "pad_oldest")
        assert fitted is not None
        times, padded = fitted
        sample = Sample(f"{clip.clip_id}@{anchor:.3f}", clip, 0.0, float(anchor), tuple(times), padded)
        items.append(Item(number, sample, None, None))
    rows = []
    size = int(options["eval_batch_size"])
    device = module.backbone.device()
    for first in range(0, len(items), size):
        part = []
        chunk = items[first : first + size]
        numbers = [index.frames_at(i.sample.times_s) for i in chunk]
        # A long video does not fit into memory: its frames are decoded for a few anchors at a time.
        union = np.unique(np.concatenate(numbers))
        pictures, _ = store.decoded(video, index.times_s[union], index)
        for item, mine in zip(chunk, numbers, strict=True):
            part.append(Item(item.index, item.sample, pictures[np.searchsorted(union, mine)], index.times_s[mine]))
        batch = module.transfer_batch_to_device(module.collate("predict")(part), device, 0)
        with torch.no_grad():
            scores = module.compute_scores(batch)[:, -1].double().cpu().tolist()
        rows += [
            {"time_s": round(float(i.sample.anchor_s), 6), "risk": s, "oldest_frame_s": i.sample.times_s[0],
             "repeated_frames": i.sample.num_padded,
             "stale_s": staleness_s(shown, i.sample.times_s, index.period_s)}
            for i, s in zip(part, scores, strict=True)
            if (shown := i.frame_times_s) is not None
        ]  # fmt: skip
    return rows


def draw_overlay(video: Path, store: Any, rows: list[dict[str, Any]], target: Path) -> None:
    """Write the video with the risk so far as a curve along its lower edge."""
    index, whole = store.index(video), dataclasses.replace(store, size=None)
    times = np.array([r["time_s"] for r in rows])
    risk = np.array([r["risk"] for r in rows])
    total = float(index.times_s[-1]) or 1.0

    def drawn() -> Any:
        for first in range(0, len(index.times_s), 32):  # a long video does not fit in memory
            shown = index.times_s[first : first + 32]
            for now, frame in zip(shown.tolist(), whole.decoded(video, shown, index)[0], strict=True):
                image = Image.fromarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
                draw = ImageDraw.Draw(image, "RGBA")
                width, height = image.size
                top, tall = int(height * 0.78), int(height * 0.2)
                draw.rectangle((0, top, width, top + tall), fill=(0, 0, 0, 120))
                draw.line((0, top + tall // 2, width, top + tall // 2), fill=(255, 255, 255, 90))
                seen = times <= now + 1e-9
                points = [
                    (width * t / total, top + tall * (1 - r)) for t, r in zip(times[seen], risk[seen], strict=True)
                ]
                if len(points) > 1:
                    draw.line(points, fill=(255, 120, 30, 255), width=max(width // 300, 2))
                if len(points):
                    draw.text((8, top + 4), f"risk {risk[seen][-1]:.2f}", fill=(255, 255, 255, 255))
                yield np.asarray(image)

    write_video(target, drawn(), index.times_s.tolist())
