"""The rules that a resolved configuration must keep, value by value and between values. Imports no Hydra, no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dashvlm.config.find import study_names
from dashvlm.safety.redaction import problems

Rule = tuple[Callable[[Any], bool], str]
"""A test of a value, and what is allowed in words."""


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number within bounds."""
    text = f"a whole number of at least {low}" + (f", at most {high}" if high else "")
    return (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low and (high is None or v <= high),
        text,
    )


def number(low: float, high: float | None = None, open_low: bool = False) -> Rule:
    """A number within bounds."""
    text = f"a number {'above' if open_low else 'of at least'} {low:g}" + (
        f", at most {high:g}" if high is not None else ""
    )

    def ok(v: Any) -> bool:
        if isinstance(v, bool) or not isinstance(v, int | float) or v != v:
            return False
        return (v > low if open_low else v >= low) and (high is None or v <= high)

    return ok, text


def one_of(*allowed: Any) -> Rule:
    """One of some words."""
    return lambda v: v in allowed and not isinstance(v, int), "one of " + ", ".join(map(str, allowed))


def optional(rule: Rule) -> Rule:
    """Null, or what another rule allows."""
    return lambda v: v is None or rule[0](v), f"null or {rule[1]}"


def flag() -> Rule:
    """True or false."""
    return lambda v: isinstance(v, bool), "true or false"


def _size(v: Any) -> bool:
    return v is None or (isinstance(v, list) and len(v) == 2 and all(isinstance(x, int) and 8 <= x <= 8192 for x in v))


def _bounds(v: Any) -> bool:
    return v is None or (
        isinstance(v, list) and len(v) == 2 and all(isinstance(x, int) for x in v) and 0 < v[0] <= v[1]
    )


OBJECTIVE_MONITORS = {
    "grpo": {"val/reward": "max", "val/format_rate": "max"},
    "dpo": {"val/preference_accuracy": "max", "val/loss": "min"},
}
"""Objectives that validate in their own way -> what they measure, and whether high or low is better."""

NAMED_IN = {
    "task._target_": "dashvlm.tasks",
    "objective._target_": "dashvlm.objectives",
    "model._target_": "dashvlm.backbones",
    "data.importer": "dashvlm.data.formats",
}
"""Key -> the package that may be named there; ``targets`` looks the name up."""

