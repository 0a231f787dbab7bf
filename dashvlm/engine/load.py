"""From the ``data`` group of a configuration to a manifest. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dashvlm.config.imports import resolve
from dashvlm.data.clip import SPLITS
from dashvlm.data.frames import FrameStore
from dashvlm.data.guard import Limits
from dashvlm.data.manifest import Manifest, build_manifest
from dashvlm.data.rows import Row
from dashvlm.errors import ConfigError, DataError
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
    root, options = Path(data["root"]), dict(data.get("options") or {})
    importer = resolve("importer", data["importer"])
    files = options.pop("files", None)
    if not files:
        found: Iterable[Row] = importer(root, options)
        return found
    if (
        not isinstance(files, Mapping)
        or set(files) - set(SPLITS)
        or not all(isinstance(f, str) for f in files.values())
    ):
        raise DataError(
            "data.options.files names a file a split", got=str(files)[:200],
            do="data.options.files={train: a.json, val: b.json, test: c.json}, files below data.root",
        )  # fmt: skip
    for name in files.values():
        if not (root / name).is_file():
            raise DataError(f"data.options.files: {name} is not in {root}", do="name files below data.root")
    return (
        {**row, "split": s}
        for s, name in files.items()
        for row in importer(root, {**options, "file": name, "split": s})
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
