"""From the ``data`` group of a configuration to a manifest. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dashvlm.data.frames import FrameStore
from dashvlm.data.guard import Limits
from dashvlm.data.manifest import Manifest, build_manifest
from dashvlm.labels.label_file import read_labels, with_labels
from dashvlm.labels.pairs import with_pairs
from dashvlm.targets import resolve

Config = Mapping[str, Any]


def build_store(cfg: Config) -> FrameStore:
    """Build the frame store of the ``data`` group."""
    data, size = cfg["data"], cfg["data"]["frame_size"]
    return FrameStore(
        Path(cfg["paths"]["cache_dir"]) / "frames",
        data["reader"],
        (int(size[0]), int(size[1])) if size else None,
        float(data["store_gb"]),
        Limits(float(data["decode_timeout_s"]), float(data["decode_memory_gb"])),
    )


def load_manifest(cfg: Config, store: FrameStore, require_videos: bool = True) -> Manifest:
    """Import the dataset's rows, probe the videos and split.

    Args:
        cfg: the configuration.
        store: remembers the videos' indices.
        require_videos: see :func:`dashvlm.data.manifest.build_manifest`.

    Raises:
        DataError: if the dataset is missing or unusable.
    """
    data = cfg["data"]
    root = Path(data["root"])
    rows = resolve("importer", data["importer"])(root, data.get("options") or {})
    if data.get("labels"):
        rows = with_labels(rows, read_labels(Path(data["labels"])), cfg["task"]["name"], data["label_options"])
    if data.get("pairs"):
        rows = with_pairs(rows, Path(data["pairs"]))
    return build_manifest(
        data["name"],
        rows,
        root,
        store,
        data["splits"],
        int(data["split_seed"]),
        data["split_by"],
        bool(data["force_row_split"]),
        float(data["max_bad_fraction"]),
        require_videos,
    )
