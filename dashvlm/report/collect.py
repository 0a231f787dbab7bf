"""Run folders to one tidy table: a row a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dashvlm.config.identity import NEUTRAL, identity_of
from dashvlm.errors import DataError
from dashvlm.safety.checksums import changed
from dashvlm.safety.files import read_json, read_yaml
from dashvlm.tasks.evaluation import evaluation_of

GROUPS = ("seed", "model", "task", "data", "objective", "peft", "optim", "trainer", "callbacks")


SHAPE = {"metrics": dict, "baselines": dict, "counts": dict, "alarms": list, "parameters": list, "feasibility": list,
         "seconds": dict, "overrides": list, "stream": dict}  # fmt: skip
"""What ``result.json`` holds, where it holds it."""
NAMES = ("model.name", "task.name", "data.name", "objective.name", "peft.method")
"""Settings that are texts."""
MAX_IDENTITY = 100_000
"""Characters of a run's settings."""
ODD = (TypeError, LookupError, AttributeError, ValueError, OverflowError, MemoryError)
"""What values of another kind than a run writes lead to."""
FIRST = ("model.name", "model.checkpoint", "objective.name", "data.name", "data.num_frames", "data.frame_interval_s",
         "data.pixels", "peft.method", "peft.rank", "start_from", "trainer.max_steps", "optim.lr", "seed")  # fmt: skip
"""Keys that a reader looks for first, where runs differ in many."""


def run_status(folder: Path) -> str:
    """Say how a run stands: done, failed, oom, broken (started, not ended) or missing."""
    if (folder / "result.json").is_file():
        try:
            found = read_json(folder / "result.json")
        except DataError:
            return "damaged"
        return "done" if found.get("status") == "done" and isinstance(found.get("metrics"), dict) else "damaged"
    if (folder / "failed.json").is_file():
        try:
            known = read_json(folder / "failed.json")
        except DataError:
            return "damaged"
        return str(known.get("status", "failed"))
    return "broken" if (folder / "config.yaml").is_file() else "missing"


def read_result(folder: Path) -> dict[str, Any]:
    """Read ``result.json``, or what is known of a run without one."""
    status = run_status(folder)
    known: dict[str, Any] = {"run_id": folder.name, "status": status}
    try:
        if status in ("done", "damaged") and (folder / "result.json").is_file():
            found = read_json(folder / "result.json")
            odd = [k for k, kind in SHAPE.items() if not isinstance(found.get(k, kind()), kind)]
            odd += [k for k in ("status", "metrics") if k not in found]
            return (
                known | {"status": "damaged", "message": f"result.json: {odd[0]} is not as written"} if odd else found
            )
        if status in ("failed", "oom", "damaged"):
            known |= read_json(folder / "failed.json")
    except DataError as error:  # one damaged run must not hide the others
        known |= {"status": "damaged", "message": f"{error.what}: {error.got}"}
    return known


def collect(folders: Iterable[Path]) -> pd.DataFrame:
    """Make a table of runs.

    Returns:
        ``run_id, status``, the configuration's identity (dotted keys), for each metric and
        baseline ``name, name.low, name.high``, ``alarms`` and ``message``.
    """
    rows = []
    for folder in folders:
        try:
            rows.append(_row(folder))
        except (DataError, *ODD) as error:  # it must not hide the others
            said = f"result.json is not as written: {type(error).__name__}: {error}".splitlines()[0]
            rows.append({"run_id": folder.name, "status": "damaged", "message": said, "alarms": ""})
    table = pd.DataFrame(rows)
    for key, meant in NEUTRAL.items():  # no part of a run's name at the value that means what was before the key
        if key in table and meant is not None:
            table[key] = table[key].where(table[key].notna() | (table["status"] == "damaged"), meant)
    return table


