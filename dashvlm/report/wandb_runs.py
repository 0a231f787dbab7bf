"""Bring the runs of a W&B project back into folders, so that every table can be made from them elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dashvlm.errors import ConfigError, DataError
from dashvlm.identity import RUN_FILES, WANDB_FOLDER

NEEDED = ("config.yaml", "result.json", "predictions.parquet")
TIMEOUT_S = 30


def fetch_runs(place: str, output: Path, study: str | None = None) -> tuple[list[str], list[str]]:
    """Fetch the finished runs of a project that are not in a folder yet.

    Args:
        place: ``ENTITY/PROJECT``.
        output: folder of runs; ``sweeps/wandb-ENTITY-PROJECT`` in it lists what was fetched, so that studies
            find their runs.
        study: only runs that this study asked for.

    Returns:
        The runs that are in the folder now, and those of the project that lack what a table needs.

    Raises:
        ConfigError: if the project cannot be read.
        DataError: if a run's files are not what they should be.
    """
    import wandb

    entity, _, project = place.partition("/")
    if not entity or not re.fullmatch(r"[\w. -]+", project):
        raise ConfigError(f"wandb={place} is no project", do="wandb=ENTITY/PROJECT")
    there, lacking, jobs = [], [], []
    try:
        api = wandb.Api(timeout=TIMEOUT_S)
        filters: dict[str, Any] = {"state": "finished"}
        if study:
            filters["tags"] = {"$in": [f"study:{study}/full", f"study:{study}/smoke"]}
        for run in api.runs(place, filters=filters):
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", run.id):
                raise DataError("a W&B run's id cannot be a folder's name", got=repr(run.id))
            folder = output / run.id
            if not (folder / "result.json").is_file() and not _download(run, folder):
                lacking.append(str(run.id))
                continue
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            jobs.append(_job(run.id, folder, config))
            there.append(str(run.id))
    except (ConfigError, DataError):
        raise
    except Exception as error:  # wandb's own errors: no key, no network, no such project
        raise ConfigError(
            f"wandb={place} cannot be read", got=(str(error).strip() or type(error).__name__).splitlines()[0],
            do="run `wandb login`, check the name, and WANDB_BASE_URL if the server is your own",
        ) from error  # fmt: skip
    if jobs:
        listed = output / "sweeps" / f"wandb-{entity}-{project}{f'-{study}' if study else ''}" / "jobs.jsonl"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(json.dumps(job) + "\n" for job in jobs), encoding="utf-8")
    return there, lacking


def _download(run: Any, folder: Path) -> bool:
    """Fetch a run's files into its folder, all or nothing."""
    known = {f"{WANDB_FOLDER}/{name}": name for name in RUN_FILES}
    with tempfile.TemporaryDirectory() as temporary:
        got = set()
        for file in run.files(names=list(known)):
            if file.name in known:
                file.download(root=temporary, replace=True)
                got.add(known[file.name])
        if not set(NEEDED) <= got:
            return False
        for name in got:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for name in sorted(got, key=lambda n: n == "result.json"):  # the last one says that the run is done
            shutil.move(Path(temporary) / WANDB_FOLDER / name, folder / name)
    return True


def _job(run_id: str, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A line of ``jobs.jsonl``."""
    return {"run_id": run_id, "folder": str(folder), "overrides": (config.get("sweep") or {}).get("overrides") or []}
