"""Bring the runs of a W&B project back into folders, so that every table can be made from them elsewhere."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from dashvlm.config.identity import FETCHED, RUN_FILES, WANDB_FOLDER
from dashvlm.errors import ConfigError, DataError
from dashvlm.safety.files import read_yaml

NEEDED = ("config.yaml", "result.json", "predictions.parquet")
TIMEOUT_S = 30
MAX_FILE_BYTES = 4 << 30


def fetch_runs(place: str, output: Path, study: str | None = None) -> tuple[list[str], list[str]]:
    """Fetch the finished runs of a project that are not in a folder yet.

    Args:
        place: ``ENTITY/PROJECT``.
        output: folder of runs; ``sweeps/wandb-ENTITY-PROJECT`` in it lists what was fetched, so that studies
            find their runs.
        study: only runs with the tag of this study.

    Returns:
        The runs that are in the folder now, and those of the project that lack what a table needs.

    Raises:
        ConfigError: if the project cannot be read.
        DataError: if a run's files are not what they should be.
    """
    entity, _, project = place.partition("/")
    if not entity or not re.fullmatch(r"[\w. -]+", project):
        raise ConfigError(f"wandb={place} is no project", do="wandb=ENTITY/PROJECT")
    there, lacking, jobs = [], [], []
    output.mkdir(parents=True, exist_ok=True)
    for run in _finished(place, study):
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", run.id):
            raise DataError("a W&B run's id cannot be a folder's name", got=repr(run.id))
        folder = output / run.id
        if not (folder / "result.json").is_file() and not _download(run, folder, place):
            lacking.append(str(run.id))
            continue
        jobs.append({"run_id": run.id, "folder": str(folder), "overrides": _checked(folder / "config.yaml")})
        there.append(str(run.id))
    if jobs:
        listed = output / "sweeps" / f"wandb-{entity}-{project}{f'-{study}' if study else ''}" / "jobs.jsonl"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(json.dumps(job) + "\n" for job in jobs), encoding="utf-8")
    return there, lacking


def _finished(place: str, study: str | None) -> list[Any]:
    """The finished runs of a project; of a study those with its tag.

    Raises:
        ConfigError: with what W&B says.
    """
    import wandb

    filters: dict[str, Any] = {"state": "finished"}
    if study:
        filters["tags"] = {"$in": [f"study:{study}/full", f"study:{study}/smoke"]}
    try:
        return list(wandb.Api(timeout=TIMEOUT_S).runs(place, filters=filters))
    except Exception as error:  # wandb's own errors: no key, no network, no such project
        raise ConfigError(
            f"wandb={place} cannot be read", got=(str(error).strip() or type(error).__name__).splitlines()[0],
            do="run `wandb login`, check the name, and WANDB_BASE_URL if the server is your own",
        ) from error  # fmt: skip


def _download(run: Any, folder: Path, place: str) -> bool:
    """Fetch a run's files into its folder, all or nothing.

    Raises:
        DataError: if a file cannot be fetched, or is not what it should be.
    """
    known = {f"{WANDB_FOLDER}/{name}": name for name in RUN_FILES}
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        got = set()
        try:
            for file in run.files(names=list(known)):
                if file.name in known:
                    if int(getattr(file, "size", 0) or 0) > MAX_FILE_BYTES:
                        raise DataError(f"{file.name} is too large", got=f"{int(file.size) / 1e9:.1f} GB")
                    file.download(root=temporary, replace=True).close()
                    got.add(known[file.name])
        except Exception as error:
            raise DataError(f"the files of {run.id} cannot be fetched", got=str(error).strip()[:200]) from error
        if not set(NEEDED) <= got:
            return False
        source = Path(temporary) / WANDB_FOLDER
        _checked(source / "config.yaml")
        for name in sorted(got, key=lambda n: n == "result.json"):  # the last one says that the run is done
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(source / name, folder / name)
        (folder / FETCHED).write_text(f"{place}/{run.id}\n", encoding="utf-8")
    return True


def _checked(path: Path) -> list[str]:
    """Read the overrides of a run from a configuration that somebody else may have written.

    Raises:
        DataError: if it is no configuration of a run.
    """
    try:
        config = read_yaml(path)
        task, said = str(config["task"]["name"]), (config.get("sweep") or {}).get("overrides") or []
    except (OSError, DataError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path.name} of a W&B run is no configuration", got=f"{type(error).__name__}: {error}"
        ) from error
    if not re.fullmatch(r"\w+", task) or not isinstance(said, list) or not all(isinstance(w, str) for w in said):
        raise DataError(
            f"{path.name} of a W&B run is no configuration", got=f"task {task!r}, overrides {str(said)[:80]!r}"
        )
    return said