def _row(folder: Path) -> dict[str, Any]:
    result = read_result(folder)
    row: dict[str, Any] = {"run_id": folder.name, "status": result["status"]}
    config = folder / "config.yaml"
    if config.is_file():
        try:
            settings = read_yaml(config)
            known = identity_of(settings)
            wrong = [key for key in NAMES if not _is_named(settings, key)]
            if wrong or len(json.dumps(known, default=str)) > MAX_IDENTITY:
                raise TypeError(f"{wrong[0]} is no name" if wrong else "more settings than a run has")
            row |= {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in known.items()}
            data = settings.get("data")
            root = data.get("root") if isinstance(data, Mapping) else None
            row["data.root"] = str(root)[:1000]  # no part of a run's name, but swept over
        except (DataError, *ODD) as error:
            row |= {"status": "damaged", "message": f"config.yaml: {getattr(error, 'got', None) or error!r}"}
    for kind in ("metrics", "baselines"):
        for name, value in (result.get(kind) or {}).items():
            row |= _columns(name, value)
    if result["status"] == "done":
        measured = evaluation_of(result)
        row |= {"evaluation": measured.name, "primary_metric": measured.primary}
    row["alarms"] = " | ".join([*(result.get("alarms") or []), *_by_hand(folder)])
    said = str(result.get("message") or row.get("message") or "")
    row["message"] = said.splitlines()[0] if said else ""
    row["seconds"] = _number((result.get("seconds") or {}).get("all"))
    _number(result.get("devices"))
    row["gpu_hours"] = row["seconds"] * result["devices"] / 3600 if result.get("device", "cpu") != "cpu" else None
    row["peak_memory_gb"] = _number(result.get("peak_memory_gb"))
    parts = result.get("parameters") or []
    row["trainable"] = _number(parts[-1]["trainable"]) if parts else None
    row["latency"] = _number(result.get("latency_s"))
    points = result.get("feasibility") or []
    row["feasible"] = f"{points[0]['feasible']}/{points[0]['clips']}" if points else ""
    return row


def _by_hand(folder: Path) -> list[str]:
    """An alarm if files of a run are not as it wrote them."""
    try:
        found = changed(folder)
    except DataError as error:
        return [error.what]
    return [f"changed after the run: {', '.join(found)}"] if found else []


def axes_of(table: pd.DataFrame, wanted: Iterable[str] = ()) -> list[str]:
    """Return the configuration keys that differ between the runs of a table.

    Args:
        table: from :func:`collect`.
        wanted: keys that are swept over; if given, only these count.
    """
    # Of a model its name and checkpoint say all: its other settings follow from them.
    follows = [c for c in table if c.startswith("model.") and c not in ("model.name", "model.checkpoint")]
    configured = [c for c in table if c.split(".")[0] in GROUPS and c not in follows]
    keys: list[str] = []
    for key in wanted:  # a swept group shows as its name, or as whatever of it differs
        named = [k for k in (key, f"{key}.name") if k in table]
        keys += named[:1] or [c for c in configured if c.startswith(f"{key}.")]
    configured += [c for c in ("start_from",) if c in table]
    kept = [k for k in keys or configured if table[k].map(str).nunique() > 1]
    if keys:
        return kept
    shown = [k for k in kept if not k.endswith(("_target_", "fingerprint")) and k != "data.root"]
    return sorted(shown, key=lambda k: (FIRST.index(k) if k in FIRST else len(FIRST), shown.index(k)))


def ordered(table: pd.DataFrame, axes: Iterable[str]) -> pd.DataFrame:
    """Return the rows in the order of their axes, numbers by size."""
    keys = [a for a in axes if a in table]
    if not keys:
        return table
    sortable = {}
    for key in keys:
        numbers = pd.to_numeric(table[key], errors="coerce")
        sortable[key] = numbers if numbers.notna().all() else table[key].map(str)
    return table.loc[pd.DataFrame(sortable).sort_values(keys, kind="stable").index]


def label_of(row: Mapping[str, Any], axes: Iterable[str]) -> str:
    """Name a run among others by what distinguishes it, such as ``num_frames 4, pixels off``."""
    parts = [f"{a.removesuffix('.name').rsplit('.', 1)[-1]} {row[a]}" for a in axes if pd.notna(row.get(a))]
    return ", ".join(parts) or str(row["run_id"])


def _is_named(config: Mapping[str, Any], key: str) -> bool:
    """Whether a group, if it is there, has a name that is a text."""
    group, _, name = key.partition(".")
    node = config.get(group)
    return node is None or (isinstance(node, Mapping) and isinstance(node.get(name, ""), str))


def _number(value: Any) -> Any:
    """A number, or None.

    Raises:
        TypeError: for anything else.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e15):
        raise TypeError(f"{str(value)[:40]!r} is no number")
    return value


def _columns(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    if name.split(".")[0] in (*GROUPS, "run_id", "status"):  # it would stand for a setting
        raise TypeError(f"{name!r} is no metric")
    value = {k: _number(value[k]) for k in ("value", "low", "high")}
    return {name: value["value"], f"{name}.low": value["low"], f"{name}.high": value["high"]}
