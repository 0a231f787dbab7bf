"""From the ``data`` group of a configuration to a manifest. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dashvlm.config.imports import resolve
from dashvlm.data.frames import FrameStore
from dashvlm.data.guard import Limits
from dashvlm.data.manifest import Manifest, build_manifest
from dashvlm.data.rows import Row, read_rows
from dashvlm.errors import ConfigError
from dashvlm.labels.label_file import read_labels, with_labels
from dashvlm.labels.pairs import with_pairs
from dashvlm.tasks.base import task_class

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


def rows_of(data: Config) -> Iterable[Row]:
    """The rows of a dataset; with ``options.files`` a file a split, whose rows are of that split.

    Raises:
        DataError: if ``options.files`` names no split or no file.
    """
    return read_rows(resolve("importer", data["importer"]), Path(data["root"]), data.get("options") or {})


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
    rows = rows_of(data)
    if data.get("labels"):
        takes = task_class(cfg).labelled
        if takes is None:
            raise ConfigError(
                f"data.labels: task={cfg['task']['name']} takes no labels of a teacher",
                do="use a task that learns rationales or annotations, such as task=crash or task=scene",
            )
        rows = with_labels(rows, read_labels(Path(data["labels"])), takes, data["label_options"])
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