RULES: dict[str, Rule] = {
    "seed": whole(0),
    "paths.shared": flag(),
    "data.num_frames": whole(1, 1024),
    "data.frame_interval_s": number(0, open_low=True),
    "data.horizon_s": number(0),
    "data.sample_fps": number(0, open_low=True),
    "data.sampling": one_of("anchored", "uniform", "endpoints", "fps", "dense"),
    "data.support_frames": one_of("never", "train_only", "always"),
    "data.support_window_s": number(0, open_low=True),
    "data.support_num_frames": (_bounds, "null or [fewest, most] frames of a support window"),
    "data.reference": one_of("event", "clip_end"),
    "data.negative_reference": one_of("matched", "clip_end"),
    "data.anchors": one_of("event", "stream"),
    "data.stream.window_s": number(0, open_low=True),
    "data.stream.per_clip": whole(1),
    "data.stream.positive_share": number(0, 1),
    "data.stream.stride_s": number(0, open_low=True),
    "data.stream.refractory_s": number(0, open_low=True),
    "task.stream": flag(),
    "data.short_history": one_of("error", "pad_oldest", "skip"),
    "data.reader": one_of("pyav", "decord", "torchcodec"),
    "data.pixels": one_of("on", "off"),
    "data.features": one_of("auto", "on", "off"),
    "data.encoded": one_of("auto", "on", "off"),
    "data.split_by": one_of("group", "row"),
    "data.force_row_split": flag(),
    "data.frame_size": (_size, "null or [height, width] in pixels"),
    "data.batch_size": whole(1),
    "data.eval_batch_size": whole(1),
    "data.num_workers": whole(0),
    "data.store_gb": number(0, open_low=True),
    "data.decode_timeout_s": number(0, open_low=True),
    "data.decode_memory_gb": number(0.1),
    "data.shots.share": number(0, 1),
    "data.shots.least": whole(1, 32),
    "data.shots.most": whole(1, 32),
    "data.shots.eval": whole(0, 32),
    "data.limit": optional(whole(1)),
    "data.by_clip": flag(),
    "data.length_window": whole(0),
    "objective.shared_clips": flag(),
    "data.val_limit": optional(whole(1)),
    "data.max_bad_fraction": number(0, 1),
    "peft.method": one_of("lora", "full", "frozen"),
    "peft.rank": whole(1),
    "peft.alpha": number(0, open_low=True),
    "peft.dropout": number(0, 0.99),
    "peft.quantization": optional(one_of("nf4")),
    "optim.name": one_of("adamw", "adamw8bit", "paged_adamw8bit"),
    "optim.lr": number(0, open_low=True),
    "optim.weight_decay": number(0),
    "optim.schedule": one_of("constant", "linear", "cosine"),
    "optim.warmup": number(0),
    "objective.pooling": one_of("last", "mean", "attention"),
    "objective.head": one_of("linear", "mlp"),
    "objective.generate": flag(),
    "trainer.max_epochs": whole(0),
    "trainer.max_steps": optional(whole(0)),
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.val_every_n_steps": optional(whole(1)),
    "trainer.gradient_clip_val": optional(number(0)),
    "trainer.precision": one_of("32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"),
    "callbacks.checkpoint.every_n_steps": whole(1),
    "callbacks.checkpoint.keep": optional(
        (lambda v: v == "all" or (isinstance(v, int) and not isinstance(v, bool) and v > 0), "all or a number from 1")
    ),
    "callbacks.checkpoint.mode": one_of("max", "min"),
    "objective.constrained": flag(),
    "objective.max_new_tokens": optional(whole(1)),
    "objective.max_tokens": optional(whole(1)),
    "objective.too_long": one_of("refuse", "truncate"),
    "objective.reasoning_weight": number(0),
    "objective.answer_weight": number(0),
    "objective.accuracy_penalty": number(0),
    "objective.num_generations": whole(2),
    "objective.iterations": whole(1),
    "objective.temperature": number(0, open_low=True),
    "objective.top_p": number(0, 1, open_low=True),
    "objective.beta": number(0),
    "objective.clip_low": number(0, 1),
    "objective.clip_high": number(0),
    "objective.reference": one_of("start", "base", "none"),
    "objective.variant": one_of("sigmoid", "length_normalised"),
    "objective.scale_rewards": flag(),
    "objective.shared_prefix": flag(),
    "data.label_options.mode": optional(one_of("told", "blind")),
    "data.label_options.drop_stating_outcome": flag(),
    "data.label_options.replace_annotations": flag(),
    "label_in_prompt": one_of("told", "blind", "both"),
    "dry_run": flag(),
    "splits": optional(
        (
            lambda v: isinstance(v, list) and bool(v) and set(v) <= {"train", "val", "test"},
            "a list of train, val and test, such as [train,val]",
        )
    ),
    "verbose": flag(),
    "stream": optional(flag()),
    "csv": flag(),
    "checkpoint": optional((lambda v: isinstance(v, str) and bool(v), "the name of a checkpoint")),
    "teacher.concurrency": whole(1, 64),
    "teacher.timeout_s": number(0, open_low=True),
    "teacher.settle_s": number(0),
    "teacher.retries": whole(0, 100),
    "teacher.max_backoff_s": number(0),
    "teacher.max_tokens": whole(1),
    "teacher.cap_usd": number(0),
    "teacher.detail": one_of("auto", "low", "high"),
    "objective.gate_penalty": number(0),
    "logger.name": one_of("csv", "wandb", "tensorboard"),
    "logger.mode": one_of("online", "offline", "disabled"),
    "model.dtype": one_of("auto", "float32", "bfloat16", "float16"),
    "model.gradient_checkpointing": flag(),
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
    return errors + broken(flat, RULES) + problems(cfg) + _cross_rules(flat, cfg)


def broken(flat: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[str]:
    """Each value of a configuration (dotted keys) that breaks its rule."""
    return [
        f"{key}={_show(flat[key])}: must be {allowed}{near(str(flat[key]), _words(allowed))}"
        for key, (test, allowed) in rules.items()
        if key in flat and flat[key] != "???" and not test(flat[key])
    ]


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
    if flat.get("data.by_clip") and flat.get("data.length_window"):
        errors.append("data.by_clip=true: orders training by clip, data.length_window by length; choose one")
    if flat.get("study"):
        name, _, form = str(flat["study"]).partition("/")
        studies = study_names()  # none where the package was installed without its studies
        if studies and (name not in studies or form not in ("full", "smoke")):
            errors.append(f"study={flat['study']}: must be NAME/full or NAME/smoke{near(name, studies)}")
    able, task = flat.get("data.tasks"), flat.get("task.name")
    if isinstance(able, list) and task is not None and task not in able:
        errors.append(f"data={flat.get('data.name')}: its rows are for task={', '.join(able)}, got task={task}")
    if any(str(k).startswith("objective.generation.max_new_tokens") for k in flat):
        errors.append("objective.generation.max_new_tokens: set objective.max_new_tokens instead")
    least, most = flat.get("data.shots.least"), flat.get("data.shots.most")
    if isinstance(least, int) and isinstance(most, int) and most < least:
        errors.append(f"data.shots.most={most}: must be at least data.shots.least={least}")
    errors += _objective_rules(flat)
    return errors


def _objective_rules(flat: Mapping[str, Any]) -> list[str]:
    """What completions, pairs and rewards need of the rest."""
    errors = []
    objective, every = flat.get("objective.name"), flat.get("callbacks.checkpoint.every_n_steps")
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
    for key, value in flat.items():
        if key.startswith("objective.rewards.") and (isinstance(value, bool) or not isinstance(value, int | float)):
            errors.append(f"{key}={value}: must be a number")
    if flat.get("objective.answer_weight") == 0 and flat.get("objective.reasoning_weight") == 0:
        errors.append("objective.answer_weight=0 and reasoning_weight=0: nothing would be taught")
    if flat.get("objective.reference") == "base" and flat.get("peft.method") not in (None, "lora"):
        errors.append(f"objective.reference=base: needs adapters to switch off, got peft.method={flat['peft.method']}")
    if flat.get("model.name") == "openai" and flat.get("peft.method") not in (None, "frozen"):
        errors.append("model=openai: a model behind an endpoint cannot be trained; use `python -m dashvlm.evaluate`")
    if flat.get("model._target_") == "dashvlm.backbones.vision.load":
        errors += _encoder_rules(flat)
    loss = flat.get("objective.loss")
    allowed = {"grpo": ("grpo", "bnpo", "dr_grpo"), "pooled": ("bce", "focal")}.get(str(objective))
    if allowed and loss not in allowed:
        errors.append(f"objective.loss={loss}: must be one of {', '.join(allowed)}{near(str(loss), allowed)}")
    return errors


def _encoder_rules(flat: Mapping[str, Any]) -> list[str]:
    """What a vision encoder, which reads and writes no text, needs of the objective."""
    name, errors = flat.get("model.name"), []
    if flat.get("objective.name") != "pooled":
        errors.append(
            f"model={name}: reads and writes no text, got objective={flat.get('objective.name')}; "
            "add objective=pooled objective.pooling=mean"
        )
    if flat.get("peft.quantization"):
        errors.append(
            f"peft.quantization={flat['peft.quantization']}: 4-bit weights are for language models; peft=lora"
        )
    if flat.get("objective.pooling") == "last" and "model.loader_options.num_frames" in flat:  # sees frames together
        errors.append(f"objective.pooling=last: the last token of model={name} is a corner of the picture; use mean")
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
