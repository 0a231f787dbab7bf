"""The embedded dataset: renders the synthetic world once, then reads it like any other."""

from __future__ import annotations

import concurrent.futures
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dashvlm.config.imports import configurable
from dashvlm.data.processes import SpawnContext
from dashvlm.data.rows import Row
from dashvlm.data.synthetic.drives import LongScene, draw_long_scenes
from dashvlm.data.synthetic.encode import write_scene
from dashvlm.data.synthetic.language import annotation, questions, rationale
from dashvlm.data.synthetic.scene import Scene, draw_scenes
from dashvlm.data.synthetic.street import caption, draw_streets, write_street
from dashvlm.errors import ConfigError
from dashvlm.safety.files import write_json

log = logging.getLogger(__name__)


@configurable("importer")
def rows(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row a scene, rendering the videos first if they are not there.

    Args:
        root: folder for the videos and ``scenes.jsonl``; several processes may share it.
        options: ``num_drives, seed, horizon_s, duration_s, fps, width, height``, and ``rows``: ``clips`` (with
            annotation and rationale), ``questions`` (several a clip), ``streets`` (pictures) or ``drives``, which
            last ``shortest_s`` to ``longest_s``.
    """
    root.mkdir(parents=True, exist_ok=True)
    kind = str(options.get("rows") or "clips")
    if kind not in ("clips", "questions", "streets", "drives"):
        raise ConfigError("data.options.rows is unknown", got=kind, do="use clips, questions, streets or drives")
    if kind == "streets":
        yield from _streets(root, options)
        return
    number, seed = int(options["num_drives"]), int(options["seed"])
    scenes: list[Scene] | list[LongScene]
    if kind == "drives":
        scenes = list(draw_long_scenes(number, seed, float(options["shortest_s"]), float(options["longest_s"])))
    else:
        scenes = list(draw_scenes(number, seed, float(options["horizon_s"]), float(options["duration_s"])))
    if not (root / "scenes.jsonl").exists():  # a finished world may lie on a read-only disk
        with (root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / "scenes.jsonl").exists():
                _render(root, scenes, options)
    for scene in scenes:
        yield from [_drive(scene)] if isinstance(scene, LongScene) else _rows_of(scene, kind, seed)


def _drive(scene: LongScene) -> Row:
    """The row of a long drive."""
    return {
        "clip_id": scene.scene_id, "video": f"videos/{scene.scene_id}.mp4", "group": scene.drive.group,
        "label": scene.label, "event_time_s": scene.event_time_s, "alert_time_s": scene.alert_time_s,
        "extra": {"near_misses_s": list(scene.near_misses_s)},
    }  # fmt: skip


def _rows_of(scene: Scene, kind: str, seed: int) -> Iterator[Row]:
    """A row a scene; or a row a question, and they share the scene's video."""
    row: Row = {
        "clip_id": scene.scene_id,
        "video": f"videos/{scene.scene_id}.mp4",
        "group": scene.drive.group,
        "label": scene.label,
        "event_time_s": scene.event_time_s,
        "alert_time_s": None,
        "extra": {"scene": scene.to_dict()},
    }
    if kind == "questions":
        for asked in questions(scene, seed):
            extra = {"answer": asked.answer, "support_frames": list(asked.support_s), "kind": asked.key}
            yield {
                **row, "clip_id": f"{scene.scene_id}_{asked.key}", "question": asked.text,
                "choices": list(asked.choices), "extra": extra,
            }  # fmt: skip
        return
    yield {**row, "extra": {**row["extra"], "annotation": annotation(scene), "rationale": rationale(scene)}}


def _streets(root: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of street pictures, two a walk."""
    streets = list(draw_streets(int(options["num_drives"]), int(options["seed"])))
    size = int(options["width"]), int(options["height"])
    if not (root / "streets.json").exists():
        with (root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / "streets.json").exists():
                for street in streets:
                    write_street(root / "streets" / f"{street.scene_id}.png", street, *size)
                write_json(root / "streets.json", {"scenes": [s.scene_id for s in streets]})
    for street in streets:
        extra = {"navigation": street.truth.to_dict(), "caption": caption(street)}
        yield {
            "clip_id": street.scene_id,
            "video": f"streets/{street.scene_id}.png",
            "group": street.group,
            "extra": extra,
        }


def _render(root: Path, scenes: Sequence[Scene | LongScene], options: Mapping[str, Any]) -> None:
    log.info("rendering %d synthetic clips to %s (once)", len(scenes), root)
    size = int(options["width"]), int(options["height"]), float(options["fps"])
    # A spawned process imports nothing of the caller's torch or Lightning state.
    context = SpawnContext()
    workers = min(os.cpu_count() or 1, 8)
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(write_scene, root / "videos" / f"{s.scene_id}.mp4", s, *size) for s in scenes]
        for job in jobs:
            job.result()
    text = "".join(json.dumps(s.to_dict()) + "\n" for s in scenes)
    temporary = root / ".scenes.jsonl.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(root / "scenes.jsonl")  # its presence says that all videos are there
