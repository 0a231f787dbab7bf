"""All errors of a resolved configuration: of each value, between values, and of what its task can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dashvlm.config import rules
from dashvlm.config.rules import broken, flatten, near
from dashvlm.data.formats.mix import dataset
from dashvlm.errors import ConfigError, DataError
from dashvlm.tasks.base import Task, make_task, task_class


def check(cfg: Mapping[str, Any]) -> list[str]:
    """Return every error of a resolved configuration: key, value, what is allowed."""
    errors, node = rules.check(cfg), cfg.get("task")
    if not isinstance(node, Mapping) or "_target_" not in node:
        return errors
    try:
        task = task_class(cfg)
    except ConfigError as error:
        return errors or [str(error)]
    flat = flatten(cfg)
    errors += _parts(cfg, task) + _own_prompt(cfg, task)
    errors += _whole_clips(flat, task)
    return errors + broken(flat, task.rules) + _monitors(flat, task) + _objective(flat, task) + task.errors(flat)


def _whole_clips(flat: Mapping[str, Any], task: type[Task]) -> list[str]:
    """What anchors over the whole of a clip need."""
    errors = []
    for key, asked in (("data.anchors", "stream"), ("task.stream", True)):
        if flat.get(key) != asked:
            continue
        said = f"{key}={str(asked).lower()}"
        if not task.over_time:
            errors.append(f"{said}: task={task.name} is asked of a clip, not of a moment")
        elif flat.get("data.sampling") not in ("anchored", "fps"):
            errors.append(
                f"{said}: data.sampling={flat.get('data.sampling')} looks at whole clips; use anchored or fps"
            )
        elif flat.get("data.shots.eval"):
            errors.append(f"{said}: solved examples are not shown over whole clips; use data.shots.eval=0")
        elif flat.get("task.reasoning") is True and key == "data.anchors":
            errors.append(f"{said}: rationales are of one moment of a clip; use task.reasoning=false")
    return errors


def _parts(cfg: Mapping[str, Any], task: type[Task]) -> list[str]:
    """Parts of a mix that are for other tasks."""
    parts = ((cfg.get("data") or {}).get("options") or {}).get("parts")
    if not isinstance(parts, Mapping):
        return []
    errors = []
    for name, part in parts.items():
        kind = str((part if isinstance(part, Mapping) else {}).get("format") or name)
        try:
            able = dataset(kind).get("tasks") or []
        except DataError as error:
            errors.append(str(error).replace("\n  do:", ";"))
            continue
        if task.name not in able:
            errors.append(f"data.options.parts.{name}: {kind} is for task={', '.join(able)}, got task={task.name}; "
                          "as chats (format: messages) its rows can join")  # fmt: skip
    return errors


def _own_prompt(cfg: Mapping[str, Any], task: type[Task]) -> list[str]:
    """What is wrong with ``task.prompt_file``, before any job starts."""
    if not isinstance(cfg["task"].get("prompt_file"), Mapping):
        return []
    try:
        make_task(cfg)
    except ConfigError as error:
        return [str(error).replace("\n  got:", ":").replace("\n  do:", ";")]
    return []


def _monitors(flat: Mapping[str, Any], task: type[Task]) -> list[str]:
    """Checkpoints are chosen by what the validation measures, in the direction in which it is better."""
    errors = []
    objective = str(flat.get("objective.name"))
    own = rules.OBJECTIVE_MONITORS.get(objective)
    known = own or {f"val/{name}": mode for name, mode in task.evaluation.monitors.items()}
    for node in ("callbacks.checkpoint", "callbacks.early_stopping"):
        monitor, mode = flat.get(f"{node}.monitor"), flat.get(f"{node}.mode")
        if monitor is None:
            continue
        if monitor not in known:
            who = f"objective={objective}" if own else f"task={task.name}"
            meant = near(str(monitor), list(known))
            errors.append(f"{node}.monitor={monitor}: {who} measures {', '.join(known)}{meant}")
        elif mode in ("min", "max") and mode != known[monitor]:
            better = "lower" if known[monitor] == "min" else "higher"
            errors.append(f"{node}.mode={mode}: {monitor} is better the {better} it is; use {known[monitor]}")
    return errors


def _objective(flat: Mapping[str, Any], task: type[Task]) -> list[str]:
    """What the objective needs of a task: choices to score, or a text to write."""
    errors, name = [], task.name
    if not task.choices and flat.get("objective.generate") is False:
        errors.append(f"objective.generate=false: task={name} is scored by what is written")
    if task.choices and flat.get("objective.prefix"):
        errors.append(f"objective.prefix={flat['objective.prefix']}: task={name} is scored by its choices")
    if flat.get("objective.constrained") and task.schema is None:
        errors.append(f"objective.constrained=true: needs a task with a JSON schema, got task={name}")
    if flat.get("objective.name") == "pooled" and len(task.choices) != 2:
        errors.append(f"objective=pooled: needs a task with two answers, got task={name}")
    return errors
