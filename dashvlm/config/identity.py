"""run_id: a stable name for what decides a result.

Two configurations that can only give the same result have the same run_id, so a sweep can be
launched again and skips what is done. The idea is Dora's signature (audiocraft's grids).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

# Where things are read and written, how they are shown and how fast they are computed do not decide
# a result, nor does where in the package something is written. Everything else does, so a key that is new is part
# of the identity by default. What lies in data.root and data.labels counts through data.fingerprint, and weights in
# a folder through model.fingerprint, which a job fills in.
EXCLUDED = (
    "paths",
    "model.published",
    "model.sizes",
    "logger",
    "sweep",
    "study",
    "hydra",
    "data.root",
    "data.importer",
    "data.labels",
    "data.pairs",
    "data.tasks",
    "data.rows_for",
    "data.num_workers",
    "data.store_gb",
    "data.features",
    "data.encoded",
    "data.decode_timeout_s",
    "data.decode_memory_gb",
    "task.prompt_file.file",
    "trainer.progress",
    "trainer.data_only",
    "trainer.log_every_n_steps",
    "callbacks.checkpoint.every_n_steps",
    "callbacks.checkpoint.keep",
    "verbose",
    "csv",
)
NEUTRAL: Mapping[str, Any] = {
    "data.anchors": "event",
    "data.stream.window_s": 2.0,
    "data.stream.per_clip": 4,
    "data.stream.positive_share": 0.5,
    "data.stream.stride_s": 0.5,
    "data.stream.refractory_s": 5.0,
    "task.stream": False,
    "data.support_window_s": 0.5,
    "data.val_limit": None,
    "data.by_clip": False,
    "data.length_window": 0,
    "objective.shared_clips": True,
    "objective.max_tokens": None,
    "objective.too_long": "refuse",
    "task.prompt_file": None,
    "data.options.navigation_share": 0.0,
    "checkpoint": None,
    "splits": None,
}
"""Keys that came later -> the value that means what runs without them did; at it they are no part of the identity."""


RUN_FILES = ("config.yaml", "result.json", "predictions.parquet", "stream.parquet", "metrics/metrics.csv")
"""Files of a run's folder that every table can be made from."""
WANDB_FOLDER = "dashvlm"
"""Where a W&B run keeps them among its files."""
FETCHED = "wandb.txt"
"""In a run's folder that came from W&B: from where."""


def identity_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flattened part of a resolved configuration that decides its result."""
    flat: dict[str, Any] = {}

    def walk(node: Any, path: str) -> None:
        if any(path == key or path.startswith(key + ".") for key in EXCLUDED) or path.endswith("._target_"):
            return
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else str(key))
        else:
            if path not in NEUTRAL or node != NEUTRAL[path]:
                flat[path] = _number(node)

    walk(cfg, "")
    if flat.get("model.checkpoint") != "tiny":  # the twin is not used
        flat = {k: v for k, v in flat.items() if k != "model.twin" and not k.startswith("model.twin.")}
    for key, again in {"task.anchors": "data.anchors", "task.window_s": "data.stream.window_s"}.items():
        if key in flat and flat[key] == flat.get(again, NEUTRAL[again]):  # the same, for the question
            del flat[key]
    if flat.get("start_from"):  # a run's name says what decided it; where it lies does not
        name = str(flat["start_from"]).rstrip("/").rsplit("/", 1)[-1]
        flat["start_from"] = name if re.search(r"-[0-9a-f]{8}$", name) else flat["start_from"]
    elif "start_from" in flat:
        del flat["start_from"]
    return flat


def _number(value: Any) -> Any:
    """A number by its value: 1 and 1.0 are one setting."""
    if isinstance(value, list | tuple):
        return [_number(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def run_id(cfg: Mapping[str, Any]) -> str:
    """Name a run: ``<task>-<model>-<objective>-<8 hex digits of the identity's SHA-256>``.

    Args:
        cfg: a resolved configuration of plain Python values.

    Returns:
        The name of the run's folder and of its W&B run.

    Example:
        >>> a = {"task": {"name": "crash"}, "seed": 1, "paths": {"output_dir": "x"}}
        >>> b = {"seed": 1, "paths": {"output_dir": "y"}, "task": {"name": "crash"}}
        >>> run_id(a) == run_id(b)
        True
        >>> run_id(a) == run_id({**a, "seed": 1.0}), run_id(a) == run_id({**a, "seed": 2})
        (True, False)
    """
    text = json.dumps(identity_of(cfg), sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    names = [_name(cfg, "task"), _name(cfg, "model"), _name(cfg, "objective")]
    return "-".join([n for n in names if n] + [digest])


def _name(cfg: Mapping[str, Any], group: str) -> str:
    node = cfg.get(group)
    return str(node.get("name", "")) if isinstance(node, Mapping) else ""
