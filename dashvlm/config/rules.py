"""The rules that a resolved configuration must keep, value by value and between values. Imports no Hydra, no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dashvlm.config.find import study_names
from dashvlm.safety.redaction import problems

Rule = tuple[Callable[[Any], bool], str]
"""A test of a value, and what is allowed in words."""


def _whole(low: int, high: int | None = None) -> Rule:
    text = f"a whole number of at least {low}" + (f", at most {high}" if high else "")
    return (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low and (high is None or v <= high),
        text,
    )


def _number(low: float, high: float | None = None, open_low: bool = False) -> Rule:
    text = f"a number {'above' if open_low else 'of at least'} {low:g}" + (
        f", at most {high:g}" if high is not None else ""
    )

    def ok(v: Any) -> bool:
        if isinstance(v, bool) or not isinstance(v, int | float) or v != v:
            return False
        return (v > low if open_low else v >= low) and (high is None or v <= high)

    return ok, text


def _one_of(*allowed: Any) -> Rule:
    return lambda v: v in allowed and not isinstance(v, int), "one of " + ", ".join(map(str, allowed))


def _optional(rule: Rule) -> Rule:
    return lambda v: v is None or rule[0](v), f"null or {rule[1]}"


def _flag() -> Rule:
    return lambda v: isinstance(v, bool), "true or false"


def _size(v: Any) -> bool:
    return v is None or (isinstance(v, list) and len(v) == 2 and all(isinstance(x, int) and 8 <= x <= 8192 for x in v))


def _bounds(v: Any) -> bool:
    return v is None or (
        isinstance(v, list) and len(v) == 2 and all(isinstance(x, int) for x in v) and 0 < v[0] <= v[1]
    )


MONITORS = {
    "crash": ("val/roc_auc", "val/ap", "val/accuracy", "val/brier"),
    "mcq": ("val/accuracy", "val/log_loss"),
    "scene": ("val/loss",),
    "caption": ("val/loss",),
}
"""Task -> what its validation measures, and checkpoints may be chosen by."""
OBJECTIVE_MONITORS = {
    "grpo": ("val/reward", "val/format_rate"),
    "dpo": ("val/preference_accuracy", "val/loss"),
}
"""The same for objectives that validate in their own way."""

NAMED_IN = {
    "task._target_": "dashvlm.tasks",
    "objective._target_": "dashvlm.objectives",
    "model._target_": "dashvlm.backbones",
    "data.importer": "dashvlm.data.formats",
}
"""Key -> the package that may be named there; ``targets`` looks the name up."""

RULES: dict[str, Rule] = {
    "seed": _whole(0),
    "paths.shared": _flag(),
    "data.num_frames": _whole(1, 1024),
    "data.frame_interval_s": _number(0, open_low=True),
    "data.horizon_s": _number(0),
    "data.sample_fps": _number(0, open_low=True),
    "data.sampling": _one_of("anchored", "uniform", "endpoints", "fps", "dense"),
    "data.support_frames": _one_of("never", "train_only", "always"),
    "data.support_num_frames": (_bounds, "null or [fewest, most] frames of a support window"),
    "data.reference": _one_of("event", "clip_end"),
    "data.negative_reference": _one_of("matched", "clip_end"),
    "data.short_history": _one_of("error", "pad_oldest", "skip"),
    "data.reader": _one_of("pyav", "decord", "torchcodec"),
    "data.pixels": _one_of("on", "off"),
    "data.split_by": _one_of("group", "row"),
    "data.force_row_split": _flag(),
    "data.frame_size": (_size, "null or [height, width] in pixels"),
    "data.batch_size": _whole(1),
    "data.eval_batch_size": _whole(1),
    "data.num_workers": _whole(0),
    "data.store_gb": _number(0, open_low=True),
    "data.decode_timeout_s": _number(0, open_low=True),
    "data.decode_memory_gb": _number(0.1),
    "data.shots.share": _number(0, 1),
    "data.shots.least": _whole(1, 32),
    "data.shots.most": _whole(1, 32),
    "data.shots.eval": _whole(0, 32),
    "data.limit": _optional(_whole(1)),
    "data.max_bad_fraction": _number(0, 1),
    "peft.method": _one_of("lora", "full", "frozen"),
    "peft.rank": _whole(1),
    "peft.alpha": _number(0, open_low=True),
    "peft.dropout": _number(0, 0.99),
    "peft.quantization": _optional(_one_of("nf4")),
    "optim.name": _one_of("adamw", "adamw8bit", "paged_adamw8bit"),
    "optim.lr": _number(0, open_low=True),
    "optim.weight_decay": _number(0),
    "optim.schedule": _one_of("constant", "linear", "cosine"),
    "optim.warmup": _number(0),
    "objective.pooling": _one_of("last", "mean", "attention"),
    "objective.head": _one_of("linear", "mlp"),
    "objective.generate": _flag(),
    "trainer.max_epochs": _whole(0),
    "trainer.max_steps": _optional(_whole(0)),
    "trainer.accumulate_grad_batches": _whole(1),
    "trainer.val_every_n_steps": _optional(_whole(1)),
    "trainer.gradient_clip_val": _optional(_number(0)),
    "trainer.precision": _one_of("32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"),
    "callbacks.checkpoint.every_n_steps": _whole(1),
    "callbacks.checkpoint.mode": _one_of("max", "min"),
    "objective.constrained": _flag(),
    "objective.max_new_tokens": _optional(_whole(1)),
    "objective.reasoning_weight": _number(0),
    "objective.answer_weight": _number(0),
    "objective.accuracy_penalty": _number(0),
    "objective.num_generations": _whole(2),
    "objective.iterations": _whole(1),
    "objective.temperature": _number(0, open_low=True),
    "objective.top_p": _number(0, 1, open_low=True),
    "objective.beta": _number(0),
    "objective.clip_low": _number(0, 1),
    "objective.clip_high": _number(0),
    "objective.reference": _one_of("start", "base", "none"),
    "objective.variant": _one_of("sigmoid", "length_normalised"),
    "objective.scale_rewards": _flag(),
    "objective.shared_prefix": _flag(),
    "task.reasoning": (lambda v: isinstance(v, bool) or v == "auto", "one of auto, true, false"),
    "task.pairs": _one_of("given", "wrong_positions"),
    "data.label_options.mode": _optional(_one_of("told", "blind")),
    "data.label_options.drop_stating_outcome": _flag(),
    "data.label_options.replace_annotations": _flag(),
    "label_in_prompt": _one_of("told", "blind", "both"),
    "dry_run": _flag(),
    "splits": (
        lambda v: isinstance(v, list) and bool(v) and set(v) <= {"train", "val", "test"},
        "a list of train, val and test",
    ),
    "teacher.concurrency": _whole(1, 64),
    "teacher.timeout_s": _number(0, open_low=True),
    "teacher.settle_s": _number(0),
    "teacher.retries": _whole(0, 100),
    "teacher.max_backoff_s": _number(0),
    "teacher.max_tokens": _whole(1),
    "teacher.cap_usd": _number(0),
    "teacher.detail": _one_of("auto", "low", "high"),
    "task.language": _one_of("auto", "vi", "en"),
    "task.answer_with": _one_of("letter", "text"),
    "task.reorder": _flag(),
    "task.style": _one_of("structured", "caption"),
    "task.text_dropout": _number(0, 1),
    "objective.gate_penalty": _number(0),
    "task.submit": _one_of("scores", "text"),
    "task.fallback": _one_of("A", "B", "C", "D"),
    "logger.name": _one_of("csv", "wandb", "tensorboard"),
    "logger.mode": _one_of("online", "offline", "disabled"),
    "model.dtype": _one_of("auto", "float32", "bfloat16", "float16"),
    "model.gradient_checkpointing": _flag(),
}
"""Key -> (test of a value, what is allowed). Keys that a configuration lacks are not checked."""


def check(cfg: Mapping[str, Any]) -> list[str]:
    """Return every error of a resolved configuration: key, value, what is allowed.

    Example:
        >>> check({"data": {"num_frames": 0, "reader": "decrod"}})  # doctest: +NORMALIZE_WHITESPACE
        ['data.num_frames=0: must be a whole number of at least 1, at most 1024',
         'data.reader=decrod: must be one of pyav, decord, torchcodec; did you mean decord?']
    """
    flat = flatten(cfg)
    errors = [f"{key}: no value; set it on the command line" for key, v in flat.items() if v == "???"]
    for key, (test, allowed) in RULES.items():
        if key in flat and flat[key] != "???" and not test(flat[key]):
            value = flat[key]
            errors.append(f"{key}={_show(value)}: must be {allowed}{near(str(value), _words(allowed))}")
    return errors + problems(cfg) + _cross_rules(flat, cfg)


def _cross_rules(flat: Mapping[str, Any], cfg: Mapping[str, Any]) -> list[str]:
    errors = []
    splits = (cfg.get("data") or {}).get("splits")
    if isinstance(splits, Mapping) and (
        any(not isinstance(v, int | float) or v < 0 for v in splits.values()) or sum(splits.values()) <= 0
    ):
        errors.append(f"data.splits={dict(splits)}: must be shares of at least 0 with a positive sum")
    if flat.get("peft.method") == "lora" and not (cfg.get("peft") or {}).get("roles", True):
        errors.append("peft.roles=[]: adapters need a part to sit in, such as [language]; peft=frozen trains none")
    if flat.get("peft.quantization") and flat.get("trainer.precision") in ("bf16-true", "64-true"):
        errors.append(
            f"trainer.precision={flat['trainer.precision']}: would cast 4-bit weights; use bf16-mixed or 32-true"
        )
    if flat.get("peft.quantization") and flat.get("peft.method") == "full":
        errors.append("peft.quantization=nf4: 4-bit weights cannot train in full; use peft=qlora or drop it")
    trained = set((cfg.get("peft") or {}).get("train_roles") or ()) - {"head", "lm_head"}
    if flat.get("peft.quantization") and trained:
        errors.append(f"peft.train_roles={sorted(trained)}: 4-bit parts cannot train in full; use peft=lora")
    for key, package in NAMED_IN.items():
        if not str(flat.get(key, f"{package}.")).startswith(f"{package}."):
            errors += [f"{key}={str(flat[key])[:200]}: only what {package} offers may be named here"]
    if flat.get("study"):
        name, _, form = str(flat["study"]).partition("/")
        studies = study_names()  # none where the package was installed without its studies
        if studies and (name not in studies or form not in ("full", "smoke")):
            errors.append(f"study={flat['study']}: must be NAME/full or NAME/smoke{near(name, studies)}")
    able, task = flat.get("data.tasks"), flat.get("task.name")
    if isinstance(able, list) and task is not None and task not in able:
        errors.append(f"data={flat.get('data.name')}: its rows are for task={', '.join(able)}, got task={task}")
    for key in ("callbacks.checkpoint.monitor", "callbacks.early_stopping.monitor"):
        objective, task_name = str(flat.get("objective.name")), str(flat.get("task.name"))
        known = OBJECTIVE_MONITORS.get(objective) or MONITORS.get(task_name, ())
        if known and key in flat and flat[key] not in known:
            hint = near(str(flat[key]), known)
            who = f"objective={objective}" if objective in OBJECTIVE_MONITORS else f"task={task_name}"
            errors.append(f"{key}={flat[key]}: {who} measures {', '.join(known)}{hint}")
    for node in ("callbacks.checkpoint", "callbacks.early_stopping"):
        monitor, mode = str(flat.get(f"{node}.monitor")), flat.get(f"{node}.mode")
        wanted = "min" if monitor in ("val/log_loss", "val/brier", "val/loss") else "max"
        if mode in ("min", "max") and mode != wanted:
            better = "lower" if wanted == "min" else "higher"
            errors.append(f"{node}.mode={mode}: {monitor} is better the {better} it is; use {wanted}")
    if flat.get("task.answer_with") == "text" and flat.get("task.reorder"):
        errors.append("task.reorder=true: whole texts do not depend on a letter's place; use task.answer_with=letter")
    if flat.get("task.name") in ("scene", "caption") and flat.get("objective.generate") is False:
        errors.append(f"objective.generate=false: task={flat['task.name']} is scored by what is written")
    if flat.get("objective.prefix") and flat.get("task.name") in ("crash", "mcq"):
        errors.append(f"objective.prefix={flat['objective.prefix']}: task={flat['task.name']} is scored by its choices")
    if any(str(k).startswith("objective.generation.max_new_tokens") for k in flat):
        errors.append("objective.generation.max_new_tokens: set objective.max_new_tokens instead")
    least, most = flat.get("data.shots.least"), flat.get("data.shots.most")
    if isinstance(least, int) and isinstance(most, int) and most < least:
        errors.append(f"data.shots.most={most}: must be at least data.shots.least={least}")
    if flat.get("objective.constrained") and flat.get("task.name") != "scene":
        errors.append(
            f"objective.constrained=true: needs a task with a schema (scene), got task={flat.get('task.name')}"
        )
    errors += _reasoning_rules(flat)
    if flat.get("objective.name") == "pooled" and flat.get("task.name") not in (None, "crash"):
        errors.append(f"objective=pooled: needs a task with two answers, got task={flat.get('task.name')}")
    return errors


def _reasoning_rules(flat: Mapping[str, Any]) -> list[str]:
    """What rationales, completions and pairs need of the rest."""
    errors = []
    objective, every = flat.get("objective.name"), flat.get("callbacks.checkpoint.every_n_steps")
    taught = not flat.get("trainer.skip_fit") and flat.get("peft.method") != "frozen"
    labelled = flat.get("data.labels") or flat.get("data.name") == "synthetic"
    if flat.get("task.reasoning") is True and objective == "sft" and taught and not labelled:
        errors.append("task.reasoning=true: sft needs rationales to teach; set data.labels=FILE")
    if flat.get("task.reasoning") is True and objective == "pooled":
        errors.append("task.reasoning=true: objective=pooled writes no text; use objective=sft or grpo")
    repeats = flat.get("objective.iterations")
    if isinstance(repeats, int) and isinstance(every, int) and repeats > 1 and every % repeats:
        errors.append(
            f"callbacks.checkpoint.every_n_steps={every}: must be a multiple of objective.iterations={repeats}, "
            "or a resumed run would draw other completions"
        )
    if isinstance(repeats, int) and repeats > 1 and flat.get("trainer.accumulate_grad_batches", 1) != 1:
        errors.append("objective.iterations above 1 needs trainer.accumulate_grad_batches=1")
    every = flat.get("trainer.val_every_n_steps")
    if isinstance(repeats, int) and repeats > 1 and (not isinstance(every, int) or every % repeats):
        errors.append(
            f"trainer.val_every_n_steps={_show(every)}: must be a multiple of objective.iterations={repeats}, "
            "or a run resumed after a validation would draw other completions"
        )
    if objective == "grpo" and flat.get("task.style") == "caption":
        errors.append("task.style=caption: nothing in a free caption is rewarded; use task.style=structured")
    for key, value in flat.items():
        if key.startswith("objective.rewards.") and (isinstance(value, bool) or not isinstance(value, int | float)):
            errors.append(f"{key}={value}: must be a number")
    if flat.get("objective.answer_weight") == 0 and flat.get("objective.reasoning_weight") == 0:
        errors.append("objective.answer_weight=0 and reasoning_weight=0: nothing would be taught")
    if flat.get("objective.reference") == "base" and flat.get("peft.method") not in (None, "lora"):
        errors.append(f"objective.reference=base: needs adapters to switch off, got peft.method={flat['peft.method']}")
    if flat.get("model.name") == "openai" and flat.get("peft.method") not in (None, "frozen"):
        errors.append("model=openai: a model behind an endpoint cannot be trained; use `python -m dashvlm.evaluate`")
    loss = flat.get("objective.loss")
    allowed = {"grpo": ("grpo", "bnpo", "dr_grpo"), "pooled": ("bce", "focal")}.get(str(objective))
    if allowed and loss not in allowed:
        errors.append(f"objective.loss={loss}: must be one of {', '.join(allowed)}{near(str(loss), allowed)}")
    return errors


def flatten(node: Any, path: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys; lists and empty mappings are values."""
    if isinstance(node, Mapping) and node:
        flat: dict[str, Any] = {}
        for key, value in node.items():
            flat |= flatten(value, f"{path}.{key}" if path else str(key))
        return flat
    return {path: node}


def near(word: str, known: Sequence[str]) -> str:
    """Return ``; did you mean X?`` if one of the known words is close, else nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not found and "." not in word:
        tails = [k for k in known if k.rsplit(".", 1)[-1] == word]
        found = tails[:1]
    return f"; did you mean {found[0]}?" if found else ""


def _words(allowed: str) -> list[str]:
    return allowed.replace("one of ", "").split(", ") if "one of" in allowed else []


def _show(value: Any) -> str:
    return "null" if value is None else str(value)
